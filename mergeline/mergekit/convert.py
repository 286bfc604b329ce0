"""From a configuration of mergekit to a plan: whole, or the lines that have no equivalent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from mergeline.errors import InputError, nearest
from mergeline.mergekit.document import Located, NoEquivalentError, read_document
from mergeline.mergekit.layout import Layout, Model, layer_count, read_layout, read_model
from mergeline.mergekit.methods import TRANSLATIONS, Translation
from mergeline.mergekit.names import Names, names_of, names_of_llama
from mergeline.mergekit.patterns import as_patterns
from mergeline.mergekit.settings import Parameters, Slice, Value, filters, gradients, lookup
from mergeline.plan_checks import RESERVED

KNOWN = (
    *("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
DTYPES = ("float32", "float16", "bfloat16")
MOST_LAYERS = 128  # that names are supposed for, where a filter has a number and nothing else speaks of layers
IGNORED = ("int8_mask",)  # how mergekit keeps its masks; it changes no number


@dataclass(frozen=True)
class Imported:
    """A plan, as the sections of its file, and notes on what is not quite the same: (line, sentence)."""

    plan: dict[str, Any]
    notes: tuple[tuple[int, str], ...]
    source: str

    def to_yaml(self) -> str:
        """The text of the plan's file, with the notes as comments."""
        head = [f"# From {self.source} (mergekit). Check it: python -m flows.merge_and_evaluate --params FILE --plan"]
        head += [f"# {self.source}:{line}: {sentence}" for line, sentence in self.notes]
        body = ""
        for key, value in self.plan.items():
            if key == "checkpoints":
                body += "checkpoints:\n" + "".join(f"  - {_flow(checkpoint)}\n" for checkpoint in value)
            elif key == "merge":
                body += _merge_text(value)
            else:
                body += yaml.safe_dump({key: value}, allow_unicode=True)
        return "\n".join(head) + "\n" + body


def import_configuration(text: str, source: str, *, name: str, output: str | None = None) -> Imported:
    """The plan that merges what a mergekit configuration merges.

    text: of the YAML file; source: what messages call it; name: of the plan; output: its folder (data/merged_<name>).
    Models that are folders on this machine are looked into (config.json, tensor names), nothing else is.
    InputError listing every line that has no equivalent, or cannot be read.
    """
    try:
        return _Import(read_document(text), source, name, output).run()
    except NoEquivalentError as fault:
        raise InputError(f"{source}:{fault.line}: {fault.sentence}") from None


