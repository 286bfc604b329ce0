"""Stage: the architecture of a plan, and its unit symmetry, proved numerically before anything relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tasks.code_version import code_version
from tasks.inputs import DataSlice, import_first
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file, take_file

if TYPE_CHECKING:
    from torch import nn

    from mergeline.checkpoints.readers import Reader
    from mergeline.plan import Architecture
    from mergeline.symmetry.symmetry import Symmetry


class ArchitectureSpec(BaseModel):
    """How to build the module; `code` is the version of the factory's source, so that editing it reruns the stages.

    heads: parts of it that belong to single tasks, and whose shapes are those of each checkpoint. device: where it is
    put; stages that measure take that of the plan, all others compute on the CPU.
    """

    model_config = ConfigDict(frozen=True)

    factory: str
    kwargs: dict[str, Any]
    code: str
    heads: list[str] = []
    device: str = "cpu"

    def load(self, checkpoint: Reader, *, by_name: bool = True) -> nn.Module:
        """The module with the tensors of a checkpoint, in eval mode. by_name: as of `load_model`."""
        import_first()  # a factory may import transformers, which torchmetrics does too
        from mergeline.models.load import load_model
        from mergeline.models.place import place

        return place(load_model(self.factory, self.kwargs, checkpoint, self.heads, by_name=by_name), self.device)


def specify(architecture: Architecture, heads: list[str]) -> ArchitectureSpec:
    """The part of the plan's architecture that stages depend on. heads: `Plan.heads`."""
    return ArchitectureSpec(
        factory=architecture.factory, kwargs=architecture.kwargs, code=_version(architecture.factory), heads=heads
    )


@stage("prove-symmetry")
def prove_symmetry(
    architecture: ArchitectureSpec, rule: str | None, rule_version: str, inputs: DataSlice
) -> ArtifactRef:
    """Derive the symmetry, or take it from a YAML file or a function; refuse it unless permuting changes no output."""
    from mergeline.models.build import build_model, import_function
    from mergeline.symmetry.derive import derive_symmetry
    from mergeline.symmetry.text import read_symmetry
    from mergeline.symmetry.verify import proved

    example = inputs.load().inputs[:2]
    module = build_model(architecture.factory, architecture.kwargs)
    if rule is None:
        symmetry = derive_symmetry(module, (example,))
    elif _is_file(rule):
        symmetry = proved(read_symmetry(Path(rule)), module, (example,))
    else:
        symmetry = proved(import_function(rule, "architecture.symmetry")(module), module, (example,))
    return put_file(lambda path: path.write_text(symmetry.to_yaml()), ".yaml", "symmetry")


def rule_version(rule: str | None) -> str:
    """Digest of the YAML file, or of the code, that says which units may change places."""
    if rule is None:
        return code_version("mergeline.symmetry.derive")
    return take_file(Path(rule), "symmetry").sha256 if _is_file(rule) else _version(rule)


def load_symmetry(ref: ArtifactRef) -> Symmetry:
    """The symmetry of an artifact that `prove_symmetry` made."""
    from mergeline.symmetry.text import read_symmetry

    return read_symmetry(ref.path)


def _is_file(rule: str) -> bool:
    return rule.endswith((".yaml", ".yml"))


def _version(function: str) -> str:
    return code_version(function.partition(":")[0])
