"""Programs of contractions, attention, normalisations, pooling and recurrent layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.symmetry.program import Case, on, operand

aten = torch.ops.aten


def layer(body: Callable[..., Tensor], smaller: str = "", **shapes: Sequence[int]) -> Case:
    """A case that names its parameters; those that meet the input [5, 2] are called w, with the input axis first."""
    return Case(body, shapes, fixed=frozenset({"w"} & set(shapes)), smaller=smaller)


CONTRACTIONS = {
    "linear": Case(lambda p, x: functional.linear(x, p.w, p.b), {"w": (3, 2), "b": (3,)}),
    "linear in a row": Case(
        lambda p, x: functional.linear(functional.linear(x, p.w).tanh(), p.u), {"w": (3, 2), "u": (3, 3)}
    ),
    "linear in a stack": on((2, 3), do=lambda t: functional.linear(t, t.new_ones(2, 3))),
    "linear to a number": Case(
        lambda p, x: functional.linear(functional.linear(x, p.w).tanh(), p.u), {"w": (3, 2), "u": (3,)}
    ),
    "addmm": layer(lambda p, x: torch.addmm(p.b, x, p.w), w=(2, 3), b=(3,)),
    "mm": layer(lambda p, x: torch.mm(torch.mm(x, p.w).tanh(), p.u), w=(2, 3), u=(3, 2)),
    "mv": layer(lambda p, x: torch.mv(torch.mm(x, p.w).tanh(), p.u), w=(2, 3), u=(3,)),
    "dot": layer(lambda p, x: x[:, :1] * torch.dot(p.a.tanh(), p.b), a=(3,), b=(3,)),
    "vdot": layer(lambda p, x: x[:, :1] * torch.vdot(p.a.tanh(), p.b), a=(3,), b=(3,)),
    "bmm": on((2, 3), (3, 2), do=torch.bmm),
    "baddbmm": on((2, 2), (2, 2), (2, 2), do=lambda t, u, b: torch.baddbmm(b.tanh(), t, u)),
    "matmul": on((2, 3), (3, 2), do=lambda t, u: t @ u),
    "linalg_matmul": on((2, 3), (3, 2), do=torch.linalg.matmul),
    "matmul with a vector": layer(lambda p, x: operand(x, p.w).tanh() @ p.u, w=(2, 3), u=(3,)),
    "matmul of a vector": layer(lambda p, x: p.u @ operand(x, p.w).tanh(), w=(2, 3, 2), u=(3,)),
    "matmul over broadcast heads": layer(lambda p, x: operand(x, p.w) @ p.u, w=(2, 1, 2, 3), u=(2, 3, 1)),
    "einsum": on((2, 3), (3, 2), do=lambda t, u: torch.einsum("nab,nbc->nac", t, u)),
    "einsum of three": on((2,), (3,), (2, 3), do=lambda t, u, w: torch.einsum("na,nb,nab->nab", t.cos(), u, w)),
    "einsum with a diagonal": on((3, 3), do=lambda t: torch.einsum("naa->na", t), smaller="diagonals are not followed"),
    "einsum with dots": on((2, 3), do=lambda t: torch.einsum("n...b->nb...", t)),
    "einsum with broadcast dots": on((2, 3), (3, 2), do=lambda t, u: torch.einsum("...ab,...bc->...ac", t, u[:1])),
    "einsum without an arrow": on((3, 2), (2, 3), do=lambda t, u: torch.einsum("nba,mac", t[:2], u)),
    "bilinear": on((3,), (2,), do=lambda t, u: functional.bilinear(t, u, t.new_ones(2, 3, 2), t.new_ones(2))),
    "cosine_similarity": on((3,), (3,), do=lambda t, u: functional.cosine_similarity(t, u, dim=1)[:, None]),
    "outer": layer(lambda p, x: x[:, :1, None] * torch.outer(p.a, p.b), a=(2,), b=(3,)),
    "ger": layer(lambda p, x: x[:, :1, None] * torch.ger(p.a, p.b), a=(2,), b=(3,)),
    "tensordot": on((2, 3), do=lambda t: torch.tensordot(t, t.new_ones(3, 2), 1)),
    "_grouped_mm": Case(
        lambda p, x: torch._grouped_mm(x.bfloat16(), p.w.bfloat16(), torch.tensor([2, 5], dtype=torch.int32)),
        {"w": (2, 8, 8)},
        [(5, 8)],
        order=40320,  # which rows an expert gets is data; its outputs are units, in one order for all experts
    ),
    # Each of two matrices has its own order of three hidden units, and the matrices change places with their outputs.
    "stack of matrices": Case(
        lambda p, x: torch.einsum("neh,eh->ne", torch.einsum("nx,exh->neh", x, p.up).tanh(), p.down.sum(2)),
        {"up": (2, 2, 3), "down": (2, 3, 1)},
        order=2 * 6 * 6,
    ),
}


def heads(parameters: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, t, i]; each of three parameters [h, i, d] projects it to [n, h, t, d]."""
    q, k, v = (torch.einsum("nti,hid->nhtd", x, w) for w in (parameters.q, parameters.k, parameters.values))
    return q, k, v


