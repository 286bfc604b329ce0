"""Which models a configuration merges, layer by layer, and where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeline.errors import nearest
from mergeline.mergekit.document import Located, NoEquivalentError
from mergeline.mergekit.settings import Slice

MODEL_KEYS = ("model", "parameters")
SOURCE_KEYS = ("model", "layer_range", "parameters")
SLICE_KEYS = ("sources", "parameters", "base_model")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Model:
    """One model as the configuration names it. path: its folder where it is on this machine."""

    text: str
    uri: str
    line: int
    path: Path | None


@dataclass
class Layout:
    """The models in the order given, and the slices; the parameters of a slice's sources are in the same order."""

    models: list[Model]
    slices: list[Slice]
    lines: list[int] = field(default_factory=list)  # of the layer ranges


def read_model(given: Located) -> Model:
    """A model's name or path. NoEquivalentError for adapters on top of one, and for what is no name."""
    text = given.value
    if not isinstance(text, str) or not text:
        raise NoEquivalentError(given.line, "model: write a path, or organisation/name[@revision] of the hub")
    path = Path(text).expanduser()
    if "+" in text and not path.exists():
        raise NoEquivalentError(
            given.line,
            f"'{text}' puts an adapter on a model; save the adapted model (PEFT's merge_and_unload), or merge the "
            "adapters themselves in a plan of their own (base: initial)",
        )
    if path.exists() or text.startswith(("/", "./", "../", "~")):
        return Model(text, str(path) if text.startswith("~") else text, given.line, path if path.is_dir() else None)
    if not re.fullmatch(r"[^/@\s]+/[^/@\s]+(@[^@\s]+)?", text):
        raise NoEquivalentError(
            given.line,
            f"'{text}' is neither a folder here nor organisation/name[@revision] of the hub",
        )
    name, _, revision = text.partition("@")
    return Model(text, f"hf://{name}" + (f"@{revision.replace('/', '%2F')}" if revision else ""), given.line, None)


def read_layout(entries: Mapping[str, Located], base: Model | None) -> Layout:
    """The models and slices of a configuration."""
    given = [key for key in ("models", "slices") if key in entries]
    if len(given) != 1:
        line = entries[given[1]].line if given else 1
        raise NoEquivalentError(line, "either `models` or `slices` says what is merged, one of them")
    if given == ["models"]:
        return _read_models(entries["models"])
    return _read_slices(entries["slices"], base)


def layer_count(models: Iterable[Model]) -> int | None:
    """How many layers the models have, by the config of the first that is here; None where none is."""
    for model in models:
        try:
            config = json.loads((model.path / "config.json").read_text()) if model.path else {}
        except (OSError, ValueError):
            continue
        places = [config, *(config.get(key) for key in ("text_config", "llm_config"))]
        for place in places:
            found = [place[key] for key in LAYER_COUNTS if key in place] if isinstance(place, dict) else []
            if found and isinstance(found[0], int):
                return found[0]
    return None


def refuse_unknown(entries: Mapping[str, Located], known: Sequence[str], what: str) -> None:
    """NoEquivalentError for a key that mergekit does not know, or that we do not."""
    for key, entry in entries.items():
        if key not in known:
            raise NoEquivalentError(entry.line, f"'{key}' of {what} has no equivalent{nearest(key, known)}")


def _read_models(given: Located) -> Layout:
    models, parameters = [], []
    for item in given.items("models"):
        entries = item.entries("models")
        refuse_unknown(entries, MODEL_KEYS, "a model")
        models.append(_model_of(entries, item.line))
        parameters.append(entries["parameters"].entries("parameters") if "parameters" in entries else {})
    _refuse_twice(models)
    return Layout(models, [Slice(0, None, parameters, {})])


def _read_slices(given: Located, base: Model | None) -> Layout:
    layout = Layout([], [])
    for item in given.items("slices"):
        _add_slice(layout, item.entries("slices"), item.line, base)
    return layout


def _add_slice(layout: Layout, entries: Mapping[str, Located], line: int, base: Model | None) -> None:
    refuse_unknown(entries, SLICE_KEYS, "a slice")
    if "base_model" in entries and (base is None or entries["base_model"].value != base.text):
        raise NoEquivalentError(entries["base_model"].line, "a slice with a base of its own has no equivalent")
    if "sources" not in entries:
        raise NoEquivalentError(line, "a slice needs sources")
    models, sources, ranges = [], {}, []
    for item in entries["sources"].items("sources"):
        source = item.entries("sources")
        refuse_unknown(source, SOURCE_KEYS, "a source")
        models.append(_model_of(source, item.line))
        ranges.append(_range(source, item.line))
        sources[models[-1].text] = source["parameters"].entries("parameters") if "parameters" in source else {}
    _refuse_twice(models)
    start, stop = _common_range(ranges, layout.slices[-1].stop if layout.slices else 0)
    if not layout.models:
        layout.models = models
    other = next((model for model in models if model.text not in {known.text for known in layout.models}), None)
    if other is not None or len(models) != len(layout.models):
        raise NoEquivalentError(
            other.line if other else line, "slices of other models than the first slice have no equivalent"
        )
    own = entries["parameters"].entries("parameters") if "parameters" in entries else {}
    layout.slices.append(Slice(start, stop, [sources[model.text] for model in layout.models], own))
    layout.lines.append(ranges[0][2])


def _common_range(ranges: Sequence[tuple[int, int, int]], expected: int | None) -> tuple[int, int]:
    start, stop, line = ranges[0]
    if start != expected:
        raise NoEquivalentError(
            line, f"layer_range begins at {start}, not at {expected}: layers that move or repeat have no equivalent"
        )
    other = next((item for item in ranges if item[:2] != (start, stop)), None)
    if other is not None:
        raise NoEquivalentError(
            other[2], f"layer_range [{other[0]}, {other[1]}] merges other layers with [{start}, {stop}]; no equivalent"
        )
    return start, stop


def _range(source: Mapping[str, Located], line: int) -> tuple[int, int, int]:
    given = source.get("layer_range")
    values = [item.value for item in given.value] if given and isinstance(given.value, list) else []
    if (
        given is None
        or len(values) != 2
        or not all(isinstance(value, int) for value in values)
        or values[0] >= values[1]
    ):
        raise NoEquivalentError(given.line if given else line, "layer_range: must be [first layer, end], two numbers")
    return values[0], values[1], given.line


def _model_of(entries: Mapping[str, Located], line: int) -> Model:
    if "model" not in entries:
        raise NoEquivalentError(line, "names no model")
    return read_model(entries["model"])


def _refuse_twice(models: Sequence[Model]) -> None:
    texts = [model.text for model in models]
    for place, model in enumerate(models):
        if texts.index(model.text) != place:
            raise NoEquivalentError(model.line, f"'{model.text}' is listed twice; a model counts once, with a weight")
