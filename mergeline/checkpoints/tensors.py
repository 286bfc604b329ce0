"""A checkpoint seen as a mapping from names to tensors, whatever it is stored in."""

from abc import abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from mergeline.checkpoints.ties import memory_of, ties_by
from mergeline.errors import InputError, nearest

WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts call the state dict in their checkpoint


class UnknownTensorError(InputError, KeyError):
    """A name that the checkpoint does not have; a KeyError too, as of any mapping."""

    __str__ = Exception.__str__  # that of KeyError would quote the sentence


class Reader(Mapping[str, Tensor]):
    """Names, shapes, dtypes and, only when asked for, tensors: `dict(reader)` is a state dict.

    What is read may share memory with the file or the module it comes from: never write into it. Two readers are
    equal only if they are the same object. Unknown names raise UnknownTensorError, which suggests the nearest name.
    """

    source: str  # what messages call it

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names, sorted."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Dtype that `read` gives, without reading."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU if it comes from a file."""

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) along the first dimension; a scalar has none (IndexError): read it whole."""
        return self.read(name)[start:stop]

    def tied(self) -> dict[str, str]:
        """Tied weights: name -> the first, in order, of the names of the same tensor. That name itself is left out."""
        return {}

    def aliases(self) -> dict[str, str]:
        """Name -> the name that its numbers are kept under, for those that need not be stored twice.

        To write them so again: leave the aliases out and record these pairs as the metadata of the file.
        """
        return {}

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of a tensor in the order of its rows, flat; only the rows that hold them are read."""
        shape = self.shape(name)
        if not shape or start >= stop:
            return self.read(name).reshape(-1)[start:stop]
        width = prod(shape[1:])
        first = start // width
        rows = self.read_slice(name, first, -(-stop // width)).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def reads_parts(self, name: str) -> bool:
        """Whether a part costs less than the whole tensor; some views compute tensors whole."""
        kind = type(self)
        return kind.read_slice is not Reader.read_slice or kind.read_flat is not Reader.read_flat

    def unknown(self, name: str) -> UnknownTensorError:
        """The error to raise for a name that is not here."""
        return UnknownTensorError(f"{self.source}: has no tensor '{name}'{nearest(name, self.names())}")

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source}: {len(self)} tensors>"


class TensorReader(Reader):
    """A state dict in memory, or one loaded by torch.

    One level of nesting, {'state_dict': {...}, 'epoch': 3}, is opened where it is unambiguous. Raises InputError for
    values that are no dense tensors.
    """

    def __init__(self, state: Mapping[str, Tensor], source: str = "state dict") -> None:
        self.source = source
        given = {name: tensor.detach() for name, tensor in _state_dict(state, source).items()}
        self._order = list(given)
        self._tensors = dict(sorted(given.items()))

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensor(name).dtype

    def read(self, name: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._tensor(name)

    def tied(self) -> dict[str, str]:
        """Names of the same memory: equal address, dtype, shape and strides."""
        return ties_by({name: memory_of(name, tensor) for name, tensor in self._tensors.items()})

    def aliases(self) -> dict[str, str]:
        """Tied names, each with the one that comes first in the state dict: a module names the owner first."""
        firsts: dict[Hashable, str] = {}
        kept = {name: firsts.setdefault(memory_of(name, self._tensors[name]), name) for name in self._order}
        return {name: first for name, first in sorted(kept.items()) if name != first}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise self.unknown(name)
        return self._tensors[name]


class ReaderView(Reader):
    """A checkpoint that is looked at through something: what is not said otherwise is that of the inner reader."""

    def __init__(self, inner: Reader) -> None:
        self._inner = inner

    @property
    def source(self) -> str:
        """What messages call it: as the inner reader, which writes some of them."""
        return self._inner.source

    @source.setter
    def source(self, name: str) -> None:
        self._inner.source = name

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return self._inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._inner.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._inner.dtype(name)

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._inner.read(name)

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop); only these rows are read."""
        return self._inner.read_slice(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), flat, as the inner reader gives them, unless this view changes what rows it reads."""
        if type(self).read_slice is not ReaderView.read_slice:
            return super().read_flat(name, start, stop)
        return self._inner.read_flat(name, start, stop)

    def reads_parts(self, name: str) -> bool:
        """As the inner reader."""
        return self._inner.reads_parts(name)

    def tied(self) -> dict[str, str]:
        """Tied weights of the inner reader."""
        return self._inner.tied()

    def aliases(self) -> dict[str, str]:
        """Aliases of the inner reader."""
        return self._inner.aliases()

    def __contains__(self, name: object) -> bool:
        return name in self._inner


class WithoutTensors(ReaderView):
    """A checkpoint less some of its tensors."""

    def __init__(self, inner: Reader, left_out: Collection[str]) -> None:
        super().__init__(inner)
        self._names = [name for name in inner.names() if name not in left_out]

    def names(self) -> list[str]:
        """The names that are left, sorted."""
        return list(self._names)

    def tied(self) -> dict[str, str]:
        """Ties of which both names are left."""
        return _within(self._names, self._inner.tied())

    def aliases(self) -> dict[str, str]:
        """Aliases of which both names are left."""
        return _within(self._names, self._inner.aliases())

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _within(names: Collection[str], pairs: Mapping[str, str]) -> dict[str, str]:
    return {name: other for name, other in pairs.items() if name in names and other in names}


def _state_dict(state: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """The mapping of names to tensors in what a user or a file calls a checkpoint."""
    if not any(isinstance(value, Tensor) for value in state.values()):
        inner = [key for key in WRAPPERS if isinstance(state.get(key), Mapping)]
        if len(inner) > 1:
            raise InputError(f"{source}: {' and '.join(inner)} could each be the state dict; save one alone")
        state = state[inner[0]] if inner else state  # type: ignore[assignment]
    for name, value in state.items():
        _refuse_other_than_tensor(name, value, source)
    return dict(state)  # type: ignore[arg-type]


def _refuse_other_than_tensor(name: object, value: object, source: str) -> None:
    if not isinstance(name, str):
        raise InputError(f"{source}: the key {name!r} is not a string; a state dict maps names to tensors")
    if not isinstance(value, Tensor):
        raise InputError(
            f"{source}: '{name}' is a {type(value).__name__}, not a tensor; pass the state dict of a module, "
            "as module.state_dict() gives it"
        )
    if value.is_meta:
        raise InputError(f"{source}: tensor '{name}' is on the device 'meta', without numbers; load the checkpoint")
    if value.layout != torch.strided or value.is_quantized:
        raise InputError(
            f"{source}: tensor '{name}' is sparse or quantized; save it dense (.to_dense(), .dequantize())"
        )
