"""A method's signature is its schema, and wrong options are told by name."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.merging import registry


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Methods registered in a test are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield


def test_the_methods_are_there_sorted_and_told_apart_by_their_need_of_a_base() -> None:
    assert {"average", "pcb", "task_arithmetic"} <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert sorted(registry.names(needs_base=True) + registry.names(needs_base=False)) == registry.names()
    assert "average" in registry.names(needs_base=False)
    assert "pcb" in registry.names(needs_base=True)


@pytest.mark.parametrize("name", registry.names())
def test_every_method_documents_itself_and_its_defaults_are_valid(name: str) -> None:
    method = registry.get(name)
    assert method.name == name
    assert method.summary.endswith((".", ")"))
    for option, schema in method.options.items():
        assert schema.annotation is not inspect.Parameter.empty, option
        assert schema.default is registry.REQUIRED or schema.check(schema.default) == schema.default, option


def test_options_come_from_the_signature(scratch: None) -> None:
    @registry.method("scratch", needs_base=True)
    def kernel(task_vectors: Tensor, *, level: int, ratio: float = 0.5) -> Tensor:
        """One line.

        More lines.
        """
        return task_vectors[0]

    method = registry.get("scratch")
    assert method.kernel is kernel
    assert method.summary == "One line."
    assert {name: option.annotation for name, option in method.options.items()} == {"level": int, "ratio": float}
    assert method.validate_options({"level": 3}) == {"level": 3, "ratio": 0.5}
    with pytest.raises(InputError, match="'scratch' needs the option 'level'"):
        method.validate_options({})


def test_statistics_are_no_option_and_name_the_options_they_use(scratch: None) -> None:
    def gather(chunks: Any, size: int, *, ratio: float) -> dict[str, Any]:
        return {"size": size}

    @registry.method("scratch", needs_base=True, statistics=gather)
    def kernel(task_vectors: Tensor, *, statistics: dict[str, Any], ratio: float = 0.5, scale: float = 1.0) -> Tensor:
        """One line."""
        return task_vectors[0]

    assert list(registry.get("scratch").options) == ["ratio", "scale"]
    assert registry.get("scratch").statistics_options == ["ratio"]
    assert registry.get("average").statistics_options == []


def test_two_methods_of_one_name_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="two merging methods are called 'average'"):
        registry.method("average", needs_base=False)(lambda models: models[0])


def test_an_unknown_method_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"'task_arithmetics' does not exist; did you mean 'task_arithmetic'\?"):
        registry.get("task_arithmetics")


def test_an_unknown_option_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"'pcb' has no option 'keep_ration'; did you mean 'keep_ratio'\?"):
        registry.get("pcb").validate_options({"keep_ration": 0.1})


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("pcb", "keep_ratio", "0.1"),
        ("pcb", "keep_ratio", 0.0),
        ("pcb", "keep_ratio", 1.5),
        ("pcb", "keep_ratio", float("nan")),
        ("pcb", "clip_ratio", 0.5),
        ("pcb", "clip_ratio", -0.1),
        ("pcb", "variant", "papers"),
        ("pcb", "scales", [1.0, "1"]),
        ("pcb", "scales", 1.0),
        ("pcb", "scale", True),
        ("pcb", "scale", float("inf")),
        ("task_arithmetic", "scale", None),
        ("average", "weights", "12"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_names_the_option(method: str, option: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"method '{method}': option '{option}' is "):
        registry.get(method).validate_options({option: value})


@pytest.mark.parametrize("value", [[1, 2.5], (1.0, 2.5), torch.tensor([1.0, 2.5]), np.array([1.0, 2.5])])
def test_numbers_may_come_as_lists_tuples_tensors_and_arrays(value: Sequence[float]) -> None:
    assert list(registry.get("pcb").validate_options({"scales": value})["scales"]) == [1.0, 2.5]


@pytest.mark.parametrize("value", [1, np.float32(1.0), torch.tensor(1.0)])
def test_whole_numbers_and_scalars_are_numbers(value: float) -> None:
    scale = registry.get("task_arithmetic").validate_options({"scale": value})["scale"]
    assert type(scale) is float
    assert scale == 1.0


def test_what_the_engine_gives_is_no_option(scratch: None) -> None:
    @registry.method("scratch", needs_base=False, evidence="fisher", granularity="layer", models=(2, 3))
    def kernel(models: Tensor, *, where: registry.Piece, evidence: Tensor, level: int = 1) -> Tensor:
        """One line."""
        return models[0]

    method = registry.get("scratch")
    assert list(method.options) == ["level"]
    assert method.takes == {"where", "evidence"}


@pytest.mark.parametrize("declared", [{"evidence": "fisher"}, {"statistics": lambda chunks, size: {}}])
def test_a_declaration_without_its_keyword_is_a_programming_error(scratch: None, declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="go together"):
        registry.method("scratch", needs_base=False, **declared)(lambda models: models[0])


@pytest.mark.parametrize(
    ("models", "count", "wanted"), [((2, 2), 3, "2 task"), ((2, None), 1, "at least 2"), ((1, 3), 4, "1 to 3")]
)
def test_the_number_of_models_is_checked(scratch: None, models: registry.Models, count: int, wanted: str) -> None:
    registry.method("scratch", needs_base=False, models=models)(lambda models: models[0])
    with pytest.raises(InputError, match=f"method 'scratch' merges {wanted}.*, not {count}"):
        registry.get("scratch").check_models(count)
