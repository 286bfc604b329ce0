"""The one error a user sees for bad input: a sentence that says what is wrong, where, and how to mend it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input (a plan, a file, a tensor): the message is the whole report, no traceback is needed."""


def nearest(word: str, choices: Iterable[object], *, listed: bool = False) -> str:
    """The end of such a sentence: "; did you mean 'x'?" where a choice is close.

    listed: otherwise all choices, in brackets; without it, nothing.
    """
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f" (known: {', '.join(names)})" if listed and names else ""
