"""Bytes from a web server: one request, continued where an earlier one broke off."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# requests: streams, follows redirects without carrying credentials to another host, reads proxies and ~/.netrc, and
# notices a body that ends early. fsspec's own http file system hides the response headers that resuming rests on.
import requests
from requests.exceptions import InvalidHeader, InvalidSchema, InvalidURL, MissingSchema, TooManyRedirects

from mergeline.checkpoints.transfer import CHUNK, Body, Partial, TransientError, shown
from mergeline.errors import InputError

TIMEOUT = (10.0, 60.0)  # seconds to connect; seconds without a single byte
PASSING = {408, 425, 429}  # the client errors that a later attempt may not meet
PRIVATE = "check the address, and the credentials if the file is private"


@contextmanager
def open_web(
    url: str,
    partial: Partial | None,
    *,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
    advice: str = PRIVATE,
) -> Iterator[Body]:
    """Open a URL, at the end of `partial` where the server can.

    name: what messages call it (default: the URL without its secrets). advice: what to do about a refusal.
    Raises TransientError for what may pass (connection, timeout, truncation, 429, 5xx), InputError for the rest.
    """
    name = name or shown(url)
    try:
        with _request(url, dict(headers or {}), partial) as response:
            _refuse_failure(response, name, advice)
            continued = partial if response.status_code == 206 else None
            yield Body(
                chunks=response.iter_content(CHUNK),
                start=continued.size if continued else 0,
                total=continued.total if continued else _content_length(response),
                validator=_validator(response),
            )
    except (InvalidURL, InvalidSchema, MissingSchema, InvalidHeader, TooManyRedirects) as error:
        raise InputError(f"{name}: the address leads nowhere ({type(error).__name__}); check it") from None
    except requests.RequestException as error:
        # The message of a requests error quotes the whole URL with its secrets; that of its cause does not.
        raise TransientError(f"{name}: {_cause(error)}; check the network and try again") from None


def _request(url: str, headers: dict[str, str], partial: Partial | None) -> requests.Response:
    """The answer to a request for the rest of the file where that can be had, else for all of it."""
    headers["Accept-Encoding"] = "identity"  # ranges and lengths must count the bytes of the file itself
    if partial:
        rest = {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        response = requests.get(url, headers=headers | rest, stream=True, timeout=TIMEOUT)
        if response.status_code != 416 and (response.status_code != 206 or _continues(response, partial)):
            return response
        response.close()
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)


def _continues(response: requests.Response, partial: Partial) -> bool:
    """Whether a partial answer begins where our bytes end, in the same version of the file."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (
        span is not None
        and int(span[1]) == partial.size
        and (span[2] == "*" or partial.total is None or int(span[2]) == partial.total)
        and _validator(response) in (None, partial.validator)
    )


def _refuse_failure(response: requests.Response, name: str, advice: str) -> None:
    status = response.status_code
    said = f"{name}: the server answers {status} {response.reason or ''}".rstrip()
    if status >= 500 or status in PASSING:
        raise TransientError(f"{said}; try again later", _retry_after(response))
    if status != 200 and not (status == 206 and "Range" in response.request.headers):
        raise InputError(f"{said}; {advice}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise InputError(f"{name}: the server insists on sending the file compressed; use an address of the plain file")


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(response: requests.Response) -> str | None:
    """What names this version of the file byte for byte; a weak ETag does not."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds to wait: a number, or a date by the server's own clock."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    then = _date(value)
    now = _date(response.headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (then - now).total_seconds()) if then else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed connection, such as 'Connection refused'."""
    while nested := _nested(error):
        error = nested
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _nested(error: BaseException) -> BaseException | None:
    inner = (error.__cause__, getattr(error, "reason", None), *error.args)
    return next((reason for reason in inner if isinstance(reason, BaseException)), None)
