"""A symmetry as YAML that people read and edit."""

from __future__ import annotations

from typing import Any, Literal

import yaml

from mergeline.errors import InputError
from mergeline.symmetry.layout import parse
from mergeline.symmetry.symmetry import ParameterLayout, Site, Symmetry
from mergeline.symmetry.units import Family


def to_yaml(symmetry: Symmetry) -> str:
    """One line for a family, one for each entry of a tensor, one for a site."""
    document = {
        "families": {name: _family(family) for name, family in symmetry.families.items()},
        "parameters": {name: _parameter(layout) for name, layout in symmetry.parameters.items()},
        "sites": [_site(site) for site in symmetry.sites],
        "notes": symmetry.notes,
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1 << 20)


def from_yaml(text: str) -> Symmetry:
    """The symmetry that a text describes. Raises InputError with the place of the fault."""
    try:
        document = yaml.safe_load(text)
        families = {
            name: Family(name, int(entry["size"]), tuple(entry.get("over", ())))
            for name, entry in document["families"].items()
        }
        parameters = {
            name: ParameterLayout(
                tuple(parse(dim) for dim in entry["dims"]), tuple(entry["roles"]), tuple(entry.get("tied", ()))
            )
            for name, entry in document["parameters"].items()
        }
        sites = tuple(_read_site(entry) for entry in document.get("sites") or ())
        notes = {name: str(note) for name, note in (document.get("notes") or {}).items()}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as fault:
        raise InputError(f"symmetry: the text is not a symmetry as to_yaml writes it ({fault!r})") from fault
    return Symmetry(families, parameters, sites, notes)


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


def _read_site(entry: dict[str, Any]) -> Site:
    dims = tuple((int(dim), parse(layout)) for dim, layout in entry["dims"].items())
    kind: Literal["use", "def"] = "use" if "use" in entry else "def"
    return Site(entry["group"], entry["node"], dims, kind, entry[kind])


class _Dumper(yaml.SafeDumper):
    """Entries on one line, sections over many."""


_Dumper.add_representer(
    _Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, flow_style=True)
)
