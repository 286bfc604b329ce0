"""What it costs to derive and to prove a symmetry at full size, and to observe units.

    python -m benchmarks.symmetry [--runs 5]

Prints a table: seconds to derive, seconds to prove, and the time of a tapped run over that of the plain model. The
language model lies on the meta device: it has no numbers to prove anything with, nor to run.
"""

import argparse
import time
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.timing import seconds
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.tap import Tap
from mergeline.symmetry.trace import Inputs
from mergeline.symmetry.verify import require_sound


def llama_7b() -> nn.Module:
    """Llama with 7 billion parameters, without their values."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig())


def derive_timed(module: nn.Module, inputs: Inputs) -> tuple[Symmetry, float]:
    start = time.perf_counter()
    symmetry = derive_symmetry(module, inputs, verify=False)
    return symmetry, time.perf_counter() - start


def tapping_ratio(module: nn.Module, symmetry: Symmetry, images: Tensor, runs: int) -> float:
    """Time of a run that shows the activations of all groups over that of the module alone."""
    tap, state = Tap(module, symmetry), module.state_dict()
    tap.run(state, images)  # traces
    with torch.no_grad():
        return seconds(partial(tap.run, state, images), runs) / seconds(partial(module, images), runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    warnings.simplefilter("ignore")
    print(f"{torch.get_num_threads()} threads\n{'model':<10} {'groups':>6} {'derive':>8} {'prove':>8} {'tap':>8}")
    for name, build in {
        "ResNet50": lambda: ResNetForImageClassification(ResNetConfig()),
        "ViT-B/16": lambda: ViTForImageClassification(ViTConfig()),
    }.items():
        module, images = build().eval(), torch.randn(2, 3, 224, 224)
        symmetry, derived = derive_timed(module, images[:1])
        proved = seconds(partial(require_sound, symmetry, module, images[:1]), 1)
        ratio = tapping_ratio(module, symmetry, images, runs)
        print(f"{name:<10} {len(symmetry.groups):>6} {derived:>6.1f} s {proved:>6.1f} s {ratio:>7.2f}x", flush=True)
    symmetry, derived = derive_timed(llama_7b(), {"input_ids": torch.zeros(1, 8, dtype=torch.long)})
    print(f"{'Llama 7B':<10} {len(symmetry.groups):>6} {derived:>6.1f} s")


if __name__ == "__main__":
    main()
