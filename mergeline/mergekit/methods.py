"""mergekit's methods in our words: the parameters that hold for one tensor become options of our method.

The formulas are those of mergekit's generalised task arithmetic: with t_i the sparsified task vectors, w_i their
weights, `base + lambda * sum_i w_i m_i t_i / D`, m_i = 1 where t_i has the elected sign (or everywhere), D the sum of
the w_i m_i where `normalize` is on, else 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mergeline.mergekit.document import NoEquivalentError
from mergeline.mergekit.settings import Value

Options = dict[str, Any]


class Parameters(Protocol):
    """The parameters of one tensor."""

    def of_models(self, name: str, default: float | None = None) -> list[Value]:
        """One value per task model; NoEquivalentError where one is missing and there is no default."""

    def shared(self, name: str, default: float | bool | None = None) -> Value:
        """One value for all of them."""

    def note(self, sentence: str) -> None:
        """Say what is not quite the same."""


@dataclass(frozen=True)
class Translation:
    """One method of mergekit. name: ours. read: the parameters that it has. base: what `base_model` is to it.

    base: "base" task vectors start from it; "first" it is the first of the models; "none" there must be none.
    fixed: what stands beside the method in the plan. notes: where the two differ a little, whatever the parameters.
    """

    name: str
    read: tuple[str, ...]
    base: str
    options: Callable[[Parameters], Options]
    fixed: Options
    notes: tuple[str, ...] = ()
    models: tuple[int, int | None] = (2, None)


def _weights(parameters: Parameters, *, signed: bool) -> list[float]:
    values = parameters.of_models("weight")
    for value in values:
        if value.value < 0 and not signed:
            raise NoEquivalentError(value.line, f"weight {value.value:g} is negative, which this method refuses here")
    return [float(value.value) for value in values]


def _factor(parameters: Parameters) -> float:
    return float(parameters.shared("lambda", 1.0).value)


def _average(parameters: Parameters) -> Options:
    weights = _weights(parameters, signed=False)
    total = sum(weights)
    normalize = parameters.shared("normalize", True)
    line = parameters.of_models("weight")[0].line
    if not total:
        raise NoEquivalentError(line, "all weights are 0, which leaves nothing to average")
    if not normalize.value and abs(total - 1) > 1e-6:
        raise NoEquivalentError(
            normalize.line,
            f"normalize: false with weights that sum to {total:g}: models are averaged, not summed",
        )
    return {"weights": weights}


def _sum(parameters: Parameters) -> Options:
    """Signed weights, divided by their sum where `normalize` says so."""
    weights = _weights(parameters, signed=True)
    total = sum(weights)
    if parameters.shared("normalize", False).value and abs(total) >= 1e-8:
        weights = [weight / total for weight in weights]
    return {"scale": _factor(parameters), "weights": weights}


def _elected(parameters: Parameters, normalize: bool) -> Options:
    """Weights of an election of signs; where all are 0 the base is left as it is."""
    weights = _weights(parameters, signed=False)
    combine = "mean" if parameters.shared("normalize", normalize).value else "sum"
    if not any(weights):
        return {"scale": 0.0, "weights": [1.0] * len(weights), "combine": combine}
    return {"scale": _factor(parameters), "weights": weights, "combine": combine}


def _same(parameters: Parameters, name: str, default: float) -> Value:
    """One value for all models."""
    values = parameters.of_models(name, default)
    other = next((value for value in values if value.value != values[0].value), None)
    if other is not None:
        raise NoEquivalentError(
            other.line,
            f"{name} differs between the models ({values[0].value:g} and {other.value:g}); here one holds for all",
        )
    return values[0]


def _keep_ratio(parameters: Parameters) -> float:
    density = _same(parameters, "density", 1.0)
    if density.value <= 0:
        raise NoEquivalentError(density.line, f"density {density.value:g} keeps nothing; it must be above 0")
    return min(1.0, float(density.value))


def _not_rescaled(parameters: Parameters, ratio: float) -> None:
    rescale = parameters.shared("rescale", False)
    if rescale.value and ratio < 1:
        raise NoEquivalentError(rescale.line, "rescale: true: what survives the trim is not rescaled here")


def _ties(parameters: Parameters) -> Options:
    ratio = _keep_ratio(parameters)
    _not_rescaled(parameters, ratio)
    return {"keep_ratio": ratio} | _elected(parameters, True)


def _breadcrumbs(parameters: Parameters) -> Options:
    ratio = _keep_ratio(parameters)
    _not_rescaled(parameters, ratio)
    gamma = _same(parameters, "gamma", 0.01)
    if not 0 <= gamma.value < 1:
        raise NoEquivalentError(gamma.line, f"gamma {gamma.value:g} is not a share of the entries, 0 to 1")
    return {"keep_ratio": ratio, "outlier_ratio": float(gamma.value)}


def _dropped(parameters: Parameters) -> tuple[float, float]:
    """Keep ratio of a random drop, and what undoes our rescaling where mergekit is told not to rescale."""
    ratio, rescale = _keep_ratio(parameters), bool(parameters.shared("rescale", True).value)
    _note_drop(parameters, ratio, rescale)
    return ratio, 1.0 if rescale else ratio


def _note_drop(parameters: Parameters, ratio: float, rescale: bool) -> None:
    if ratio < 1:
        parameters.note("the random drop draws other numbers than mergekit's")
    if ratio < 1 and rescale:
        parameters.note(RESCALED)


def _dare(parameters: Parameters, rest: Callable[[Parameters], Options]) -> Options:
    ratio, factor = _dropped(parameters)
    options = rest(parameters)
    return {"keep_ratio": ratio} | options | {"scale": options["scale"] * factor}


def _della(parameters: Parameters) -> Options:
    ratio = _keep_ratio(parameters)
    epsilon, rescale = _same(parameters, "epsilon", 0.15), parameters.shared("rescale", True)
    if ratio < 1 and not rescale.value:
        raise NoEquivalentError(rescale.line, "rescale: false: each survivor is divided by its own chance here")
    _note_drop(parameters, ratio, bool(rescale.value))
    if ratio == 1:
        return {"keep_ratio": ratio}
    if not (epsilon.value >= 0 and ratio - epsilon.value > 0 and ratio + epsilon.value < 1):
        raise NoEquivalentError(epsilon.line, f"density {ratio:g} -+ epsilon {epsilon.value:g} leaves (0, 1)")
    return {"keep_ratio": ratio, "spread": float(epsilon.value)}


def _slerp(parameters: Parameters) -> Options:
    t = parameters.shared("t")
    if not 0 <= t.value <= 1:
        raise NoEquivalentError(t.line, f"t {t.value:g} is outside 0 to 1; models are not extrapolated here")
    return {"t": float(t.value)}


def _stock(parameters: Parameters) -> Options:
    filter_wise = parameters.shared("filter_wise", False)
    if filter_wise.value:
        raise NoEquivalentError(filter_wise.line, "filter_wise: true: angles are taken of whole tensors here")
    return {}


def _multi_slerp(parameters: Parameters) -> Options:
    """Equal only for two models of equal weight: mergekit's one step does not leave the mean of the directions."""
    weights = parameters.of_models("weight")
    if len(weights) == 2 and weights[0].value == weights[1].value:
        return {}
    raise NoEquivalentError(
        weights[0].line,
        "multislerp gives the weighted mean of the directions here, ours (multi_slerp) the mean on the sphere; they "
        "differ but for two models of equal weight. Write method: multi_slerp in a plan of your own, or use karcher",
    )


