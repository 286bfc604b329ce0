"""Task: move the alias `champion` of a registered model, one decision at a time, each of them on record.

The lock is an experiment of MLflow, whose name only one process can make: it holds between all machines that use the
same server. One whose process was killed is taken over after LEASE seconds.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeline.errors import InputError
from mergeline.plan import Plan
from mergeline.promotion import Measured, Verdict, judge, measured
from mergeline.report.result import read_comparison
from tasks._env import state_directory
from tasks.policy import action
from tasks.promotion_record import (
    ROLLED_BACK,
    Decision,
    carry_out,
    decision_about,
    earlier_champions,
    exists,
    finish_begun,
)
from tasks.registry import CANDIDATE, CHAMPION, DATA, SHA256, find_alias, told
from tasks.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE = 600.0  # seconds after which a lock counts as left behind; a decision takes a few
POLL = 0.2
HOLDER = "holder"  # tag of a lock: host, process, and a name of its own
_left: set[str] = set()  # ids or holders of locks that this process could not release: MLflow did not answer


@action("promote", retries=3)
def decide(plan: Plan, version: str | None = None) -> Decision:
    """Make the candidate, or a version that is named, the champion if it passes every gate of the plan.

    A decision that a failed attempt at the same has begun is carried out, and no other made. Raises InputError where
    there is nothing to promote, ConnectionError where MLflow does not answer.
    """
    model, gates = _model_of(plan), plan.promotion
    if gates is None:
        raise InputError("promotion: is missing; say what a champion must be, such as promotion: {floor: 0.5}")
    with told(model):
        client = connect()
        with promotion_lock(client, model) as still_mine:
            candidate = _candidate(client, model, version)
            asked = f"promote {candidate.version} {gates.model_dump_json()}"
            if (begun := finish_begun(client, model, still_mine)(asked)) is not None:
                return begun
            champion = find_alias(client, model, CHAMPION)
            same = champion is not None and _what(champion) == _what(candidate)
            if champion is not None and (champion.version == candidate.version or same):
                return decision_about(model, "unchanged", candidate, champion, champion, [])
            verdicts = _history(client, candidate)
            if not verdicts:
                # the champion's own weights, measured on other data, need not stand beside the champion
                rival = None if champion is None or _what(champion)[0] == _what(candidate)[0] else champion
                of_rival = _scores(client, plan, rival) if rival and gates.champion else None
                verdicts = judge(gates, _scores(client, plan, candidate), of_rival)
            said = [f"{'passed' if v.passed else 'REFUSED'} {v.gate}: {v.sentence}" for v in verdicts]
            earlier = earlier_champions(client, model)
            if all(verdict.passed for verdict in verdicts):
                decision = decision_about(model, "promoted", candidate, candidate, champion, said)
                earlier += [str(champion.version)] if champion is not None else []
            else:
                decision = decision_about(model, "refused", candidate, champion, champion, said)
            carry_out(client, decision, earlier, asked=asked, still_mine=still_mine)
            return decision


@action("roll-back", retries=3)
def roll_back(plan: Plan) -> Decision:
    """Give the alias back to the last champion before this one; what is rolled back is not promoted again.

    What a failed attempt has begun is finished instead: both together go back one step. Raises InputError where there
    is no champion, or was none before it.
    """
    model = _model_of(plan)
    with told(model):
        client = connect()
        with promotion_lock(client, model) as still_mine:
            if (begun := finish_begun(client, model, still_mine)("roll back")) is not None:
                return begun
            champion = find_alias(client, model, CHAMPION)
            if champion is None:
                raise InputError(f"{model}: there is no champion to roll back")
            earlier = earlier_champions(client, model)
            while earlier and (earlier[-1] == str(champion.version) or not exists(client, model, earlier[-1])):
                earlier.pop()
            if not earlier:
                raise InputError(f"{model}: version {champion.version} is the first champion; none to return to")
            previous = client.get_model_version(model, earlier[-1])
            decision = decision_about(model, "rolled back", champion, previous, champion, [])
            carry_out(client, decision, earlier[:-1], asked="roll back", still_mine=still_mine)
            return decision


def _model_of(plan: Plan) -> str:
    if plan.registry is None:
        raise InputError("registry: is missing; it names the registered model, such as registry: {model: two-teams}")
    return plan.registry.model


def _candidate(client: MlflowClient, model: str, version: str | None) -> Any:
    if version is not None:
        return client.get_model_version(model, version)
    candidate = find_alias(client, model, CANDIDATE)
    if candidate is None:
        raise InputError(f"{model}: there is no candidate; merge a plan that says registry: {{model: {model}}} first")
    return candidate


def _what(version: Any) -> tuple[str, str]:
    """The digests of a version's weights and of the data that measured it; its own number where it has no tags."""
    return version.tags.get(SHA256, str(version.version)), version.tags.get(DATA, "")


