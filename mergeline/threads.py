"""Arithmetic on one thread, whatever the machine has.

Pieces of a few hundred thousand entries are too small to share: two threads that wait for each other took 5 to 60 times
the processor time on a busy machine of two cores, and no less wall time on an idle one. With one, linear algebra gives
the same bits everywhere, too. Whoever has more cores runs parts of the work beside each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TypeVar

import torch

Item = TypeVar("Item")

one_export = RLock()
"""Held while torch.export traces a module: two traces at once, in threads of one process, find each other's state."""

one_import = RLock()
"""Held while parts of transformers are imported: it loads them when asked, and of two threads that ask at once one
finds them half loaded."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside, and on as many as before afterwards."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_one_thread(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each computed on one thread; whoever takes them computes as before."""
    while True:
        with one_thread():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
