"""Whether a merged model may take the place of the one in use: gates, and when a difference is more than chance.

Two scores a and b differ by d = a - b with the standard error sqrt(SE_a^2 + SE_b^2), that of independent estimates
(Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 4.1). Scores on the same examples are mostly right
and wrong together, so the true error is smaller: a difference may be missed, and is seldom invented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import hypot, nan

from mergeline.evaluation.score import Score
from mergeline.plan import Promotion
from mergeline.report.result import Comparison, own_scores


@dataclass(frozen=True)
class Measured:
    """What is known of a model. own: each task's score by the model that was trained for it; data: what measured;
    outside: tasks that no model was trained for, to which only a floor with their name applies."""

    tasks: Mapping[str, Score]
    mean: Score
    joint: Score | None
    own: Mapping[str, Score]
    data: str = ""
    outside: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a gate says. excess: how far the model is on the right side of the gate (below 0: on the wrong one)."""

    gate: str
    passed: bool
    excess: float
    sentence: str


def measured(comparison: Comparison, specialists: Mapping[str, str], data: str = "") -> Measured:
    """The result of a run. specialists: task -> the checkpoint that was trained for it.

    A task's own score is the better one of that checkpoint as trained and with its normalisation statistics reset.
    """
    if not comparison.rows:
        nothing = Score(nan, nan, 0)
        return Measured({}, nothing, nothing, {}, data)
    result, own = comparison.result, own_scores(comparison.rows, specialists)
    return Measured(result.tasks, result.mean, result.joint, own, data, result.outside)


def difference(one: Score, other: Score) -> tuple[float, float]:
    """How much better one is than the other, and the standard error of that."""
    return one.goodness - other.goodness, hypot(one.standard_error, other.standard_error)


def judge(gates: Promotion, candidate: Measured, champion: Measured | None) -> list[Verdict]:
    """The verdict of every gate, in the order of the plan; champion: None where there is none yet.

    A score that is missing or NaN passes no gate.
    """
    return [*_floors(gates, candidate), *_drops(gates, candidate), *_against(gates, candidate, champion)]


def _floors(gates: Promotion, candidate: Measured) -> Iterator[Verdict]:
    """A floor is a number, not a measurement: a score below it is below it."""
    floors = gates.floor if isinstance(gates.floor, dict) else dict.fromkeys(candidate.tasks, gates.floor)
    for task, floor in floors.items():
        if floor is None:
            continue
        gate = f"floor of {task}"
        score = candidate.tasks.get(task, candidate.outside.get(task))
        if score is None:
            yield Verdict(gate, False, nan, f"{task} was not measured")
            continue
        excess = score.value - floor
        yield Verdict(gate, excess >= 0, excess, f"{score} is {_by(excess, score)} the floor of {100 * floor:.1f}")


def _drops(gates: Promotion, candidate: Measured) -> Iterator[Verdict]:
    if gates.max_drop is None:
        return
    for task, score in candidate.tasks.items():
        gate = f"drop of {task}"
        if task not in candidate.own:
            yield Verdict(gate, False, nan, f"the task's own model was not measured on {task}")
            continue
        own = candidate.own[task]
        gain, error = difference(score, own)
        excess = gain + gates.max_drop
        allowed = f"the least allowed, {own} of its own model less {100 * gates.max_drop:.1f}"
        yield Verdict(
            gate,
            excess >= -gates.standard_errors * error,
            excess,
            f"{score} is {_by(excess, score)} {allowed} (±{_p(error, score)})",
        )


def _against(gates: Promotion, candidate: Measured, champion: Measured | None) -> Iterator[Verdict]:
    if gates.champion is None or champion is None:
        return
    if candidate.data != champion.data:
        yield Verdict("champion", False, nan, "the champion was measured on other tasks or data, so nothing compares")
        return
    score, other = getattr(candidate, gates.score), getattr(champion, gates.score)
    if score is None or other is None:
        yield Verdict(
            "champion", False, nan, f"there is no {gates.score} accuracy over these tasks, so nothing compares"
        )
        return
    excess, error = difference(score, other)
    margin = gates.standard_errors * error
    passed = excess > margin if gates.champion == "better" else excess >= -margin
    chance = f"{gates.standard_errors:g} standard errors of the difference ({_p(margin, score)})"
    rule = f"more than {chance} are asked for" if gates.champion == "better" else f"up to {chance} count as chance"
    sentence = f"{gates.score} {score} is {_by(excess, score)} the champion's {other}; {rule}"
    yield Verdict("champion", passed, excess, sentence)


def _by(excess: float, score: Score) -> str:
    below, above = ("below", "above") if score.measure == "share" else ("worse than", "better than")
    return f"{_p(abs(excess), score)} {below if excess < 0 else above}"


def _p(number: float, score: Score) -> str:
    return f"{score.scale * number:.{score.digits}f}"
