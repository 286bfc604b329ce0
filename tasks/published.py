"""What lies in the folder that a run published into: noted after a success, and compared before the next run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.redaction import redact
from tasks.store import digest

if TYPE_CHECKING:
    from mergeline.plan import Plan


class PublishedFile(BaseModel):
    """A file as it was: read again only where size or time of change are others."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int
    changed: int


def published_now(plan: Plan) -> dict[str, PublishedFile] | None:
    """Every file that a run of the plan has published, by its path in the folder; None where the model is not whole.

    Digests of the model's files, which were verified as they were copied, are those of the lineage: they are not read.
    """
    from tasks.publishing import CARD, card_path, published_beside

    try:
        model = dict(json.loads((plan.output / "lineage.json").read_bytes())["files"])
        found = {name: _seen(plan.output / name, sha256) for name, sha256 in model.items()}
        for name in published_beside(plan, measured=bool(plan.tasks)):
            place = card_path(plan.output) if name == CARD else plan.output / name
            files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
            for path in filter(Path.is_file, files):
                relative = path.relative_to(plan.output).as_posix()
                found.setdefault(relative, _seen(path, digest(path)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def is_of(plan: Plan) -> bool:
    """Whether what lies there was made by this very plan, as far as it says by which."""
    said = json.loads((plan.output / "lineage.json").read_bytes()).get("plan")
    return said is None or said == json.loads(redact(json.dumps(plan.model_dump(mode="json"), indent=1)))


def differences(folder: Path, published: dict[str, PublishedFile]) -> list[str]:
    """What is not as it was published: `report.md is missing`, `metrics.json is altered`."""
    found = []
    for name, then in published.items():
        path = folder / name
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (then.size, then.changed):
                continue
            if status.st_size != then.size or digest(path) != then.sha256:
                found.append(f"{name} is altered")
        except OSError:
            found.append(f"{name} is missing")
    return found


def _seen(path: Path, sha256: str) -> PublishedFile:
    status = path.stat()
    return PublishedFile(sha256=sha256, size=status.st_size, changed=status.st_mtime_ns)
