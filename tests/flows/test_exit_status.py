"""What a command says, and ends with, where its work is stopped or fails."""

import pytest

from flows.command_line import exit_status
from mergeline.errors import InputError

AGAIN = "again goes on"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("params.yaml: merge.scale: is a word"), 2, "params.yaml: merge.scale: is a word\n"),
        (KeyboardInterrupt(), 130, f"stopped; {AGAIN}\n"),
        (ConnectionError("no route"), 1, f"the run failed, and may succeed later: no route\n{AGAIN}\n"),
        (ZeroDivisionError("by zero"), 1, f"the run failed: ZeroDivisionError: by zero\n{AGAIN}\n"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(error, status, said, capsys):
    def work():
        raise error

    assert exit_status(work, what="the run", again=AGAIN) == status
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(said)
    assert ("Traceback" in err) == isinstance(error, ZeroDivisionError), "only what nobody foresaw needs one"


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (2, 2)])
def test_work_that_is_done_gives_the_status(result, status, capsys):
    assert exit_status(lambda: result, what="the run", again=AGAIN) == status
    assert capsys.readouterr() == ("", "")


def test_an_architecture_that_cannot_be_inspected_is_a_sentence(monkeypatch, tmp_path, capsys):
    from flows.inspect_symmetry import main

    monkeypatch.setattr(
        "sys.argv", ["inspect", "--params", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "o")]
    )
    assert main() == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none.yaml'} is missing; name the plan with --params FILE\n"
    assert not (tmp_path / "o").exists()
