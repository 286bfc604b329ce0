"""A model's architecture as data: the name of a function and its arguments."""

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from mergeline.errors import InputError, nearest

FACTORY = "architecture.factory"


def build_model(factory: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Call `factory`, written 'module:function', with `kwargs`; the module comes back in eval mode.

    The weights are whatever the factory makes; load a state dict afterwards. Importing a module runs its code: a
    factory is as trusted as the program that names it.
    Raises InputError naming the field for what cannot be imported, called, or is no torch module.
    """
    function = import_function(factory, FACTORY)
    try:
        signature(function).bind(**kwargs)
    except TypeError as error:
        raise InputError(f"architecture.kwargs: {factory} does not take these arguments: {error}.") from error
    except ValueError:  # a builtin without a signature: calling it will tell
        pass
    try:
        module = function(**kwargs)
    except Exception as error:  # whatever someone else's factory raises, the plan named it
        raise InputError(f"{FACTORY}: {factory} failed with {dict(kwargs)}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{FACTORY}: {factory} returned a {type(module).__name__}, not a torch.nn.Module.")
    return module.eval()


def import_function(factory: str, field: str) -> Any:
    """The function that a plan names as 'module:function' in `field`. Raises InputError where there is none."""
    path, colon, name = factory.partition(":")
    if not (colon and path and name):
        raise InputError(f"{field}: {factory!r} is not of the form 'module:function' (mergeline.models.resnet:resnet).")
    try:
        module = import_module(path)
    except Exception as error:  # an import runs foreign code, which may raise anything
        raise InputError(f"{field}: cannot import the module {path!r}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [other for other in dir(module) if callable(getattr(module, other))]
        raise InputError(f"{field}: {path} has no function {name!r}{nearest(name, functions)}")
    return function
