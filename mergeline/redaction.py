"""Secrets: read from the environment where they are needed (`${NAME}`), and masked in whatever is shown or kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote, unquote, urlsplit

from mergeline.errors import InputError

MASK = "***"

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|WEBHOOK|AUTH_STRING|API_?KEY|ACCESS_KEY|PRIVATE_KEY)"
    r"(?:_|$)(?!.*(?:PATH|FILE|DIR)$)",
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
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/{MASK}" if parts.scheme and parts.hostname else MASK


def scrub(error: BaseException | None) -> None:
    """Mask the secrets in what an exception, and those that it came of, will say."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def keep_out(secret: str) -> None:
    """Let `redact` mask this value, too."""
    _expanded.add(secret)


def _known() -> list[str]:
    """The longest first: one may be a part of another."""
    return sorted({form for value in _values() for form in (value, quote(value, safe=""))}, key=len, reverse=True)


def _values() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            yield value
        if "@" in value and (found := _PASSWORD_OF_A_VALUE.match(value)) and not _REFERENCE.search(found[1]):
            yield from (form for form in (found[1], unquote(found[1])) if len(form) >= _SHORTEST)
    yield from (value for value in _expanded if len(value) >= _SHORTEST)