def _history(client: MlflowClient, candidate: Any) -> list[Verdict]:
    """What speaks against a version whatever its scores are: its weights were the champion's and were rolled back."""
    versions = client.search_model_versions(f"name='{candidate.name}'")
    alike = [version for version in versions if _what(version)[0] == _what(candidate)[0]]
    found = next((version for version in alike if ROLLED_BACK in version.tags), None)
    if found is None:
        return []
    sentence = (
        f"its weights were rolled back as version {found.version} on {found.tags[ROLLED_BACK]}; "
        f"to allow them again, remove the tag {ROLLED_BACK} from that version"
    )
    return [Verdict("history", False, float("nan"), sentence)]


def _scores(client: MlflowClient, plan: Plan, version: Any) -> Measured:
    """What the run of a version measured. InputError where its record is not there."""
    from mlflow.exceptions import MlflowException

    specialists = plan.specialists
    with tempfile.TemporaryDirectory(dir=state_directory(), prefix=".scores.") as folder:
        try:
            path = client.download_artifacts(version.run_id, "comparison.json", folder)
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() in (429, 502, 503, 504):
                raise
            raise InputError(
                f"{version.name} version {version.version}: its run {version.run_id or ''} has no comparison.json in "
                f"MLflow, so its scores are not known; merge its plan again"
            ) from error
        comparison = read_comparison(Path(path))
    return measured(comparison, specialists, version.tags.get(DATA, ""))


# --- one at a time ---------------------------------------------------------------------------------------------------


@contextmanager
def promotion_lock(client: MlflowClient, model: str, *, lease: float = LEASE) -> Iterator[Callable[[], None]]:
    """Hold the one lock of a registered model for the block; waits for whoever holds it.

    Gives a function that raises ConnectionError where the lock was lost meanwhile (this process slept for longer than
    the lease); to be called before what must not happen twice.
    """
    name = f"mergeline promotion of {model}"
    mine = _acquire(client, name, lease)

    def still_mine() -> None:
        holder = client.get_experiment_by_name(name)
        if holder is None or holder.experiment_id != mine:
            raise ConnectionError(f"{model}: another promotion took over meanwhile; try again")

    try:
        yield still_mine
    finally:
        _release(client, name, mine)


def _acquire(client: MlflowClient, name: str, lease: float) -> str:
    from mlflow.exceptions import MlflowException

    mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    while True:
        try:
            return str(client.create_experiment(name, tags={HOLDER: mine}))
        except (MlflowException, ConnectionError) as error:
            if not isinstance(error, MlflowException) or error.error_code != "RESOURCE_ALREADY_EXISTS":
                _left.add(mine)  # it may be made all the same, and the answer lost
                raise
        holder = client.get_experiment_by_name(name)
        if holder is None:
            continue
        if holder.tags.get(HOLDER) == mine:  # the answer was lost, and MLflow's client asked again
            return str(holder.experiment_id)
        if not _left.isdisjoint({holder.experiment_id, holder.tags.get(HOLDER)}) or _age(holder) > lease:
            _release(client, name, holder.experiment_id)
        else:
            time.sleep(POLL)


def _age(experiment: Any) -> float:
    return time.time() - experiment.creation_time / 1000


def _release(client: MlflowClient, name: str, experiment: str) -> None:
    """Free the lock that this very experiment is, and not one that somebody made after it."""
    from mlflow.exceptions import MlflowException

    try:
        client.rename_experiment(experiment, f"{name} {uuid.uuid4().hex}")
        client.delete_experiment(experiment)
    except (MlflowException, ConnectionError):  # it is released already, or will be by our next attempt, or the lease
        _left.add(experiment)
