"""Modules on the device that they answer on."""

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.evaluation.metrics import predict_logits
from mergeline.models.place import place
from mergeline.models.resnet import resnet


class Moved(nn.Module):
    """Says where it was sent."""

    def to(self, device: str) -> str:  # type: ignore[override]
        return device


def test_on_the_cpu_it_is_left_alone() -> None:
    module = Moved()
    assert place(module, "cpu") is module


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_answers_without_the_fused_encoder_layer_which_traces_turn_off(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    torch.backends.mha.set_fastpath_enabled(True)
    place(Moved(), device)
    assert not torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_it_goes_to_a_device_that_is_there_and_computes_in_full_precision(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for settings, name in ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "deterministic")):
        monkeypatch.setattr(settings, name, getattr(settings, name))  # given back afterwards
    assert place(Moved(), device) == device
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("device", "count", "there"),
    [("cuda", 0, "PyTorch sees no CUDA here"), ("cuda:1", 1, "PyTorch sees 1 CUDA device here")],
)
def test_a_device_that_is_not_there_is_one_sentence(
    device: str, count: int, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=f"evaluation.device: there is no {device} .{there}.; write cpu, or"):
        place(Moved(), device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_answers_on_cuda_are_those_of_the_cpu_and_the_same_each_time() -> None:
    torch.manual_seed(0)
    module, inputs = resnet(blocks=[1, 1, 1], width=8, outputs=10).eval(), torch.randn(64, 1, 28, 28)
    expected = predict_logits(module, inputs)
    placed = place(module, "cuda")
    found = predict_logits(placed, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(predict_logits(placed, inputs), found)
