"""Options that were found tensor by tensor, said again by few patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mergeline.mergekit.names import INPUTS, Names

Options = Mapping[str, Any]
Words = tuple[str, ...]


def as_patterns(
    wanted: Mapping[str, Options], names: Names, filters: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(options of all tensors, {pattern: options of those that match}) that together give each tensor what it should.

    wanted: tensor name -> its options; an option that one of them lacks does not matter there. filters: words by which
    tensors differ. Patterns go from the general to the particular, for the later one wins; each says what the tensors
    need that it is the most particular one for. A pattern is only used where it matches one of the names.
    """
    common = {key: _usual(wanted, names, filters, key) for key in _keys(wanted)}
    current: dict[str, dict[str, Any]] = {name: dict(common) for name in wanted}
    words = {name: tuple(text for text in filters if text in name) for name in wanted}
    found: dict[str, dict[str, Any]] = {}
    for pattern, said in _candidates(names, filters):
        if pattern in found:  # its place is taken: what comes between would win over what it says now
            continue
        matched = [name for name in wanted if fnmatchcase(name, pattern)]
        own = [name for name in matched if all(any(word in text for text in said) for word in words[name])]
        for key in common:
            values = [wanted[name][key] for name in own if key in wanted[name]]
            wrong = any(wanted[name].get(key, current[name][key]) != current[name][key] for name in own)
            if wrong and all(value == values[0] for value in values):
                found.setdefault(pattern, {})[key] = values[0]
                for name in matched:
                    current[name][key] = values[0]
    for name, options in wanted.items():  # what no pattern says: by its own name, which is right in any case
        left = {key: value for key, value in options.items() if current[name][key] != value}
        if left:
            found[_literal(name)] = left
    return common, found


def _keys(wanted: Mapping[str, Options]) -> list[str]:
    return list(dict.fromkeys(key for options in wanted.values() for key in options))


def _usual(wanted: Mapping[str, Options], names: Names, filters: Sequence[str], key: str) -> Any:
    """The value of tensors that nothing singles out; of most tensors where there is none such."""
    plain = [name for name in wanted if not any(text in name for text in filters) and not names.is_input(name)]
    chosen = [wanted[name][key] for name in plain or wanted if key in wanted[name]]
    chosen = chosen or [options[key] for options in wanted.values() if key in options]
    most = Counter(map(repr, chosen)).most_common(1)[0][0]
    return next(value for value in chosen if repr(value) == most)


def _candidates(names: Names, filters: Sequence[str]) -> Iterator[tuple[str, Words]]:
    """Patterns from the general to the particular, each with its filters: inputs, layers, filters, several of them,
    and last one name in every layer.

    Of two filters the first wins, as in a configuration, so it comes later here; one that holds another comes after it.
    """
    layers = sorted({layer for name in names.all if (layer := names.layer(name)) is not None})
    places = [f"{_literal(names.stem)}.{layer}." for layer in layers]
    words = list(dict.fromkeys(filters))[::-1]
    words.sort(key=lambda word: sum(other in word for other in words))
    yield from ((f"*{word}*", ()) for word in INPUTS)
    yield from ((f"*{place}*", ()) for place in places)
    yield from ((f"*{_literal(word)}*", (word,)) for word in words)
    for place in places:
        for word in words:
            yield f"*{_literal(word)}*{place}*", (word,)
            yield f"*{place}*{_literal(word)}*", (word,)
    together = {group: "*".join(map(_literal, group)) for name in names.all if len(group := _together(name, words)) > 1}
    yield from ((f"*{pattern}*", group) for group, pattern in together.items())
    for place in places:
        yield from ((f"*{place}*{pattern}*", group) for group, pattern in together.items())
    for name in names.all:
        before, found, after = map(_literal, name.partition(f"{names.stem}.{names.layer(name)}."))
        if found:
            yield f"{before}{_literal(names.stem)}.*.{after}", tuple(word for word in words if word in name)


def _together(name: str, words: Sequence[str]) -> Words:
    """The filters in a name, in their order there; without those that are part of another one."""
    held = [word for word in words if word in name]
    own = [word for word in held if not any(word in other and word != other for other in held)]
    return tuple(sorted(own, key=name.index))


def _literal(text: str) -> str:
    """The text as a pattern that matches only itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
