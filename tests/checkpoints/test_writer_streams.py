"""Tensors that are computed as they are written: one at a time, or a piece of one."""

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from written import TENSORS, Stream, files_in, model

from mergeline.checkpoints.readers import TensorReader
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError


def test_only_one_tensor_is_held_in_memory(tmp_path: Path) -> None:
    memory: list[weakref.ref[np.ndarray]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for i in range(12):
            array = np.full(100, i, dtype=np.float32)
            memory.append(weakref.ref(array))
            most = max(most, sum(reference() is not None for reference in memory))
            yield f"{i:02}", torch.from_numpy(array)

    write_checkpoint(tmp_path, tensors(), max_shard_size=1200)
    assert most <= 2  # the last one is still in the hands of the generator that makes the next


@given(tensors=TENSORS, max_shard_size=st.none() | st.integers(1, 400), narrow=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_stream_a_mapping_and_pairs_give_the_same_bytes(
    tensors: dict[str, Tensor], max_shard_size: int | None, narrow: bool
) -> None:
    tensors = dict(sorted(tensors.items()))
    dtype = torch.bfloat16 if narrow else None
    with TemporaryDirectory() as folder:
        manifests = [
            write_checkpoint(Path(folder) / str(number), source, max_shard_size=max_shard_size, dtype=dtype)
            for number, source in enumerate([tensors, iter(tensors.items()), Stream(tensors), TensorReader(tensors)])
        ]
        assert manifests == [manifests[0]] * 4
        for name, digest in manifests[0].files.items():
            for number in range(4):
                assert hashlib.sha256((Path(folder) / str(number) / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("max_shard_size", [None, 800])
def test_a_stream_that_fails_leaves_nothing(tmp_path: Path, max_shard_size: int | None) -> None:
    tensors = model()
    tensors["layer5.weight"][9, 9] = float("nan")
    with pytest.raises(InputError, match=r"1 of 100 values of tensor 'layer5\.weight' are NaN or infinite"):
        write_checkpoint(tmp_path, Stream(tensors), max_shard_size=max_shard_size)
    assert files_in(tmp_path) == []


def test_all_faulty_values_of_a_streamed_tensor_are_counted(tmp_path: Path) -> None:
    values = torch.ones(10)
    values[[1, 4, 9]] = 1e6
    with pytest.raises(InputError, match=r"3 of 10 values of tensor 'w' do not fit into torch\.float16"):
        write_checkpoint(tmp_path, Stream({"w": values, "z": torch.ones(4)}), dtype=torch.float16)


@pytest.mark.parametrize("lost", [0, 1, 5])
def test_a_stream_that_breaks_its_promise_writes_nothing(tmp_path: Path, lost: int) -> None:
    class Short(Stream):
        def pieces(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
            yield from (piece for number, piece in enumerate(super().pieces(names)) if number != lost)

    with pytest.raises(ValueError, match="a stream gave"):
        write_checkpoint(tmp_path, Short({"w": torch.ones(17)}))
    assert files_in(tmp_path) == []
