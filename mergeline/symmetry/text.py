"""A symmetry as YAML that people read and edit."""

from __future__ import annotations

from typing import Any

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
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)


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


def _family(family: Family) -> dict[str, Any]:
    return {"size": family.size, **({"over": list(family.over)} if family.over else {})}


def _parameter(layout: ParameterLayout) -> dict[str, Any]:
    entry: dict[str, Any] = {"dims": [str(dim) for dim in layout.dims], "roles": list(layout.roles)}
    return {**entry, "tied": list(layout.tied)} if layout.tied else entry


def _site(site: Site) -> dict[str, Any]:
    dims = {dim: str(layout) for dim, layout in site.dims}
    return {"group": site.group, "node": site.node, "dims": dims, site.kind: site.at}


def _read_site(entry: dict[str, Any]) -> Site:
    dims = tuple((int(dim), parse(layout)) for dim, layout in entry["dims"].items())
    kind = "use" if "use" in entry else "def"
    return Site(entry["group"], entry["node"], dims, kind, entry[kind])  # type: ignore[arg-type]


class _Dumper(yaml.SafeDumper):
    """Lists and mappings of scalars on one line."""


def _is_scalar(item: object) -> bool:
    return isinstance(item, str | int)


def _represent_list(dumper: yaml.SafeDumper, items: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=all(map(_is_scalar, items)))


def _represent_dict(dumper: yaml.SafeDumper, items: dict[object, object]) -> yaml.Node:
    small = all(_is_scalar(item) or isinstance(item, list) or _is_site_dims(item) for item in items.values())
    short = bool(items) and small and len(items) <= 4 and not any(isinstance(v, str) and len(v) > 200 for v in items.values())
    return dumper.represent_mapping("tag:yaml.org,2002:map", items, flow_style=short)


def _is_site_dims(item: object) -> bool:
    return isinstance(item, dict) and all(isinstance(dim, int) for dim in item)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(dict, _represent_dict)
