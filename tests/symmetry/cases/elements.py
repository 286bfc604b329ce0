"""Programs that work on single elements, on whole axes, or on elements looked up by their place."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import dropout, embedding, glu, normalize, prelu

from tests.symmetry.program import Case, on, operand

aten = torch.ops.aten
SAME = {
    "contiguous": on((2, 3), do=lambda t: t.mT.contiguous()),
    "clone": on((3,), do=torch.clone),
    "alias": on((3,), do=aten.alias),
    "detach": on((3,), do=lambda t: t.detach().cos()),
    "to": on((3,), do=lambda t: t.to(torch.float64)),
    "_to_copy": on((3,), do=lambda t: aten._to_copy(t, dtype=torch.float64)),
    "type_as": on((3,), (3,), do=lambda t, u: t.type_as(u) + u),
    "lift": on((3,), do=aten.lift),
    "lift_fresh": on((3,), do=aten.lift_fresh),
    "lift_fresh_copy": on((3,), do=aten.lift_fresh_copy),
    "positive": on((3,), do=torch.positive),
    "conj": on((3,), do=lambda t: torch.conj(t * (1 + 2j)).abs()),
    "resolve_conj": on((3,), do=aten.resolve_conj),
    "resolve_neg": on((3,), do=aten.resolve_neg),
    "dropout": on((3,), do=lambda t: dropout(t, training=False)),
    "feature_dropout": on((3,), do=lambda t: torch.feature_dropout(t, 0.5, False)),
    "alpha_dropout": on((3,), do=lambda t: torch.alpha_dropout(t, 0.5, False)),
    "feature_alpha_dropout": on((3,), do=lambda t: torch.feature_alpha_dropout(t, 0.5, False)),
    "native_dropout": on((3,), do=lambda t: torch.native_dropout(t, 0.5, False)[0]),
}

FEW_VALUES = "values coincide"  # so that permutations keep the output by chance
UNARY: tuple[str, ...] = (
    "absolute",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctanh",
    "erf",
    "exp",
    "expm1",
)
UNARY += ("log", "logit", "neg", "negative", "real", "reciprocal", "rsqrt", "sigmoid", "sin", "square", "tanh")
ACTIVATIONS: tuple[str, ...] = (
    "gelu",
    "silu",
    "softplus",
    "elu",
    "leaky_relu",
    "celu",
    "selu",
    "hardswish",
    "hardsigmoid",
)
ACTIVATIONS += ("hardtanh", "mish", "relu", "relu6", "logsigmoid")


def of_fractions(function: Callable[[Tensor], Tensor]) -> Case:
    """A function of numbers between 0 and 1 (of 1 to 2 where it wants that)."""
    return on((3,), do=lambda t: function(t.sigmoid() + float(function is torch.arccosh)))


ELEMENTS = {
    **{name: of_fractions(getattr(torch, name)) for name in UNARY},
    **{name: on((3,), do=getattr(functional, name)) for name in ACTIVATIONS},
    "fix": on((3,), do=lambda t: torch.fix(9 * t)),
    "threshold": on((3,), do=lambda t: torch.threshold(t, 0.1, 0.2)),
    "imag": on((3,), do=lambda t: torch.imag(t * (1 + 2j))),
    "_conj": on((3,), do=lambda t: aten._conj(t * (1 + 2j)).abs()),
    "logical_not": on((3,), do=lambda t: torch.logical_not(t > 0)),
    "add": on((2, 3), (2, 3), do=lambda t, u: t + u.tanh()),
    "add with broadcasting": on((2, 3), (1, 3), do=lambda t, u: t + u.tanh()),
    "add of a column": on((2, 3), (2, 1), do=lambda t, u: t + u.tanh()),
    "add of the transpose": on((3, 3), do=lambda t: t + t.mT.tanh()),
    "add to itself in another shape": on((4,), (2, 2), do=lambda t, u: t.view(5, 2, 2) * u),
    "mul with a number": on((3,), do=lambda t: 2 * t),
    "mul with a constant vector": on((3,), do=lambda t: t * torch.tensor([1.0, 3.0, 2.0])),
    "mul with equal constants": on((3,), do=lambda t: t * torch.full((3,), 2.0)),
    "maximum": on((3,), (3,), do=torch.maximum),
    "pow": on((3,), (3,), do=lambda t, u: t.abs() ** u),
    "arctan2": on((3,), (3,), do=torch.arctan2),
    "divide": on((3,), (3,), do=lambda t, u: torch.divide(t, u.exp())),
    "true_divide": on((3,), (3,), do=lambda t, u: torch.true_divide(t, u.exp())),
    "multiply": on((3,), (3,), do=torch.multiply),
    "subtract": on((3,), (3,), do=torch.subtract),
    "floor_divide": on((3,), (3,), do=lambda t, u: torch.floor_divide(8 * t, u.exp())),
    "copysign": on((3,), (3,), do=torch.copysign, smaller=FEW_VALUES),
    "greater": on((3,), (3,), do=torch.greater),
    "greater_equal": on((3,), (3,), do=torch.greater_equal),
    "less": on((3,), (3,), do=torch.less),
    "less_equal": on((3,), (3,), do=torch.less_equal),
    "not_equal": on((3,), (3,), do=torch.not_equal, smaller=FEW_VALUES),
    "__and__": on((3,), (3,), do=lambda t, u: (t > 0).__and__(u > 0), smaller=FEW_VALUES),
    "__or__": on((3,), (3,), do=lambda t, u: (t > 0).__or__(u > 0), smaller=FEW_VALUES),
    "__xor__": on((3,), (3,), do=lambda t, u: (t > 0).__xor__(u > 0), smaller=FEW_VALUES),
    "where": on((3,), (3,), do=lambda t, u: torch.where(t > 0, t, u)),
    "masked_fill": on((3,), do=lambda t: t.masked_fill(t > 1, 0.5)),
    "lerp": on((3,), (3,), do=lambda t, u: torch.lerp(t, u, 0.3)),
    "addcmul": on((2,), (2,), (2,), do=torch.addcmul),
    "clamp": on((3,), do=lambda t: t.clamp(-1, 1)),
    "copy": on((2, 3), (1, 3), do=lambda t, u: aten.copy(t, u) + t),
    "prelu": Case(
        lambda p, x: prelu(operand(x, p.w), p.slope), {"w": (2, 3, 2), "slope": (3,)}, fixed=frozenset({"w"})
    ),
    "_prelu_kernel": on((3,), (3,), do=torch._prelu_kernel),
    "prelu with one slope": on((3,), do=lambda t: prelu(t, t.new_full((1,), 0.2))),
    "glu": on((4,), do=lambda t: glu(t, 1)),
}

FILLED = {
    name: on((3,), do=lambda t, make=make: t * make(t))
    for name, make in {
        "zeros": lambda t: torch.zeros(3) + 1,
        "ones": lambda t: torch.ones(3),
        "full": lambda t: torch.full((3,), 2.0),
        "zeros_like": lambda t: torch.zeros_like(t) + 1,
        "ones_like": torch.ones_like,
        "full_like": lambda t: torch.full_like(t, 2.0),
        "new_zeros": lambda t: t.new_zeros(3) + 1,
        "new_ones": lambda t: t.new_ones(3),
        "new_full": lambda t: t.new_full((3,), 2.0),
        "empty": lambda t: torch.empty(3).fill_(2.0),
        "empty_like": lambda t: torch.empty_like(t).fill_(2.0),
        "new_empty": lambda t: t.new_empty(3).fill_(2.0),
        "empty_permuted": lambda t: torch.empty_permuted((3,), (0,)).fill_(2.0),
        "empty_strided": lambda t: torch.empty_strided((3,), (1,)).fill_(2.0),
        "new_empty_strided": lambda t: t.new_empty_strided((3,), (1,)).fill_(2.0),
        "scalar_tensor": lambda t: torch.scalar_tensor(2.0),
        "zero": lambda t: aten.zero(t) + 1,
        "fill": lambda t: torch.fill(t, 2.0),
    }.items()
}
ENUMERATED = {
    name: on((3,), do=lambda t, make=make: t * make(t))
    for name, make in {
        "arange": lambda t: torch.arange(3),
        "linspace": lambda t: torch.linspace(1, 2, 3),
        "logspace": lambda t: torch.logspace(0, 1, 3),
        "hann_window": lambda t: torch.hann_window(3) + torch.arange(3),
        "hamming_window": lambda t: torch.hamming_window(3) + torch.arange(3),
    }.items()
} | {
    "eye": on((3,), do=lambda t: t @ torch.eye(3, dtype=t.dtype), smaller="an identity matrix is fixed, not tied"),
    "tril_indices": on((3,), do=lambda t: t * torch.tril_indices(3, 3)[0, ::2]),
    "triu_indices": on((3,), do=lambda t: t * torch.triu_indices(3, 3)[1, :3]),
}

REDUCTIONS = ("mean", "sum", "amax", "amin", "std", "var", "prod", "logsumexp", "nanmean", "nansum")


def reduced(function: Callable[..., Tensor]) -> Case:
    return on((3, 2), do=lambda t: function(t, dim=1))


def divided(function: Callable[..., Tensor]) -> Case:
    return on((3, 2), do=lambda t: t / function(t, dim=2, keepdim=True))


WHOLE_AXES = {
    **{name: reduced(getattr(torch, name)) for name in REDUCTIONS},
    **{f"{name} kept": divided(getattr(torch, name)) for name in ("mean", "amax", "std")},
    "sum of all": on((3,), do=lambda t: t / t.sum()),
    "sum over two axes": on((3, 2), do=lambda t: t * t.sum((1, 2), keepdim=True)),
    "amax of blocks": on((4,), do=lambda t: t.view(5, 2, 2).amax(1), smaller="blocks move whole"),
    "sum of blocks": on((4,), do=lambda t: t.view(5, 2, 2).exp().sum(2)),
    "linalg_vector_norm": on((3, 2), do=lambda t: t / torch.linalg.vector_norm(t, dim=1, keepdim=True)),
    "norm": on((3, 2), do=lambda t: aten.norm(t, 2, [1])),
    "normalize": on((3, 2), do=lambda t: normalize(t, dim=1)),
    "all": on((3, 2), do=lambda t: t * (t > -1).all(1, keepdim=True)),
    "any": on((3, 2), do=lambda t: t * (t > 1).any(1, keepdim=True)),
    "std_mean": on((3, 2), do=lambda t: t * torch.std_mean(t, 1)[0][:, None] + torch.std_mean(t, 1)[1][:, None]),
    "var_mean": on((3, 2), do=lambda t: t * torch.var_mean(t, 1)[0][:, None]),
    "aminmax": on((3, 2), do=lambda t: t * torch.aminmax(t, dim=1)[0][:, None]),
    "max of all": on((3,), do=lambda t: t - t.max()),
    "max along an axis": on((3, 2), do=lambda t: t - t.max(1, keepdim=True).values),
    "max of two": on((3,), (3,), do=torch.max),
    "min and its place": on((3, 2), do=lambda t: t + t.min(1, keepdim=True).indices),
    "median": on((3, 2), do=lambda t: t - t.median(1, keepdim=True).values),
    "nanmedian": on((3, 2), do=lambda t: t - t.nanmedian(1, keepdim=True).values),
    "argmax": on((3, 2), do=lambda t: t * t.argmax(1)[:, None]),
    "argmin of all": on((3,), do=lambda t: t * t.argmin(), smaller=FEW_VALUES),
    "softmax": on((3, 2), do=lambda t: t.softmax(1)),
    "softmax of blocks": on((4, 2), do=lambda t: t.view(5, 2, 2, 2).softmax(1)),
    "_softmax": on((3, 2), do=lambda t: torch._softmax(t, 1, False)),
    "log_softmax": on((3, 2), do=lambda t: t.log_softmax(-1)),
    "_log_softmax": on((3, 2), do=lambda t: torch._log_softmax(t, 1, False)),
    "_safe_softmax": on((3, 2), do=lambda t: torch._safe_softmax(t, 1)),
    "softmin": on((3, 2), do=lambda t: torch.nn.functional.softmin(t, 1)),
    "cumsum": on((3, 2), do=lambda t: t.cumsum(1)),
    "cumprod": on((3, 2), do=lambda t: t.cumprod(2)),
    "logcumsumexp": on((3, 2), do=lambda t: t.logcumsumexp(1)),
    "diff": on((3, 2), do=lambda t: t.diff(dim=1).exp()),
    "sort": on((3, 2), do=lambda t: t.sort(1).values),
    "sort and its places": on((3, 2), do=lambda t: t + t.sort(1).indices),
    "topk": on((3, 2), do=lambda t: t.topk(2, 1).values),
    "topk and its places": on((3, 2), do=lambda t: t.topk(3, 1).values + t.topk(3, 1).indices),
    "tril": on((3, 3), do=lambda t: t.tril() + 0.1 * t),
    "triu": on((2, 3), do=lambda t: t.triu(1) + 0.1 * t),
    "meshgrid": Case(
        lambda p, x: x[:, :1, None] * torch.meshgrid(p.a, p.b, indexing="ij")[0],
        {"a": (3,), "b": (2,)},
        smaller="grids are not followed",
    ),
}

PLACES = torch.tensor([2, 0, 1, 2])
TABLE = "the places of what is looked up or written are fixed"
LOOKED_UP = {
    "embedding": Case(lambda p, ids: embedding(ids, p.table), {"table": (4, 3)}, [(8,)], ids=4),
    "index_select": on((3, 2), do=lambda t: t.index_select(1, PLACES), smaller=TABLE),
    "index": on((3, 2), do=lambda t: t[:, PLACES], smaller=TABLE),
    "index of two axes": on((3, 2, 2), do=lambda t: t[:, PLACES, torch.tensor([0, 1, 1, 0])], smaller=TABLE),
    "index of separate axes": on(
        (3, 2, 2), do=lambda t: t[:, PLACES, :, torch.tensor([0, 1, 1, 0])].transpose(0, 1), smaller=TABLE
    ),
    "index by a matrix": on((3, 2), do=lambda t: t[:, PLACES.view(2, 2)], smaller=TABLE),
    "gather": on((3, 2), do=lambda t: t.gather(1, PLACES[None, :, None].expand(5, 4, 2)), smaller=TABLE),
    "gather by units": on((3, 2), do=lambda t: t.gather(1, (t > 0).long() + 1)),
    "index_put": on(
        (3, 2),
        do=lambda t: aten.index_put(t.transpose(0, 1), [torch.tensor([1])], t[:, 0]).transpose(0, 1),
        smaller=TABLE,
    ),
    "_unsafe_index_put": on((3,), do=lambda t: aten._unsafe_index_put(t.mT, [torch.tensor([1])], t[:, 0], True).mT),
}

CASES = {**SAME, **ELEMENTS, **FILLED, **ENUMERATED, **WHOLE_AXES, **LOOKED_UP}
