"""What the terminal shows while a flow works, and how many of its stages came from the cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.futures import PrefectFuture, as_completed
from pydantic import BaseModel, ConfigDict


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

    def __init__(self) -> None:
        self.stages: list[PrefectFuture[Any]] = []

    def results(self, what: str, futures: dict[str, PrefectFuture[Any]]) -> dict[str, Any]:
        """Wait for named stages; raises what the first failed one raised."""
        self.stages += futures.values()
        if futures:
            self._wait(futures.values(), what)
        return {name: future.result() for name, future in futures.items()}

    def count(self) -> StageCount:
        """How many stages ran or came from the cache; waits for all of them."""
        states = [future.state for future in self.stages if future.wait() is None]
        return StageCount(total=len(states), cached=sum(state.name == "Cached" for state in states))

    @staticmethod
    def _wait(futures: Iterable[PrefectFuture[Any]], what: str) -> None:
        from tqdm import tqdm

        futures = list(futures)
        for _ in tqdm(as_completed(futures), total=len(futures), desc=f"{what:<12}", unit="stage", disable=None):
            pass