class _Import:
    """One configuration on its way."""

    def __init__(self, document: Located, source: str, name: str, output: str | None) -> None:
        self.source, self.name, self.output = source, name, output
        self.entries = document.entries("a configuration")
        self.faults: dict[tuple[int, str], None] = {}
        self.notes: dict[tuple[int, str], None] = {}

    def run(self) -> Imported:
        self._check_keys()
        method = base = layout = None
        named = self.entries.get("base_model", _NONE)
        with self._collected():
            method = self._method()
        with self._collected():
            base = read_model(named) if named.value else None
        with self._collected():
            layout = read_layout(self.entries, base) if "modules" not in self.entries else None
        dtype = self._dtype()
        self._tokenizer(base or (layout.models[0] if layout else None))
        if method is None or layout is None or (named.value and base is None):
            raise self._refusal()
        models, order = self._task_models(method, layout, base)
        merge: dict[str, Any] = {}
        with self._collected():
            merge = self._merge(method, layout, models, order)
        if self.faults:
            raise self._refusal()
        plan: dict[str, Any] = {"name": self.name, "output": self.output or f"data/merged_{self.name}"}
        plan["checkpoints"] = self._checkpoints(models, base if method.base == "base" else None)
        if method.base != "base":
            plan["align"] = None  # mergekit merges models as they are
        merge |= ({"out_dtype": dtype} if dtype else {}) | {"vocabulary": "common"}
        for note in method.notes:
            self.note(self.entries["merge_method"].line, note)
        return Imported(plan | {"merge": merge}, tuple(sorted(self.notes)), self.source)

    def _refusal(self) -> InputError:
        return InputError("\n".join(f"{self.source}:{line}: {sentence}" for line, sentence in sorted(self.faults)))

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """What stops one part of the reading is a fault among others."""
        try:
            yield
        except NoEquivalentError as fault:
            self._fault(fault.line, fault.sentence)

    def _fault(self, line: int, sentence: str) -> None:
        self.faults[line, sentence] = None

    def note(self, line: int, sentence: str) -> None:
        self.notes[line, sentence] = None

    def _check_keys(self) -> None:
        for key, entry in self.entries.items():
            if key == "modules":
                self._fault(entry.line, "`modules` (models of several parts) has no equivalent")
            elif key not in KNOWN:
                self._fault(entry.line, f"'{key}' has no equivalent{nearest(key, KNOWN)}")

    def _method(self) -> Translation | None:
        if "merge_method" not in self.entries:
            raise NoEquivalentError(1, "merge_method is missing")
        given = self.entries["merge_method"]
        if given.value not in TRANSLATIONS:
            hint = nearest(str(given.value), TRANSLATIONS, listed=True)
            self._fault(given.line, f"merge_method '{given.value}' has no equivalent{hint}")
        return TRANSLATIONS.get(given.value)

    def _dtype(self) -> str | None:
        """What is written: out_dtype, else dtype, in which mergekit also computes."""
        computed, written = (self.entries.get(key) for key in ("dtype", "out_dtype"))
        for given in (computed, written):
            if given is not None and given.value is not None and str(given.value).removeprefix("torch.") not in DTYPES:
                self._fault(given.line, f"dtype '{given.value}' is not one of {', '.join(DTYPES)}")
        chosen = next((given for given in (written, computed) if given is not None and given.value), None)
        if computed is not None and str(computed.value) not in ("float32", "None"):
            self.note(computed.line, f"computed in float32 and rounded once; mergekit computes in {computed.value}")
        return str(chosen.value).removeprefix("torch.") if chosen else None

    def _tokenizer(self, base: Model | None) -> None:
        """Tokens are matched by their number, not by their text: what that cannot do is refused.

        base: whose tokenizer the result gets; None where the models could not be read.
        """
        given = self.entries.get("tokenizer_source")
        if "tokenizer" in self.entries:
            entries = self.entries["tokenizer"].entries("tokenizer")
            given = entries.get("source", given)
            for key in entries.keys() - {"source"}:
                self._fault(
                    entries[key].line, f"tokenizer.{key} has no equivalent: rows of the vocabulary are not moved"
                )
        if given is not None and given.value is not None:
            wanted = str(given.value).removeprefix("model:")
            if wanted == "union" or (base and wanted not in ("base", base.text)):
                self._fault(
                    given.line,
                    f"tokenizer_source '{given.value}' has no equivalent: tokens are matched by their number. Where "
                    "all models have the same tokenizer, leave the line out",
                )
            note = (
                "tokens are matched by their number: right where the tokenizers agree but for tokens added at the end"
            )
            self.note(given.line, note)
        if self.entries.get("chat_template", _NONE).value is not None:
            said = "chat_template is not carried over: tokenizer files are copied as they are"
            self.note(self.entries["chat_template"].line, said)

    def _task_models(self, method: Translation, layout: Layout, base: Model | None) -> tuple[list[Model], list[int]]:
        """The models to merge, in our order, and the place of each among those of the configuration."""
        order = list(range(len(layout.models)))
        place = next((i for i, model in enumerate(layout.models) if base and model.text == base.text), None)
        line = self.entries["merge_method"].line
        models = list(layout.models)
        if method.base != "none" and base is None:
            self._fault(line, f"merge_method '{self.entries['merge_method'].value}' needs base_model")
        elif method.base == "base" and place is not None:
            order.remove(place)
        elif method.base == "first" and base is not None:
            if place is None:
                order, models = [len(models), *order], [*models, base]
            else:
                order = [place, *(i for i in order if i != place)]
        elif method.base == "none" and base is not None and (place is None or method.name != "average"):
            self._fault(
                base.line, f"base_model has no meaning for '{self.entries['merge_method'].value}'; leave it out"
            )
        least, most = method.models
        if len(order) < least or (most is not None and len(order) > most):
            wanted = str(least) if least == most else f"{least} or more"
            beside = " beside the base" if method.base == "base" else ""
            self._fault(line, f"a plan merges {wanted} models by this method{beside}, not {len(order)}")
        return [models[i] for i in order], order

    def _merge(
        self, method: Translation, layout: Layout, models: Sequence[Model], order: Sequence[int]
    ) -> dict[str, Any]:
        """The section `merge`: the options of every tensor, said by patterns where they differ."""
        shared = self.entries["parameters"].entries("parameters") if "parameters" in self.entries else {}
        used = [
            (key, entry)
            for level in [shared, *(level for part in layout.slices for level in [part.own, *part.sources])]
            for key, entry in level.items()
            if self._is_used(key, entry, method)
        ]
        found = {text: line for _, entry in used for text, line in filters(entry)}
        words = list(found)
        names, layers = self._names(layout, models, [entry for _, entry in used], words)
        self._refuse_lost_filters(names, found)
        wanted = {}
        for name in names.all:
            part, t = _place(layout.slices, layers, names, name)
            try:
                wanted[name] = method.options(_OfTensor(self, part, shared, order, name, t, models))
            except NoEquivalentError as fault:
                self._fault(fault.line, fault.sentence)
        if self.faults or not wanted:
            return {}
        options, by_pattern = as_patterns(wanted, names, words)
        if not names.real and (words or by_pattern):
            self.note(used[0][1].line, "no model is on this machine: patterns suppose the names of a Llama")
        plain = {key: _tidy(value) for key, value in options.items()}
        patterns = {
            pattern: {key: _tidy(value) for key, value in found.items()} for pattern, found in by_pattern.items()
        }
        return {"method": method.name} | method.fixed | plain | ({"options_by_pattern": patterns} if patterns else {})

    def _is_used(self, key: str, entry: Located, method: Translation) -> bool:
        if key in method.read:
            return True
        name = self.entries["merge_method"].value
        said = "ignored: it changes no number" if key in IGNORED else f"ignored: '{key}' is no parameter of {name}"
        self.note(entry.line, said if key in IGNORED else f"{said}{nearest(key, method.read)}")
        return False

    def _names(
        self, layout: Layout, models: Sequence[Model], used: Sequence[Located], words: Sequence[str]
    ) -> tuple[Names, int | None]:
        """Tensor names, and how many layers there are; None where nothing depends on it."""
        stated, counted = layout.slices[-1].stop, layer_count(models)
        if stated is not None and counted is not None and stated != counted:
            raise NoEquivalentError(
                layout.lines[-1],
                f"layer_range ends at {stated}, the models have {counted} layers; parts have no equivalent",
            )
        layers = counted or stated
        if stated is not None and counted is None:
            note = (
                f"supposed that the models have {stated} layers, so that all are merged; they are not on this machine"
            )
            self.note(layout.lines[-1], note)
        steep = next((list_ for entry in used for list_ in gradients(entry)), None)
        if steep is not None and layers is None:
            raise NoEquivalentError(
                steep.line,
                "a gradient over the layers needs their number, and no model is here to tell it (config.json); "
                "download one and write its folder, or write slices with layer_range",
            )
        by_layer = steep is not None or len(layout.slices) > 1
        real = _real_names(models) if words or by_layer else None
        if real is not None:
            return names_of(*real), layers
        numbered = any(re.search(r"\d", text) for text in words)
        return names_of_llama(layers or (MOST_LAYERS if numbered else 1)), layers

    def _refuse_lost_filters(self, names: Names, found: Mapping[str, int]) -> None:
        """Those that no pattern could stand for. (A filter that fits nothing in a real checkpoint does nothing.)"""
        for text, line in found.items():
            if any(text in name for name in names.all):
                continue
            for name, other in [pair for pair in names.tied.items() if text in pair[0]][:1]:
                self._fault(line, f"filter '{text}' fits '{name}' only, which is tied to '{other}'; write that name")
            if not names.real:
                self._fault(
                    line,
                    f"filter '{text}' is part of no name of a Llama's tensors, and no model is here to tell its names; "
                    "download one and write its folder",
                )

    def _checkpoints(self, models: Sequence[Model], base: Model | None) -> list[dict[str, Any]]:
        taken: list[str] = list(RESERVED)
        found: list[dict[str, Any]] = []
        for model in [*([base] if base else []), *models]:
            name = re.sub(r"[^\w.-]", "-", model.text.partition("@")[0].rstrip("/").rpartition("/")[2]) or "model"
            name = next(text for text in [name, *(f"{name}-{i}" for i in range(2, 99))] if text not in taken)
            taken.append(name)
            found.append({"name": name, "uri": model.uri} | ({"base": found[0]["name"]} if base and found else {}))
        return found


