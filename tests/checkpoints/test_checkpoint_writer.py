"""Written checkpoints: what comes back, which bytes lie there, and that failures leave nothing."""

import hashlib
import json
import pickle
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mergeline.checkpoints import atomic, output
from mergeline.checkpoints.encoding import DTYPES
from mergeline.checkpoints.readers import Reader, TensorReader, open_checkpoint
from mergeline.checkpoints.writer import Manifest, write_checkpoint
from mergeline.errors import InputError

DTYPE = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
SHAPE = st.lists(st.integers(0, 4), max_size=3)


def example(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """A tensor of any dtype; odd seeds give one that is not contiguous in memory."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shape[::-1], generator=generator) * 100).to(dtype)
    return values.permute(list(reversed(range(values.dim())))) if seed % 2 else values.reshape(shape)


EXAMPLE = st.builds(example, DTYPE, SHAPE, st.integers(0, 99))
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), EXAMPLE, min_size=1)


def model(count: int = 6) -> dict[str, Tensor]:
    """`count` tensors of 400 bytes each."""
    return {f"layer{i}.weight": torch.full((10, 10), float(i)) for i in range(count)}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same(reader: Reader, tensors: dict[str, Tensor]) -> bool:
    return reader.names() == sorted(tensors) and all(
        torch.equal(reader.read(name), tensor) and reader.dtype(name) == tensor.dtype
        for name, tensor in tensors.items()
    )


@given(tensors=TENSORS, max_shard_size=st.none() | st.integers(1, 400), as_pairs=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back(tensors: dict[str, Tensor], max_shard_size: int | None, as_pairs: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        given = iter(tensors.items()) if as_pairs else tensors
        manifest = write_checkpoint(path, given, max_shard_size=max_shard_size)
        assert same(open_checkpoint(path), tensors)
        assert same(open_checkpoint(folder), tensors)
        assert sorted(manifest.files) == files_in(Path(folder))
        for name in manifest.files:  # the library reads our bytes as its own
            if name.endswith(".safetensors"):
                for key, tensor in load_file(Path(folder) / name).items():
                    assert torch.equal(tensor, tensors[key]), key


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    write_checkpoint(tmp_path, {"w": values})
    back = load_file(tmp_path / "model.safetensors")["w"]
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))
    assert open_checkpoint(tmp_path).dtype("w") == dtype


def test_the_bytes_are_these(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([True]), "w": torch.tensor([1.0, -2.0]), "a": torch.tensor([1, 2], dtype=torch.int16)}
    write_checkpoint(tmp_path / "m.safetensors", tensors, metadata={"z": "1", "é": "2"})
    header = (
        '{"__metadata__":{"format":"pt","z":"1","é":"2"},'
        '"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"a":{"dtype":"I16","shape":[2],"data_offsets":[8,12]},'
        '"b":{"dtype":"BOOL","shape":[1],"data_offsets":[12,13]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("0000803f 000000c0 0100 0200 01")
    assert (tmp_path / "m.safetensors").read_bytes() == len(header).to_bytes(8, "little") + header + data
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "z": "1", "é": "2"}


@pytest.mark.parametrize("max_shard_size", [None, 900])
def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path: Path, max_shard_size: int | None) -> None:
    metadata = {str(i): "x" for i in range(9)}
    first = write_checkpoint(tmp_path / "a", model(), max_shard_size=max_shard_size, metadata=metadata)
    turned = dict(reversed(model().items()))
    backwards = dict(reversed(metadata.items()))
    assert write_checkpoint(tmp_path / "b", turned, max_shard_size=max_shard_size, metadata=backwards) == first


def test_a_manifest_counts_and_hashes(tmp_path: Path) -> None:
    manifest = write_checkpoint(tmp_path / "m.safetensors", {"w": torch.ones(3, 4), "steps": torch.tensor(1)})
    data = (tmp_path / "m.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert manifest == Manifest({"m.safetensors": digest}, digest, tensors=2, parameters=13, bytes=len(data))


def test_a_large_model_becomes_shards_with_an_index(tmp_path: Path) -> None:
    tensors = model(5)
    manifest = write_checkpoint(tmp_path, tensors, max_shard_size=800, metadata={"from": "test"})
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files_in(tmp_path) == [*shards, "model.safetensors.index.json"] == sorted(manifest.files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    places = [shards[i // 2] for i in range(5)]
    assert index == {"metadata": {"total_size": 2000}, "weight_map": dict(zip(tensors, places, strict=True))}
    for name, digest in manifest.files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert (manifest.tensors, manifest.parameters) == (5, 500)
    assert manifest.bytes == sum((tmp_path / name).stat().st_size for name in manifest.files)
    with safe_open(tmp_path / shards[1], "pt") as file:
        assert file.metadata() == {"format": "pt", "from": "test"}


def test_an_index_lists_names_in_order_however_they_come(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, reversed(model(5).items()), max_shard_size=800)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(model(5))
    assert same(open_checkpoint(tmp_path), model(5))


def test_the_digest_of_shards_differs_when_one_value_differs(tmp_path: Path) -> None:
    tensors = model()
    first = write_checkpoint(tmp_path, tensors, max_shard_size=800)
    tensors["layer3.weight"][0, 0] += 1
    assert write_checkpoint(tmp_path, tensors, max_shard_size=800).sha256 != first.sha256


def test_a_model_that_fits_becomes_one_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=2400)
    assert files_in(tmp_path) == ["model.safetensors"]


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1), "b": torch.ones(100), "c": torch.ones(1)}
    assert len(write_checkpoint(tmp_path, tensors, max_shard_size=8).files) == 4
    assert same(open_checkpoint(tmp_path), tensors)


@pytest.mark.parametrize(("before", "after"), [(None, 800), (800, None), (800, 1600), (1600, 1601)])
def test_a_new_checkpoint_replaces_the_old_one_whole(tmp_path: Path, before: int | None, after: int | None) -> None:
    (tmp_path / "model-of-mine.safetensors").touch()
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    new = {name: tensor + 1 for name, tensor in model().items()}
    manifest = write_checkpoint(tmp_path, new, max_shard_size=after)
    assert files_in(tmp_path) == sorted([*manifest.files, "model-of-mine.safetensors"])
    assert same(open_checkpoint(tmp_path / "model.safetensors"), new)


def test_a_checkpoint_can_be_rewritten_from_its_own_reader(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=800)
    write_checkpoint(tmp_path, open_checkpoint(tmp_path), dtype=torch.bfloat16, max_shard_size=800)
    assert same(open_checkpoint(tmp_path), {name: tensor.bfloat16() for name, tensor in model().items()})


def test_only_floating_tensors_change_their_dtype(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2), "h": torch.ones(2).half(), "steps": torch.tensor(70_000), "mask": torch.tensor(True)}
    write_checkpoint(tmp_path, tensors, dtype=torch.bfloat16)
    expected = tensors | {"w": tensors["w"].bfloat16(), "h": tensors["h"].bfloat16()}
    assert same(open_checkpoint(tmp_path), expected)


def test_tensors_that_share_memory_are_written_in_full(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": weight, "tied": weight, "row": weight[1], "turned": weight.T, "wide": torch.ones(1).expand(5)}
    write_checkpoint(tmp_path, tensors)
    assert same(open_checkpoint(tmp_path), tensors)


def test_parameters_are_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dict(torch.nn.Linear(2, 3).named_parameters()))
    assert open_checkpoint(tmp_path).shape("weight") == (3, 2)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.tensor([1.0, value]).to(dtype)
    with pytest.raises(InputError, match=r"model\.safetensors: 1 of 2 values of tensor 'bad' are NaN or infinite"):
        write_checkpoint(tmp_path, {"a": torch.ones(2), "bad": bad})
    assert files_in(tmp_path) == []


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 2 values of tensor 'w' do not fit into torch\.float16; write bfloat16"):
        write_checkpoint(tmp_path, {"w": torch.tensor([1.0, 1e6])}, dtype=torch.float16)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no tensors were given"),
        ([("w", torch.ones(1)), ("w", torch.ones(1))], "tensor name 'w' is given twice"),
        ([("__metadata__", torch.ones(1))], "'__metadata__' is not usable"),
        ([(3, torch.ones(1))], "tensor name 3 is not usable"),
        ([("w", 1.0)], "'w' is not a dense tensor"),
        ([("w", torch.ones(2).to_sparse())], "'w' is not a dense tensor"),
        ([("w", torch.ones(2, dtype=torch.complex128))], "'w' is not a dense tensor of a dtype that safetensors knows"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, pairs: list[tuple[str, Tensor]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path, iter(pairs))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.pt", {}, "let the name end in .safetensors"),
        ("m.safetensors", {"dtype": torch.int8}, "is not a floating dtype"),
        ("m.safetensors", {"max_shard_size": 0}, "give a number of bytes above 0"),
        ("m.safetensors", {"metadata": {"steps": 3}}, "metadata 'steps' is not a string"),
    ],
)
def test_an_impossible_option_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    def never() -> Iterator[tuple[str, Tensor]]:
        pytest.fail("a tensor was asked for")
        yield

    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path / name, never(), **options)  # type: ignore[arg-type]
    assert files_in(tmp_path) == []


# -- crashes and memory ------------------------------------------------------------------------------------------------


def breaks_after(count: int) -> Iterator[tuple[str, Tensor]]:
    yield from list(model().items())[:count]
    raise KeyboardInterrupt


@pytest.mark.parametrize("max_shard_size", [None, 800])
@pytest.mark.parametrize("before", [None, 900, 1600], ids=["over one file", "over shards", "over larger shards"])
def test_a_crash_midway_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, max_shard_size: int | None, before: int | None
) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    there = files_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, breaks_after(5), max_shard_size=max_shard_size)
    assert files_in(tmp_path) == there
    assert same(open_checkpoint(tmp_path), model())


def test_a_crash_midway_leaves_an_empty_folder_empty(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, breaks_after(5), max_shard_size=400)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [None, 800], ids=["over one file", "over shards"])
def test_a_crash_while_naming_shards_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, fails_at: int
) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    old = files_in(tmp_path)
    published: list[Path] = []

    def fails(temporary: Path, final: Path) -> None:
        published.append(final)
        if len(published) == fails_at:
            raise OSError(5, "Input/output error")
        temporary.replace(final)

    monkeypatch.setattr(atomic, "publish", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_checkpoint(tmp_path, {name: tensor + 1 for name, tensor in model().items()}, max_shard_size=800)
    if before is None:
        assert files_in(tmp_path) == old
        assert same(open_checkpoint(tmp_path), model())
    else:
        assert files_in(tmp_path) == []


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


# -- streams -----------------------------------------------------------------------------------------------------------


class Stream:
    """Tensors in pieces of three entries, in one piece of memory that is used again."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        for name in names:
            flat = self._tensors[name].reshape(-1)
            memory = torch.empty(3, dtype=flat.dtype)
            for start in range(0, len(flat), 3):
                piece = memory[: len(flat) - start]
                yield name, start, piece.copy_(flat[start : start + 3])


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


# -- outputs filled by several hands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", [None, 800])
def test_ranges_written_in_any_order_and_twice_give_the_same_bytes(tmp_path: Path, max_shard_size: int | None) -> None:
    expected = write_checkpoint(tmp_path / "whole", model(), max_shard_size=max_shard_size)
    stream = Stream(model())
    layout = pickle.loads(pickle.dumps(output.prepare(tmp_path / "parts", stream.specs, max_shard_size=max_shard_size)))
    pieces = [(name, start, piece.clone()) for name, start, piece in stream.pieces(list(stream.specs))]
    for part in (pieces[100:], pieces[:60], pieces[40:120]):
        output.write_range(layout, reversed(part))
    assert output.publish(layout) == expected
    assert files_in(tmp_path / "parts") == sorted(expected.files)


def test_an_output_with_a_hole_is_not_published(tmp_path: Path) -> None:
    stream = Stream(model())
    layout = output.prepare(tmp_path, stream.specs)
    output.write_range(
        layout, (piece for piece in stream.pieces(list(stream.specs)) if piece[:2] != ("layer2.weight", 6))
    )
    with pytest.raises(InputError, match=r"tensor 'layer2\.weight' was not written from entry 6 on"):
        output.publish(layout)
    output.abandon(layout)
    assert files_in(tmp_path) == []


def test_a_range_that_is_not_finite_does_not_count_as_written(tmp_path: Path) -> None:
    layout = output.prepare(tmp_path, {"w": ((2,), torch.float32)})
    with pytest.raises(InputError, match="1 of 2 values of tensor 'w' are NaN"):
        output.write_range(layout, [("w", 0, torch.tensor([1.0, float("inf")]))])
    with pytest.raises(InputError, match="not written from entry 0"):
        output.publish(layout)
