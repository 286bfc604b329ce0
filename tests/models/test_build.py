"""Architectures as data: what can be built is built in eval mode, what cannot is explained."""

from typing import Any

import pytest

from mergeline.errors import InputError
from mergeline.models.build import build_model

RESNET = "mergeline.models.resnet:resnet"


def test_a_named_factory_is_called_with_its_arguments() -> None:
    module = build_model(RESNET, {"blocks": [2, 1, 1], "width": 4, "outputs": 3})
    assert len(module.get_submodule("layer1")) == 2  # type: ignore[arg-type]
    assert not module.training


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("resnet", {}, "architecture.factory: 'resnet' is not of the form 'module:function'"),
        ("no_such_module:f", {}, "architecture.factory: cannot import the module 'no_such_module'"),
        ("mergeline.models.resnet:resnett", {}, "no function 'resnett'; did you mean 'resnet'?"),
        ("mergeline.models.build:FIELD", {}, "no function 'FIELD'"),
        (RESNET, {"depth": 20}, "architecture.kwargs: .* unexpected keyword argument 'depth'"),
        (RESNET, {"blocks": [1]}, "architecture.factory: .* three positive numbers"),
        ("collections:OrderedDict", {}, "returned a OrderedDict, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_built_is_named(factory: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(factory, kwargs)
