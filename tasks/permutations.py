"""Stage: which unit of each family goes to which unit of the reference."""

from __future__ import annotations

from mergeline.plan import Align
from tasks.architecture import load_symmetry
from tasks.checkpoints import open_artifacts
from tasks.policy import stage
from tasks.store import ArtifactRef, put_directory


@stage("solve-permutations")
def solve_permutations(
    families: list[ArtifactRef], symmetry: ArtifactRef, weights: ArtifactRef, activations: ArtifactRef, options: Align
) -> ArtifactRef:
    """Sweep over the groups until the balanced similarity does not rise any more."""
    from prefect.logging import get_run_logger
    from safetensors.torch import load_file

    from mergeline.alignment.search import Matcher
    from mergeline.alignment.solve import Sweep, solve

    logger = get_run_logger()

    def report(sweep: Sweep) -> None:
        logger.info("sweep %d: mean matched similarity %.5f", sweep.number, sweep.objective)

    alignment = solve(
        open_artifacts(families),
        load_symmetry(symmetry),
        space=options.space,
        matcher=Matcher(options.method),
        balance=options.balance,
        activations=load_file(activations.path),
        weights=load_file(weights.path),
        sweeps=options.sweeps,
        seed=options.seed,
        on_sweep=report,
    )
    return put_directory(alignment.save, "alignment")
