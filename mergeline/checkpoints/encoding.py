"""The bytes of a safetensors file, a function of its tensors alone.

The library's own writer puts the metadata in the order of a hash map, so equal checkpoints get different digests.
Format: 8 bytes header length (little-endian), a JSON header padded to 8 bytes, the tensors' data without gaps.
"""

import json
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Spec = tuple[tuple[int, ...], torch.dtype]  # what a file's header says of a tensor


def nbytes(spec: Spec) -> int:
    """Bytes of a tensor's data."""
    shape, dtype = spec
    return prod(shape) * dtype.itemsize


def encode_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The bytes a file begins with, and the place of each tensor in the file, in the order of their data."""
    order = sorted(specs, key=lambda name: (-specs[name][1].itemsize, name))  # wide first: all stay aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    places, end = {}, 0
    for name in order:
        shape, dtype = specs[name]
        places[name], end = end, end + nbytes(specs[name])
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + place for name, place in places.items()}


def data_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, whatever its layout in memory; shared with it where they lie one after the other."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
