"""What is registered of a run: a model that MLflow loads and serves, or the folder of a language model as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mergeline.plan import Architecture, Plan
from tasks.code_version import imported_packages, project_packages
from tasks.job import Job
from tasks.publishing import MODEL, Made
from tasks.registered_weights import is_copied, tags_of
from tasks.registry import DATA, ENDED, FOLDER, SHA256
from tasks.store import file_digests
from tasks.tracking import Registration
from tasks.versioning import CODE, COMMIT, DIRTY, MD5, PLAN

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import Tensor

REQUIRED = ("mlflow", "torch", "safetensors", "numpy")
OF_FOLDERS = "mergeline.models.pretrained:"  # factories that read the config.json which the model's own files have, too
WITH_MERGELINE = ("pydantic", "pyyaml", "scipy")  # what the sources of mergeline import, where they lie in the model


VERSION_TAGS = (PLAN, CODE, COMMIT, DIRTY, MD5, "mergeline.plan", "prefect.flow_run")
"""What the tags of a run that its registered version has, too, begin with."""


def registration(
    plan: Plan, made: Made, *, run_tags: Mapping[str, str], ended: float, largest: int
) -> Registration | None:
    """The model to register, and the tags of its version; None where the plan registers nothing.

    largest: as of `write_model`; where a file was not copied, the version says where it lies.
    """
    if plan.registry is None:
        return None
    shared = {name: value for name, value in run_tags.items() if name.startswith(VERSION_TAGS)}
    own = {SHA256: checkpoint_digest(made), ENDED: repr(ended), DATA: data_digest(plan, made)}
    own |= {} if is_copied(made.model, largest) else tags_of(made.model, plan)
    return Registration(model=plan.registry.model, tags=shared | own)


def data_digest(plan: Plan, made: Made) -> str:
    """The sha256 of what measured a model: the tasks, with the code of the user's own functions, and the bytes of all
    data. Scores compare where it is equal.

    Data that a landscape alone looks at is left out: it neither made nor measured the model.
    """
    tasks = [task.model_dump(mode="json", exclude={"checkpoint"}) for task in plan.tasks]
    job = Job(plan.model_copy(update={"landscape": None}))
    seen = job.datasets if plan.landscape else made.datasets
    data = sorted(ref.sha256 for name, ref in made.datasets.items() if name in seen)
    return hashlib.sha256(
        json.dumps([tasks, data, *([job.judges] if job.judges else [])], sort_keys=True).encode()
    ).hexdigest()


def checkpoint_digest(made: Made) -> str:
    """The sha256 of the merged checkpoint; a folder of one file counts as that file."""
    files = file_digests(made.model, MODEL)
    return next(iter(files.values())) if len(files) == 1 else made.model.sha256


def write_model(plan: Plan, made: Made, parent: Path, largest: int) -> Path:
    """Write the folder `model` into another one: what becomes the artifact of a run that is registered.

    With an architecture and calibration data it is an MLflow model (tasks/served_model.py); else the checkpoint's
    own files. Files of more than `largest` bytes are not copied: an MLflow model reads them where they were written.
    """
    folder, job = parent / FOLDER, Job(plan)
    if not job.calibrates or plan.architecture is None:
        folder.mkdir()
        for name, path in _weights(made).items():
            if path.stat().st_size <= largest:
                shutil.copyfile(path, folder / name)
        return folder
    from mlflow.pyfunc import save_model

    merged = parent / "merged"
    _fill(merged, plan, made, largest)
    example = job.calibration.load().inputs[:2]
    sources, requirements = code_of(plan.architecture)
    save_model(
        str(folder),
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"merged": str(merged)},
        signature=_signature(job, made, example),
        input_example=(example.numpy(), {"domain": ""} | ({"task": ""} if made.heads else {})),
        pip_requirements=requirements,
        code_paths=sources or None,
    )
    shutil.rmtree(merged)
    return folder


def _fill(folder: Path, plan: Plan, made: Made, largest: int) -> None:
    """The weights, the normalisation of every domain, the heads of tasks, and how the module is built."""
    assert plan.architecture is not None
    for kind, files in (("normalization", made.normalization), ("heads", made.heads)):
        (folder / kind).mkdir(parents=True)
        for name, ref in files.items():
            shutil.copyfile(ref.path, folder / kind / f"{name}.safetensors")
    digests, weights = file_digests(made.model, MODEL), {}
    for name, path in _weights(made).items():
        copied = path.stat().st_size <= largest
        if copied:
            shutil.copyfile(path, folder / name)
        if name.endswith(".safetensors"):
            places = [] if copied else [str(path), str((plan.output / name).resolve())]
            weights[name] = {"copied": copied, "sha256": digests[name], "places": places}
    about = {
        "factory": plan.architecture.factory,
        "kwargs": plan.architecture.kwargs,
        "has_configuration": plan.architecture.factory.startswith(OF_FOLDERS) and "config.json" in digests,
        "domains": sorted(made.normalization),
        "tasks": sorted(made.heads),
        "weights": weights,
    }
    (folder / "served.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _weights(made: Made) -> dict[str, Path]:
    """The files of the merged checkpoint in the store, under the names that they are published by."""
    root = made.model.path
    return {name: root / name if root.is_dir() else root for name in file_digests(made.model, MODEL)}


def _signature(job: Job, made: Made, example: Tensor) -> ModelSignature:
    """Any number of inputs like those that calibrated the model, texts of any length; its outputs; the domain as a
    parameter, and the task where tasks have heads of their own."""
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from mergeline.evaluation.tokens import are_tokens
    from tasks.checkpoints import open_artifact

    shape = (2, -1) if are_tokens(example) else tuple(example.shape[1:])
    with torch.inference_mode():
        outputs = job.architecture.load(open_artifact(made.model), by_name=False)(example)
    return ModelSignature(
        inputs=Schema([TensorSpec(example.numpy().dtype, (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, *outputs.shape[1:]))]),
        params=ParamSchema([ParamSpec(name, "string", "") for name in ("domain", *(["task"] if made.heads else []))]),
    )


def code_of(architecture: Architecture) -> tuple[list[str], list[str]]:
    """The sources that the factory needs, to be copied into the model, and the packages that it needs, pinned.

    What is installed as a package is required by its version; a project's own modules are copied, those beside that of
    the factory, too.
    """
    module = architecture.factory.partition(":")[0]
    required, sources = [*REQUIRED, *sorted(imported_packages(module))], []
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    for package in sorted(project_packages(module)):
        spec = find_spec(package)
        assert spec is not None, "the plan was checked"
        place = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
        place = place.parent if spec.submodule_search_locations else place
        if any(place.is_relative_to(folder) for folder in installed):
            required += packages_distributions().get(package, [])
        else:
            required += WITH_MERGELINE if package == "mergeline" else ()
            sources.append(str(place))
    return sources, [f"{name}=={version(name).partition('+')[0]}" for name in dict.fromkeys(required)]


def published_apart(made: Made) -> set[str]:
    """Names of the published files that a registered model has in its own folder, and the run need not have twice."""
    return set(file_digests(made.model, MODEL)) | {"normalization"}
