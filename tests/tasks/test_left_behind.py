"""What only some plans publish is no out of dvc.yaml: the next run into the folder removes it, nothing of others."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergeline.calibration.record import CalibrationRecord
from tasks.heads import METADATA
from tasks.publishing import _remove_older, left_behind


def write(folder: Path, *, ours: bool) -> list[str]:
    for name in ("heads", "uncalibrated", "landscape"):
        (folder / name).mkdir(parents=True)
    save_file({"head.weight": torch.ones(2)}, folder / "heads" / "tops.safetensors", METADATA if ours else None)
    save_file({"weight": torch.ones(2)}, folder / "uncalibrated" / "model.safetensors")
    record = CalibrationRecord().as_dict() if ours else {"images": 3}
    (folder / "calibration.json").write_text(json.dumps(record))
    (folder / "landscape" / ("landscape.json" if ours else "photo.json")).write_text("{}")
    return sorted(path.name for path in folder.iterdir())


def test_what_an_earlier_run_left_is_removed_where_its_lineage_is_gone(tmp_path: Path) -> None:
    names = write(tmp_path, ours=True)
    _remove_older(tmp_path, set(), keep=names)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    _remove_older(tmp_path, set(), keep=["heads"])
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]
    _remove_older(tmp_path, set(), keep=[])
    assert not list(tmp_path.iterdir())


def test_what_others_left_stays(tmp_path: Path) -> None:
    names = write(tmp_path, ours=False)
    assert left_behind(tmp_path) == (set(), set()) == left_behind(tmp_path / "nowhere")
    _remove_older(tmp_path, set(), keep=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
