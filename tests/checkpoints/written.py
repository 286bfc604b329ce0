"""What the tests of the writer share: tensors to write, and what lies there afterwards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor

from mergeline.checkpoints.readers import Reader

DTYPE = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
SHAPE = st.lists(st.integers(0, 4), max_size=3)


def example(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """A tensor of any dtype; odd seeds give one that is not contiguous in memory."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shape[::-1], generator=generator) * 100).to(dtype)
    return values.permute(list(reversed(range(values.dim())))) if seed % 2 else values.reshape(shape)


EXAMPLE = st.builds(example, DTYPE, SHAPE, st.integers(0, 99))
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), EXAMPLE, min_size=1)


def model(count: int = 6) -> dict[str, Tensor]:
    """`count` tensors of 400 bytes each."""
    return {f"layer{i}.weight": torch.full((10, 10), float(i)) for i in range(count)}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same(reader: Reader, tensors: dict[str, Tensor]) -> bool:
    return reader.names() == sorted(tensors) and all(
        torch.equal(reader.read(name), tensor) and reader.dtype(name) == tensor.dtype
        for name, tensor in tensors.items()
    )


class Stream:
    """Tensors in pieces of three entries, in one piece of memory that is used again."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        for name in names:
            flat = self._tensors[name].reshape(-1)
            memory = torch.empty(3, dtype=flat.dtype)
            for start in range(0, len(flat), 3):
                piece = memory[: len(flat) - start]
                yield name, start, piece.copy_(flat[start : start + 3])
