"""Texts as one tensor [n, 2, length] int64: token ids, and the attention mask, which is 0 at padding."""

from torch import Tensor, int64


def are_tokens(inputs: Tensor) -> bool:
    """Whether inputs are texts: nothing else that modules are given is made of integers in pairs."""
    return inputs.dtype == int64 and inputs.dim() == 3 and inputs.shape[1] == 2


def attention_mask(inputs: Tensor) -> Tensor:
    """Which tokens of a batch [b, 2, length] are of a text and not padding, [b, length] bool."""
    return inputs[:, 1].bool()


def lengths(inputs: Tensor) -> Tensor:
    """How many tokens each text has, [b] int64. Padding is at the end."""
    return inputs[:, 1].sum(dim=1)


def without_padding(batch: Tensor) -> Tensor:
    """A batch [b, 2, length] cut to its longest text."""
    return batch[:, :, : int(lengths(batch).max())]


def batches_by_length(inputs: Tensor, batch_size: int) -> tuple[list[Tensor], Tensor]:
    """Batches of texts of like length, cut to the longest of each; and the places [n] of the texts in their order.

    Half of the tokens of texts as they come can be padding, which takes as long as others.
    """
    order = lengths(inputs).argsort(stable=True)
    return [without_padding(batch) for batch in inputs[order].split(batch_size)], order.argsort()
