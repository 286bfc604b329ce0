"""Every rule of operations against brute force: what it allows keeps the output, and nothing plain is missed."""

import functools
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.rules import Call, rule_names
from mergeline.symmetry.rules.table import Rule
from mergeline.symmetry.symmetry import Symmetry
from tests.symmetry.cases import elements, images, layers, movement
from tests.symmetry.program import Case, Program, count_by_brute_force, derive_fast, largest_change

CASES: dict[str, Case] = {**movement.CASES, **elements.CASES, **layers.CASES, **images.CASES}
STRUCTURED = {name: case.structured for name, case in CASES.items() if case.structured}

# Operations that no exported program has here, so that their rules cannot be run alone.
NOT_EXPORTED = {
    "_scaled_dot_product_flash_attention": "exists on CUDA devices only",
    "_scaled_dot_product_efficient_attention": "exists on CUDA devices only",
    "cudnn_batch_norm": "exists on CUDA devices only",
    "transformers::grouped_mm_fallback": "registered by transformers, in a mixture of experts",
    "cpu": "exported as `to`",
    "double": "exported as `to`",
    "float": "exported as `to`",
    "half": "exported as `to`",
    "lift_fresh": "left out of the trace",
    "requires_grad": "left out of the trace",
    "softmin": "exported as neg and softmax",
    "_batch_norm_impl_index": "in traces of old versions of PyTorch",
    "_native_batch_norm_legit": "made functional",
}


@dataclass(frozen=True)
class Derived:
    program: Program
    inputs: tuple[Tensor, ...]
    symmetry: Symmetry
    rules: frozenset[str]
    """Names of the operations whose rules were applied."""


def derive(case: Case) -> Derived:
    program, inputs = case.make()
    applied: set[str] = set()
    apply = Rule.__call__

    def recording(rule: Rule, call: Call, arguments: Any) -> Any:
        applied.add(call.name)
        return apply(rule, call, arguments)

    with patch.object(Rule, "__call__", recording):
        symmetry = derive_fast(program, inputs)
    return Derived(program, inputs, symmetry, frozenset(applied))


@functools.cache
def plain(name: str) -> Derived:
    """Derived once for all tests."""
    return derive(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_allowed_keeps_the_output(name):
    derived = plain(name)
    assert largest_change(derived.program, derived.inputs, derived.symmetry) <= 1e-9


@pytest.mark.parametrize("name", CASES)
def test_all_that_brute_force_finds_is_allowed(name, record_property):
    case, derived = CASES[name], plain(name)
    order = round(10 ** derived.symmetry.log10_order())
    expected = case.order or count_by_brute_force(derived.program, derived.inputs, case.fixed)
    if case.smaller:
        record_property("order", f"{order} of {expected}: {case.smaller}")
        assert order < expected, "all is found: take the excuse away"
    else:
        assert order == expected


@pytest.mark.parametrize("name", STRUCTURED)
def test_all_that_is_allowed_on_structured_units_keeps_the_output(name):
    derived = derive(STRUCTURED[name])
    assert largest_change(derived.program, derived.inputs, derived.symmetry) <= 1e-9


def test_every_rule_is_run_by_a_program():
    applied = frozenset().union(*(plain(name).rules for name in CASES))
    assert set(rule_names()) - applied == set(NOT_EXPORTED)


def pointwise_operations() -> list[str]:
    """Operations of one or two tensors that PyTorch promises to be pointwise, but random ones."""
    names = []
    for name in dir(torch.ops.aten):
        overloads = getattr(torch.ops.aten, name)
        for overload in overloads.overloads() if hasattr(overloads, "overloads") else []:
            op = getattr(overloads, overload)
            given = [argument for argument in op._schema.arguments if not argument.has_default_value()]
            tensors = given and all(str(argument.type) == "Tensor" for argument in given)
            random = torch.Tag.nondeterministic_seeded in op.tags
            known = name in rule_names() or name in ("clamp", "clip")  # these want a limit
            if torch.Tag.pointwise in op.tags and tensors and not (op._schema.is_mutable or random or known):
                names.append(f"{name}.{overload}/{len(given)}")
    return names


@pytest.mark.parametrize("name", pointwise_operations())
def test_operations_without_a_rule_that_are_tagged_pointwise_are(name):
    path, count = name.split("/")
    op = functools.reduce(getattr, path.split("."), torch.ops.aten)
    generator = torch.Generator().manual_seed(0)
    operands = [torch.rand(4, 3, generator=generator) + 0.1 for _ in range(int(count))]
    try:
        before = op(*operands)
    except (RuntimeError, NotImplementedError):  # wants integers
        operands = [(5 * operand).int() for operand in operands]
        before = op(*operands)
    if not isinstance(before, Tensor):
        pytest.skip("gives no tensor")
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    after = op(*(operand[rows][:, columns] for operand in operands))
    assert torch.equal(after.nan_to_num(), before[rows][:, columns].nan_to_num())


@pytest.mark.parametrize("name", ["linear", "softmax", "view that parts", "group_norm", "attention that is causal"])
def test_a_trace_for_one_batch_size_tells_the_same(name):
    program, inputs = CASES[name].make()
    for_any = derive_symmetry(program, inputs, verify=False)
    assert for_any.parameters == derive_fast(program, inputs).parameters
