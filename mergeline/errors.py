"""The one error a user sees for bad input: a sentence that says what is wrong, where, and how to mend it."""


class InputError(ValueError):
    """Bad input (a plan, a file, a tensor): the message is the whole report, no traceback is needed."""
