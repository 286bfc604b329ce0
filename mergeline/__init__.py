"""mergeline: several trained PyTorch checkpoints become one better checkpoint.

The public names live in their modules and are imported on first use, so that `import mergeline` costs nothing.
"""

from importlib import import_module

_HOME = {
    "InputError": "mergeline.errors",
    "Plan": "mergeline.plan",
    "PlanError": "mergeline.plan_file",
    "load_plan": "mergeline.plan_file",
    "Symmetry": "mergeline.symmetry.symmetry",
    "derive_symmetry": "mergeline.symmetry.derive",
    "activation_similarity": "mergeline.similarity.activation",
    "weight_similarity": "mergeline.similarity.weight",
    "match_units": "mergeline.matching.match",
    "Alignment": "mergeline.alignment.alignment",
    "align": "mergeline.alignment.solve",
    "apply_alignment": "mergeline.alignment.apply",
    "merge_aligned": "mergeline.alignment.merge",
    "pcb_merge": "mergeline.balancing.pcb",
    "merge": "mergeline.merging.engine",
    "open_checkpoint": "mergeline.checkpoints.readers",
    "write_checkpoint": "mergeline.checkpoints.writer",
    "reset_normalization": "mergeline.calibration.normalization",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mergeline' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
