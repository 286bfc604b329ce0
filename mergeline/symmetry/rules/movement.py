"""Operations that only move data, in terms of the movement primitives."""

from __future__ import annotations

from collections.abc import Sequence

from mergeline.symmetry import movement
from mergeline.symmetry.labels import CONSTANT, FIXED, AbstractTensor, UnsupportedError, constant
from mergeline.symmetry.movement import concatenate, expand, merge, select, slice_axis, unsqueeze, view
from mergeline.symmetry.primitives import freeze, tie_all, with_ndim
from mergeline.symmetry.rules.reductions import axes_of
from mergeline.symmetry.rules.table import Call, rule


@rule("permute")
def permute(call: Call, x: AbstractTensor, dims: Sequence[int]) -> AbstractTensor:
    """Axes in another order."""
    return movement.permute(x, dims)


@rule("transpose", "swapdims")
def transpose(call: Call, x: AbstractTensor, dim0: int, dim1: int) -> AbstractTensor:
    """Two axes change places."""
    order = list(range(x.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return movement.permute(x, order)


@rule("swapaxes")
def swapaxes(call: Call, x: AbstractTensor, axis0: int, axis1: int) -> AbstractTensor:
    """The same under another name."""
    return transpose(call, x, axis0, axis1)


@rule("t", "numpy_T")
def reversed_axes(call: Call, x: AbstractTensor) -> AbstractTensor:
    """All axes in reverse order."""
    return movement.permute(x, range(x.ndim - 1, -1, -1))


@rule("mT", "mH", "matrix_H", "adjoint")
def matrix_transpose(call: Call, x: AbstractTensor) -> AbstractTensor:
    """The last two axes change places."""
    return movement.permute(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])


@rule("movedim", "moveaxis")
def movedim(
    call: Call, x: AbstractTensor, source: int | Sequence[int], destination: int | Sequence[int]
) -> AbstractTensor:
    """Some axes go to other places, the rest keeps its order."""
    sources, destinations = axes_of(x, source), axes_of(x, destination)
    at = dict(zip(destinations, sources, strict=True))
    rest = iter(axis for axis in range(x.ndim) if axis not in sources)
    return movement.permute(x, [at[place] if place in at else next(rest) for place in range(x.ndim)])


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_as", "reshape_as", "squeeze",
    "unsqueeze", "ravel", "view_copy",
)  # fmt: skip
def reshape(call: Call, x: AbstractTensor, other: object = None) -> AbstractTensor:
    """The same elements in the same order under another shape (that of `other`)."""
    call.record.keeps(x, call.node)
    return view(x, call.shape)


@rule("expand", "expand_as", "broadcast_to", "expand_copy")
def broadcast(call: Call, x: AbstractTensor, other: object = None) -> AbstractTensor:
    """Repeated along axes of size 1 (to the shape of `other`)."""
    return expand(x, call.shape)


@rule("broadcast_tensors")
def broadcast_together(call: Call, tensors: Sequence[AbstractTensor]) -> object:
    """All tensors repeated to one shape."""
    return tuple(expand(x, call.shape) for x in tensors)


@rule("repeat", "tile")
def repeat(call: Call, x: AbstractTensor, repeats: Sequence[int] = (), dims: Sequence[int] = ()) -> AbstractTensor:
    """Whole copies one after the other: copies may change places, and all move alike inside."""
    counts = list(repeats or dims)
    counts = [1] * (x.ndim - len(counts)) + counts
    x = with_ndim(x, len(counts))
    if 0 in counts:
        raise UnsupportedError("no copies")
    for axis, count in enumerate(counts):
        if count > 1 and x.shape[axis] == 1:
            x = expand(x, [count if j == axis else -1 for j in range(x.ndim)])
        elif count > 1:
            x = merge(_copies(x, axis, count), axis)
    return x


@rule("repeat_interleave")
def repeat_interleave(call: Call, x: AbstractTensor, repeats: object, dim: int | None = None) -> AbstractTensor:
    """Every element repeated in place: copies of one unit may change places among themselves."""
    if not isinstance(repeats, int) or dim is None:
        raise UnsupportedError("copies counted by a tensor")
    dim %= x.ndim
    return merge(_copies(x, dim + 1, repeats), dim)


def _copies(x: AbstractTensor, axis: int, count: int) -> AbstractTensor:
    """A new axis along which the tensor is repeated."""
    x = unsqueeze(x, axis)
    return expand(x, [count if j == axis else -1 for j in range(x.ndim)])


@rule("slice", "narrow", "slice_copy")
def slices(
    call: Call,
    x: AbstractTensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
    length: int | None = None,
) -> AbstractTensor:
    """A stretch of an axis: units do not cross its edges."""
    if isinstance(start, AbstractTensor):
        raise UnsupportedError("a place that depends on data")
    if length is not None and start is not None:
        start += x.shape[dim] if start < 0 else 0
        end = start + length
    return slice_axis(x, dim, start, end, step)


