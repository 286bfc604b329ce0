"""Sentences about a calibration set that carries less than a calibration asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergeline.calibration.record import LayerRecord

UNEVEN = 0.25
"""Share of the examples that would have to be of other classes for all to be equally frequent; more is skewed."""


def small_set(layers: Sequence[LayerRecord]) -> Iterator[str]:
    """A warning where layers have more unknowns than equations: there the ridge decides."""
    small = [layer for layer in layers if layer.columns < layer.inputs]
    if small:
        worst = max(small, key=lambda layer: layer.inputs / layer.columns)
        others = f" (and {len(small) - 1} other layers are as short)" if len(small) > 1 else ""
        yield (
            f"calibration: {worst.name} has {worst.inputs} inputs, but only {worst.columns} columns to find its "
            f"weights from{others}; the ridge decides the rest, so the weights stay near the merged ones: give more "
            "calibration inputs, or raise `columns`"
        )


def grown_misses(layers: Sequence[LayerRecord]) -> Iterator[str]:
    """A warning where layers are further from the task models than before: on the columns they are fitted on, they are
    not."""
    worse = [layer for layer in layers if layer.after > 1.01 * layer.before + 1e-6]
    if worse:
        worst = max(worse, key=lambda layer: layer.after - layer.before)
        others = f" (and so do {len(worse) - 1} other layers)" if len(worse) > 1 else ""
        yield (
            f"calibration: {worst.name} misses more of the task models' values after its refit than before "
            f"({worst.after:.3f} of their variance, not {worst.before:.3f}){others}: {worst.columns} columns are too "
            f"few for its {worst.inputs} inputs; raise `columns` or `ridge`, or give more calibration inputs"
        )


def raised_ridge(layers: Sequence[LayerRecord], ridge: float) -> Iterator[str]:
    """A warning where layers could not be solved with the ridge that was asked for."""
    raised = [layer for layer in layers if layer.ridge > ridge]
    if raised:
        most = max(raised, key=lambda layer: layer.ridge)
        yield (
            f"calibration: a ridge of {ridge:g} is below the rounding of the products of {len(raised)} layers, so it "
            f"was raised there, most for {most.name} ({most.inputs} inputs, {most.columns} columns) to "
            f"{most.ridge:g}; give more calibration inputs, or a larger `ridge`"
        )


def skewed_set(shares: Sequence[float]) -> Iterator[str]:
    """A warning where classes are far from equally frequent, as the task models' heads see them."""
    if not shares:
        return
    off = sum(abs(share - 1 / len(shares)) for share in shares) / 2
    if off > UNEVEN:
        yield (
            f"calibration: by the task models' heads the {len(shares)} classes are far from equally frequent in the "
            f"calibration set ({100 * min(shares):.0f} to {100 * max(shares):.0f} % each, {100 * off:.0f} % of the "
            "examples too many in some), and centring assumes that they are; use balanced inputs, or centre: false"
        )
