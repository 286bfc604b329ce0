"""Secrets that a plan names: `${NAME}` in the environment of the run, `${block:NAME}` in a Secret block of Prefect."""

from __future__ import annotations

from typing import cast

from mergeline.errors import InputError
from mergeline.redaction import expand


def revealed(text: str) -> str:
    """The text with its secrets in their places, for use only. InputError for one that is not there."""
    return expand(text, block=_block)


def _block(name: str) -> str:
    from prefect.blocks.system import Secret

    try:
        value = cast(Secret, Secret.load(name)).get()
    except ValueError:
        raise InputError(
            f"${{block:{name}}}: Prefect's server has no Secret block of this name; make it on its page Blocks"
        ) from None
    return str(value)
