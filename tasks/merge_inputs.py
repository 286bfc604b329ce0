"""What a merge reads: task models, their bases, and how they are brought into one unit order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tasks.checkpoints import open_artifacts
from tasks.store import ArtifactRef

if TYPE_CHECKING:
    from mergeline.checkpoints.readers import Reader


class MergeInputs(BaseModel):
    """Task models, the base of each (none: the method needs none), and the family each belongs to.

    heads: parts of the module that are not merged; all models and bases are read with those of the first model.
    alignment: brings family i into the order of family 0; none where all share one order or stay as they are.
    evidence: what was measured of each model, where the method wants that. from_start: the models are adapters, and
    their base is what they were before training. vocabulary: what to do where the models' differ.
    """

    model_config = ConfigDict(frozen=True)

    models: list[ArtifactRef]
    bases: list[ArtifactRef]
    families: list[int]
    alignment: ArtifactRef | None
    evidence: list[ArtifactRef] = []
    from_start: bool = False
    vocabulary: Literal["refuse", "common"] = "refuse"
    heads: list[str] = []

    @property
    def copy_only(self) -> list[str]:
        """Patterns of the tensors that are the first model's, and not merged."""
        from mergeline.checkpoints.heads import patterns_of

        return patterns_of(self.heads)

    def open(self) -> tuple[list[Reader], list[Reader]]:
        """Readers of the models and of their bases, in the reference's unit order; equal bases are one object."""
        from mergeline.checkpoints.adapters import InitialAdapterReader, refuse_unlike_adapters
        from mergeline.checkpoints.heads import with_one_head
        from mergeline.checkpoints.vocabulary import common_rows, refuse_unlike_vocabularies

        readers = open_artifacts([*self.models, *self.bases])
        refuse_unlike_adapters(readers)
        if self.vocabulary == "common":
            readers = common_rows(readers)
        else:
            refuse_unlike_vocabularies(readers)
        models, bases = readers[: len(self.models)], readers[len(self.models) :]
        if self.from_start:
            starts = [InitialAdapterReader(model) for model in models]  # refuses those whose start is not known
            bases = [starts[0]] * len(models)
        models, bases = self._aligned(models, bases)
        whole = with_one_head([*models, *bases], self.heads)
        return whole[: len(models)], whole[len(models) :]

    def _aligned(self, models: list[Reader], bases: list[Reader]) -> tuple[list[Reader], list[Reader]]:
        if self.alignment is None:
            return models, bases
        from mergeline.alignment.alignment import Alignment
        from mergeline.alignment.apply import AlignedReader

        alignment = Alignment.load(self.alignment.path)
        views = {
            id(reader): AlignedReader(reader, alignment, family)
            for readers in (models, bases)
            for reader, family in zip(readers, self.families, strict=False)
        }
        return [views[id(reader)] for reader in models], [views[id(reader)] for reader in bases]

    def like(self) -> tuple[ArtifactRef, int | None]:
        """The checkpoint whose layout, configuration and tokenizer fit the merge; and how many rows its vocabulary
        has, where not all have the same."""
        from mergeline.checkpoints.vocabulary import smallest_vocabulary

        refs = [*self.models, *self.bases]
        smallest = smallest_vocabulary(open_artifacts(refs)) if self.vocabulary == "common" else None
        return (self.models[0], None) if smallest is None else (refs[smallest[0]], smallest[1])
