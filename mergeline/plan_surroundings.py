"""What a plan says about the world around it: addresses, files, columns, modules. Looked at before a run begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow
from safetensors import SafetensorError, safe_open

from mergeline.checkpoints.files import SUFFIXES, checkpoint_files, is_index
from mergeline.errors import InputError, nearest
from mergeline.evaluation.kinds import PROTOTYPES
from mergeline.evaluation.kinds import columns_of as fields_of_columns
from mergeline.evaluation.sources import columns_of, rows_of, values_of
from mergeline.redaction import redact, unset

REGISTERED = re.compile(r"models:/[^/@]+(@[^/@]+|/\d+)|runs:/[^/]+/[^/].*")
"""The addresses of MLflow: a version of a registered model, by alias or number, or an artifact of a run."""


def is_registered(uri: str) -> bool:
    """Whether an address is one of MLflow, which only a run asks."""
    return uri.startswith(("models:/", "runs:/"))


def address_faults(uri: str) -> Iterator[str]:
    """What is wrong with the address of a checkpoint, as far as can be told without asking anyone."""
    scheme, separator, rest = uri.partition("://")
    if is_registered(uri):
        if not REGISTERED.fullmatch(uri):
            yield f"'{uri}' names nothing in MLflow; write models:/name@alias, models:/name/3 or runs:/run/path"
    elif separator:
        for name in unset(uri):
            yield f"${{{name}}}: the environment has no variable of this name; set it where the run starts"
        if "${" not in uri and (why := _broken(uri)):
            yield f"'{redact(uri)}' leads nowhere ({why}); check it"
        known = {"http", "https", "hf", *fsspec.available_protocols()}
        if scheme not in known:
            yield f"'{scheme}://' is not a known kind of address{nearest(scheme, sorted(known))}"
        elif scheme == "hf" and not re.match("[^/@]+/[^/@]", rest):
            yield f"'{uri}' does not name a repository; write hf://org/repo@revision, or a file or folder in it"
    elif uri and not Path(uri).exists():
        yield f"the file '{uri}' does not exist (paths are relative to the project's root)"
    elif uri and (Path(uri).is_dir() or is_index(uri)):
        try:
            checkpoint_files(Path(uri))
        except InputError as fault:
            yield str(fault)
    elif uri and Path(uri).suffix not in SUFFIXES:
        yield f"'{uri}' is no kind of checkpoint that is known ({', '.join(SUFFIXES)})"


def _broken(uri: str) -> str:
    """Why an address cannot be taken apart, or ""; what Python says of it may quote a password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "its server is written wrongly"
    try:
        return "" if parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0) else "no server"
    except ValueError:
        return "the port is no number"


def column_faults(place: str, entry: dict[str, Any], dataset: dict[str, Any], name: str, file: Path) -> Iterator[str]:
    """Columns that a split does not have, and values of `where` that no row has."""
    try:
        columns = columns_of(file)
    except (OSError, pyarrow.ArrowException):
        kind = {".parquet": "a Parquet", ".arrow": "an Arrow", ".csv": "a CSV"}[file.suffix]
        yield f"{place}.split: {file} is not {kind} file"
        return
    for field in fields_of_columns(str(entry.get("kind", PROTOTYPES)), texts=dataset.get("text_column") is not None):
        if field == "text_column" and dataset.get(field) is None:
            continue  # reported by itself
        column = str(dataset.get(field, field.removesuffix("_column")))
        if column not in columns:
            yield f"datasets.{name}.{field}: {file} has no column '{column}'{nearest(column, columns, listed=True)}"
    where = entry.get("where")
    for column, value in where.items() if isinstance(where, dict) else ():
        if column not in columns:
            yield f"{place}.where: {file} has no column '{column}'{nearest(str(column), columns, listed=True)}"
            continue
        if file.is_dir():  # of pictures: which class has which number is known when it is read
            continue
        values = values_of(file, column)
        if not values:
            yield f"{place}.split: {file} has no rows"
        elif str(value) not in values:
            yield f"{place}.where.{column}: no row of {file} has '{value}'{nearest(str(value), values, listed=True)}"


def sample_faults(calibration: dict[str, Any], file: Path) -> Iterator[str]:
    """A sample of more rows than a split has; what cannot be read or counted is said elsewhere."""
    sample, draw, where = calibration.get("sample"), calibration.get("draw", 0), calibration.get("where") or {}
    if file.is_dir() or not isinstance(sample, int) or not isinstance(draw, int) or not isinstance(where, dict):
        return
    try:
        rows = rows_of(file, where)
    except (OSError, KeyError, pyarrow.ArrowException):
        return
    if sample * (draw + 1) > rows:
        yield (
            f"calibration.sample: sample {draw} of {sample} rows each needs {sample * (draw + 1)} rows, and {file} has "
            f"{rows} of these; draw fewer, or a lower number"
        )


def control_faults(control: dict[str, Any], calibration: Any, datasets: dict[str, Any]) -> Iterator[str]:
    """Data for a control of a calibration that is what calibrates already, or that its models cannot read."""
    if not isinstance(calibration, dict):
        return
    named = [(entry.get("dataset"), entry.get("split", "calibration")) for entry in (control, calibration)]
    if named[0] == named[1] and (control.get("where") or {}) == (calibration.get("where") or {}):
        yield "calibrate.control_data: is the calibration data itself; name data of another domain, or leave it out"
    found = [datasets.get(str(dataset)) for dataset, _ in named]
    texts = [entry.get("text_column") is not None for entry in found if isinstance(entry, dict)]
    if len(set(texts)) > 1:
        yield (
            f"calibrate.control_data.dataset: one of '{named[0][0]}' and '{named[1][0]}', which calibrates, has texts "
            "and the other pictures; name data that the models can read"
        )


def class_faults(place: str, task: dict[str, Any], dataset: dict[str, Any]) -> Iterator[str]:
    """Classes of a task for which there is no prototype; a file that holds none is the run's to report."""
    classes, file = task.get("classes"), Path(str(dataset.get("prototypes")))
    if not file.is_file() or not isinstance(classes, list):
        return
    try:
        with safe_open(file, "np") as opened:
            count = opened.get_slice("prototypes").get_shape()[0]
    except (OSError, SafetensorError):
        return
    outside = [number for number in classes if isinstance(number, int) and number >= count]
    if outside:
        yield f"{place}.classes: {outside[0]} is outside the range: {file} has the classes 0 to {count - 1}"


def architecture_faults(architecture: Any) -> Iterator[str]:
    """A factory whose module is not there, and a symmetry that is not there; nothing is imported for it."""
    if not isinstance(architecture, dict):
        return
    symmetry = str(architecture.get("symmetry") or "")
    if symmetry.endswith((".yaml", ".yml")):
        if not Path(symmetry).is_file():
            yield f"architecture.symmetry: the file '{symmetry}' does not exist"
        symmetry = ""
    for field, function in (("factory", str(architecture.get("factory") or "")), ("symmetry", symmetry)):
        module = function.partition(":")[0]
        try:
            missing = bool(module) and find_spec(module) is None
        except (ImportError, ValueError):
            missing = True
        if missing:
            yield f"architecture.{field}: there is no module '{module}' to import (write module:function)"


def output_faults(output: Any) -> Iterator[str]:
    """A place that a run would overwrite though other things lie there."""
    folder, here = Path(str(output)), Path.cwd().resolve()
    if folder.is_file() or folder.resolve() in (here, *here.parents):
        yield f"output: '{output}' must be a folder of its own, such as data/merged"
