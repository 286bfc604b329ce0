"""Read a plan from its YAML file: overrides, and everything that is wrong with it in one go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mergeline.errors import InputError, nearest
from mergeline.plan import Plan
from mergeline.plan_checks import reference_faults, search_faults
from mergeline.redaction import redact


class PlanError(InputError):
    """Everything that is wrong with a plan; `faults` lists one sentence each, with file and field."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(redact(fault) for fault in faults)
        super().__init__("\n".join(self.faults))


def load_plan(path: str | Path, overrides: Sequence[str] = (), *, searched: bool = False) -> Plan:
    """Read a plan and apply overrides such as `merge.keep_ratio=0.2` or `checkpoints[0].uri=other.safetensors`.

    searched: its coefficients are to be searched; a plan without the section `search` gets one.
    Raises PlanError with every fault at once; each names the file and the field, and how to mend it.
    """
    raw, faults = read_sections(path, overrides)
    if searched and raw.get("search") is None:
        raw["search"] = {}
    plan, more = plan_of(raw, searched=searched)
    faults += [f"{path}: {fault}" for fault in more]
    if faults or plan is None:
        raise PlanError(faults)
    return plan


def read_sections(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The sections of a plan as they were written, overridden, and what is wrong with the overrides.

    Raises PlanError where the file is no plan at all.
    """
    path = Path(path)
    if not path.is_file():
        raise PlanError([f"{path} is missing; name the plan with --params FILE"])
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except UnicodeDecodeError as fault:
        raise PlanError([f"{path}: not a text file, so not a plan"]) from fault
    except yaml.YAMLError as fault:
        raise PlanError([f"{path}: not valid YAML: {' '.join(str(fault).split())}"]) from fault
    if not isinstance(raw, dict):
        raise PlanError([f"{path}: a plan is a mapping of sections (checkpoints, architecture, merge, ...)"])
    return raw, [wrong for override in overrides if (wrong := override_field(raw, override))]


def plan_of(raw: dict[str, Any], *, searched: bool = False) -> tuple[Plan | None, list[str]]:
    """The plan that sections make, and all that is wrong with them, one sentence per fault; None where it is none."""
    plan, faults = None, []
    try:
        plan = Plan.model_validate(raw)
    except ValidationError as error:
        faults = [_sentence(details) for details in error.errors()]
    faults += reference_faults(raw)
    if searched:
        faults += search_faults(raw)
    return plan, list(dict.fromkeys(faults))  # several tasks of one data set have the same to say


def read_value(text: str) -> Any:
    """A value as it would be read in a plan. Raises YAMLError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would silently keep the last. 1e-3 and 1.5e3 are numbers,
    as in YAML 1.2 and for DVC; in YAML 1.1 they are texts."""


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' stands twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    [*"-+.0123456789"],
)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def override_field(raw: dict[str, Any], override: str) -> str | None:
    """Set one value in the raw plan; return what is wrong with the override, if anything."""
    field, equals, text = override.partition("=")
    keys = [key for key in re.split(r"[.\[\]]+", field) if key]
    if not equals or not keys:
        return f"--set {override}: write it as section.field=value"
    try:
        value = read_value(text)
    except yaml.YAMLError:
        return f"--set {override}: '{text}' is not a YAML value"
    place: Any = raw
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                return f"--set {override}: '{key}' is not one of the {len(place)} items"
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
        else:
            return f"--set {override}: '{key}' lies under a plain value"
        if following is None:
            place[index] = value
        elif isinstance(place, dict) and place.get(index) is None:
            place[index] = {}
        place = place[index]
    return None


def _sentence(fault: Any) -> str:
    """One pydantic error as field, value and cure."""
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    match fault["type"]:
        case "extra_forbidden":
            section = _section_at(fault["loc"][:-1])
            known = section.model_fields if section else ()
            return f"{place}: unknown key{nearest(str(fault['loc'][-1]), known, listed=True)}"
        case "missing":
            return f"{place}: is missing"
        case "literal_error":
            hint = nearest(str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"]), listed=True)
            return f"{place}: '{fault['input']}' is not one of {fault['ctx']['expected']}{hint}"
        case "string_pattern_mismatch" if wanted := _description(fault["loc"]):
            return f"{place}: expected {wanted} (found {fault['input']!r})"
        case "model_type" | "dict_type":
            return f"{place}: expected a mapping of fields (found {fault['input']!r})"
        case _:
            found = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"  # not a whole section
            return f"{place}: {fault['msg'].removeprefix('Value error, ')}{found}"


def _description(location: Sequence[str | int]) -> str | None:
    """What the field at a place in the plan is said to be."""
    section = _section_at(location[:-1]) or Plan
    field = section.model_fields.get(str(location[-1]))
    return field.description if field else None


def _section_at(location: Sequence[str | int]) -> type[BaseModel] | None:
    """The model class at a place in the plan, to suggest its keys."""
    section: Any = Plan
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            continue
        section = next((c for c in _classes(field.annotation) if issubclass(c, BaseModel)), section)
    return section


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)
