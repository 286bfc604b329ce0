"""A symmetry as YAML that people read and edit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mergeline.errors import InputError, nearest
from mergeline.symmetry.layout import Layout, families_of, parse
from mergeline.symmetry.symmetry import ParameterLayout, Site, Symmetry
from mergeline.symmetry.units import Family

EDITED = "no: the text was edited after it was verified"


class _Entry(BaseModel):
    """Part of the text; family names may look like numbers."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, populate_by_name=True)


class _Family(_Entry):
    size: Annotated[int, Field(gt=0, strict=True)]
    over: list[str] = []


class _Parameter(_Entry):
    dims: list[str]
    roles: list[Literal["out", "in", "in/out", "elt", ""]]
    tied: list[str] = []

    @model_validator(mode="after")
    def _one_role_for_each_axis(self) -> _Parameter:
        if len(self.roles) != len(self.dims):
            raise ValueError(f"{len(self.dims)} dims, but {len(self.roles)} roles; write one role for each axis")
        return self


class _Site(_Entry):
    group: str
    node: str
    dims: dict[int, str]
    use: str | None = None
    made: str | None = Field(None, alias="def")

    @model_validator(mode="after")
    def _one_kind(self) -> _Site:
        if (self.use is None) == (self.made is None):
            raise ValueError("write either `use:` or `def:`, with the operation that reads or makes the units")
        return self


_ENTRIES: dict[str, type[_Entry]] = {"families": _Family, "parameters": _Parameter, "sites": _Site}


class _Document(_Entry):
    families: dict[str, _Family]
    parameters: dict[str, _Parameter]
    sites: list[_Site] = []
    notes: dict[str, str] = {}
    digest: str = ""

    def own_digest(self) -> str:
        """Changes when a family or a tensor does."""
        content = self.model_dump_json(include={"families", "parameters"})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def to_yaml(symmetry: Symmetry) -> str:
    """One line for a family, one for each entry of a tensor, one for a site."""
    document: dict[str, Any] = {
        "families": {name: _family(family) for name, family in symmetry.families.items()},
        "parameters": {name: _parameter(layout) for name, layout in symmetry.parameters.items()},
        "sites": [_site(site) for site in symmetry.sites],
        "notes": symmetry.notes,
    }
    document["digest"] = _Document.model_validate(document).own_digest()
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1 << 20)


def read_symmetry(path: Path) -> Symmetry:
    """The symmetry in a YAML file. Raises InputError with the place of the fault."""
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as fault:
        raise InputError(f"{path}: not a text file, so not a symmetry") from fault


def from_yaml(text: str, source: str = "symmetry") -> Symmetry:
    """The symmetry that a text describes, without families and sites of which no tensor speaks any more.

    Where families or tensors were edited, the note that it was verified goes. Raises InputError with the place of the
    fault in `source`.
    """
    document = _document(text, source)
    families = {name: Family(name, entry.size, tuple(entry.over)) for name, entry in document.families.items()}
    parameters = {
        name: ParameterLayout(
            tuple(_layout(dim, f"{source}: parameters.{name}") for dim in entry.dims),
            tuple(entry.roles),
            tuple(entry.tied),
        )
        for name, entry in document.parameters.items()
    }
    sites = [_read_site(entry, f"{source}: the site {entry.node}") for entry in document.sites]
    notes = dict(document.notes)
    if "verified" in notes and document.digest != document.own_digest():
        notes["verified"] = EDITED
    try:
        symmetry = Symmetry(families, parameters, notes=notes)
    except InputError as fault:
        raise InputError(f"{source}: {str(fault).removeprefix('symmetry: ')}") from fault
    return _without_remains(symmetry, sites)


def _document(text: str, source: str) -> _Document:
    try:
        raw = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{source}: {place}{fault.problem or 'not YAML'}") from fault
    except (yaml.YAMLError, RecursionError) as fault:
        raise InputError(f"{source}: not YAML: {fault}") from fault
    if not isinstance(raw, dict):
        raise InputError(f"{source}: a symmetry is a mapping with the sections families and parameters")
    try:
        return _Document.model_validate({name: section for name, section in raw.items() if section is not None})
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_sentence(details)}" for details in error.errors())) from error


def _sentence(fault: Any) -> str:
    """One fault as place, what is wrong, and what would be right."""
    place = ".".join(map(str, fault["loc"]))
    match fault["type"]:
        case "extra_forbidden":
            section = _Document if len(fault["loc"]) == 1 else _ENTRIES[fault["loc"][0]]
            known = [field.alias or name for name, field in section.model_fields.items()]
            return f"{place}: unknown key{nearest(str(fault['loc'][-1]), known, listed=True)}"
        case "missing":
            return f"{place}: is missing"
        case "value_error":
            return f"{place}: {fault['ctx']['error']}"
        case _:
            return f"{place}: {fault['msg']} (found {str(fault['input'])[:60]!r})"


def _layout(text: str, where: str) -> Layout:
    try:
        return parse(text)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from fault


def _without_remains(symmetry: Symmetry, sites: list[Site]) -> Symmetry:
    """Without families that no tensor has and none lies over, and with the sites that show what is left."""
    used = {name for layout in symmetry.parameters.values() for dim in layout.dims for name in families_of(dim)}
    used |= {outer for name in used for outer in symmetry.families[name].over}
    families = {name: family for name, family in symmetry.families.items() if name in used}
    shown = []
    for site in sites:
        dims = tuple((dim, layout) for dim, layout in site.dims if used.issuperset(families_of(layout)))
        if site.group in symmetry.groups and dims:
            shown.append(replace(site, dims=dims))
    return replace(symmetry, families=families, sites=tuple(shown))


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


def _family(family: Family) -> _Line:
    return _Line(size=family.size, **({"over": list(family.over)} if family.over else {}))


def _parameter(layout: ParameterLayout) -> _Line:
    entry = _Line(dims=[str(dim) for dim in layout.dims], roles=list(layout.roles))
    return _Line(entry, tied=list(layout.tied)) if layout.tied else entry


def _site(site: Site) -> _Line:
    dims = {dim: str(layout) for dim, layout in site.dims}
    return _Line({"group": site.group, "node": site.node, "dims": dims, site.kind: site.at})


def _read_site(entry: _Site, where: str) -> Site:
    dims = tuple((dim, _layout(layout, where)) for dim, layout in entry.dims.items())
    if entry.use is not None:
        return Site(entry.group, entry.node, dims, "use", entry.use)
    return Site(entry.group, entry.node, dims, "def", entry.made or "")


class _Dumper(yaml.SafeDumper):
    """Entries on one line, sections over many."""


_Dumper.add_representer(
    _Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, flow_style=True)
)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would silently keep the last."""


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        name = loader.construct_object(key)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' stands twice", key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
