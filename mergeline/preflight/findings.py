"""What a look at a plan's checkpoints finds; `mergeline.report.preflight` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeline.merging.patterns import PatternMatch


@dataclass(frozen=True)
class Source:
    """A checkpoint that a run reads. path: where it lies here, None where it must be downloaded first.

    shards: files of weights. bytes: of all files, with what goes along (config, tokenizer); None where nobody tells.
    tensors, parameters, dtypes: of the checkpoint, None where it is not here. note: why something is not known.
    lost: whether asking again will not help.
    """

    name: str
    uri: str
    path: Path | None
    shards: int | None = None
    bytes: int | None = None
    tensors: int | None = None
    parameters: int | None = None
    dtypes: str | None = None
    note: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Distance:
    """How far a task model is from its base, over its matrices.

    ratio: ||model - base|| / ||base||. cosine: of the two as vectors. share: of the entries that were looked at.
    same: whether no parameter differs, be it of a matrix or of a vector; False where not all were looked at.
    """

    model: str
    base: str
    ratio: float
    cosine: float
    share: float
    same: bool = False


@dataclass(frozen=True)
class Forecast:
    """What the merges of a run take, about. read, written: bytes of the plan's own merge; passes: over the inputs;
    complete: whether the sizes of all inputs are known, else `read` is of those that are.

    merges: how many there are, with the rows of the table that the result is compared with. memory: anonymous bytes of
    the merge itself. seconds: of all merges, None where a trial was not possible. download: bytes known to be fetched.
    """

    merges: int
    read: int
    written: int
    passes: float | None
    memory: int
    seconds: float | None
    download: int
    complete: bool = True


@dataclass(frozen=True)
class Preflight:
    """Everything that was found. faults: sentences, the run cannot work. alarms: it can, but look at this first.

    files: of the merged model and what goes along, with their bytes; None where not every checkpoint is here. beside:
    what is published with them, folders with a slash at the end.
    """

    sources: Sequence[Source]
    folder: Path
    files: Mapping[str, int] | None
    beside: Sequence[str] = ()
    distances: Sequence[Distance] = ()
    patterns: Sequence[PatternMatch] = ()
    forecast: Forecast | None = None
    faults: Sequence[str] = field(default=())
    alarms: Sequence[str] = field(default=())
