"""Tiny models of many architectures, written for these tests; transformers' are built by their library."""

from tests.symmetry.architectures import (
    convolutional,
    held_out,
    huggingface,
    swin,
    unlisted_attention,
    unlisted_convolutional,
    vision_transformers,
)
from tests.symmetry.architectures.architecture import Architecture

LISTED: dict[str, Architecture] = {
    **convolutional.ARCHITECTURES,
    **vision_transformers.ARCHITECTURES,
    **swin.ARCHITECTURES,
    **huggingface.ARCHITECTURES,
}
"""Those whose group order is published."""

UNLISTED: dict[str, Architecture] = {**unlisted_convolutional.ARCHITECTURES, **unlisted_attention.ARCHITECTURES}
"""Those that no list has; each says what order its group has."""

HELD_OUT: dict[str, Architecture] = held_out.ARCHITECTURES
"""Those of a library that the rules were not written for."""

ARCHITECTURES = {**LISTED, **UNLISTED, **HELD_OUT}
