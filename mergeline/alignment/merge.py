"""The MuDSC result: models in one unit order, averaged."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.apply import AlignedReader
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.tensors import WithoutTensors
from mergeline.errors import InputError
from mergeline.merging.engine import merge


def merge_aligned(state_dicts: Sequence[Mapping[str, Tensor]], alignment: Alignment) -> dict[str, Tensor]:
    """Align every state dict and average (the MuDSC result before the normalisation reset).

    Tensors that differ in shape are heads of their own tasks: they are left out, to be taken from `apply_alignment`.
    Raises InputError where the number of state dicts is not that of the alignment.
    """
    if len(state_dicts) != alignment.models:
        raise InputError(f"merge: {len(state_dicts)} state dicts, but the alignment is of {alignment.models} models")
    readers = [AlignedReader(open_checkpoint(state), alignment, model) for model, state in enumerate(state_dicts)]
    heads = {name for name in readers[0] if any(x.shape(name) != readers[0].shape(name) for x in readers if name in x)}
    return dict(merge([WithoutTensors(reader, heads) for reader in readers], method="average"))
