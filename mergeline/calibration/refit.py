"""Layer-wise refit: every layer of a merged model, one after the other, is solved to give what its task models do.

The input of a layer is what the layers before it, refit already, give; its target is the mean of the task models'
values there, in the merged model's units. Before a ReLU a second pass asks only for what is read: where the target is
negative, any negative value will do. At the end of a residual branch the target is the stream itself, less what the
shortcut brings, so that every block corrects what the stream has missed so far. Relatives: PLeaS (arXiv 2407.02447),
RegMean++ (arXiv 2508.03121).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from tqdm.auto import tqdm

from mergeline.calibration.forms import Convolution, Taps, columns
from mergeline.calibration.program import Program, Walk
from mergeline.calibration.record import CalibrationRecord, LayerRecord
from mergeline.calibration.ridge import Moments, Solver
from mergeline.calibration.shelf import Shelf
from mergeline.calibration.sites import Layer
from mergeline.errors import InputError
from mergeline.symmetry.tap import model_inputs

Wanted = Callable[[Sequence[Tensor], int], Tensor]
"""Values of all task models at a layer, and the axis of their channels -> what the merged model should have there."""


class Runs:
    """The runs of the merged model and of all task models on all calibration batches, in step."""

    def __init__(
        self,
        program: Program,
        state: MutableMapping[str, Tensor],
        tasks: Sequence[Mapping[str, Tensor]],
        layers: Sequence[Layer],
        shelf: Shelf,
        *,
        merged_end: Layer | None = None,
        tasks_end: Layer | None = None,
    ) -> None:
        """layers: to be solved; merged_end, tasks_end: whose outputs will be asked for afterwards. state: of the merged
        model, will change."""
        targets = [layer.target for layer in layers]
        self.program, self.state, self.shelf = program, state, shelf
        self.images = self.first = 0  # in all batches, and in the first
        self._ends = merged_end, tasks_end
        self.merged = Walk(program, state, targets, keep=_target(merged_end))
        self.tasks = [Walk(program, task, targets, keep=_target(tasks_end)) for task in tasks]

    def begin(self, batches: Iterable[Any]) -> None:
        """Take in the batches, once. Raises InputError where there is none."""
        for batch in batches:
            start = self.program.start(model_inputs(batch))
            self.shelf.append({"merged": start, "tasks": [dict(start) for _ in self.tasks]})
            count = len(next(x for x in start.values() if isinstance(x, Tensor)))
            self.images, self.first = self.images + count, self.first or count
        if not self.images:
            raise InputError("calibration: there are no calibration inputs; give at least one batch")

    def outputs(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Batch by batch, the outputs of the merged model and of the task models at the ends that were asked for."""
        walks = [[self.merged] if self._ends[0] else [], self.tasks if self._ends[1] else []]
        segments = [[walk.segment(_target(end)) for walk in some] for some, end in zip(walks, self._ends, strict=True)]
        for batch in range(len(self.shelf)):
            entry = self.shelf[batch]
            values = [[entry["merged"]], entry["tasks"]]
            found = [
                [walk.run(segment, of)[0] for walk, segment, of in zip(some, parts, known, strict=False)]
                for some, parts, known in zip(walks, segments, values, strict=True)
            ]
            self.shelf[batch] = entry
            yield found[0], found[1]


def _target(end: Layer | None) -> list[Node]:
    return [] if end is None else [end.target]


@dataclass(frozen=True)
class Ridge:
    """How layers are solved. ridge: lambda, may be infinite. limit: about how many columns at most, or all."""

    ridge: float = 1e-2
    limit: int | None = None


def refit_layers(
    runs: Runs, layers: Sequence[Layer], wanted: Mapping[str, Wanted], options: Ridge, record: CalibrationRecord
) -> None:
    """Solve the layers one after the other; the state of the merged model changes. wanted: by the layers' names.

    Raises InputError where activations are not finite. Layers whose inputs do not vary keep their weights.
    """
    for layer in tqdm(layers, desc="calibrate", unit="layer", disable=None):
        refit = _LayerRefit(runs, layer, wanted[layer.name], options)
        if (changed := refit.run()) is not None:
            record.layers.append(changed)
            continue
        record.keep(layer, "its inputs do not vary on the calibration set")
        single = refit.moments.count == 1
        record.warnings.append(
            f"calibration: there is one column alone to find the weights of {layer.name} from, so it keeps them; give "
            "more calibration inputs"
            if single
            else f"calibration: the inputs of {layer.name} are the same everywhere in the calibration set, so it keeps "
            "its weights; is the layer in front of it dead?"
        )


