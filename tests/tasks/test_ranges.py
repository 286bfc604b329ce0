"""Ranges of a merge: taken up again after a stop, never a part of a result before all are there."""

import pytest
import torch
from safetensors.torch import save_file

from mergeline.errors import InputError
from mergeline.plan import Merge
from tasks.locks import STAGE_LOCKS
from tasks.merge_inputs import MergeInputs
from tasks.merging import given_up_where_at_fault, merge_models, merge_range
from tasks.policy import stage_key
from tasks.store import store_directory, take_file


@pytest.fixture
def call(state, tmp_path):
    """Arguments of a merge of two small checkpoints."""
    refs = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(40, 30, generator=generator) for name in ("a", "b")}
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        refs.append(take_file(tmp_path / f"{seed}.safetensors", "checkpoint", name=str(seed)))
    inputs = MergeInputs(models=refs, bases=[], families=[0, 0], alignment=None)
    return {"name": "merged", "inputs": inputs, "coefficients": None, "merge": Merge(method="average")}


def notes():
    return {path: path.stat().st_mtime_ns for path in store_directory().glob("ranges/*/unfinished/written-*.json")}


def drafts():
    return list(store_directory().glob("ranges/merge-*"))


def test_ranges_and_the_whole_have_the_same_bytes(call):
    whole = merge_models.fn(**call)
    for number in (2, 0, 1):
        merge_range.fn(number, 3, **call)
    assert merge_models.fn(**call) == whole
    assert not drafts()


def test_ranges_that_are_there_are_not_computed_again(call):
    for number in (0, 1):
        merge_range.fn(number, 3, **call)
    before = notes()
    assert len(before) == 2
    for number in (0, 1, 2):
        merge_range.fn(number, 3, **call)
    assert len(notes()) == 3
    assert notes().items() > before.items()


def test_a_draft_that_lacks_ranges_is_left_aside(call):
    merge_range.fn(1, 3, **call)
    ref = merge_models.fn(**call)
    assert not drafts()
    assert merge_models.fn(**call) == ref


def test_models_at_fault_leave_no_draft(call, tmp_path):
    save_file({name: torch.full((40, 30), float("nan")) for name in ("a", "b")}, tmp_path / "nan.safetensors")
    broken = take_file(tmp_path / "nan.safetensors", "checkpoint", name="broken")
    inputs = call["inputs"].model_copy(update={"models": [*call["inputs"].models[:1], broken]})
    call |= {"inputs": inputs}
    with pytest.raises(InputError, match="broken"), given_up_where_at_fault([call]):
        merge_range.fn(1, 3, **call)
    assert not drafts()


def test_a_draft_that_nobody_took_up_for_a_week_is_removed(call, monkeypatch):
    merge_range.fn(0, 3, **call)
    (old,) = drafts()
    monkeypatch.setattr("tasks.merging.FORGOTTEN", -1)
    merge_range.fn(0, 3, **(call | {"name": "other"}))
    assert drafts() != [old]
    assert len(drafts()) == 1


def test_a_merge_that_another_run_is_making_needs_no_ranges(call):
    """It gives the draft its name and removes it, which a range that writes at that moment would not survive."""
    key = stage_key(merge_models, **call)
    STAGE_LOCKS.acquire_lock(key, "another run")
    merge_range.fn(0, 3, **call)
    assert not drafts()
    STAGE_LOCKS.release_lock(key, "another run")
    merge_range.fn(0, 3, **call)
    assert len(notes()) == 1