def _nothing(_: Parameters) -> Options:
    return {}


TENSOR = {"granularity": "tensor"}
SUMMED = ("weight", "normalize", "lambda")
DROPPED = (*SUMMED, "density", "rescale")
RESCALED = (
    "survivors of the random drop are divided by their chance, as in the papers; mergekit rescales each tensor to the "
    "sum of magnitudes that it had: the same on average"
)
ENTRIES = "one entry more of each tensor may survive, and all that equal it: the trim is that of the authors' program"
TRANSLATIONS: dict[str, Translation] = {
    "linear": Translation("average", ("weight", "normalize"), "none", _average, {}),
    "task_arithmetic": Translation("task_arithmetic", SUMMED, "base", _sum, {}),
    "ties": Translation(
        "ties",
        DROPPED,
        "base",
        _ties,
        TENSOR,
        (ENTRIES, "where the votes of an entry cancel, the sign of the majority decides, in mergekit +"),
    ),
    "dare_linear": Translation("dare_linear", DROPPED, "base", lambda given: _dare(given, _sum), {}),
    "dare_ties": Translation(
        "dare_ties", DROPPED, "base", lambda given: _dare(given, lambda own: _elected(own, False)), {}
    ),
    "breadcrumbs": Translation(
        "breadcrumbs", (*DROPPED, "gamma"), "base", lambda given: _breadcrumbs(given) | _sum(given), TENSOR
    ),
    "breadcrumbs_ties": Translation(
        "breadcrumbs_ties",
        (*DROPPED, "gamma"),
        "base",
        lambda given: _breadcrumbs(given) | _elected(given, False),
        TENSOR,
    ),
    "della": Translation(
        "della", (*DROPPED, "epsilon"), "base", lambda given: _della(given) | _elected(given, True), {}
    ),
    "della_linear": Translation(
        "della_linear", (*DROPPED, "epsilon"), "base", lambda given: _della(given) | _sum(given), {}
    ),
    "slerp": Translation("slerp", ("t",), "first", _slerp, {}, models=(2, 2)),
    "multislerp": Translation("multi_slerp", ("weight",), "none", _multi_slerp, {}),
    "karcher": Translation("multi_slerp", ("max_iter", "tol"), "none", _nothing, {}),
    "model_stock": Translation(
        "model_stock",
        ("filter_wise",),
        "base",
        _stock,
        {},
        ("a negative cosine between task vectors counts as 0, so the result lies between the base and the mean",),
    ),
}


def names() -> Sequence[str]:
    """mergekit's names of the methods that can be translated."""
    return list(TRANSLATIONS)
