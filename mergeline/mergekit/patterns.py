"""Options that were found tensor by tensor, said again by few patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import permutations
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
    """Patterns from the general to the particular: inputs, layers, filters, then two of them; each with its filters."""
    layers = sorted({layer for name in names.all if (layer := names.layer(name)) is not None})
    places = [f"{_literal(names.stem)}.{layer}." for layer in layers]
    words = [(word, _literal(word)) for word in sorted(dict.fromkeys(filters), key=len)]
    pairs = list(permutations(words, 2))
    yield from ((f"*{word}*", ()) for word in INPUTS)
    yield from ((f"*{place}*", ()) for place in places)
    yield from ((f"*{literal}*", (word,)) for word, literal in words)
    for place in places:
        for word, literal in words:
            yield f"*{literal}*{place}*", (word,)
            yield f"*{place}*{literal}*", (word,)
    yield from ((f"*{first}*{second}*", (one, other)) for (one, first), (other, second) in pairs)
    for place in places:
        yield from ((f"*{place}*{first}*{second}*", (one, other)) for (one, first), (other, second) in pairs)


def _literal(text: str) -> str:
    """The text as a pattern that matches only itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