class _LayerRefit:
    """One layer on its way from merged to refit weights."""

    def __init__(self, runs: Runs, layer: Layer, wanted: Wanted, options: Ridge) -> None:
        self.runs, self.layer, self.wanted, self.options = runs, layer, wanted, options
        self.form = layer.sites[0].form
        self.weights = [site.folded(runs.state) for site in layer.sites]
        self.moments = Moments()
        self.error = _Error(layer.relu)
        self.shifts: list[Tensor] = []
        self.places: Tensor | None = None
        self.at_fault = "merged model's"  # whose values are not finite, if any are not

    def run(self) -> LayerRecord | None:
        """Solve, and write the weights; None where there is nothing to solve."""
        self._gather()
        check_finite(self.moments.inputs, f"the merged model's inputs of {self.layer.name}")
        check_finite(self.moments.missing, f"the {self.at_fault} values at {self.layer.name}")
        before = self.error.share
        shift = torch.cat([s.form.by_input(x) for s, x in zip(self.layer.sites, self.shifts, strict=True)], dim=1)
        centred = any(site.has_bias for site in self.layer.sites)
        solver = Solver(self.moments, self.options.ridge, shift, centred=centred)
        if solver.varies:
            weights = self._changed(*solver.solve(self.moments))
            if self.layer.relu:
                self._gather_again(weights)
                weights = self._changed(*solver.solve(self.moments))
            self._write(weights, solver)
        self._finish()
        if not solver.varies:
            return None
        changed = (self.runs.program.whole(name)[0] for site in self.layer.sites for name in site.tensors)
        names = tuple(dict.fromkeys(changed))
        sizes = self.moments.inputs.shape[1], self.moments.count
        return LayerRecord(self.layer.name, names, *sizes, before, self.error.share, solver.condition, solver.ridge)

    def _gather(self) -> None:
        """First pass: the products of the inputs, and what is missing beside the target."""
        runs, layer = self.runs, self.layer
        inputs = runs.merged.segment([*(site.x for site in layer.sites), *layer.rest])
        targets = [walk.segment([layer.target]) for walk in runs.tasks]
        for batch in range(len(runs.shelf)):
            entry = runs.shelf[batch]
            found = runs.merged.run(inputs, entry["merged"])
            xs, rest = found[: len(layer.sites)], found[len(layer.sites) :]
            pairs = zip(runs.tasks, targets, entry["tasks"], strict=True)
            wanted = self.wanted([walk.run(segment, values)[0] for walk, segment, values in pairs], self.form.channel)
            given = self._output(xs, rest, self.weights)
            if not wanted.isfinite().all():
                self.at_fault = "task models'"
            if not self.shifts:
                self._choose_columns(xs, given)
            maps = self._taps(xs)
            self.moments.add_inputs(maps)
            self._add_missing(wanted - given, xs, maps)
            self.error.add(wanted, given)
            runs.shelf[batch] = {**entry, "wanted": wanted, "given": given}

    def _gather_again(self, weights: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Second pass: where the target is negative, whatever is negative is right."""
        self.moments.forget_missing()
        for batch in range(len(self.runs.shelf)):
            entry = self.runs.shelf[batch]
            xs, rest = self._values(entry["merged"])
            predicted = self._output(xs, rest, weights).clamp_max(0)
            wanted = torch.where(entry["wanted"] < 0, predicted, entry["wanted"])
            self._add_missing(wanted - entry["given"], xs)

    def _finish(self) -> None:
        """Last pass: the layer's output with its new weights, for the layers behind it."""
        runs, self.error = self.runs, _Error(self.layer.relu)
        segment = runs.merged.segment([self.layer.target])
        for batch in range(len(runs.shelf)):
            entry = runs.shelf[batch]
            (value,) = runs.merged.run(segment, entry["merged"])
            self.error.add(entry["wanted"], value)
            runs.shelf[batch] = {"merged": entry["merged"], "tasks": entry["tasks"]}

    def _values(self, values: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs of the layer's sites, and the other terms of its sum; all were computed before."""
        walk = self.runs.merged
        return [walk.value(site.x, values) for site in self.layer.sites], [
            walk.value(x, values) for x in self.layer.rest
        ]

    def _output(self, xs: Sequence[Tensor], rest: Sequence[Tensor], weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The layer's target with these weights and biases."""
        total: Tensor | None = None
        for site, x, (weight, bias) in zip(self.layer.sites, xs, weights, strict=True):
            value = site.form.apply(x, weight)
            shape = [-1 if axis == site.form.channel % value.ndim else 1 for axis in range(value.ndim)]
            value = value + bias.reshape(shape)
            total = value if total is None else total + value
        assert total is not None
        return total + sum(rest) if rest else total

    def _choose_columns(self, xs: Sequence[Tensor], given: Tensor) -> None:
        """What is taken off the inputs, about their mean; and which places of every example are looked at."""
        for site, x in zip(self.layer.sites, xs, strict=True):
            others = [axis for axis in range(x.ndim) if axis != site.form.channel % x.ndim]
            self.shifts.append(x.mean(dim=others))
        channels = given.shape[self.form.channel]
        examples = given.shape[self.form.batch]
        count = given.numel() // (examples * channels)
        if self.options.limit is None or count == 1:
            return
        share = examples / self.runs.first
        per_example = max(1, int(self.options.limit / (self.runs.images * share)))
        if per_example < count:
            generator = torch.Generator().manual_seed(zlib.crc32(self.layer.name.encode()))
            self.places = torch.randperm(count, generator=generator)[:per_example].sort().values.to(given.device)

    def _taps(self, xs: Sequence[Tensor]) -> list[Taps]:
        pairs = zip(self.layer.sites, xs, self.shifts, strict=True)
        return [site.form.taps(x.float(), shift, self.places) for site, x, shift in pairs]

    def _add_missing(self, missing: Tensor, xs: Sequence[Tensor], maps: Sequence[Taps] = ()) -> None:
        """Add what is missing in a batch and its products with the inputs. maps: their columns, if at hand."""
        rows = self._rows(missing)
        forms = [form for site in self.layer.sites if isinstance(form := site.form, Convolution)]
        if self.places is not None or len(forms) < len(self.layer.sites):
            self.moments.add_missing(rows, maps or self._taps(xs))
            return
        total, parts = rows.sum(dim=2).double(), []
        for form, x, shift in zip(forms, xs, self.shifts, strict=True):
            off = torch.einsum("gm,gk->gmk", total, form.by_input(shift).double())
            parts.append(form.cross(x, missing).double() - off)
        self.moments.add_cross(torch.cat(parts, dim=2), total)

    def _rows(self, values: Tensor) -> Tensor:
        """Values of the target as [g, outputs of a group, columns]."""
        rows = columns(values, self.form, self.places)
        return rows.reshape(self.form.groups, -1, rows.shape[1])

    def _changed(self, change: Tensor, bias_change: Tensor) -> list[tuple[Tensor, Tensor]]:
        """New weights and biases of all sites; the first that has a bias takes up all of its change."""
        weights, start = list[tuple[Tensor, Tensor]](), 0
        left: Tensor | None = bias_change.flatten()
        for site, (weight, bias) in zip(self.layer.sites, self.weights, strict=True):
            size = site.form.to_matrix(weight).shape[2]
            part = site.form.to_weight(change[:, :, start : start + size], weight)
            start += size
            new_bias = bias
            if site.has_bias and left is not None:
                new_bias, left = (bias.double() + left).float(), None
            weights.append(((weight.double() + part).float(), new_bias))
        return weights

    def _write(self, weights: Sequence[tuple[Tensor, Tensor]], solver: Solver) -> None:
        start = 0
        for site, (weight, bias) in zip(self.layer.sites, weights, strict=True):
            seen = weight if site.weight else torch.ones_like(weight)  # by the normalisation: its input, if no layer's
            matrix = site.form.to_matrix(seen).double()
            size = matrix.shape[2]
            whole = matrix.new_zeros(*matrix.shape[:2], self.moments.inputs.shape[1])
            whole[:, :, start : start + size] = matrix
            start += size
            mean, variance = solver.means(whole).flatten().float(), solver.spread(whole).flatten().float()
            self.runs.state.update(site.unfolded(weight, bias, mean, variance))


class _Error:
    """The mean square that is missing to a target, as a share of the target's variance."""

    def __init__(self, relu: bool) -> None:
        self._relu = relu
        self._missing = self._square = self._sum = 0.0
        self._count = 0

    def add(self, wanted: Tensor, given: Tensor) -> None:
        """Add a batch."""
        if self._relu:
            wanted, given = wanted.relu(), given.relu()
        missing = (wanted - given).flatten()
        self._missing += float(missing @ missing)
        self._square += float(wanted.flatten() @ wanted.flatten())
        self._sum += float(wanted.sum())
        self._count += wanted.numel()

    @property
    def share(self) -> float:
        """0 where nothing is missing."""
        variance = self._square - self._sum**2 / max(1, self._count)
        return self._missing / variance if variance > 0 else 0.0


def check_finite(values: Tensor, what: str) -> None:
    """Raise InputError for NaN or Inf. what: the plural of what the values are."""
    if not values.isfinite().all():
        raise InputError(
            f"calibration: {what} hold NaN or Inf; check the checkpoints and the calibration inputs, or merge with a "
            "smaller scale"
        )
