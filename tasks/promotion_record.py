"""What is on record of promotions: every decision, the earlier champions, and a decision that is not carried out yet.

A decision takes several writes to MLflow, any of which may fail. The intention is noted before the first of them and
removed after the last; who finds one makes the writes that are missing, which may be made any number of times.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks._env import state_directory
from tasks.locks import exclusive
from tasks.registry import CHAMPION, find_alias, is_passing

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EARLIER = "mergeline.earlier_champions"  # tag of a model: versions that were the champion, the last one last
INTENTION = "mergeline.unfinished_decision"  # tag of a model: what is being carried out
ROLLED_BACK = "mergeline.rolled_back"  # tag of a version that was the champion and is not to become it again
ABANDONED = "mergeline.not_carried_out."  # + time: tag of a version with a decision that came to nothing, and why
KEPT = 100  # earlier champions that are remembered


class Decision(BaseModel):
    """What was decided about a version, and why. champion: the version with the alias afterwards."""

    model_config = ConfigDict(frozen=True)

    model: str
    action: Literal["promoted", "refused", "unchanged", "rolled back"]
    version: str
    champion: str | None
    before: str | None
    verdicts: list[str]
    time: str

    def __str__(self) -> str:
        head = {
            "promoted": f"version {self.version} is the champion (before: {self.before or 'none'})",
            "refused": f"version {self.version} is refused; the champion stays version {self.champion or 'none'}",
            "unchanged": f"version {self.champion} is the champion already"
            + (f"; version {self.version} has its weights" if self.version != self.champion else ""),
            "rolled back": f"version {self.champion} is the champion again; version {self.version} is rolled back",
        }[self.action]
        return "\n".join([f"{self.model}: {head}", *(f"  {verdict}" for verdict in self.verdicts)])


class Intention(BaseModel):
    """A decision to be carried out. Its text is a tag of the version, which holds more than a tag of a model.

    asked: digest of what was asked for. earlier: the earlier champions afterwards.
    """

    model_config = ConfigDict(frozen=True)

    asked: str
    version: str
    time: str
    earlier: list[str]


_unsure: dict[tuple[str, str], Decision] = {}  # model, digest of what was asked -> begun here, and no end was seen


def carry_out(
    client: MlflowClient, decision: Decision, earlier: list[str], *, asked: str, still_mine: Callable[[], None]
) -> None:
    """Put a decision on record and move the alias as it says; `finish_begun` goes on where this fails.

    still_mine: raises where somebody else may decide by now.
    """
    still_mine()
    _unsure[decision.model, _digest(asked)] = decision
    intention = Intention(asked=_digest(asked), version=decision.version, time=decision.time, earlier=earlier[-KEPT:])
    client.set_registered_model_tag(decision.model, INTENTION, intention.model_dump_json())
    client.set_model_version_tag(decision.model, decision.version, _tag(decision.time), decision.model_dump_json())
    _finish(client, decision, intention, still_mine)
    del _unsure[decision.model, _digest(asked)]


def finish_begun(client: MlflowClient, model: str, still_mine: Callable[[], None]) -> Callable[[str], Decision | None]:
    """Carry out what an attempt that failed has begun, where there is such.

    Returns a function that gives the decision to whoever asks for the same as that attempt did, also where somebody
    else has carried it out since this process failed; and None to others.
    """
    begun = _begun(client, model)
    if begun is not None:
        _finish(client, *begun, still_mine)

    def answer(asked: str) -> Decision | None:
        ours = _unsure.get((model, _digest(asked)))
        done = ours if ours is not None and _was_carried_out(client, ours) else None
        _unsure.pop((model, _digest(asked)), None)
        return begun[0] if begun is not None and begun[1].asked == _digest(asked) else done

    return answer


def _was_carried_out(client: MlflowClient, decision: Decision) -> bool:
    """Whether a decision that is not under way any more was carried out: it is on record, and not given up."""
    versions = client.search_model_versions(f"name='{decision.model}'")
    tags: dict[str, str] = next((found.tags for found in versions if str(found.version) == decision.version), {})
    return _tag(decision.time) in tags and ABANDONED + decision.time not in tags


def _begun(client: MlflowClient, model: str) -> tuple[Decision, Intention] | None:
    """A decision that was begun; one that cannot be carried out any more, or was not written down, is forgotten."""
    tags = client.get_registered_model(model).tags
    if INTENTION not in tags:
        return None
    versions = {str(found.version): found for found in client.search_model_versions(f"name='{model}'")}
    champion = find_alias(client, model, CHAMPION)
    try:
        intention = Intention.model_validate_json(tags[INTENTION])
        written = versions[intention.version].tags[_tag(intention.time)]
        decision = Decision.model_validate_json(written)
        now = str(champion.version) if champion is not None else None
        if decision.champion in (None, *versions) and now in (decision.before, decision.champion):
            return decision, intention
        why = f"the alias {CHAMPION} was moved by hand, or a version deleted"
        log.warning("%s: the decision of %s is not carried out: %s", model, intention.time, why)
        client.set_model_version_tag(model, intention.version, ABANDONED + intention.time, why)
    except KeyError:  # nothing was done about it, or its version is gone
        pass
    except ValidationError:
        log.warning("%s: the tag %s cannot be read and is removed", model, INTENTION)
    client.delete_registered_model_tag(model, INTENTION)
    return None


def _finish(client: MlflowClient, decision: Decision, intention: Intention, still_mine: Callable[[], None]) -> None:
    """Each write sets what is to be, whatever is there: any of them may have been made before."""
    _write_line(decision)  # before the alias moves: no champion is without a record
    if decision.action == "rolled back":
        client.set_model_version_tag(decision.model, decision.version, ROLLED_BACK, decision.time)
    if decision.champion != decision.before:
        still_mine()
        client.set_registered_model_alias(decision.model, CHAMPION, decision.champion)
        still_mine()  # else the tags are those of a later decision, and whoever made that has finished this one
        client.set_registered_model_tag(decision.model, EARLIER, json.dumps(intention.earlier))
    still_mine()
    try:
        client.delete_registered_model_tag(decision.model, INTENTION)
    except Exception as error:  # all is done: a failure here would ask for a second step where only the answer was lost
        if not is_passing(error):
            raise
        log.warning(
            "%s: it is decided; MLflow may not know that it is done, and then says so once more", decision.model
        )


def _tag(time: str) -> str:
    return f"mergeline.decision.{time}"


def _digest(asked: str) -> str:
    return hashlib.sha256(asked.encode()).hexdigest()


def audit_log() -> Path:
    """A line of JSON per decision made on this machine; the tags of the versions hold those of all machines."""
    return state_directory() / ".mlflow" / "promotions.jsonl"


def _write_line(decision: Decision) -> None:
    path, line = audit_log(), decision.model_dump_json() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock")), path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if line not in file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def earlier_champions(client: MlflowClient, model: str) -> list[str]:
    """Versions that were the champion, the last one last."""
    try:
        return [str(version) for version in json.loads(client.get_registered_model(model).tags.get(EARLIER, "[]"))]
    except (ValueError, TypeError):  # somebody edited it
        return []


def exists(client: MlflowClient, model: str, version: str) -> bool:
    """Whether a model has a version of this number."""
    return any(str(found.version) == version for found in client.search_model_versions(f"name='{model}'"))


def decision_about(model: str, action: Any, about: Any, champion: Any, before: Any, verdicts: list[str]) -> Decision:
    """A decision made now; about, champion, before: versions of MLflow."""
    return Decision(
        model=model,
        action=action,
        version=str(about.version),
        champion=str(champion.version) if champion else None,
        before=str(before.version) if before else None,
        verdicts=verdicts,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )
