"""Stages: which unit of each family goes to which unit of the reference, and which balance finds that best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mergeline.plan import Align, BalanceSearch
from tasks.architecture import load_symmetry
from tasks.checkpoints import open_artifacts
from tasks.policy import stage
from tasks.store import ArtifactRef, put_directory

BALANCE_SEARCH = "balance_search.json"
"""File beside an alignment that tells what a search for the balance tried and chose."""


@stage("solve-permutations")
def solve_permutations(
    families: list[ArtifactRef], symmetry: ArtifactRef, weights: ArtifactRef, activations: ArtifactRef, options: Align
) -> ArtifactRef:
    """Sweep over the groups until the balanced similarity does not rise any more."""
    from prefect.logging import get_run_logger
    from safetensors.torch import load_file
    from tqdm import tqdm

    from mergeline.alignment.search import Matcher
    from mergeline.alignment.solve import Sweep, solve

    logger = get_run_logger()

    bar = tqdm(desc=f"{'sweeps':<12}", unit="sweep", disable=None, leave=False)

    def report(sweep: Sweep) -> None:
        logger.info("sweep %d: mean matched similarity %.5f", sweep.number, sweep.objective)
        bar.set_postfix(similarity=f"{sweep.objective:.5f}")
        bar.update()

    alignment = solve(
        open_artifacts(families),
        load_symmetry(symmetry),
        space=options.space,
        matcher=Matcher(options.method, decay=options.decay, budget=options.budget),
        balance=options.balance,
        activations=load_file(activations.path),
        weights=load_file(weights.path),
        sweeps=options.sweeps,
        seed=options.seed,
        on_sweep=report,
    )
    bar.close()
    return put_directory(alignment.save, "alignment")


@stage("draw-permutations")
def draw_permutations(symmetry: ArtifactRef, families: int, seed: int) -> ArtifactRef:
    """An alignment at random, which leaves the first family as it is: a control of what matching is worth."""
    from mergeline.alignment.alignment import random_alignment

    return put_directory(random_alignment(load_symmetry(symmetry), families, seed).save, "alignment")


@stage("choose-balance")
def choose_balance(alignments: dict[str, ArtifactRef], scores: dict[str, float], search: BalanceSearch) -> ArtifactRef:
    """The alignment whose merge scores best, the first of equals, with what was tried beside it."""
    from prefect.logging import get_run_logger

    best = max(scores, key=lambda balance: scores[balance])
    record = {"balance": float(best), "metric": search.metric, "split": search.split, "tried": scores}
    get_run_logger().info("balance %s: %s %.4f on %s", best, search.metric, scores[best], search.split)

    def write(folder: Path) -> None:
        shutil.copytree(alignments[best].path, folder, dirs_exist_ok=True)
        (folder / BALANCE_SEARCH).write_text(json.dumps(record, indent=1) + "\n")

    return put_directory(write, "alignment")
