"""What Prefect's pages show: progress that never goes back, at most once a second, and that may fail."""

import pytest

from mergeline.plan_file import load_plan
from tasks import dashboard
from tasks.dashboard import ProgressArtifact, artifact_key, expected_stages


class Pages:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shares: list[float] = []
        self.attempts = 0
        self.down = False
        monkeypatch.setattr("prefect.context.FlowRunContext.get", lambda: object())
        monkeypatch.setattr("prefect.artifacts.create_progress_artifact", self.create)
        monkeypatch.setattr("prefect.artifacts.update_progress_artifact", self.update)

    def create(self, share: float, key: str, about: str) -> str:
        assert key == "two-teams-progress"
        return self.update("", share, about)

    def update(self, _identity: object, share: float, description: str) -> str:
        self.attempts += 1
        if self.down:
            raise ConnectionError("the server is down")
        self.shares.append(share)
        return "00000000-0000-0000-0000-000000000001"


def test_progress_is_written_once_a_second_and_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, now = Pages(monkeypatch), [0.0]
    progress = ProgressArtifact(load_plan("params.yaml"), clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.1
        progress.update(done, submitted=100 if done > 50 else 60, what="merge")
    assert 10 <= len(pages.shares) <= 12
    assert pages.shares == sorted(pages.shares) and pages.shares[-1] <= 99
    progress.finish()
    assert pages.shares[-1] == 100


def test_a_server_that_is_lost_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pages, now = Pages(monkeypatch), [0.0]
    pages.down = True
    progress = ProgressArtifact(load_plan("params.yaml"), clock=lambda: now[0])
    for done in range(5):
        now[0] += 2
        progress.update(done, submitted=5)
    progress.finish()
    assert pages.attempts == 1
    assert caplog.text.count("cannot be shown on Prefect's pages") == 1


def test_the_number_of_stages_is_about_right() -> None:
    assert abs(expected_stages(load_plan("params.yaml")) - 49) <= 3


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("My_Plan.v2", "result") == "my-plan-v2-result"
    assert dashboard.BETWEEN_UPDATES >= 1
