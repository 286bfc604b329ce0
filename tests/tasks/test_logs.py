"""One line per event: text or JSON on the terminal, and what a stage says of itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import logging
from tasks.logs import tell, told
tell("inputs checked", name="teams", found="nothing new", nothing=None)
logging.getLogger("other").warning("at https://me:pass@host")
try:
    with told("stage", "merge"):
        raise ValueError("https://me:pass@host")
except ValueError as error:
    assert str(error) == "https://***@host"
with told("stage", "draw"):
    pass
tell("run summary", page="https://me:pass@host/x")
"""


def said(form: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "MERGELINE_LOG": form, "HOME": "/nonexistent"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "me:pass" not in done.stderr
    return done.stderr.splitlines()


def test_json_lines_have_the_event_and_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.loads(line) for line in said("json")]
    assert [line["event"] for line in lines] == [
        "inputs checked",
        "at https://***@host",
        "stage started",
        "stage failed",
        "stage started",
        "stage finished",
        "run summary",
    ]
    assert lines[0] | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "mergeline.events",
        "event": "inputs checked",
        "name": "teams",
        "found": "nothing new",
    }
    assert lines[3]["error"] == "ValueError: https://***@host" and lines[3]["level"] == "error"
    assert lines[5]["seconds"] >= 0 and lines[5]["peak_rss_mb"] > 10
    assert lines[6]["page"] == "https://***@host/x"


def test_text_lines_say_the_same() -> None:
    lines = said("text")
    assert len(lines) == 7
    assert lines[0].endswith("INFO inputs checked name=teams found=nothing new")


def test_by_default_events_leave_the_terminal_alone() -> None:
    assert [line for line in said("") if "stage" in line or "inputs" in line] == []