class _OfTensor:
    """The parameters of one tensor, as the methods ask for them."""

    def __init__(
        self,
        import_: _Import,
        part: Slice,
        shared: Parameters,
        order: Sequence[int],
        name: str,
        t: float,
        models: Sequence[Model],
    ) -> None:
        self._import, self._line = import_, import_.entries["merge_method"].line
        self._part, self._shared, self._order, self._name, self._t = part, shared, order, name, t
        self._models = models

    def of_models(self, name: str, default: float | None = None) -> list[Value]:
        """One value per task model, in our order."""
        found: list[Value] = []
        for model, place in zip(self._models, self._order, strict=True):
            own = self._part.sources[place] if place < len(self._part.sources) else {}
            value = lookup(name, [own, self._part.own, self._shared], self._name, self._t)
            if value is None and default is None:
                raise NoEquivalentError(
                    model.line, f"the {name} of '{model.text}' is missing, at least for some tensors"
                )
            found.append(value or Value(default or 0.0, self._line))
        return found

    def note(self, sentence: str) -> None:
        """Say what is not quite the same."""
        self._import.note(self._line, sentence)

    def shared(self, name: str, default: float | bool | None = None) -> Value:
        """One value for all models."""
        value = lookup(name, [self._part.own, self._shared], self._name, self._t)
        if value is None and default is None:
            raise NoEquivalentError(self._line, f"the parameter {name} is missing, at least for some tensors")
        return value or Value(default if default is not None else 0.0, self._line)


