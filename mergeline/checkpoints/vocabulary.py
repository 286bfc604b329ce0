"""Vocabularies: the tensors with a row per token, what to say where models differ in rows, and the rows they share."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from mergeline.checkpoints.tensors import Reader, ReaderView
from mergeline.checkpoints.ties import ties_by
from mergeline.errors import InputError

VOCABULARY_PATTERNS = (
    "*embed_tokens.weight",
    "*wte.weight",
    "*lm_head.weight",
    "*lm_head.bias",
    "*word_embeddings.weight",
    "*tok_embeddings.weight",
    "*embed_in.weight",
    "*embed_out.weight",
    "*predictions.bias",
    "*predictions.decoder.weight",
    "*predictions.decoder.bias",
    "*final_logits_bias",
    "shared.weight",
    "*.shared.weight",
)
SHOWN = 4


def is_vocabulary(name: str, patterns: Sequence[str] = VOCABULARY_PATTERNS) -> bool:
    """Whether a tensor has, by its name, a row per token."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def vocabulary_rows(
    readers: Sequence[Reader], patterns: Sequence[str] = VOCABULARY_PATTERNS
) -> dict[str, tuple[int, ...]]:
    """The vocabulary tensors in which checkpoints differ: name -> rows in each of them.

    These are tensors that every reader has and that differ in their first dimension only, if their name matches a
    pattern, or if their rows are those of one whose name does.
    """
    shared = [name for name in readers[0].names() if all(name in reader for reader in readers[1:])]
    differing = {}
    for name in shared:
        shapes = [reader.shape(name) for reader in readers]
        if len(set(shapes)) > 1 and all(shape and shape[1:] == shapes[0][1:] for shape in shapes):
            differing[name] = tuple(shape[0] for shape in shapes)
    known = {rows for name, rows in differing.items() if is_vocabulary(name, patterns)}
    return {name: rows for name, rows in differing.items() if rows in known}


def refuse_unlike_vocabularies(readers: Sequence[Reader], patterns: Sequence[str] = VOCABULARY_PATTERNS) -> None:
    """InputError that says which checkpoints have how many rows in which tensors, and offers the common rows."""
    differing = vocabulary_rows(readers, patterns)
    if not differing:
        return
    faults = []
    for name, rows in list(differing.items())[:SHOWN]:
        counts = ", ".join(f"{count} in {reader.source}" for count, reader in zip(rows, readers, strict=True))
        faults.append(f"tensor '{name}' has rows: {counts}")
    more = f"; and {len(differing) - SHOWN} more tensors" if len(differing) > SHOWN else ""
    raise InputError(
        f"the vocabularies differ: {'; '.join(faults)}{more}; write vocabulary: common to merge the rows that all have "
        "(the first ones: right where tokens were added at the end)"
    )


def common_rows(readers: Sequence[Reader], patterns: Sequence[str] = VOCABULARY_PATTERNS) -> list[Reader]:
    """Views of the checkpoints that end every vocabulary tensor after the rows that all of them have.

    Row i must be the same token everywhere, as it is where tokens were added at the end. Readers whose rows are the
    common ones are returned as they are, and equal objects stay equal objects.
    """
    rows = {name: min(counts) for name, counts in vocabulary_rows(readers, patterns).items()}
    views: dict[int, Reader] = {}
    for reader in readers:
        longer = any(reader.shape(name)[0] > count for name, count in rows.items())
        views[id(reader)] = CommonRowsReader(reader, rows) if longer else reader
    return [views[id(reader)] for reader in readers]


def smallest_vocabulary(
    readers: Sequence[Reader], patterns: Sequence[str] = VOCABULARY_PATTERNS
) -> tuple[int, int] | None:
    """Which reader has the common rows as its own vocabulary, and how many they are; None where all have the same.

    Its tokenizer and configuration fit the merge of the common rows: those of a longer one name tokens without a row.
    """
    counts = list(vocabulary_rows(readers, patterns).values())
    if not counts:
        return None
    rows = [max(count[reader] for count in counts) for reader in range(len(readers))]
    return rows.index(min(rows)), min(rows)


class CommonRowsReader(ReaderView):
    """A checkpoint whose listed tensors end after the given number of rows; only these are read."""

    def __init__(self, inner: Reader, rows: Mapping[str, int]) -> None:
        super().__init__(inner)
        self._rows = {name: count for name, count in rows.items() if inner.shape(name)[0] > count}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor after the cut."""
        shape = super().shape(name)
        return (self._rows[name], *shape[1:]) if name in self._rows else shape

    def read(self, name: str) -> Tensor:
        """The tensor, without the rows that other checkpoints lack."""
        return super().read_slice(name, 0, self._rows[name]) if name in self._rows else super().read(name)

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of those that are left."""
        return super().read_slice(name, start, min(stop, self._rows.get(name, stop)))

    def tied(self) -> dict[str, str]:
        """Tied weights of the checkpoint that were cut alike."""
        tied = super().tied()
        return ties_by({name: (tied.get(name, name), self._rows.get(name)) for name in self.names()})
