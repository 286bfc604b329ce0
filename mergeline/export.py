"""A module as a program that runs without its source: torch.export (.pt2) or ONNX, checked against the module.

Equal modules and packages give equal bytes: what tells of the machine (source paths, the build of torch in ONNX) is
left out. The example that the module is traced with is zeros, so no calibration data is in the file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.trace import silent_log
from mergeline.threads import one_export

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
PACKAGES = {"torch": ("torch",), "onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}
TOLERANCE = 1e-4
"""Largest difference from the module's outputs that is let pass, as a share of the largest output."""

_LARGEST_ONNX = (1 << 31) - (1 << 20)  # bytes of one protocol buffer, less the graph


def export_module(kind: str, module: nn.Module, inputs: Tensor, path: Path) -> float:
    """Write a module in eval mode to `path` with a free batch size; returns the largest difference from it.

    kind: "torch" or "onnx". inputs: [n >= 2, ...], on which the file that was written is run and compared, one alone
    and the others together; the difference is a share of the largest output. InputError in one sentence where a package
    is missing, the module cannot be exported, or the program computes something else: then there is no file.
    """
    for package in PACKAGES[kind]:
        if find_spec(package) is None:
            raise InputError(f"{kind}: the package {package} is missing; pip install 'mergeline[onnx]'")
    try:
        with _quiet():
            program = _traced(module, torch.zeros_like(inputs[:2]))
            (_write_onnx if kind == "onnx" else _write_torch)(program, path)
            found = _difference(module, _runner(kind, path), inputs)
    except InputError:
        raise
    except Exception as error:  # an exporter may raise anything
        path.unlink(missing_ok=True)
        raise InputError(f"{kind}: {type(module).__name__} cannot be exported: {_first_line(error)}") from error
    if not found <= TOLERANCE:  # nor NaN
        path.unlink()
        raise InputError(
            f"{kind}: the exported program differs from the module by {found:.1e} of its largest output, "
            f"{TOLERANCE:.0e} is allowed"
        )
    return found


def _traced(module: nn.Module, example: Tensor) -> ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    with one_export:
        program = torch.export.export(module, (example,), dynamic_shapes=(batch,), strict=False)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_torch(program: ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:  # told a path, it would write the file's name into it
        torch.export.save(program, file)


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise InputError(f"onnx: the module has {size / 1e9:.1f} GB of tensors, one ONNX file holds 2 GB; export torch")
    with one_export:
        exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    model = exported.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    for function in model.functions:
        for part in (function, *function.node, *function.value_info):
            part.ClearField("metadata_props")
    model.producer_version = torch.__version__.partition("+")[0]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _runner(kind: str, path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The program in a file, as a function from inputs to outputs."""
    if kind == "torch":
        module = torch.export.load(path).module()
        return lambda inputs: _tensors(module(inputs))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: [torch.from_numpy(output) for output in session.run(None, {name: inputs.numpy()})]


@torch.no_grad()
def _difference(module: nn.Module, run: Callable[[Tensor], list[Tensor]], inputs: Tensor) -> float:
    largest, scale = 0.0, 0.0
    for batch in (inputs[:1], inputs[1:]):
        expected, found = _tensors(module(batch)), run(batch)
        for one, other in zip(expected, found, strict=True):
            if one.shape != other.shape:
                raise InputError(f"an output has shape {list(other.shape)}, the module's {list(one.shape)}")
            difference = float((one.double() - other.double()).abs().max())
            largest = difference if difference != difference else max(largest, difference)
            scale = max(scale, float(one.double().abs().max()))
    return largest / scale if scale else largest


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of every package that they would also know, and of their own insides."""
    onnx = logging.getLogger("torch.onnx")  # its children appear on first use, too late to be silenced one by one
    level = onnx.level
    onnx.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), silent_log("torch"):
            warnings.simplefilter("ignore")
            yield
    finally:
        onnx.setLevel(level)
