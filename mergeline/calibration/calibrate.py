"""Closed-form calibration of a merged model on unlabelled inputs: layer-wise refit, last layer, centring.

All of it is distillation of the task models' features without a gradient step. It comes after the merge, may do more
for the result than the merge itself, and is to be told apart from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mergeline.alignment.alignment import Alignment
from mergeline.calibration.findings import grown_misses, raised_ridge, skewed_set, small_set
from mergeline.calibration.forms import columns as columns_of
from mergeline.calibration.heads import Heads
from mergeline.calibration.program import Program
from mergeline.calibration.record import CalibrationRecord
from mergeline.calibration.refit import Ridge, Runs, Wanted, check_finite, refit_layers
from mergeline.calibration.shelf import Shelf
from mergeline.calibration.sites import Found, Layer, find_layers
from mergeline.calibration.wanted import in_order, unit_mean
from mergeline.calibration.zipped_axes import zipped_elsewhere
from mergeline.errors import InputError
from mergeline.symmetry.tap import model_inputs

LastLayer = Literal["mean", "heads"]


class Calibrated(NamedTuple):
    """The calibrated module, and what was changed."""

    module: nn.Module
    record: CalibrationRecord


def calibrate(
    merged: nn.Module,
    modules: Sequence[nn.Module],
    alignment: Alignment | None,
    batches: Iterable[Any],
    *,
    centre: bool = True,
    last_layer: LastLayer | None = "mean",
    layers: bool = True,
    ridge: float = 1e-2,
    columns: int | None = None,
    heads: Sequence[Tensor] | None = None,
) -> nn.Module:
    """A calibrated copy of a merged model, in eval mode; warns where the calibration set is small or skewed.

    merged, modules: of one architecture, with normalisation statistics as they are (see `reset_normalization`: mostly
    those of the calibration set). alignment: of the modules, in their order; None where they share one unit order.
    batches: inputs, tuples whose first item is the input, or mappings of named inputs; they are read once.
    layers: refit every linear layer, convolution and BatchNorm in front of the last layer.
    last_layer: refit it to the mean of the task models' outputs, or to what their heads say (`heads`: for each module
    the rows [classes, outputs] whose cosines with its output are its logits).
    centre: subtract the mean output on the calibration set from the last bias; it assumes that the classes are about
    equally frequent there, and breaks merge(A, A) = A.
    ridge: lambda, relative to the mean variance of a layer's inputs; with infinity layers stay as merged.
    columns: about how many positions of all examples are looked at per layer (at least one of each); None: all.
    Raises InputError for models, options or data that do not fit, and for activations that are not finite.
    """
    found = calibrate_and_record(
        merged,
        modules,
        alignment,
        batches,
        centre=centre,
        last_layer=last_layer,
        layers=layers,
        ridge=ridge,
        columns=columns,
        heads=heads,
    )
    for sentence in found.record.warnings:
        warnings.warn(sentence, stacklevel=2)
    return found.module


def calibrate_and_record(
    merged: nn.Module,
    modules: Sequence[nn.Module],
    alignment: Alignment | None,
    batches: Iterable[Any],
    *,
    centre: bool,
    last_layer: LastLayer | None,
    layers: bool,
    ridge: float,
    columns: int | None,
    heads: Sequence[Tensor] | None = None,
) -> Calibrated:
    """`calibrate` with a record of what it did, warnings among it."""
    _check_options(ridge, columns, last_layer, heads, len(modules))
    state, tasks = _states(merged, modules, alignment)
    batches = filter(_holds_examples, batches)
    first = next(batches, None)
    if first is None:
        raise InputError("calibration: there are no calibration inputs; give at least one batch")
    program = Program(deepcopy(merged).float().eval(), model_inputs(first))
    state |= {part: program.tensor(part, state) for part in program.parts}
    found = find_layers(program)
    final = _final_layer(found, needed=centre or last_layer is not None)
    chosen = [layer for layer in found.layers if (last_layer is not None if layer is final else layers)]
    record = CalibrationRecord(kept=dict(found.kept) if layers else {})
    known = Heads(heads) if heads is not None else None
    chosen, wanted = _wanted(program, chosen, state, alignment, record)
    if alignment is not None and alignment.zips:
        for layer in list(zipped_elsewhere(program, chosen, tasks[0], alignment, model_inputs(first))):
            chosen.remove(layer)
            record.keep(layer, "has zipped units on another axis than its channels, too")
    if final in chosen and last_layer == "heads" and known is not None and final is not None:
        wanted[final.name] = known
    skew_of = final if centre and known is not None else None
    with Shelf() as shelf:
        runs = Runs(program, state, tasks, chosen, shelf, merged_end=final if centre else None, tasks_end=skew_of)
        runs.begin(chain([first], batches))
        record.images = runs.images
        refit_layers(runs, chosen, wanted, Ridge(ridge, columns), record)
        if centre and final is not None:
            _centre(runs, final, known, record)
    found_short = [*small_set(record.layers), *grown_misses(record.layers), *raised_ridge(record.layers, ridge)]
    record.warnings += [*found_short, *skewed_set(record.shares)]
    return Calibrated(_with_state(merged, program.joined(state)), record)


def _check_options(
    ridge: float, columns: int | None, last_layer: str | None, heads: Sequence[Tensor] | None, models: int
) -> None:
    if not ridge > 0:
        raise InputError(f"calibration: ridge must be above 0, not {ridge}; 0.01 suits most models")
    if columns is not None and columns < 1:
        raise InputError(f"calibration: columns must be at least 1, not {columns}; None looks at all")
    if last_layer not in (None, "mean", "heads"):
        raise InputError(f"calibration: last_layer {last_layer!r} is not known; use 'mean', 'heads' or None")
    if last_layer == "heads" and heads is None:
        raise InputError("calibration: last_layer 'heads' needs the task models' heads; give `heads`, or use 'mean'")
    if heads is not None and len(heads) != models:
        raise InputError(f"calibration: there are {len(heads)} heads for {models} task models; give one for each")


def _states(
    merged: nn.Module, modules: Sequence[nn.Module], alignment: Alignment | None
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The tensors of all models in float32 on the merged model's device. Raises InputError where they do not fit."""
    if not modules:
        raise InputError("calibration: there are no task models; give the models that were merged")
    if alignment is not None and alignment.models != len(modules):
        raise InputError(f"calibration: {len(modules)} task models, but the alignment is of {alignment.models}")
    own = merged.state_dict()
    if alignment is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        alignment.symmetry.check_shapes("calibration: the merged model and the alignment", shapes, units_only=True)
    device = next((x.device for x in own.values()), torch.device("cpu"))
    states = []
    for number, module in enumerate(modules):
        state = module.state_dict()
        for name, tensor in own.items():
            if name not in state or state[name].shape != tensor.shape:
                has = f"the shape {list(state[name].shape)}" if name in state else "no such tensor"
                raise InputError(
                    f"calibration: tensor '{name}' has the shape {list(tensor.shape)} in the merged model, and task "
                    f"model {number} has {has}; all must be of one architecture and width"
                )
        if more := next((name for name in state if name not in own), None):
            raise InputError(
                f"calibration: task model {number} has a tensor '{more}', and the merged model has none of that name; "
                "all must be of one architecture"
            )
        states.append(in_order(_floats(state, device), alignment, number))
    return _floats(own, device), states


