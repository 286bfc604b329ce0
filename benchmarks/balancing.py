"""PCB-Merging by selection against the same equations with full sorts, measured in the same run.

    python -m benchmarks.balancing [--models 8] [--parameters 1000000] [--threads 1]

Prints per variant: seconds of either (best of several runs), their ratio, and the largest difference; then CPU
nanoseconds per entry of each stage of the streamed merge, on long rows in chunks.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import seconds
from mergeline.balancing.competition import VARIANTS
from mergeline.balancing.order_statistics import order_statistics, sample_columns
from mergeline.balancing.pcb import merged_task_vector, pcb_merge
from mergeline.balancing.statistics import pcb_statistics

CLIP_RATIO = {"reference": 0.0001, "pairwise": 0.01}


def full_sort_merge(tau: Tensor, keep_ratio: float, variant: str) -> Tensor:
    """The equations read off the paper's page: whole matrices [n, d], one full sort per order statistic."""
    n, d = tau.shape
    ratio = CLIP_RATIO[variant]
    magnitude = tau.abs()
    low = magnitude.sort(dim=1).values[:, int(d * ratio), None]
    high = magnitude.sort(dim=1).values[:, int(d * (1 - ratio) - 1), None]
    clipped = tau.sign() * magnitude.clamp(low, high)
    u = (clipped.abs() - low) / (high - low)
    if variant == "pairwise":
        x = tau.sign() * u
        inter = torch.tanh(x[:, None] * x[None]).sum(dim=1)
    else:
        inter = torch.tanh(tau * tau.sum(dim=0))
    b = torch.exp(n * u**2) * inter
    q = b.sort(dim=1).values[:, int(d * (1 - keep_ratio)), None]
    s = (b.maximum(q) - q) / (b.max(dim=1, keepdim=True).values - q)
    return (clipped * s).sum(dim=0) / s.sum(dim=0).clamp(min=1e-12)


def print_stages(models: int, parameters: int, keep_ratio: float, chunk: int = 1 << 18) -> None:
    """CPU time per entry; the statistics contain the sample pass and one pass per order statistic."""
    tau = torch.empty(models, parameters)
    for part in tau.split(chunk, dim=1):
        part.normal_().mul_(1e-3)
    buffer = torch.empty(models, chunk)

    def chunks() -> Iterator[Tensor]:
        for part in tau.split(chunk, dim=1):
            yield buffer[:, : part.shape[1]].copy_(part)

    def nanoseconds(function: Callable[[], object]) -> float:
        start = time.process_time()
        function()
        return (time.process_time() - start) / tau.numel() * 1e9

    sample = sample_columns(chunks, parameters)
    ranks = [int(parameters * 0.01), int(parameters * 0.99)]
    print(f"\n{models} x {parameters:,}, CPU nanoseconds per entry")
    print(f"a pass over the chunks {nanoseconds(lambda: [None for _ in chunks()]):.2f}, ", end="")
    print(f"two order statistics {nanoseconds(lambda: order_statistics(chunks, parameters, ranks, sample=sample)):.2f}")
    print(f"{'variant':10} {'statistics':>11} {'merge':>11}")
    for variant in VARIANTS:
        known = pcb_statistics(chunks, parameters, keep_ratio, variant=variant)
        gather = min(
            nanoseconds(lambda: pcb_statistics(chunks, parameters, keep_ratio, variant=variant))  # noqa: B023
            for _ in range(2)
        )
        merge = min(nanoseconds(lambda: [merged_task_vector(c, known) for c in chunks()]) for _ in range(2))  # noqa: B023
        print(f"{variant:10} {gather:11.2f} {merge:11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--long", type=int, default=1 << 23, help="entries per model of the streamed merge")
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    tau = 1e-3 * torch.randn(arguments.models, arguments.parameters, generator=generator)

    print(f"{arguments.models} task vectors x {arguments.parameters:,} parameters, {arguments.threads} thread(s)")
    print(f"{'variant':10} {'full sorts':>11} {'mergeline':>11} {'ratio':>7} {'largest difference':>19}")
    for variant in CLIP_RATIO:
        ours = pcb_merge(tau, arguments.keep_ratio, variant=variant).merged
        difference = (ours - full_sort_merge(tau, arguments.keep_ratio, variant)).abs().max() / ours.abs().max()
        baseline = seconds(partial(full_sort_merge, tau, arguments.keep_ratio, variant), arguments.runs)
        selection = seconds(partial(pcb_merge, tau, arguments.keep_ratio, variant=variant), arguments.runs)
        print(f"{variant:10} {baseline:10.3f}s {selection:10.3f}s {baseline / selection:6.1f}x {difference:19.1e}")
    print_stages(3, arguments.long, arguments.keep_ratio)


if __name__ == "__main__":
    main()
