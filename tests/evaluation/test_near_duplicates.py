"""Near-duplicates are exactly the pairs of texts whose sets of words are alike enough."""

from hypothesis import example, given
from hypothesis import strategies as st

from mergeline.evaluation.near_duplicates import connected, near_duplicates, words_of


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("GTK+ widgets, (C++)!") == {"gtk+", "widgets", "c++"}
    texts = ["shared library for mail", "Library - shared, for mail.", "library for mail", "a game of chess", ""]
    assert sorted(near_duplicates(texts, 0.7)) == [(0, 1), (0, 2), (1, 2)]
    assert sorted(near_duplicates(texts, 0.8)) == [(0, 1)]


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=7).map(" ".join), max_size=12),
    st.sampled_from([0.5, 0.6, 0.7, 0.75, 1.0]),
)
@example(["a b c d e f g", "a b c d e f g h a"], 0.875)
def test_every_pair_is_found_once_and_no_other(texts: list[str], threshold: float) -> None:
    sets = [words_of(text) for text in texts]
    expected = [
        (i, j)
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if sets[i] and sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold - 1e-9
    ]
    assert sorted(near_duplicates(texts, threshold)) == expected


def test_groups_are_named_by_their_first_member() -> None:
    assert connected("abcde", [("b", "d"), ("d", "e")]) == {"a": "a", "b": "b", "c": "c", "d": "b", "e": "b"}