def attention(order: int, key_heads: int = 2, mask: Tensor | None = None, **options: Any) -> Case:
    """Two heads of width two over three tokens, which the attention may tell apart."""

    def body(parameters: Any, x: Tensor) -> Tensor:
        bias = None if mask is None else mask.to(x.dtype)
        mixed = functional.scaled_dot_product_attention(*heads(parameters, x), attn_mask=bias, **options)
        return (torch.arange(3, dtype=x.dtype) @ mixed).flatten(1)  # [n, h, d] weighs tokens by their place

    return Case(body, {"q": (2, 2, 2), "k": (key_heads, 2, 2), "values": (key_heads, 2, 2)}, [(2, 3, 2)], order=order)


def flash(op: Callable[..., Any]) -> Case:
    def body(parameters: Any, x: Tensor) -> Tensor:
        return (torch.arange(3, dtype=x.dtype) @ op(*heads(parameters, x))[0]).flatten(1)

    return Case(body, {"q": (2, 2, 2), "k": (2, 2, 2), "values": (2, 2, 2)}, [(2, 3, 2)], order=ORDER)


ORDER = 2 * (2 * 2) * (2 * 2)  # two heads, in each of them queries and keys, in each of them values
ATTENTION = {
    "scaled_dot_product_attention": attention(ORDER),
    "attention with a mask": attention(ORDER, mask=torch.tensor([[0.0, 1, 2], [3, 1, 4], [1, 5, 9]])),
    "attention with a mask for each head": attention(ORDER // 2, mask=torch.arange(18.0).view(2, 3, 3).sin()),
    "attention that is causal": attention(ORDER, is_causal=True),
    # Both query heads share the keys and the values; the queries could change places, and what reads them.
    "attention with grouped queries": attention(2 * 2 * 2, key_heads=1, enable_gqa=True),
    "_scaled_dot_product_flash_attention_for_cpu": flash(aten._scaled_dot_product_flash_attention_for_cpu),
}


def normalised(
    do: Callable[..., Tensor], *vectors: str, shape: Sequence[int] = (3, 2), size: int = 3, smaller: str = ""
) -> Case:
    """A normalisation `do(t, **vectors)` of a tensor [5, *shape], with a parameter of `size` for each vector."""

    def body(parameters: Any, x: Tensor) -> Tensor:
        return do(operand(x, parameters.w), **{name: getattr(parameters, name) for name in vectors})

    return layer(body, smaller, w=(2, *shape), **dict.fromkeys(vectors, (size,)))


def by_running_statistics(t: Tensor, mean: Tensor, variance: Tensor, bias: Tensor) -> Tensor:
    return functional.batch_norm(t, mean, variance.abs() + 0.5, None, bias)


def by_native_statistics(op: Callable[..., Any], *training: bool) -> Case:
    """One of the operations behind batch_norm, with given statistics."""
    return normalised(
        lambda t, mean, variance: op(t, None, None, mean, variance.abs() + 0.5, *training, 0.1, 1e-5)[0],
        "mean",
        "variance",
    )


NORMS = {
    "layer_norm": normalised(
        lambda t, scale, shift: functional.layer_norm(t, (3,), scale, shift), "scale", "shift", shape=(2, 3)
    ),
    "layer_norm over two axes": on((2, 3), do=lambda t: functional.layer_norm(t, (2, 3))),
    "native_layer_norm": normalised(
        lambda t, scale: torch.native_layer_norm(t, (3,), scale, None, 1e-5)[0], "scale", shape=(2, 3)
    ),
    "rms_norm": normalised(lambda t, scale: functional.rms_norm(t, (3,), scale), "scale", shape=(2, 3)),
    "_fused_rms_norm": normalised(lambda t, scale: aten._fused_rms_norm(t, [3], scale, 1e-5)[0], "scale", shape=(2, 3)),
    "batch_norm": normalised(by_running_statistics, "mean", "variance", "bias", shape=(3, 1)),
    "batch_norm by the batch": normalised(
        lambda t, scale: functional.batch_norm(t, None, None, scale, training=True), "scale"
    ),
    "_native_batch_norm_legit_no_training": by_native_statistics(aten._native_batch_norm_legit_no_training),
    "native_batch_norm": by_native_statistics(aten.native_batch_norm, False),
    "instance_norm": normalised(lambda t, scale: functional.instance_norm(t, weight=scale), "scale", shape=(3, 3)),
    "group_norm": normalised(lambda t, scale: functional.group_norm(t, 2, scale), "scale", shape=(4, 1), size=4),
    "group_norm in one group": normalised(lambda t, scale: functional.group_norm(t, 1, scale), "scale"),
    "group_norm of single channels": normalised(lambda t, scale: functional.group_norm(t, 3, scale), "scale"),
    "native_group_norm": normalised(
        lambda t, scale: torch.native_group_norm(t, scale, None, 5, 4, 1, 2, 1e-5)[0], "scale", shape=(4, 1), size=4
    ),
    "_weight_norm": Case(lambda p, x: x @ torch._weight_norm(p.w, p.g, 0).t(), {"w": (3, 2), "g": (3, 1)}),
    "_weight_norm_interface": Case(
        lambda p, x: x @ torch._weight_norm_interface(p.w, p.g, 0)[0].t(), {"w": (3, 2), "g": (3, 1)}
    ),
}


def cell(step: Callable[..., Any], gates: int, cell_state: bool = False) -> Case:
    """Two steps of a recurrent cell with two hidden units on an input of two."""

    def body(parameters: Any, x: Tensor) -> Tensor:
        weights = (parameters.w_ih, parameters.w_hh, parameters.b_ih, parameters.b_hh)
        hidden, memory = x.new_zeros(5, 2), x.new_zeros(5, 2)
        for _ in range(2):
            if cell_state:
                hidden, memory = step(x, (hidden, memory), *weights)
            else:
                hidden = step(x, hidden, *weights)
        return hidden

    n = 2 * gates
    return Case(body, {"w_ih": (n, 2), "w_hh": (n, 2), "b_ih": (n,), "b_hh": (n,)}, order=2)


def recurrent(function: Callable[..., Any], gates: int, states: int, layers: int = 2, both: bool = False) -> Case:
    """Layers of two hidden units over three steps."""
    n, directions = 2 * gates, 2 if both else 1
    shapes: dict[str, Sequence[int]] = {}
    for number in range(layers * directions):
        inputs = 2 if number < directions else 2 * directions
        shapes |= {f"w_ih{number}": (n, inputs), f"w_hh{number}": (n, 2), f"b_ih{number}": (n,), f"b_hh{number}": (n,)}

    def body(parameters: Any, x: Tensor) -> Tensor:
        weights = [getattr(parameters, name) for name in shapes]
        state = tuple(x.new_zeros(layers * directions, 5, 2) for _ in range(states))
        hx = state if states > 1 else state[0]
        return function(x, hx, weights, True, layers, 0.0, False, both, True)[0][:, -1]

    return Case(body, shapes, [(5, 3, 2)], order=2 ** (layers * directions))


RECURRENT = {
    "lstm_cell": cell(torch.lstm_cell, 4, cell_state=True),
    "gru_cell": cell(torch.gru_cell, 3),
    "rnn_tanh_cell": cell(torch.rnn_tanh_cell, 1),
    "rnn_relu_cell": cell(torch.rnn_relu_cell, 1),
    "lstm": recurrent(torch.lstm, 4, states=2),
    "lstm in both directions": recurrent(torch.lstm, 4, states=2, both=True),
    "gru": recurrent(torch.gru, 3, states=1),
    "rnn_tanh": recurrent(torch.rnn_tanh, 1, states=1),
    "rnn_relu": recurrent(torch.rnn_relu, 1, states=1, both=True),
}

CASES = {**CONTRACTIONS, **ATTENTION, **NORMS, **RECURRENT}
