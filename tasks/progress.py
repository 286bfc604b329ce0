"""What the terminal and Prefect's pages show while a flow works, and how many of its stages came from the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectFuture, as_completed
from pydantic import BaseModel, ConfigDict

from tasks.dashboard import ProgressArtifact
from tasks.logs import tell

if TYPE_CHECKING:
    from mergeline.plan import Plan


class StageCount(BaseModel):
    """Stages of a run, and how many of them were not run because their result was at hand."""

    model_config = ConfigDict(frozen=True)

    total: int
    cached: int

    def __str__(self) -> str:
        if self.cached == self.total:
            return f"all {self.total} stages came from the cache"
        return f"{self.total} stages, {self.cached} of them from the cache"


class Progress:
    """Remembers the stages that were submitted; waiting for them shows a bar (none where there is no terminal)."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.stages: list[PrefectFuture[Any]] = []
        self._done = 0
        self._artifact = ProgressArtifact(plan) if plan else None

    def results(self, what: str, futures: dict[str, PrefectFuture[Any]]) -> dict[str, Any]:
        """Wait for named stages; raises what the first failed one raised."""
        self.stages += futures.values()
        names = {future.task_run_id: name for name, future in futures.items()}
        for future in self._in_order(futures.values(), what):
            self._done += 1
            future.wait()  # it is done; now it knows its state, too
            if future.state.name == "Cached":
                tell("stage cached", phase=what, name=names[future.task_run_id])
            if self._artifact:
                self._artifact.update(self._done, len(self.stages), what)
        return {name: future.result() for name, future in futures.items()}

    def count(self) -> StageCount:
        """How many stages ran or came from the cache; waits for all of them."""
        states = [future.state for future in self.stages if future.wait() is None]
        return StageCount(total=len(states), cached=sum(state.name == "Cached" for state in states))

    def finish(self) -> None:
        """Nothing comes any more."""
        if self._artifact:
            self._artifact.finish()

    @staticmethod
    def _in_order(futures: Iterable[PrefectFuture[Any]], what: str) -> Iterator[PrefectFuture[Any]]:
        """One after the other, as they get done."""
        from tqdm import tqdm

        futures = list(futures)
        done = as_completed(futures) if futures else iter(())
        bar = tqdm(done, total=len(futures), desc=f"{what:<12}", unit="stage", disable=None if futures else True)
        yield from bar
