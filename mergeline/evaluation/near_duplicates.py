"""Texts that say nearly the same, found exactly: Jaccard similarity of their sets of words.

The texts are short and few, so no sketch (MinHash) is needed: with words ordered from rare to frequent, two sets that
are similar enough share one of the first words of each (prefix filtering, Chaudhuri et al. 2006).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from math import ceil
from typing import TypeVar

from scipy.cluster.hierarchy import DisjointSet

T = TypeVar("T", bound=Hashable)

WORD = re.compile(r"[a-z0-9+#]+")  # c++ and c# are words


def words_of(text: str) -> frozenset[str]:
    """The set of words of a text, in lower case and without punctuation."""
    return frozenset(WORD.findall(text.lower()))


def near_duplicates(texts: Sequence[str], threshold: float = 0.7) -> Iterator[tuple[int, int]]:
    """Places of all pairs of texts that share at least `threshold` of the words that either has; no word: no pair."""
    sets = [words_of(text) for text in texts]
    frequency = Counter(word for words in sets for word in words)
    index: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        words = sets[i]
        rarest_first = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rarest_first[: len(words) - ceil(threshold * len(words) - 1e-9) + 1]
        for j in sorted({j for word in prefix for j in index[word]}):
            common = len(words & sets[j])
            if common >= threshold * (len(words) + len(sets[j]) - common) - 1e-9:
                yield min(i, j), max(i, j)
        for word in prefix:
            index[word].append(i)


def connected(items: Sequence[T], pairs: Sequence[tuple[T, T]]) -> dict[T, T]:
    """For every item the first of those that pairs connect it with, over any number of steps."""
    sets = DisjointSet(dict.fromkeys(items))
    for one, other in pairs:
        sets.merge(one, other)
    first: dict[T, T] = {}
    return {item: first.setdefault(sets[item], item) for item in dict.fromkeys(items)}
