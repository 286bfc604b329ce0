"""Random numbers of entries: the bits belong to (seed, tensor name, model, entry), whatever the chunks and threads.

Counter-based (Philox 4x64-10: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3; NumPy's, whose raw
stream NumPy promises to keep): the key is a digest of seed, name and model, the counter is the entry's index, so any
piece of a tensor is drawn directly.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mergeline.merging.registry import Piece

WORDS = 8  # 32-bit words that one step of the counter gives


def random_words(seed: int, name: str, model: int, start: int, count: int) -> np.ndarray:
    """Uniform uint32 [count], of the entries start, start + 1, ... of one tensor of one model."""
    import numpy as np

    label = json.dumps([seed, name, model]).encode()
    key = np.frombuffer(hashlib.blake2b(label, digest_size=16).digest(), dtype="<u8").astype(np.uint64)
    first, last = start // WORDS, -(-(start + count) // WORDS)
    words = np.random.Philox(key=key, counter=first).random_raw(4 * (last - first)).astype("<u8", copy=False)
    return words.view("<u4")[start - first * WORDS :][:count]


def drop_and_rescale(rows: Tensor, keep_ratio: float, seed: int, where: Piece) -> Tensor:
    """Keep each entry with probability keep_ratio, divided by it, else 0: the expectation stays (DARE).

    rows: [n, c] float32, overwritten. where: the tensor and the index of its first entry.
    """
    import torch

    if keep_ratio == 1:
        return rows
    bound = min(round(keep_ratio * 2**32), 2**32 - 1)
    for model, row in enumerate(rows):
        kept = random_words(seed, where.name, model, where.start, len(row)) < bound
        row.mul_(torch.from_numpy(kept.astype("f4"))).div_(keep_ratio)
    return rows


def uniforms(seed: int, name: str, model: int, start: int, count: int) -> np.ndarray:
    """Float32 [count] in [0, 1), multiples of 2^-24; see `random_words`."""
    import numpy as np

    return (random_words(seed, name, model, start, count) >> 8).astype(np.float32) * np.float32(2**-24)
