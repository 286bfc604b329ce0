"""What a result was made of: every input with digest, size and source, the code, the packages that compute.

It is versioned with the result, so it says nothing of time, machine or run: those are told to MLflow
(`tasks.versioning`), which names the result by its digests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeline.checkpoints.licence import UNKNOWN, licence_of
from mergeline.checkpoints.transfer import shown
from mergeline.evaluation.kinds import is_function
from mergeline.plan import Plan
from tasks.checkpoints import size_of
from tasks.code_version import installed, source_digest
from tasks.store import ArtifactRef, digest, file_digests

if TYPE_CHECKING:
    from tasks.publishing import Made

# Packages whose version may change a byte of what is published. onnx and onnxscript only where ONNX is exported.
COMPUTING = (
    "torch",
    "numpy",
    "scipy",
    "safetensors",
    "datasets",
    "pyarrow",
    "pillow",
    "torchmetrics",
    "matplotlib",
    "jinja2",
)
EXPORTING = ("onnx", "onnxscript")
# The stages of the main job; the modules they import come with them.
STAGES = (
    *("tasks.checkpoints", "tasks.architecture", "tasks.families", "tasks.activations", "tasks.similarity"),
    *("tasks.permutations", "tasks.evidence", "tasks.merging", "tasks.calibration", "tasks.normalization"),
    *("tasks.evaluation", "tasks.exporting", "tasks.job"),
)


def lineage(plan: Plan, made: Made, model_name: str) -> dict[str, Any]:
    """The plan, and the digest of everything that went in and came out. model_name: of a model of one file."""
    return {
        "plan": plan.model_dump(mode="json"),
        "inputs": inputs(plan, made),
        "code": code_digest(plan),
        "packages": packages(plan),
        "checkpoints": {name: ref.sha256 for name, ref in made.checkpoints.items()},
        "datasets": {name: ref.sha256 for name, ref in made.datasets.items()},
        "alignment": made.alignment.sha256 if made.alignment else None,
        "coefficients": made.coefficients.sha256 if made.coefficients else None,
        "model": made.model.sha256,
        "files": file_digests(made.model, model_name),
        **({"uncalibrated": made.uncalibrated.sha256} if made.uncalibrated else {}),
        "normalization": {domain: ref.sha256 for domain, ref in made.normalization.items()},
        "exports": {kind: program.file.sha256 for kind, program in made.exports.items() if program.file},
    }


def inputs(plan: Plan, made: Made) -> list[dict[str, Any]]:
    """Every file that was read: kind, name, source, digest and size; a folder with the digests of its files."""
    found = []
    for spec in plan.checkpoints:
        ref = made.checkpoints[spec.name]
        source = ref.metadata.get("source", shown(spec.uri))  # which may say more: the version behind an alias
        entry = {"kind": "checkpoint", "name": spec.name, "source": source, **_bytes(ref)}
        found.append(entry | {"licence": licence(spec.uri, ref)})
    for name, ref in made.datasets.items():
        found.append({"kind": ref.kind, "name": name, "source": ref.metadata.get("source"), **_bytes(ref)})
    rule = plan.architecture.symmetry if plan.architecture else None
    if rule and Path(rule).is_file():
        path = Path(rule)
        size = path.stat().st_size
        found.append({"kind": "symmetry", "name": rule, "source": rule, "sha256": digest(path), "bytes": size})
    return found


def licence(uri: str, ref: ArtifactRef) -> str:
    """The licence of a checkpoint: noted when it was downloaded, or read beside the local file."""
    noted = ref.metadata.get("licence")
    local = uri.startswith("file://") or "://" not in uri
    return str(noted) if noted else licence_of(uri) if local else UNKNOWN


def code_digest(plan: Plan) -> str:
    """Digest of the sources that a run of the plan computes with: those of the architecture's factory, and of functions
    that judge tasks, included."""
    own = [plan.architecture.factory] if plan.architecture else []
    own += [task.kind for task in plan.tasks if is_function(task.kind)]
    return source_digest([*STAGES, *(function.partition(":")[0] for function in own)])


def packages(plan: Plan) -> dict[str, str]:
    """Name -> version of what computes, without the build: 2.13.0 of 2.13.0+cpu."""
    names = [*COMPUTING, *(EXPORTING if "onnx" in plan.export else ())]
    return {name: installed(name).partition("+")[0] for name in names}


def _bytes(ref: ArtifactRef) -> dict[str, Any]:
    files = {"files": file_digests(ref, "")} if ref.path.is_dir() else {}
    return {"sha256": ref.sha256, "bytes": size_of(ref.path), **files}
