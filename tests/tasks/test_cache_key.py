"""What a stage may take and return, and the key that follows from it."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from tasks.policy import canonical, stage
from tasks.store import ArtifactRef, put_file, put_json

pytestmark = pytest.mark.usefixtures("state")


class Number(BaseModel):
    value: float


class Options(BaseModel, extra="allow"):
    ratio: float | int = 0.5
    inner: Number | None = None
    ref: ArtifactRef | None = None


class SameFields(BaseModel):
    value: float


@dataclass
class Plain:
    value: int


def test_what_differs_has_another_form() -> None:
    one, two = put_json(1, "a"), put_json(2, "a")
    named = put_file(lambda path: path.write_bytes(one.path.read_bytes()), ".txt", "a")
    values: list[Any] = [
        *(
            None,
            True,
            False,
            0,
            1,
            1.0,
            0.0,
            -0.0,
            math.inf,
            -math.inf,
            "1",
            "",
            "None",
            [],
            [[]],
            {},
            [None],
            {"": None},
        ),
        *({"a": 1, "b": 2}, {"b": 2, "a": 1}, ["a", "b"], [["a", 1]], {"artifact": one.identity}, one, two, named),
        *(
            Number(value=1),
            SameFields(value=1),
            Options(),
            Options(ratio=1),
            Options(ratio=1.0),
            Options.model_validate({"extra": 1}),
        ),
        *(Options(inner=Number(value=1)), Options(ref=one), Options(ref=two), {"model": "Options", "fields": []}),
    ]
    forms = [json.dumps(canonical(value)) for value in values]
    assert len(set(forms)) == len(values)


def test_what_is_equal_has_the_same_form() -> None:
    assert canonical((1, 2)) == canonical([1, 2])
    assert canonical(np.float64(0.1)) == canonical(0.1)
    assert canonical(Options(ratio=0.5)) == canonical(Options())
    assert canonical(put_json(1, "a")) == canonical(put_json(1, "b", told="more"))


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        torch.nn.Linear(1, 1),
        np.zeros(2),
        np.int64(1),
        {1, 2},
        frozenset({1}),
        b"bytes",
        1j,
        (number for number in range(2)),
        iter([1]),
        {1: "a"},
        Path("file"),
        Plain(1),
        threading.Lock(),
        object(),
        len,
        Number,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"a": [value]}])
def test_what_has_no_content_of_its_own_is_refused(value: object, wrap: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="is no input for a stage"):
        canonical(wrap(value))


def test_refusing_a_generator_does_not_consume_it() -> None:
    generator = (number for number in range(3))
    with pytest.raises(TypeError):
        canonical(generator)
    assert list(generator) == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, [math.nan], Number(value=math.nan), np.float64("nan")])
def test_nan_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="NaN"):
        canonical(value)


def test_another_process_computes_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keybox.py").write_text(
        "from pydantic import BaseModel\nfrom tasks.policy import cache_key\n\n\n"
        "class Options(BaseModel, extra='allow'):\n    ratio: float\n\n\n"
        "def function(options: Options, names: list[str], scale: float = 1.0) -> None: ...\n\n\n"
        "def key() -> str:\n"
        "    return cache_key('a', function, {'options': Options(ratio=0.1, b=1, a=[1.0]), 'names': ['x', 'y']})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from keybox import key  # type: ignore[import-not-found]

    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(tmp_path)}
    script = "import keybox; print(keybox.key())"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, env=environment) == f"{key()}\n"


def returns_dict(x: int) -> dict[str, int]:
    return {}


def returns_optional(x: int) -> Number | None:
    return None


def returns_list(x: int) -> list[Number]:
    return []


def returns_nothing_said(x: int):  # type: ignore[no-untyped-def]
    return Number(value=1)


@pytest.mark.parametrize("function", [returns_dict, returns_optional, returns_list, returns_nothing_said])
def test_a_stage_must_promise_one_model(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="returns one pydantic model or ArtifactRef"):
        stage("any")(function)


def test_a_model_that_cannot_be_imported_is_no_result() -> None:
    class Local(BaseModel):
        x: int

    def returns_local(x: int) -> Local:
        return Local(x=x)

    with pytest.raises(TypeError, match="must be importable"):
        stage("any")(returns_local)


@pytest.mark.parametrize("name", ["", "Merge", "a b", "a/b", "a.b", "-a", "a--b"])
def test_the_name_of_a_stage_is_plain(name: str) -> None:
    with pytest.raises(ValueError, match="stage name"):
        stage(name)
