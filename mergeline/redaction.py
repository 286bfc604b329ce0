"""Secrets: read from the environment where they are needed (`${NAME}`), and masked in whatever is shown or kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from mergeline.errors import InputError

MASK = "***"

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_SECRET_NAME = re.compile(
    r"(?:(?:^|_)(?:SECRET|TOKEN|PASSPHRASE|CREDENTIALS?|WEBHOOK|AUTH_STRING|API_?KEY|ACCESS_KEY|PRIVATE_KEY|ACCOUNT_KEY)"
    r"|PASSWORD|PASSWD|_PASS|_PWD|(?:^|_)CONNECTION_STRING)(?:_|$)(?!.*(?:PATH|FILE|DIR)$)",  # PGPASSWORD, but not PWD
    re.IGNORECASE,
)
_PASSWORD_OF_A_VALUE = re.compile(r"(?:[A-Za-z][\w+.-]*://)?[^/\s@:]+:([^/\s]+)@")  # MLFLOW_TRACKING_URI and the like
_USER_OF_A_URL = re.compile(r"(?<=://)[^/\s\"'<>`]+@")
_KEY_IN_A_QUERY = re.compile(
    r"([?&][^=&\s]*(?:sig|token|key|secret|password|credential|auth)[^=&\s]*=)([^&\s\"'<>)`]+)", re.IGNORECASE
)
_SHORTEST = 8  # a shorter value would be found by chance in a text that has nothing to do with it

_expanded: set[str] = set()  # what references were replaced by, under whatever name


def expand(text: str, block: Callable[[str], str] | None = None) -> str:
    """Replace every `${NAME}` by that environment variable, and `${block:NAME}` by what `block(NAME)` gives.

    To be called where the text is used: what is kept of it shall hold the reference. Raises InputError for a variable
    that is not set.
    """

    def value(found: re.Match[str]) -> str:
        kind, _, name = found[1].rpartition(":")
        if kind == "block" and block is not None:
            secret = block(name)
        elif kind or name not in os.environ:
            raise InputError(f"{found[0]}: the environment has no variable of this name; set it where the run starts")
        else:
            secret = os.environ[name]
        _expanded.add(secret)
        return secret

    return _REFERENCE.sub(value, text)


def unset(text: str) -> list[str]:
    """The references to environment variables that are not set."""
    names = [found[1] for found in _REFERENCE.finditer(text)]
    return [name for name in names if not name.startswith("block:") and name not in os.environ]


def redact(text: str) -> str:
    """The text without users and passwords of URLs, keys in their queries, and the secrets of the environment."""
    for secret in _known():
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _USER_OF_A_URL.sub(lambda user: user[0] if _is_reference(user[0]) else f"{MASK}@", text)
    if "?" in text:  # with or without the server: libraries quote "/model?sig=..." alone
        text = _KEY_IN_A_QUERY.sub(lambda key: key[0] if _REFERENCE.fullmatch(key[2]) else f"{key[1]}{MASK}", text)
    return text


def _is_reference(user: str) -> bool:
    """Whether what stands before the server of a URL holds no secret, only the reference to one: robot:${PASSWORD}@."""
    name, _, password = user.removesuffix("@").partition(":")
    return bool(_REFERENCE.fullmatch(password or name))


def redact_path(url: str) -> str:
    """The server of a URL whose path is the secret, such as that of a webhook; a reference stays as it is."""
    if _REFERENCE.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    return f"{parts.scheme}://{parts.hostname}/{MASK}" if parts.scheme and parts.hostname else MASK


def scrub(error: BaseException | None) -> None:
    """Mask the secrets in what an exception, and those that it came of or holds, will say."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        error.args = redacted(error.args)
        for name in ("filename", "filename2"):  # of an OSError, which says them beside its args
            if isinstance(said := getattr(error, name, None), str) and (clean := redact(said)) != said:
                with suppress(AttributeError):
                    setattr(error, name, clean)
        error.__dict__.update({name: redacted(value) for name, value in error.__dict__.items()})  # notes, too
        held = [*error.args, *getattr(error, "exceptions", ())]
        waiting += [error.__cause__, error.__context__, *(part for part in held if isinstance(part, BaseException))]


def redacted(value: Any) -> Any:
    """The texts of plain data without secrets, however deep; whatever else there is stays the very same."""
    match value:
        case str():
            return redact(value)
        case bytes():
            clean = redact(text := value.decode(errors="replace"))
            return value if clean == text else clean.encode()
        case dict() if type(value) is dict:
            return {key: redacted(part) for key, part in value.items()}
        case list() | tuple() if type(value) in (list, tuple):
            return type(value)(redacted(part) for part in value)
    return value


def keep_out(secret: str) -> None:
    """Let `redact` mask this value, too."""
    _expanded.add(secret)


def _known() -> list[str]:
    """The longest first: one may be a part of another."""
    return sorted({form for value in _values() for form in _forms(value)}, key=len, reverse=True)


def _forms(value: str) -> Iterator[str]:
    """A secret as it is, in an address, in a form, in JSON, and as Python shows it."""
    yield from (value, quote(value, safe=""), quote(value), quote_plus(value))
    yield from (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])


def _values() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            yield value
        if "@" in value and (found := _PASSWORD_OF_A_VALUE.match(value)) and not _REFERENCE.search(found[1]):
            yield from (form for form in (found[1], unquote(found[1])) if len(form) >= _SHORTEST)
    yield from (value for value in _expanded if len(value) >= _SHORTEST)
