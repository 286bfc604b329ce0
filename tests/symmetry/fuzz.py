"""Random programs: whatever symmetry is derived for them must leave their output as it is.

`python -m tests.symmetry.fuzz --programs 5000 --seed 1` tries many and prints those that fail, each in the smallest
form that still fails. A failing program belongs into test_found.py, written out.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from tests.symmetry.program import Program, derive_fast, largest_change, readout
from tests.symmetry.steps import BINARY, UNARY, Maker, Step, fits
from tests.symmetry.steps.layers import linear

TOLERANCE = 1e-6
"""float64 rounding, enlarged by norms of nearly constant values; a wrong permutation changes more than this."""


@dataclass(frozen=True)
class Line:
    """One step of a program: values are numbered, the inputs first."""

    kind: str
    operands: tuple[int, ...]
    step: Step


@dataclass(frozen=True)
class Verdict:
    """What came out for one program."""

    seed: int
    steps: int
    change: float
    families: int
    fault: str

    @property
    def sound(self) -> bool:
        return not self.fault and self.change <= TOLERANCE


def random_program(seed: int, steps: int) -> tuple[Program, tuple[Tensor, ...], list[str]]:
    """A program, inputs [3, ...] for it, and its text. The first k steps do not depend on how many follow."""
    make = Maker(seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.randn(3, 5, generator=generator), torch.randn(3, 4, 6, generator=generator))
    lines: list[Line] = []
    values = list(inputs)
    while len(lines) < steps:
        first = len(lines) < len(inputs)  # every input is read by a layer; what it gives is at hand for the others
        line = Line("linear", (len(lines),), linear(make, inputs[len(lines)])) if first else _random_line(make, values)
        if line is None:
            continue
        value = line.step(_Drawn(make), *(values[place] for place in line.operands))
        if fits(value, values):
            lines.append(line)
            values.append(value)
    leaves = sorted({*range(len(inputs), len(values))} - {place for line in lines for place in line.operands})
    readouts = {place: make.parameter(*values[place].shape[1:]) for place in leaves}

    def body(parameters: Any, *given: Tensor) -> Tensor:
        values = list(given)
        for line in lines:
            values.append(line.step(parameters, *(values[place] for place in line.operands)))
        return sum((readout(values[k], getattr(parameters, name)) for k, name in readouts.items()), torch.zeros(()))

    text = [
        f"{len(inputs) + number} = {line.kind}({', '.join(map(str, line.operands))})  # {list(value.shape[1:])}"
        for number, (line, value) in enumerate(zip(lines, values[len(inputs) :], strict=True))
    ]
    return Program(body, make.shapes, inputs, seed), inputs, text


class _Drawn:
    """Parameters while a program is made up: random values of the shapes asked for."""

    def __init__(self, make: Maker) -> None:
        self.make = make

    def __getattr__(self, name: str) -> Tensor:
        return torch.randn(self.make.shapes[name])


def _random_line(make: Maker, values: list[Tensor]) -> Line | None:
    """A step of a random kind on random values, late ones more often than early ones; None where they do not suit."""
    weights = [0, 0, *range(1, len(values) - 1)]
    kinds = {**UNARY, **BINARY}
    kind = make.random.choices(list(kinds), [weight for _, weight in kinds.values()])[0]
    operands = tuple(make.random.choices(range(len(values)), weights, k=2 if kind in BINARY else 1))
    shapes = dict(make.shapes)
    step = kinds[kind][0](make, *(values[place] for place in operands))  # type: ignore[operator]
    if step is None:
        make.shapes = shapes
        return None
    return Line(kind, operands, step)


def judge(seed: int, steps: int) -> Verdict:
    """Derive the symmetry of a random program and try some of the permutations that it allows."""
    program, inputs, _ = random_program(seed, steps)
    try:
        any_batch = seed % 30 == 0
        symmetry = derive_symmetry(program, inputs, verify=False) if any_batch else derive_fast(program, inputs)
    except (InputError, AssertionError, LookupError, TypeError, ValueError) as fault:
        return Verdict(seed, steps, 0.0, 0, repr(fault))
    change = largest_change(program, inputs, symmetry, limit=4, seed=seed)
    return Verdict(seed, steps, change, len(symmetry.families), "")


def report(verdict: Verdict) -> str:
    """A failing program in the smallest form: fewer steps of the same seed."""
    for steps in range(1, verdict.steps + 1):
        smaller = judge(verdict.seed, steps)
        if not smaller.sound:
            break
    text = "\n    ".join(random_program(verdict.seed, steps)[2])
    fault = smaller.fault or f"the output changes by {smaller.change:.1e}"
    return f"seed {verdict.seed}, {steps} steps: {fault}\n    {text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first program's seed; the others follow")
    parser.add_argument("--steps", type=int, default=14)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    start, families, failures = time.perf_counter(), 0, 0
    for number in range(options.programs):
        verdict = judge(options.seed + number, options.steps)
        families += verdict.families
        if not verdict.sound:
            failures += 1
            print(report(verdict), flush=True)
        if (number + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"{number + 1} programs, {families} families, {failures} failures, {seconds:.0f} s", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
