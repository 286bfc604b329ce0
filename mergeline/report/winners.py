"""The winners of a PCB merge of whole checkpoints, counted in one more pass over their task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mergeline.balancing.statistics import PcbStatistics
from mergeline.balancing.winners import Winners, all_winners, count_winners
from mergeline.merging.engine import CHUNK, DEFAULT_PATTERNS
from mergeline.merging.job import Checkpoint, prepare
from mergeline.threads import one_thread


def winners_of_merge(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint],
    statistics: Mapping[str, Mapping[str, Any]],
    chunk: int = CHUNK,
    copy_only: Sequence[str] = (),
    granularity: str | None = None,
    options_by_pattern: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Winners:
    """Count over all merged tensors; arguments as of `mergeline.merging.engine.method_statistics` for method "pcb".

    statistics: what that function gave. InputError where they are of other models or options. Memory holds one chunk
    of every model.
    """
    job = prepare(
        readers,
        base=base,
        method="pcb",
        chunk=chunk,
        average_only=DEFAULT_PATTERNS,
        copy_only=copy_only,
        granularity=granularity,
        options_by_pattern=options_by_pattern,
        options=options,
    )
    known = {group: PcbStatistics.from_dict(values) for group, values in job.accepted(statistics).items()}
    found, groups = [], job.groups()
    with one_thread(), tqdm(total=sum(map(len, groups.values())), desc="winners", unit="tensor", disable=None) as bar:
        for group, names in groups.items():
            for name in names:
                found.append(count_winners(job.inputs.rows([name], chunk), known[group]))
                bar.update()
    return all_winners(found)
