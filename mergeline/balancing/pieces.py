"""Working through wide chunks in pieces that fit the cache, in buffers that serve every piece of every chunk.

Fresh memory for every step costs more than the arithmetic: its pages must be mapped and cleared first.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

PIECE_ENTRIES = 1 << 18  # over all rows: 1 MiB in float32; in smaller pieces the calls cost more than they save


class _Kept(threading.local):
    """The buffers of one thread."""

    def __init__(self) -> None:
        self.rooms: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


_kept = _Kept()


def pieces(rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same columns of tensors [n, c], piece by piece; elementwise work on them gives the bits of the whole."""
    columns = width(rows)
    return zip(*(tensor.split(columns, dim=-1) for tensor in (rows, *others)), strict=True)


def buffers(owner: str, rows: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for `count` times a piece of `rows`, with anything in it: [count, n, columns], to be cut with `[..., :c]`.

    It belongs to the calling thread and is given again to the next call with the same owner (a megabyte or a few each).
    """
    columns = min(width(rows), rows.shape[1])
    entries = count * len(rows) * columns
    room = _kept.rooms.get((owner, dtype, rows.device))
    if room is None or room.numel() < entries:
        room = _kept.rooms[owner, dtype, rows.device] = torch.empty(entries, dtype=dtype, device=rows.device)
    return room[:entries].view(count, len(rows), columns)


def width(rows: Tensor) -> int:
    """Columns of a piece of rows [n, c]."""
    return max(1 << 10, PIECE_ENTRIES // len(rows))
