"""Where zipped units show: on the channels of a layer, where their mean is taken, or on another axis, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from mergeline.alignment.alignment import Alignment
from mergeline.calibration.program import Program, Values, Walk
from mergeline.calibration.sites import Layer
from mergeline.calibration.wanted import layout_of, moved, within, zips_some
from mergeline.symmetry.permute import gather_index
from mergeline.symmetry.trace import Inputs

ENOUGH = 2
"""Examples that are looked at."""

ROUNDING = 1e-3
"""Share of the largest value by which values differ at most because sums run in another order."""


def zipped_elsewhere(
    program: Program, layers: Sequence[Layer], state: Mapping[str, Tensor], alignment: Alignment, inputs: Inputs
) -> Iterator[Layer]:
    """The layers in whose values zipped units lie on another axis than that of the channels, as in token mixing: each
    model has its own there, so values of different models do not belong together.

    It shows when the units of a model (`state`) are moved: then more than the channels of these layers moves.
    """
    symmetry = alignment.symmetry
    permutations = symmetry.random_permutations(only=list(alignment.zips))
    states = state, moved(state, alignment, permutations)
    walks = [Walk(program, own, [layer.target for layer in layers]) for own in states]
    runs = [_few(program, inputs) for _ in walks]
    for layer in layers:
        before, after = (walk.run(walk.segment([layer.target]), run)[0] for walk, run in zip(walks, runs, strict=True))
        site = layer.sites[0]
        tensor, part = site.written(program)
        layout = layout_of(alignment, tensor)
        if layout is not None and zips_some(alignment, axis := layout.dims[site.output_axis]):
            index = within(gather_index(axis, symmetry, permutations), part)
            before = before.index_select(site.form.channel % before.ndim, index.to(before.device))
        if float((after - before).abs().max()) > ROUNDING * float(before.abs().max()):
            yield layer


def _few(program: Program, inputs: Inputs) -> Values:
    """The first examples of a batch, where the program takes any number of them."""
    values = program.start(inputs)
    shapes = zip(program.inputs, program.shapes, strict=True)
    vary = {node.name for node, shape in shapes if shape and isinstance(shape[0], str)}
    return {name: x[:ENOUGH] if name in vary else x for name, x in values.items()}
