"""What the pre-flight of a plan finds: on real files, without writing one."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import mergeline as ml
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.preflight.forecast import trial
from mergeline.preflight.inspect import inspect_plan
from mergeline.preflight.sources import ask
from mergeline.report.preflight import show_preflight, size_text, time_text

ROOT = Path(__file__).parents[2]
SHAPES = {"layers.0.mlp.weight": (8, 6), "layers.0.attn.weight": (6, 6), "layers.1.mlp.weight": (8, 6), "norm": (6,)}


def state(seed, base=None, **changed):
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in (SHAPES | changed).items() if shape}
    return made if base is None else {name: base[name] + 0.1 * tensor for name, tensor in made.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = state(0)
    save_file(base, "base.safetensors")
    save_file(state(1, base), "one.safetensors")
    save_file(state(2, base), "two.safetensors")
    return tmp_path


def plan_of(folder, *overrides, checkpoints=None, **merge):
    plan = {
        "name": "trial",
        "output": str(folder / "out"),
        "checkpoints": checkpoints
        or [
            {"name": "base", "uri": "base.safetensors"},
            {"name": "one", "uri": "one.safetensors", "base": "base"},
            {"name": "two", "uri": "two.safetensors", "base": "base"},
        ],
        "merge": {"method": "task_arithmetic"} | merge,
    }
    (folder / "params.yaml").write_text(json.dumps(plan))
    return ml.load_plan(folder / "params.yaml", overrides)


def shown(found):
    text = io.StringIO()
    show_preflight(found, Console(file=text, width=140))
    return text.getvalue()


def test_it_says_what_is_read_and_written_and_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    found = inspect_plan(plan_of(folder))
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "params.yaml"])
    assert (found.faults, found.alarms) == ([], [])
    assert [(source.name, source.shards, source.tensors, source.parameters) for source in found.sources] == [
        (name, 1, 4, 138) for name in ("base", "one", "two")
    ]
    assert found.sources[0].bytes == (folder / "base.safetensors").stat().st_size
    assert [(row.model, row.base) for row in found.distances] == [("one", "base"), ("two", "base")]
    assert found.forecast.seconds < 5
    assert "model.safetensors" in shown(found)


def test_a_result_that_cannot_be_written_is_a_fault(folder):
    (folder / "file").write_text("kept")
    found = inspect_plan(plan_of(folder, "output=file/out"))
    assert [fault.partition(":")[0] for fault in found.faults] == ["output"]
    assert "choose another one" in found.faults[0]


def test_what_is_read_is_a_bound_where_a_checkpoint_is_elsewhere(folder):
    assert "reads at least" not in shown(inspect_plan(plan_of(folder)))
    checkpoints = [{"name": "one", "uri": "one.safetensors"}, {"name": "two", "uri": "http://127.0.0.1:1/two.pt"}]
    found = inspect_plan(plan_of(folder, "align=null", checkpoints=checkpoints, method="average"))
    assert found.faults == []
    assert "the merge reads at least" in shown(found)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 300}, {"out_dtype": "bfloat16"}])
def test_files_and_sizes_are_those_that_the_merge_writes(folder, options):
    found = inspect_plan(plan_of(folder, **options))
    merged = ml.merge(
        ["one.safetensors", "two.safetensors"],
        base="base.safetensors",
        method="task_arithmetic",
        out_dtype=torch.bfloat16 if "out_dtype" in options else None,
    )
    write_checkpoint(folder / "out", merged, max_shard_size=options.get("max_shard_size"))
    assert found.files == {path.name: path.stat().st_size for path in (folder / "out").iterdir()}
    assert all(name in shown(found) for name in found.files)


def test_every_tensor_that_does_not_fit_is_told(folder):
    wrong = state(3, **{"norm": (7,), "layers.0.attn.weight": None, "layers.0.atn.weight": (6, 6)})
    save_file(wrong, "two.safetensors")
    found = inspect_plan(plan_of(folder))
    assert found.forecast is None
    text = "\n".join(found.faults)
    assert "two: tensor 'layers.0.attn.weight' is missing (did you mean 'layers.0.atn.weight'?)" in text
    assert "two: tensor 'layers.0.atn.weight' is extra" in text
    assert "two: tensor 'norm' has shape [7], not [6]" in text


def test_vocabularies_that_differ_are_told_once_with_what_to_write(folder):
    for name, rows in (("base", 9), ("one", 9), ("two", 11)):
        save_file(state(4) | {"embed_tokens.weight": torch.randn(rows, 4)}, f"{name}.safetensors")
    found = inspect_plan(plan_of(folder))
    assert len(found.faults) == 1
    assert "write vocabulary: common" in found.faults[0]
    assert "11 in two" in found.faults[0]
    assert inspect_plan(plan_of(folder, vocabulary="common")).faults == []


def test_a_checkpoint_that_cannot_be_opened_is_a_located_fault(folder):
    (folder / "two.safetensors").write_text("{}")
    found = inspect_plan(plan_of(folder))
    assert found.faults[0].startswith("checkpoints[2] (two): two.safetensors: is JSON text")


def test_patterns_are_shown_with_what_they_reach(folder):
    found = inspect_plan(plan_of(folder, options_by_pattern={"*.mlp.*": {"scale": 0.1}, "*": {"scale": 0.2}}))
    assert [(row.pattern, row.tensors, row.entries) for row in found.patterns] == [("*.mlp.*", 2, 96), ("*", 4, 138)]
    assert "scale: 0.1" in shown(found)


def test_a_pattern_that_matches_nothing_is_a_fault(folder):
    found = inspect_plan(plan_of(folder, options_by_pattern={"*.mpl.*": {"scale": 0.1}}))
    assert found.faults == ["merge.options_by_pattern: '*.mpl.*': no merged tensor matches; did you mean '*.mlp.*'?"]


def test_the_wrong_base_is_an_alarm_that_names_the_right_one(folder):
    other = state(9)
    save_file(other, "other.safetensors")
    save_file(state(5, other), "three.safetensors")
    checkpoints = [
        {"name": "base", "uri": "base.safetensors"},
        {"name": "other", "uri": "other.safetensors"},
        {"name": "one", "uri": "one.safetensors", "base": "other"},
        {"name": "two", "uri": "two.safetensors", "base": "base"},
        {"name": "three", "uri": "three.safetensors", "base": "other"},
    ]
    found = inspect_plan(plan_of(folder, "align=null", checkpoints=checkpoints))
    assert len(found.alarms) == 1
    assert found.alarms[0].startswith("checkpoints[2].base: other is hardly the base of one")
    assert found.alarms[0].endswith("write base: base")
    assert "warning:" in shown(found)


def test_models_without_bases_are_looked_at_too(folder):
    checkpoints = [{"name": name, "uri": f"{name}.safetensors"} for name in ("one", "two")]
    found = inspect_plan(plan_of(folder, "align=null", checkpoints=checkpoints, method="average"))
    assert (found.faults, found.distances) == ([], [])
    assert found.forecast.passes == 1


def adapter(path, seed, rank=2, **config):
    generator = torch.Generator().manual_seed(seed)
    prefix = "base_model.model.layers.0.q_proj"
    factors = {"lora_A": (rank, 6), "lora_B": (6, rank)}
    path.mkdir()
    save_file(
        {f"{prefix}.{name}.weight": torch.randn(shape, generator=generator) for name, shape in factors.items()},
        path / "adapter_model.safetensors",
    )
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4} | config))


def test_adapters_start_from_nothing_so_no_distance_is_told(folder):
    for seed, name in enumerate(("first", "second")):
        adapter(folder / name, seed)
    checkpoints = [{"name": name, "uri": name, "base": "initial"} for name in ("first", "second")]
    found = inspect_plan(plan_of(folder, checkpoints=checkpoints))
    assert (found.faults, found.distances) == ([], [])
    assert [source.shards for source in found.sources] == [1, 1]
    assert list(found.files) == ["adapter_model.safetensors", "adapter_config.json"]
    one_file = inspect_plan(plan_of(folder, checkpoints=checkpoints, max_shard_size=10))
    assert one_file.files == found.files  # PEFT reads no shards


def test_an_adapter_of_which_only_the_weights_are_named_becomes_a_single_file(folder):
    for seed, name in enumerate(("first", "second")):
        adapter(folder / name, seed)
    paths = {name: f"{name}/adapter_model.safetensors" for name in ("first", "second")}
    checkpoints = [{"name": name, "uri": path, "base": "initial"} for name, path in paths.items()]
    assert list(inspect_plan(plan_of(folder, checkpoints=checkpoints)).files) == ["model.safetensors"]


def test_adapters_of_different_ranks_are_a_fault(folder):
    adapter(folder / "first", 0)
    adapter(folder / "second", 1, rank=3)
    checkpoints = [{"name": name, "uri": name, "base": "initial"} for name in ("first", "second")]
    found = inspect_plan(plan_of(folder, checkpoints=checkpoints))
    assert len(found.faults) == 1
    assert "r is 3, but 2 in first" in found.faults[0]


def test_an_adapter_that_is_unlike_does_not_hide_what_is_wrong_with_another(folder):
    for seed, name in enumerate(("first", "second", "third")):
        adapter(folder / name, seed, rank=3 if name == "second" else 2)
    save_file({"extra": torch.ones(2)}, folder / "third" / "adapter_model.safetensors")
    checkpoints = [{"name": name, "uri": name, "base": "initial"} for name in ("first", "second", "third")]
    found = inspect_plan(plan_of(folder, checkpoints=checkpoints))
    assert [fault.split(":")[0] for fault in found.faults] == ["second", "third"]


def test_shards_of_a_folder_are_counted(folder):
    merged = ml.merge(["one.safetensors", "two.safetensors"], method="average")
    write_checkpoint(folder / "shards", merged, max_shard_size=300)
    (folder / "shards" / "config.json").write_text("{}")
    checkpoints = [
        {"name": "base", "uri": "base.safetensors"},
        {"name": "one", "uri": "shards", "base": "base"},
        {"name": "two", "uri": "two.safetensors", "base": "base"},
    ]
    source = inspect_plan(plan_of(folder, checkpoints=checkpoints)).sources[1]
    assert source.shards == len(list((folder / "shards").glob("*.safetensors"))) > 1
    assert source.bytes == sum(path.stat().st_size for path in (folder / "shards").iterdir())


def test_a_disk_without_room_is_an_alarm(folder, monkeypatch):
    monkeypatch.setattr("mergeline.preflight.inspect.free_space", lambda _: 10)
    assert "has 0.0 GB left" in inspect_plan(plan_of(folder)).alarms[0]


def test_a_device_that_is_not_here_is_an_alarm(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not inspect_plan(plan_of(folder, "evaluation.device=cuda")).alarms
    (alarm,) = inspect_plan(plan_of(folder, "evaluation.device=cuda:1")).alarms
    assert alarm.startswith("evaluation.device: there is no cuda:1 (PyTorch sees 1 CUDA device here)")


def test_the_command_prints_all_of_it_and_fails_where_the_plan_cannot_work(folder, capsys, monkeypatch):
    from flows.command_line import run

    plan_of(folder)
    monkeypatch.setattr("sys.argv", ["merge", "--plan"])
    assert run(None) == 0
    said = capsys.readouterr().out
    assert said.startswith("trial: 2 task models, 1 base, 0 tasks\n")
    assert "model.safetensors (1 of weights" in said
    assert (
        "alignment/, coefficients/, comparison.json, metrics.json, lineage.json, report.md, report.html, README.md"
        in said
    )
    save_file(state(3, norm=(7,)), "two.safetensors")
    assert run(None) == 2
    said = capsys.readouterr()
    assert said.err.startswith("two: tensor 'norm' has shape [7], not [6]")
    assert "two.safetensors" in said.out


def test_the_command_says_what_the_calibration_does(tmp_path, capsys, monkeypatch):
    from flows.command_line import run

    monkeypatch.chdir(ROOT)
    calibrate = "calibrate={layers: false, last_layer: heads, ridge: 0.5}"
    monkeypatch.setattr("sys.argv", ["merge", "--plan", "--set", calibrate, "--set", f"output={tmp_path / 'out'}"])
    assert run(None) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calibrate: ")]
    assert said.startswith(
        "calibrate: the last layer refit to what the task models' heads say, the mean output subtracted"
    )
    assert said.endswith("(ridge 0.5)")


@pytest.fixture
def server():
    """A web server that tells the size of a file of 12345 bytes, and counts how many bytes it had to send."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/gone"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "12345")
            self.end_headers()

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_remote_checkpoints_are_asked_for_their_size_and_nothing_more(folder, server):
    checkpoints = [
        {"name": "base", "uri": "base.safetensors"},
        {"name": "one", "uri": "one.safetensors", "base": "base"},
        {"name": "two", "uri": f"{server}/two.safetensors?key=secret", "base": "base"},
        {"name": "three", "uri": "http://127.0.0.1:9/three.safetensors", "base": "base"},
    ]
    found = inspect_plan(plan_of(folder, checkpoints=checkpoints))
    assert found.faults == []
    assert [source.bytes for source in found.sources[2:]] == [12345, None]
    text = shown(found)
    assert "will be downloaded" in text
    assert "Connection refused" in text
    assert "secret" not in text
    assert found.forecast.download == 12345
    assert found.files is None


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("{server}/gone.safetensors?key=secret", "{server}/gone.safetensors: the server answers 404"),
        ("lost://bucket/two.safetensors", "lost://bucket/two.safetensors: this kind of address needs a package"),
    ],
)
def test_what_no_download_will_bring_is_a_fault(folder, server, capsys, monkeypatch, uri, said):
    from fsspec.registry import known_implementations

    from flows.command_line import run

    known = {"class": "no_such_package.Files", "err": "Install no_such_package to access it"}
    monkeypatch.setitem(known_implementations, "lost", known)
    two = {"name": "two", "uri": uri.format(server=server)}
    plan_of(folder, "align=null", checkpoints=[{"name": "one", "uri": "one.safetensors"}, two], method="average")
    monkeypatch.setattr("sys.argv", ["merge", "--plan", "--set", "align=null"])
    assert run(None) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("checkpoints[1] (two): " + said.format(server=server))
    assert "will be downloaded" not in printed.out
    assert "secret" not in printed.out + printed.err


