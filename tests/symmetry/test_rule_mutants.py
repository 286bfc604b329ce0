"""The conformance programs are proved: a rule that is wrong in one point fails on them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mergeline.errors import InputError
from mergeline.symmetry.labels import CONSTANT, FIXED, AbstractTensor, constant
from mergeline.symmetry.movement import concatenate, expand, merge, slice_axis, unsqueeze, view
from mergeline.symmetry.primitives import drop, normalise, pointwise, reduce
from mergeline.symmetry.rules import Call, table
from tests.symmetry.program import largest_change
from tests.symmetry.test_conformance import CASES, derive

Tensor = AbstractTensor


def untouched(call: Call, x: Tensor) -> Tensor:
    """Everything moves through as if the operation were pointwise."""
    return replace(x, node="")


def untouched_pair(call: Call, x: Tensor) -> object:
    return x, x


def untransposed(call: Call, x: Tensor) -> Tensor:
    return AbstractTensor(x.domains, call.shape, x.labels, activation=x.activation)


def forgotten(call: Call, x: Tensor) -> Tensor:
    """Nothing is known of the result, and anything may be permuted."""
    return AbstractTensor(x.domains, call.shape, (CONSTANT,) * len(call.shape), activation=x.activation)


def looked_up_without_freezing(call: Call, x: Tensor, dim: int = 1, **_: object) -> Tensor:
    labels = [FIXED if axis == dim else label for axis, label in enumerate(x.labels)]
    return AbstractTensor(x.domains, call.shape, tuple(labels[: len(call.shape)]), activation=x.activation)


def rows_without_freezing(call: Call, weight: Tensor, indices: Tensor) -> Tensor:
    return expand(unsqueeze(drop(weight, 0), 0), call.shape)


def place_without_freezing(call: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return reduce(x, range(x.ndim) if dim is None else [dim], keepdim=keepdim)


def places_without_freezing(call: Call, x: Tensor, dim: int, keepdim: bool = False) -> object:
    result = reduce(x, [dim], keepdim=keepdim)
    return result, result


def reversed_parts(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return concatenate(tensors[::-1], dim)


def first_part_always(call: Call, x: Tensor, dim: int = 0) -> object:
    return tuple(slice_axis(x, dim, 0, shape[dim]) for shape in call.shapes if shape)


def first_indices_always(call: Call, x: Tensor, dim: int = 0) -> Tensor:
    return slice_axis(x, dim, 0, call.shape[dim])


def interleaved(call: Call, x: Tensor) -> Tensor:
    x = unsqueeze(x, 2)
    return merge(expand(x, [*x.shape[:2], 2, *x.shape[3:]]), 1)


def copied(call: Call, x: Tensor) -> Tensor:
    x = unsqueeze(x, 1)
    return merge(expand(x, [x.shape[0], 2, *x.shape[2:]]), 1)


def first_half(call: Call, x: Tensor, dim: int = -1) -> Tensor:
    return slice_axis(x, dim, 0, call.shape[dim])


def second_value_ignored(call: Call, condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    return pointwise([condition, x])


def axes_not_joined(call: Call, x: Tensor, dim: int = 0) -> Tensor:
    """A reduction that forgets that the other axes must move alike along the summed one."""
    return drop(x, dim)


def norm_without_weight(call: Call, x: Tensor, normalized_shape: Sequence[int], **_: object) -> Tensor:
    return normalise(x, range(x.ndim - len(normalized_shape), x.ndim))


def channels_without_groups(call: Call, x: Tensor, weight: Tensor | None = None, **_: object) -> Tensor:
    x = normalise(x, range(2, x.ndim))
    return x if weight is None else pointwise([x, view(weight, (1, weight.shape[0], *[1] * (x.ndim - 2)))])


def one_operand_ignored(name: str, operand: str) -> Callable[..., Any]:
    """The right rule, not told of one of its operands."""
    rule = table._RULES[name]

    def ignorant(call: Call, **arguments: Any) -> Any:
        return rule.function(call, **{key: value for key, value in arguments.items() if key != operand})

    ignorant.__signature__ = inspect.signature(rule.function)  # type: ignore[attr-defined]
    return ignorant


def padded_on_the_other_side(call: Call, x: Tensor, pad: Sequence[int]) -> Tensor:
    border = constant(x.domains, (*x.shape[:-1], sum(pad)))
    return concatenate([x, border], x.ndim - 1)


def equal_numbers(call: Call) -> Tensor:
    return constant(call.domains, call.shape)


WRONG: list[tuple[str, Callable[..., Any], Sequence[str]]] = [
    ("sort", untouched_pair, ["sort"]),
    ("cumsum", untouched, ["cumsum"]),
    ("flip", untouched, ["flip"]),
    ("roll", untouched, ["roll"]),
    ("tril", untouched, ["tril"]),
    ("softmax", untouched, ["softmax of blocks"]),
    ("log_softmax", forgotten, ["log_softmax"]),
    ("transpose", untransposed, ["transpose of a square"]),
    ("permute", untransposed, ["permute of a square"]),
    ("view", forgotten, ["view that joins", "view that parts"]),
    ("index_select", looked_up_without_freezing, ["index_select"]),
    ("gather", looked_up_without_freezing, ["gather", "gather by units"]),
    ("index", looked_up_without_freezing, ["index"]),
    ("embedding", rows_without_freezing, ["embedding"]),
    ("argmax", place_without_freezing, ["argmax"]),
    ("min", places_without_freezing, ["min and its place"]),
    ("cat", reversed_parts, ["cat"]),
    ("split", first_part_always, ["split"]),
    ("slice", first_indices_always, ["slice"]),
    ("repeat", interleaved, ["repeat"]),
    ("repeat_interleave", copied, ["repeat_interleave"]),
    ("glu", first_half, ["glu"]),
    ("where", second_value_ignored, ["where"]),
    ("amax", axes_not_joined, ["amax of blocks"]),
    ("layer_norm", norm_without_weight, ["layer_norm"]),
    ("group_norm", channels_without_groups, ["group_norm"]),
    ("linear", one_operand_ignored("linear", "bias"), ["linear"]),
    (
        "scaled_dot_product_attention",
        one_operand_ignored("scaled_dot_product_attention", "attn_mask"),
        ["attention with a mask for each head"],
    ),
    ("batch_norm", one_operand_ignored("batch_norm", "running_mean"), ["batch_norm"]),
    ("addmm", one_operand_ignored("addmm", "mat2"), ["addmm"]),
    ("constant_pad_nd", padded_on_the_other_side, ["constant_pad_nd"]),
    ("max_pool1d", untransposed, ["max_pool1d of units"]),
    ("arange", equal_numbers, ["arange"]),
]


def is_caught(name: str) -> bool:
    try:
        derived = derive(CASES[name])
        return largest_change(derived.program, derived.inputs, derived.symmetry) > 1e-6
    except (InputError, AssertionError, LookupError, TypeError, ValueError):
        return True


@pytest.mark.parametrize(("name", "wrong", "cases"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_rule_is_caught(name, wrong, cases, monkeypatch):
    assert not any(is_caught(case) for case in cases)
    monkeypatch.setitem(table._RULES, name, table.Rule.of(wrong))
    assert any(is_caught(case) for case in cases)