def _holds_examples(batch: Any) -> bool:
    """Whether a batch is not empty; one that is says nothing."""
    return all(len(x) > 0 for x in tree_leaves(model_inputs(batch)) if isinstance(x, Tensor) and x.ndim)


def _floats(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {
        name: x.detach().to(device, torch.float32 if x.is_floating_point() else x.dtype).clone()
        for name, x in state.items()
    }


def _final_layer(found: Found, *, needed: bool) -> Layer | None:
    """The layer whose output is the model's. Raises InputError where it is needed and there is none."""
    final = next((layer for layer in found.layers if layer.final), None)
    if needed and final is None:
        named = "; ".join(f"{name} {reason}" for name, reason in list(found.kept.items())[-1:])
        kept = f" (the last of the layers that cannot be refit: {named})" if named else ""
        raise InputError(
            "calibration: no linear layer or convolution that can be refit gives the model's output, so there is "
            f"nothing to centre or to refit last; use centre: false and last_layer: none{kept}"
        )
    return final


def _wanted(
    program: Program,
    layers: Sequence[Layer],
    state: Mapping[str, Tensor],
    alignment: Alignment | None,
    record: CalibrationRecord,
) -> tuple[list[Layer], dict[str, Wanted]]:
    """The layers for which the units of the task models can be brought together, and how."""
    chosen, wanted = [], {}
    for layer in layers:
        site = layer.sites[0]
        (tensor, part), width = site.written(program), state[site.tensors[0]].shape[site.output_axis]
        try:
            wanted[layer.name] = unit_mean(alignment, tensor, site.output_axis, width, part)
            chosen.append(layer)
        except InputError as fault:
            record.keep(layer, str(fault))
    return chosen, dict[str, Wanted](wanted)


def _centre(runs: Runs, final: Layer, heads: Heads | None, record: CalibrationRecord) -> None:
    """Subtract the mean output from the last bias. Raises InputError where there is none."""
    site = next((site for site in final.sites if site.has_bias), None)
    if site is None:
        raise InputError(
            f"calibration: the last layer {final.name} has no bias to subtract the mean output from; use centre: false"
        )
    total, count = torch.zeros(()), 0
    expected = torch.zeros(())
    for (merged,), tasks in runs.outputs():
        rows = columns_of(merged, site.form, None)
        total, count = total + rows.sum(dim=1, dtype=torch.float64), count + rows.shape[1]
        if heads is not None:
            expected = expected + heads.expected(tasks)
    mean = total / count
    check_finite(mean, "the merged model's outputs")
    name = site.norm.bias if site.norm else site.bias
    assert name is not None
    runs.state[name] = (runs.state[name].double() - mean).float()
    record.centred = float(mean.norm())
    if heads is not None:
        check_finite(expected, "the task models' outputs")
        record.shares = (expected / expected.sum()).tolist()


def _with_state(merged: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with the tensors of a state; those that did not change keep every bit.

    Raises InputError where a dtype of the module cannot hold a value.
    """
    copy = deepcopy(merged).eval()
    with torch.no_grad():
        for name, tensor in copy.state_dict().items():
            new = state[name].to(tensor.dtype)
            if not torch.equal(new, tensor):
                if not new.isfinite().all():
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    raise InputError(
                        f"calibration: tensor '{name}' now holds values up to {float(state[name].abs().max()):.3g}, "
                        f"which {dtype} cannot hold; give the merged model in float32"
                    )
                tensor.copy_(new)
    return copy
