"""Opening checkpoints of every kind, and refusing what is none."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mergeline.checkpoints.readers import Reader, TensorReader, open_checkpoint
from mergeline.errors import InputError

STATE = {
    "layer.weight": torch.arange(12.0).reshape(4, 3),
    "layer.bias": torch.tensor([1.0, -2.0, 0.5, 8.0], dtype=torch.bfloat16),
    "layer.steps": torch.tensor(7),
    "layer.mask": torch.tensor([True, False]),
}


def save_safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "model.safetensors")
    return folder / "model.safetensors"


def save_folder(folder: Path) -> Path:
    return save_safetensors(folder).parent


def save_shards(folder: Path) -> Path:
    """Shards as other programs write them: with a tensor in a shard of which the index knows nothing."""
    names = list(STATE)
    save_file({name: STATE[name] for name in names[:2]} | {"stray": torch.zeros(1)}, folder / "a.safetensors")
    save_file({name: STATE[name] for name in names[2:]}, folder / "b.safetensors")
    places = {name: "a.safetensors" if name in names[:2] else "b.safetensors" for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def save_shard_folder(folder: Path) -> Path:
    return save_shards(folder).parent


def save_torch(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pt")
    return folder / "model.pt"


def save_torch_shards(folder: Path) -> Path:
    """A sharded model as transformers wrote it before safetensors, beside files of its training run."""
    names = list(STATE)
    for number, part in enumerate((names[:2], names[2:]), start=1):
        torch.save({name: STATE[name] for name in part}, folder / f"pytorch_model-{number:05}-of-00002.bin")
    places = {name: f"pytorch_model-0000{1 if name in names[:2] else 2}-of-00002.bin" for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for other in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({}, folder / other)
    return folder


def save_missing_torch_file_of_shards(folder: Path) -> Path:
    return save_torch_shards(folder) / "pytorch_model.bin"


def save_old_torch(folder: Path) -> Path:
    torch.save(STATE, folder / "model.bin", _use_new_zipfile_serialization=False)
    return folder / "model.bin"


def save_training_checkpoint(folder: Path) -> Path:
    torch.save({"epoch": 3, "optimizer": {"state": {}}, "state_dict": STATE}, folder / "model.pth")
    return folder / "model.pth"


def keep_in_memory(_: Path) -> dict[str, Tensor]:
    return STATE


@pytest.fixture(
    params=[
        save_safetensors,
        save_folder,
        save_shards,
        save_shard_folder,
        save_torch,
        save_old_torch,
        save_torch_shards,
        save_missing_torch_file_of_shards,
        save_training_checkpoint,
        keep_in_memory,
    ],
    ids=lambda save: save.__name__,
)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    return open_checkpoint(request.param(tmp_path))


def test_a_reader_is_the_state_dict_that_was_saved(reader: Reader) -> None:
    assert reader.names() == list(reader) == sorted(STATE)
    assert len(reader) == len(STATE)
    for name, tensor in dict(reader).items():
        assert torch.equal(tensor, STATE[name]), name
        assert tensor.dtype == STATE[name].dtype == reader.dtype(name), name
        assert reader.shape(name) == tuple(STATE[name].shape), name


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 2), (3, 9), (5, 9)])
def test_a_slice_holds_rows(reader: Reader, start: int, stop: int) -> None:
    for name in ("layer.weight", "layer.bias", "layer.mask"):
        assert torch.equal(reader.read_slice(name, start, stop), STATE[name][start:stop]), name


def test_an_unknown_name_is_told_with_its_neighbour(reader: Reader) -> None:
    for ask in (reader.read, reader.shape, reader.dtype, lambda name: reader.read_slice(name, 0, 1)):
        with pytest.raises(InputError) as caught:
            ask("layer.wieght")
        assert str(caught.value) == f"{reader.source}: has no tensor 'layer.wieght'; did you mean 'layer.weight'?"


def test_a_reader_behaves_as_a_mapping(reader: Reader) -> None:
    assert "layer.weight" in reader
    assert "weight" not in reader
    assert reader.get("weight") is None
    with pytest.raises(KeyError):
        reader["weight"]
    assert reader == reader
    assert reader != TensorReader(STATE)
    assert {reader: 1}[reader] == 1


def test_a_module_loads_from_a_reader(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    module = nn.Linear(3, 2)
    module.load_state_dict(dict(open_checkpoint(tmp_path / "model.pt")))
    assert torch.equal(module.weight, torch.load(tmp_path / "model.pt")["weight"])


def test_a_reader_is_returned_as_it_is() -> None:
    reader = TensorReader(STATE)
    assert open_checkpoint(reader) is reader


def test_parameters_are_read_without_their_gradients() -> None:
    reader = open_checkpoint(dict(nn.Linear(3, 2).named_parameters()))
    assert not reader.read("weight").requires_grad


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_one_level_of_nesting_is_opened(wrapper: str) -> None:
    assert open_checkpoint({wrapper: STATE, "epoch": 3}).names() == sorted(STATE)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 3}, "'epoch' is a int, not a tensor"),
        ({"model": nn.Linear(1, 1)}, "'model' is a Linear, not a tensor"),
        ({"w": torch.ones(1), "config": {"lr": 1}}, "'config' is a dict, not a tensor"),
        ({"model": STATE, "state_dict": STATE}, "state_dict and model could each be the state dict"),
        ({"model": {"inner": STATE}}, "'inner' is a dict, not a tensor"),
        ({0: torch.ones(1)}, "the key 0 is not a string"),
        ({"w": torch.ones(2).to_sparse()}, "'w' is sparse or quantized"),
    ],
)
def test_a_mapping_of_other_things_is_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(state)


@pytest.mark.parametrize("thing", [None, 3, nn.Linear(1, 1)])
def test_what_is_no_checkpoint_is_refused(thing: object) -> None:
    with pytest.raises(InputError, match="is not a checkpoint; pass a path or a state dict"):
        open_checkpoint(thing)  # type: ignore[arg-type]


def test_a_missing_file_is_told_with_its_neighbour(tmp_path: Path) -> None:
    save_safetensors(tmp_path)
    with pytest.raises(InputError, match=r"modle\.safetensors: there is no such file; did you mean 'model\.safe"):
        open_checkpoint(tmp_path / "modle.safetensors")


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"unknown kind of checkpoint '\.gguf'; known are \.safetensors"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file or index; name a checkpoint file"):
        open_checkpoint(tmp_path)


def test_a_folder_with_several_checkpoints_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="name the one to open"):
        open_checkpoint(tmp_path)


# -- damaged and disguised files ---------------------------------------------------------------------------------------


def cut_short(data: bytes) -> bytes:
    return data[:-3]


def cut_in_header(data: bytes) -> bytes:
    return data[:40]


def grown(data: bytes) -> bytes:
    return data + b"tail"


def not_a_page(data: bytes) -> bytes:
    """A header length whose first bytes read as ' <'."""
    return b" <\0\0\0\0\0\0" + data[8:]


def header_too_long(data: bytes) -> bytes:
    return (2**40).to_bytes(8, "little") + data[8:]


def offsets_out_of_file(data: bytes) -> bytes:
    return data.replace(b"[8,56]", b"[8,96]")


@pytest.mark.parametrize("damage", [cut_short, cut_in_header, grown, not_a_page, header_too_long, offsets_out_of_file])
def test_a_damaged_safetensors_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = save_safetensors(tmp_path)
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors: is not a whole safetensors file"):
        open_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize(
    ("content", "clue"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "is a Git LFS pointer"),
        (b'{"error": "Repository not found"}', "is JSON text"),
    ],
)
def test_what_a_server_sent_instead_of_a_checkpoint_is_recognised(
    tmp_path: Path, suffix: str, content: bytes, clue: str
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"model{suffix}: {clue}"):
        open_checkpoint(path)


def test_a_torch_file_under_the_name_of_safetensors_is_recognised(tmp_path: Path) -> None:
    save_torch(tmp_path).rename(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"was written by torch\.save; rename it to \.pt"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_truncated_torch_file_is_named(tmp_path: Path) -> None:
    path = save_torch(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"model\.pt: is not a whole PyTorch checkpoint"):
        open_checkpoint(path)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    attack = {"w": torch.ones(2), "x": Attack(tmp_path / "trace")}
    torch.save(attack, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"model\.pt: holds pickled Python objects \(posix\.mkdir\).*convert it"):
        open_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_a_pickled_module_is_refused_with_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"\(torch\.nn\.modules\.linear\.Linear\).*save_file"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_torch_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds a list, not a state dict"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_slice_of_a_large_file_does_not_read_the_file(tmp_path: Path) -> None:
    rows = 2**21  # of 1 KiB: 2 GiB in which nothing is stored but holes
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 256], "data_offsets": [0, rows * 1024]}}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = open_checkpoint(path)
    assert torch.equal(reader.read_slice("w", rows - 10, rows), torch.zeros(10, 256))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def anonymous_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_large_torch_file_is_mapped_and_not_copied(tmp_path: Path, sharded: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(2**15, 1024), "b": torch.ones(3)}, path)  # 128 MiB
    if sharded:
        index = {"weight_map": {"w": path.rename(tmp_path / "w-1.bin").name, "b": "w-1.bin"}}
        path = tmp_path / "pytorch_model.bin.index.json"
        path.write_text(json.dumps(index))
    before = anonymous_kib()
    reader = open_checkpoint(path)
    assert reader.read_slice("w", 5, 9).sum() == 0
    assert reader.read("w").sum() == 0
    assert anonymous_kib() - before < 2**15


# -- shards ------------------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json: the shard b\.safetensors is missing"):
        open_checkpoint(index)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"b\.safetensors: is not a whole safetensors file"):
        open_checkpoint(index)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    save_file({"layer.steps": STATE["layer.steps"]}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"promises tensor 'layer\.mask' in b\.safetensors, which does not hold it"):
        open_checkpoint(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"w": 3}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json: is not the index of a sharded checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors"])
def test_an_index_may_not_point_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    save_file(STATE, tmp_path / "secret.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(InputError, match=r"names the shard .*without a path"):
        open_checkpoint(index)