@rule("select", "select_copy")
def selection(call: Call, x: AbstractTensor, dim: int, index: int) -> AbstractTensor:
    """One index of an axis: that unit stays where it is."""
    return select(x, dim, index)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy")
def pieces(call: Call, x: AbstractTensor, dim: int = 0) -> object:
    """Consecutive stretches of an axis."""
    found, start = [], 0
    for shape in call.shapes:
        assert shape is not None
        found.append(slice_axis(x, dim, start, start + shape[dim]))
        start += shape[dim]
    return tuple(found)


@rule("unbind", "unbind_copy")
def unbind(call: Call, x: AbstractTensor, dim: int = 0) -> object:
    """All indices of an axis, one by one; those that nobody reads cut nothing."""
    return tuple(select(x, dim, index) if index in call.used else None for index in range(x.shape[dim]))


@rule("cat", "concat", "concatenate")
def cat(call: Call, tensors: Sequence[AbstractTensor], dim: int = 0) -> AbstractTensor:
    """One after the other: units of each part stay within it."""
    return concatenate(tensors, dim)


@rule("stack")
def stack(call: Call, tensors: Sequence[AbstractTensor], dim: int = 0) -> AbstractTensor:
    """Along a new axis."""
    return concatenate([unsqueeze(x, dim) for x in tensors], dim)


@rule("slice_scatter")
def slice_scatter(
    call: Call,
    x: AbstractTensor,
    src: AbstractTensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> AbstractTensor:
    """A stretch of an axis replaced: what stands before, the new, what stands after."""
    if step != 1:
        raise UnsupportedError("a slice with steps is replaced")
    dim %= x.ndim
    n = x.shape[dim]
    first, last, _ = slice(start, end).indices(n)
    parts = [slice_axis(x, dim, 0, first), src, slice_axis(x, dim, max(last, first), n)]
    return concatenate([part for part in parts if part.shape[dim]], dim)


@rule("select_scatter")
def select_scatter(call: Call, x: AbstractTensor, src: AbstractTensor, dim: int, index: int) -> AbstractTensor:
    """One index of an axis replaced."""
    dim %= x.ndim
    index %= x.shape[dim]
    return slice_scatter(call, x, unsqueeze(src, dim), dim, index, index + 1)


@rule("roll", "flip")
def shifted(call: Call, x: AbstractTensor, dims: Sequence[int] = ()) -> AbstractTensor:
    """Every position goes to a certain other one."""
    for axis in axes_of(x, list(dims)):
        x = tie_all(freeze(x, axis, f"{call.name} moves positions"), axis)
    return x


@rule("constant_pad_nd", "pad")
def padded(call: Call, x: AbstractTensor, pad: Sequence[int], mode: str = "constant") -> AbstractTensor:
    """Constant borders are concatenated; other borders repeat certain positions."""
    for number in range(len(pad) // 2):
        before, after = pad[2 * number], pad[2 * number + 1]
        axis = x.ndim - 1 - number
        if before == after == 0:
            continue
        if mode == "constant" and x.labels[axis]:
            x = _padded_units(x, axis, before, after)
        else:
            x = tie_all(freeze(x, axis, "padded"), axis)
            shape = (*x.shape[:axis], x.shape[axis] + before + after, *x.shape[axis + 1 :])
            labels = (*x.labels[:axis], FIXED if shape[axis] > 1 else CONSTANT, *x.labels[axis + 1 :])
            x = AbstractTensor(x.domains, shape, labels, x.sources, x.activation)
    return x


def _padded_units(x: AbstractTensor, axis: int, before: int, after: int) -> AbstractTensor:
    """Constant borders around an axis that carries units; a negative width cuts off."""
    x = slice_axis(x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))

    def border(width: int) -> list[AbstractTensor]:
        shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
        return [constant(x.domains, shape)] if width > 0 else []

    return concatenate([*border(before), x, *border(after)], axis)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call, x: AbstractTensor, upscale_factor: int) -> AbstractTensor:
    """[c * r * r, h, w] -> [c, h * r, w * r]."""
    r = upscale_factor
    *lead, c, h, w = x.shape
    n = len(lead)
    x = view(x, (*lead, c // r // r, r, r, h, w))
    return view(movement.permute(x, [*range(n + 1), n + 3, n + 1, n + 4, n + 2]), call.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call, x: AbstractTensor, downscale_factor: int) -> AbstractTensor:
    """[c, h * r, w * r] -> [c * r * r, h, w]."""
    r = downscale_factor
    *lead, c, h, w = x.shape
    n = len(lead)
    x = view(x, (*lead, c, h // r, r, w // r, r))
    return view(movement.permute(x, [*range(n + 1), n + 2, n + 4, n + 1, n + 3]), call.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, x: AbstractTensor, groups: int) -> AbstractTensor:
    """[n, g * c, ...] -> [n, c * g, ...]."""
    n, channels, *rest = x.shape
    x = view(x, (n, groups, channels // groups, *rest))
    return view(movement.permute(x, [0, 2, 1, *range(3, x.ndim)]), call.shape)
