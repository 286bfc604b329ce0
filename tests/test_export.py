"""Programs of a module: they compute what it computes, at any batch size, with the same bytes every time."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.export import FILES, PACKAGES, export_module
from mergeline.models.resnet import resnet

INPUTS = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """What it does depends on its input's values, which no exporter can follow."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    """Does something else each time."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Fixed(nn.Module):
    """Works for batches of one size."""

    def forward(self, x):
        return x.reshape(2, -1)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return resnet(blocks=[1, 1, 1], width=4, outputs=3).eval()


@pytest.fixture(scope="module")
def exported(module, tmp_path_factory):
    """A folder with all kinds of programs of the module."""
    folder = tmp_path_factory.mktemp("exported")
    for kind, name in FILES.items():
        assert export_module(kind, module, INPUTS, folder / name) < 1e-6
    return folder


def load(kind, path):
    if kind == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = [wanted.name for wanted in session.get_inputs()]
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("kind", FILES)
def test_a_program_computes_what_the_module_does_at_any_batch_size(module, exported, kind):
    program = load(kind, exported / FILES[kind])
    for size in (1, 3, 8):
        with torch.no_grad():
            torch.testing.assert_close(program(INPUTS[:size]), module(INPUTS[:size]), rtol=1e-4, atol=1e-5)


ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch
from mergeline.export import FILES, export_module
from mergeline.models.resnet import resnet
torch.manual_seed(0)
module = resnet(blocks=[1, 1, 1], width=4, outputs=3).eval()
for kind, name in FILES.items():
    export_module(kind, module, torch.rand(4, 1, 12, 12), Path(sys.argv[1], "again-" + name))
"""


def test_equal_modules_give_equal_bytes_in_every_process(exported):
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(exported)], check=True)
    for name in FILES.values():
        written = (exported / name).read_bytes()
        assert written == (exported / f"again-{name}").read_bytes(), name
        assert b".py" not in written, "the paths of this machine's sources"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Branching(), "Branching cannot be exported"),
        (Counting(), "differs from the module by"),
        (Fixed(), "Fixed cannot be exported"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exported_is_one_sentence_and_no_file(module, sentence, tmp_path):
    for kind in FILES:
        with pytest.raises(InputError, match=f"^{kind}: .*{sentence}") as fault:
            export_module(kind, module, INPUTS, tmp_path / FILES[kind])
        assert "\n" not in str(fault.value)
        assert not (tmp_path / FILES[kind]).exists()


def test_a_missing_package_is_named(module, tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "onnx", ("torch", "no_such_onnx"))
    with pytest.raises(
        InputError, match=r"^onnx: the package no_such_onnx is missing; pip install 'mergeline\[onnx\]'$"
    ):
        export_module("onnx", module, INPUTS, tmp_path / "model.onnx")