_NONE = Located(None, 1)


def _place(slices: Sequence[Slice], layers: int | None, names: Names, name: str) -> tuple[Slice, float]:
    """The slice of a tensor, and where in it its layer lies; what comes before the layers is in the first, at 0."""
    layer = names.layer(name)
    if layer is None or layers is None:
        return (slices[0], 0.0) if names.is_input(name) else (slices[-1], 1.0)
    part = next((part for part in slices if part.stop is None or layer < part.stop), slices[-1])
    count = (part.stop if part.stop is not None else layers) - part.start
    return part, (layer - part.start) / (count - 1) if count > 1 else 1.0


def _real_names(models: Sequence[Model]) -> tuple[list[str], Mapping[str, str]] | None:
    """The names of the parameters of the first model that is here, and the names that are tied to them."""
    from mergeline.checkpoints.readers import open_checkpoint
    from mergeline.merging.patterns import is_copied

    for model in models:
        if model.path is not None:
            try:
                reader = open_checkpoint(model.path)
            except InputError:
                continue
            tied = reader.tied()
            return [name for name in reader.names() if not is_copied(reader, name) and name not in tied], tied
    return None


def _tidy(value: Any) -> Any:
    """Numbers without the noise of their interpolation."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _merge_text(merge: Mapping[str, Any]) -> str:
    lines = ["merge:"]
    for key, value in merge.items():
        if key == "options_by_pattern":
            lines.append(f"  {key}:")
            lines += [f"    {_quoted(pattern)}: {_flow(options)}" for pattern, options in value.items()]
        else:
            lines.append(f"  {_flow({key: value})[1:-1]}")
    return "\n".join(lines) + "\n"


def _quoted(pattern: str) -> str:
    return "'" + pattern.replace("'", "''") + "'"
