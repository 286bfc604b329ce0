"""A YAML document that remembers its lines, so that whatever is wrong with it can be pointed at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml


class NoEquivalentError(Exception):
    """A line of a configuration that no plan can say, and why."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line, self.sentence = line, sentence


@dataclass(frozen=True)
class Located:
    """A value and its line (from 1; of an entry of a mapping that of its key).

    value: a plain scalar, a list of Located, or a dict of them by key.
    """

    value: Any
    line: int

    def entries(self, what: str) -> dict[str, Located]:
        """The entries of a mapping; none of an empty value. NoEquivalentError for anything else."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise NoEquivalentError(self.line, f"{what}: must be a mapping of names to values")
        return self.value

    def items(self, what: str) -> list[Located]:
        """The items of a list. NoEquivalentError for anything else."""
        if not isinstance(self.value, list) or not self.value:
            raise NoEquivalentError(self.line, f"{what}: must be a list with something in it")
        return self.value

    def scalars(self) -> Iterator[Located]:
        """Every scalar in it."""
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        if not isinstance(self.value, dict | list):
            yield self
        else:
            for item in inner:
                yield from item.scalars()


def read_document(text: str) -> Located:
    """The one document of a YAML text. NoEquivalentError where it is not valid YAML, or more than one document."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise NoEquivalentError(1, "is empty")
        return _located(loader, node)
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else 1
        if "another document" in str(fault.problem):
            raise NoEquivalentError(line, "a second merge begins here; give each its own file and plan") from None
        raise NoEquivalentError(line, f"not valid YAML: {fault.problem}") from None
    except yaml.YAMLError as fault:
        raise NoEquivalentError(1, f"not valid YAML: {' '.join(str(fault).split())}") from None
    finally:
        loader.dispose()


def _located(loader: yaml.SafeLoader, node: yaml.Node) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(loader, item) for item in node.value], line)
    if not isinstance(node, yaml.MappingNode):
        return Located(loader.construct_object(node), line)
    loader.flatten_mapping(node)
    found: dict[str, Located] = {}
    for key, value in node.value:
        name, place = str(key.value), key.start_mark.line + 1
        if name in found and found[name].line != place:
            raise NoEquivalentError(place, f"the key '{name}' stands twice")
        found[name] = Located(_located(loader, value).value, place)
    return Located(found, line)