def test_nobody_answers_and_that_is_no_error():
    uris = {"a": "http://127.0.0.1:9/model.safetensors", "b": "http://nowhere.invalid/x.safetensors"}
    assert [(source.name, source.bytes, source.lost) for source in ask(uris)] == [
        ("a", None, False),
        ("b", None, False),
    ]


def test_an_answer_that_takes_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("mergeline.preflight.sources._ask_one", lambda *_: threading.Event().wait())
    (source,) = ask({"slow": "http://127.0.0.1/model.safetensors"}, patience=0.05)
    assert source.note == "no answer in time"


def test_a_pinned_file_that_was_fetched_before_is_looked_at(folder):
    checkpoints = [
        {"name": "base", "uri": "base.safetensors"},
        {"name": "one", "uri": "one.safetensors", "base": "base"},
        {"name": "two", "uri": "http://127.0.0.1:9/two.safetensors", "base": "base", "sha256": "0" * 64},
    ]
    found = inspect_plan(plan_of(folder, checkpoints=checkpoints), held=lambda sha256: folder / "two.safetensors")
    assert found.sources[2].tensors == 4
    assert found.files is not None


def test_trials_count_the_passes_of_a_method():
    for method, passes in (("average", 1), ("pcb", None), ("ties", None)):
        found = trial(method, {}, models=2, bases=1, granularity=None, dtype=torch.bfloat16)
        assert 0 < found.seconds < 1e-5
        assert found.passes == passes if passes else found.passes > 1
    assert trial("fisher", {}, models=2, bases=0, granularity=None, dtype=torch.float32) is None


def test_numbers_are_told_as_people_tell_them():
    assert [size_text(size) for size in (None, 12, 12_345, 1_500_000, 140e9)] == [
        *("unknown", "12 bytes", "12.3 kB", "1.50 MB", "140 GB"),
    ]
    assert [time_text(seconds) for seconds in (0.2, 12.34, 150, 9000)] == [
        *("a second or two", "12 seconds", "2.5 minutes", "2.5 hours"),
    ]
