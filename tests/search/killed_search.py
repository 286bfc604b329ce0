"""A search that kills itself (SIGKILL) at an event of a trial: its arguments are FILE KIND EVENT N"""

import os
import signal
import sys
from pathlib import Path

from mergeline.search.space import Choice, Point, Real, Space
from mergeline.search.study import Study

SPACE: Space = {
    "scale.a": Real(0.8, 1.3, 0.25),
    "scale.b": Real(0.8, 1.3, 0.25),
    "keep_ratio": Choice((0.05, 0.1, 0.2)),
}
LAMBDAS: Space = {name: Real(0.8, 1.3, 0.1) for name in ("scale.a", "scale.b", "scale.c", "scale.d")}
KINDS = {"cma": ("cma", LAMBDAS), "cma with choices": ("cma", SPACE), "tpe": ("tpe", SPACE), "grid": ("grid", SPACE)}


def study(file: Path, kind: str, seed: int = 3) -> Study:
    method, space = KINDS[kind]
    first = {name: known.nearest(1.0) for name, known in space.items()}
    return Study(file, f"a search by {kind}", space, method=method, seed=seed, first=first)


def value(point: Point) -> float:
    """The best lambdas are around 1.1."""
    return 1.0 - sum((number - 1.1 - 0.03 * place) ** 2 for place, number in enumerate(point.values()))


def run(search: Study, trials: int, event: str = "", number: int = -1) -> None:
    while len(search.trials) < trials:
        proposal = search.propose()
        if event == "writing" and proposal.number == number:
            kill_at_the_next_commit()
        found = value(proposal.point)
        if event == "measured" and proposal.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        search.add(proposal, found, {"found": found})
        if event == "recorded" and proposal.number == number:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at_the_next_commit() -> None:
    """When everything is written and the transaction is about to end."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    event.listen(Session, "before_commit", lambda session: (session.flush(), os.kill(os.getpid(), signal.SIGKILL)))


if __name__ == "__main__":
    run(study(Path(sys.argv[1]), sys.argv[2]), 1000, sys.argv[3], int(sys.argv[4]))
