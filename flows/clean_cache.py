"""Say what the cache holds, and remove what has not been used for long: `python -m flows.clean_cache --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tasks.eviction import Entry

T = TypeVar("T")


def main() -> int:
    """Exit status 0; 2 for options that say nothing."""
    options = _parser().parse_args()
    import tasks.logs  # noqa: F401  it masks secrets in what is logged
    from tasks.eviction import entries, evict, size_text
    from tasks.registered_weights import needed

    logging.basicConfig(format="%(message)s")

    if options.older_than is not None or options.keep is not None:
        spared = needed()
        gone = evict(older_than=options.older_than, keep=options.keep, spared=spared)
        print(f"removed {_count(len(gone))}, {size_text(sum(entry.size for entry in gone))}")
        for artifact, versions in spared.items():
            print(f"kept, however old: {artifact[:12]}, the weights of {', '.join(versions)}")
    _report(entries())
    return 0


def _report(found: list[Entry]) -> None:
    """Number, size and last use of what is there, by kind."""
    from rich.console import Console
    from rich.table import Table

    from tasks.eviction import age_text, size_text
    from tasks.store import store_directory

    table = Table(title=f"the cache in {store_directory().parent}", title_justify="left")
    for column in ("kind", "number", "size", "last used"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    kinds = {kind: [entry for entry in found if entry.kind == kind] for kind in {entry.kind for entry in found}}
    for kind, members in sorted(kinds.items(), key=lambda item: -_size(item[1])):
        used = age_text(max(entry.used for entry in members), time.time())
        table.add_row(kind, str(len(members)), size_text(_size(members)), used)
    table.add_section()
    table.add_row("all", str(len(found)), size_text(_size(found)), "")
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def _size(members: Iterable[Entry]) -> int:
    return sum(entry.size for entry in members)


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _duration(text: str) -> float:
    from tasks.eviction import duration

    return _argument(duration, text)


def _byte_size(text: str) -> int:
    from tasks.eviction import byte_size

    return _argument(byte_size, text)


def _argument(read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.clean_cache",
        description="Say what the cache holds; with an option, remove some of it first. What a running flow uses "
        "stays, and what was removed is computed again where a run needs it. "
        "Weights that a registered version has nowhere else stay, too.",
    )

    parser.add_argument(
        "--older-than", type=_duration, metavar="30d", help="remove what was not used for that long (m, h, d, w)"
    )
    parser.add_argument(
        "--keep", type=_byte_size, metavar="10GB", help="remove the least recently used until no more than this is left"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
