"""The pre-flight for a terminal: what will be read and written, distances, patterns, cost, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergeline.preflight.findings import Forecast, Preflight, Source

SHOWN = 12  # files of the result that are listed by name


def show_preflight(found: Preflight, console: Console) -> None:
    """Print everything but the faults, which are the caller's to print as errors."""
    console.print(_sources(found))
    if found.distances:
        console.print(_distances(found))
    if found.patterns:
        console.print(_patterns(found))
    for line in [*_written(found), *(_costs(found.forecast) if found.forecast else [])]:
        console.print(line, soft_wrap=True)
    console.print(
        "  NaN and infinity are not looked for; the merge refuses them by name of file and tensor", style="dim"
    )
    for alarm in found.alarms:
        console.print(f"[bold yellow]warning:[/] {escape(alarm)}", soft_wrap=True)


def size_text(size: float | None) -> str:
    """Bytes for people: 1.23 MB."""
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.{0 if size >= 100 * factor else 1 if size >= 10 * factor else 2}f} {unit}"
    return f"{size:.0f} bytes"


def time_text(seconds: float) -> str:
    """A forecast, no more precise than it is."""
    if seconds < 2:
        return "a second or two"
    for unit, factor in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _sources(found: Preflight) -> Table:
    table = _table("read", ["checkpoint", "from"], ["files", "size", "tensors", "parameters", "dtype"])
    for source in found.sources:
        table.add_row(
            escape(source.name),
            escape(source.uri) + _state(source),
            _count(source.shards),
            size_text(source.bytes),
            _count(source.tensors),
            _count(source.parameters),
            source.dtypes or "",
        )
    return table


def _state(source: Source) -> str:
    note = f" ({escape(source.note)})" if source.note else ""
    if source.path is None and not source.lost:
        return f"\n[yellow]will be downloaded[/]{note}"
    return f"\n[red]{escape(source.note)}[/]" if source.note else ""


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _distances(found: Preflight) -> Table:
    share = min(distance.share for distance in found.distances)
    looked = "" if share >= 0.9995 else f", from {share:.1%} of the parameters"
    table = _table(f"task models and their bases{looked}", ["model", "base"], ["|model - base| / |base|", "cosine"])
    for distance in found.distances:
        table.add_row(escape(distance.model), escape(distance.base), f"{distance.ratio:.4f}", f"{distance.cosine:.4f}")
    return table


def _patterns(found: Preflight) -> Table:
    table = _table("options by pattern (the last that matches wins)", ["pattern", "sets"], ["tensors", "parameters"])
    for row in found.patterns:
        options = ", ".join(f"{name}: {value}" for name, value in row.options.items())
        table.add_row(escape(row.pattern), escape(options), _count(row.tensors), _count(row.entries))
    return table


def _written(found: Preflight) -> Iterator[str]:
    folder = escape(str(found.folder))
    if found.files is None:
        yield f"  writes into {folder}: how much is known when every checkpoint is here"
    else:
        weights = [name for name in found.files if name.endswith(".safetensors")]
        shown = weights if len(weights) <= SHOWN else [*weights[:2], "...", weights[-1]]
        names = [*shown, *(name for name in found.files if name not in weights)]
        total = size_text(sum(found.files.values()))
        yield f"  writes into {folder}: {escape(', '.join(names))} ({len(weights)} of weights, {total} in all)"
    if found.beside:
        yield f"  and beside the model: {', '.join(found.beside)}"


def _costs(forecast: Forecast) -> Iterator[str]:
    passes = f", {forecast.passes:.0f} times over" if forecast.passes and forecast.passes >= 1.5 else ""
    read = f"{'' if forecast.complete else 'at least '}{size_text(forecast.read)}"
    yield f"  the merge reads {read}{passes}, in about {size_text(forecast.memory)} of memory"
    if forecast.download:
        yield f"  {size_text(forecast.download)} or more are downloaded first"
    merges = "the merge" if forecast.merges == 1 else f"{forecast.merges} merges, with those it is compared with,"
    if forecast.seconds is None:
        yield f"  how long {merges} will take cannot be told before its data are measured"
    else:
        yield f"  {merges} will take about {time_text(forecast.seconds)} on one core of this machine, by a short trial"
