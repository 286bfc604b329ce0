"""Merging sharded language-model checkpoints: CPU-seconds, memory and speed, each method in a process of its own.

    python -m benchmarks.merging [--gigabytes 2] [--methods average task_arithmetic ties pcb] [--folder DIR]

Builds a base and three task models shaped like Llama (bfloat16, --gigabytes in all), merges them into shards, and
prints for each method what a fresh process took, its start-up included, and the ratio to the floor: a process that
reads the same inputs in the same pieces, passes over them once (upcast, sum), and writes as many bytes, on one thread
like the merge. "peak anonymous" is the process' own memory (RssAnon, sampled every 5 ms): files that are mapped into
memory do not count, the system may drop them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

METHODS = ("average", "task_arithmetic", "ties", "pcb")
TARGETS = {"average": (3, 3.0), "task_arithmetic": (3, 3.0), "ties": (15, 0.0), "pcb": (20, 0.0)}  # x floor + seconds
SHARD = 300_000_000


def llama_shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of about so many parameters: a third of them in the embedding, as in small models."""
    hidden = max(64, int((parameters / 3 / 32_000) ** 0.5 * 8) // 64 * 64)
    vocabulary = parameters // 3 // hidden
    layer = {
        **{f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qo"},
        **{f"self_attn.{part}_proj.weight": (hidden // 4, hidden) for part in "kv"},
        **{f"mlp.{part}_proj.weight": (4 * hidden, hidden) for part in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, 4 * hidden),
        **{f"{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")},
    }
    in_layer = sum(rows * (rest[0] if rest else 1) for rows, *rest in layer.values())
    layers = max(1, (parameters - vocabulary * hidden) // in_layer)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    return shapes | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def build(folder: Path, gigabytes: float) -> None:
    """A base and three task models near it."""
    import torch

    from mergeline.checkpoints.writer import write_checkpoint

    shapes = dict(sorted(llama_shapes(int(gigabytes * 1e9 / 2 / 4)).items()))

    class Checkpoint:
        def __init__(self, number: int) -> None:
            self.number = number
            self.specs = {name: (shape, torch.bfloat16) for name, shape in shapes.items()}

        def pieces(self, names: list[str]) -> Iterator[tuple[str, int, torch.Tensor]]:
            base, noise = torch.Generator(), torch.Generator()
            for seed, name in enumerate(names):
                base.manual_seed(seed)
                noise.manual_seed(1_000_003 * self.number + seed)
                size = shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
                for start in range(0, size, 1 << 20):
                    count = min(1 << 20, size - start)
                    values = torch.randn(count, generator=base).mul_(0.02)
                    if self.number:
                        values += torch.randn(count, generator=noise).mul_(0.002)
                    yield name, start, values.bfloat16()

    for number in range(4):
        write_checkpoint(folder / str(number), Checkpoint(number), max_shard_size=SHARD)


def merge_once(folder: Path, method: str) -> None:
    """What is measured."""
    import mergeline as ml
    from mergeline.merging.registry import get

    base, *models = [folder / str(number) for number in range(4)]
    merged = ml.merge(models, base=base if get(method).needs_base else None, method=method)
    ml.write_checkpoint(folder / "merged", merged, max_shard_size=SHARD)


def floor(folder: Path, readers: int) -> None:
    """Read the inputs, pass over them once, write the output."""
    import torch

    from mergeline.checkpoints.readers import open_checkpoint

    inputs = [open_checkpoint(folder / str(number)) for number in range(4)][-readers:]
    torch.set_num_threads(1)
    total, part, out = torch.empty(1 << 18), torch.empty(1 << 18), torch.empty(1 << 18, dtype=torch.bfloat16)
    output = folder / "floor"
    with output.open("wb") as file:
        for name in inputs[0].names():
            size = inputs[0].read(name).numel()
            for start in range(0, size, 1 << 18):
                count = min(1 << 18, size - start)
                total.zero_()
                for reader in inputs:
                    part[:count].copy_(reader.read(name).view(-1)[start : start + count])
                    total[:count].add_(part[:count])
                out[:count].copy_(total[:count])
                file.write(out[:count].view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    output.unlink()


def measured(work: list[str], folder: Path) -> dict[str, float]:
    """Run one piece of work in a fresh process: wall and CPU seconds start to end, peak anonymous memory."""
    os.sync()
    before = os.times()
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.merging", "--folder", str(folder), "--work", *work]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu": cpu, "wall": time.perf_counter() - start, **json.loads(answer.stdout)}


def watch_memory(peak: list[int], stop: threading.Event) -> None:
    """Sample this process' anonymous memory, in kB."""
    while not stop.wait(0.005):
        peak[0] = max(peak[0], anonymous_kilobytes())


def anonymous_kilobytes() -> int:
    """Memory of this process that no file stands behind."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0])


def work(name: str, argument: str, folder: Path) -> None:
    peak, stop = [0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(peak, stop), daemon=True)
    watcher.start()
    if name == "merge":
        merge_once(folder, argument)
    elif name == "build":
        build(folder, float(argument))
    elif name == "floor":
        floor(folder, int(argument))
    stop.set()
    watcher.join()
    print(json.dumps({"anonymous": max(peak[0], anonymous_kilobytes()) / 1000}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of all inputs together")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are built (removed afterwards)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # a measured process: merge METHOD, floor READERS
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work, arguments.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="merging-", dir=arguments.folder))
    try:
        compare(folder, arguments.gigabytes, arguments.methods)
    finally:
        shutil.rmtree(folder)


def compare(folder: Path, gigabytes: float, methods: Sequence[str]) -> None:
    from mergeline.merging import registry

    measured(["build", str(gigabytes)], folder)
    sizes = [sum(file.stat().st_size for file in (folder / str(number)).iterdir()) for number in range(4)]
    print(f"base and 3 task models, bfloat16, {sum(sizes) / 1e9:.2f} GB, shards of {SHARD / 1e6:.0f} MB")
    print(f"{'':16} {'CPU':>7} {'wall':>7} {'peak anonymous':>15} {'speed':>10} {'of floor':>9}  target")
    floors = {}
    for name in [name for name in methods if name in registry.names()]:
        readers = 4 if registry.get(name).needs_base else 3
        for work in ([["floor", str(readers)]] if readers not in floors else []) + [["merge", name]]:
            took = measured(work, folder)
            if work[0] == "floor":
                floors[readers] = took["cpu"]
            moved = sum(sizes[-readers:]) + sizes[0]
            label = f"floor, {readers} inputs" if work[0] == "floor" else name
            factor, more = TARGETS.get(name, (0, 0.0))
            limit = factor * floors[readers] + more
            judged = (
                ""
                if work[0] == "floor" or not factor
                else f"  <= {limit:.1f} s {'ok' if took['cpu'] <= limit else 'MISSED'}"
            )
            print(
                f"{label:16} {took['cpu']:6.2f}s {took['wall']:6.2f}s {took['anonymous']:12.0f} MB "
                f"{moved / 1e6 / took['wall']:5.0f} MB/s {took['cpu'] / floors[readers]:8.2f}x{judged}",
                flush=True,
            )


if __name__ == "__main__":
    main()
