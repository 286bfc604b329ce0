"""Tell a webhook how a run ended. Whatever happens to the message, the run goes on as it was."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mergeline.redaction import keep_out, redact, redact_path
from tasks.secrets import revealed

if TYPE_CHECKING:
    from mergeline.plan import Notify

log = logging.getLogger(__name__)

WEBHOOK = "MERGELINE_WEBHOOK"
TIMEOUT = 5.0  # seconds, for each of
ATTEMPTS = 3


def notify(options: Notify, end: str, facts: Mapping[str, Any], *, pause: Callable[[float], None] = time.sleep) -> bool:
    """Send the facts about a run that ended in `end` ("failure", "success"); whether somebody took them.

    The message is JSON: `text`, which chat programs show, and the facts. Lost connections, HTTP 429 and 5xx are tried
    again, a second and two seconds later. Never raises.
    """
    address = options.webhook or os.environ.get(WEBHOOK)
    if not address or end not in options.on:
        return False
    try:
        url = revealed(address)
        keep_out(url)
        return _send(url, _message(end, facts), pause)
    except Exception as error:  # a message that cannot be made or sent is no reason to lose a merge
        log.warning("nobody was told of the %s: %s", end, redact(str(error)))
        return False


def _message(end: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: redact(str(value)) for name, value in facts.items() if value is not None}
    text = ", ".join(f"{name}: {value}" for name, value in said.items() if name != "plan")
    return {"text": f"mergeline: {said.get('plan', 'a run')} ended in {end}. {text}", "end": end, **said}


def _send(url: str, message: dict[str, Any], pause: Callable[[float], None]) -> bool:
    import requests

    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(float(attempt))
        try:
            answer = requests.post(url, json=message, timeout=TIMEOUT, allow_redirects=False)
        except (requests.ConnectionError, requests.Timeout) as error:
            why = type(error).__name__  # its text quotes the address
            continue
        except requests.RequestException as error:
            why = type(error).__name__
            break
        if answer.ok:
            return True
        why = f"it answered {answer.status_code}"
        if answer.status_code != 429 and answer.status_code < 500:
            break
    log.warning("%s was not told how the run ended: %s", redact_path(url), why)
    return False
