"""Programs that move elements: other axes, other shapes, parts, copies, borders."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import channel_shuffle, pad, pixel_shuffle, pixel_unshuffle

from tests.symmetry.program import Case, on

aten = torch.ops.aten

AXES = {
    "permute": on((2, 3), do=lambda t: t.permute(0, 2, 1)),
    "permute of a square": on((2, 2), do=lambda t: t.permute(0, 2, 1).softmax(1).exp() * t),
    "transpose of a square": on((2, 2), do=lambda t: t.transpose(1, 2).softmax(1).exp() * t),
    "transpose": on((2, 3), do=lambda t: t.transpose(1, -1)),
    "transpose of the batch": on((2, 3), do=lambda t: t.transpose(0, 2).sin().transpose(0, 2)),
    "swapaxes": on((2, 3), do=lambda t: torch.swapaxes(t, 1, 2)),
    "swapdims": on((2, 3), do=lambda t: torch.swapdims(t, 1, 2)),
    "mT": on((2, 3), do=lambda t: t.mT),
    "mH": on((2, 3), do=lambda t: t.mH),
    "adjoint": on((2, 3), do=torch.adjoint),
    "movedim": on((2, 3, 2), do=lambda t: t.movedim(1, -1)),
    "movedim of several": on((2, 3, 2), do=lambda t: torch.movedim(t, (1, 3), (3, 2))),
    "moveaxis": on((2, 3, 2), do=lambda t: torch.moveaxis(t, 3, 1)),
    "t": Case(lambda p, x: x @ p.w.t(), {"w": (3, 2)}),
    "numpy_T": Case(lambda p, x: x @ p.w.T, {"w": (3, 2)}),
    "matrix_H": Case(lambda p, x: x @ p.w.H, {"w": (3, 2)}),
}

SHAPES = {
    "view that joins": on((2, 3), do=lambda t: t.view(5, 6).softmax(-1)),
    "view that parts": on((4,), do=lambda t: t.view(5, 2, 2).softmax(-1)),
    "view that parts and joins": on((2, 4), do=lambda t: t.view(5, 4, 2).softmax(-1)),
    "view over the batch": on((3,), do=lambda t: t.view(15).sin().view(5, 3)),
    "reshape": on((4,), do=lambda t: t.reshape(5, 2, 2).softmax(1)),
    "flatten": on((2, 2), do=lambda t: torch.flatten(t, 1, 2).cos()),
    "unflatten": on((4,), do=lambda t: torch.unflatten(t, 1, (2, 2)).cos()),
    "ravel": Case(lambda p, x: x[:, :1] * torch.ravel(p.w), {"w": (2, 3)}),
    "squeeze": on((1, 3), do=lambda t: t.squeeze(1).cos()),
    "squeeze of all": on((1, 3, 1), do=lambda t: t.squeeze().cos()),
    "unsqueeze": on((3,), do=lambda t: t.unsqueeze(1).cos()),
    "_unsafe_view": on((2, 3), do=lambda t: aten._unsafe_view(t, [5, 6]).cos()),
    "_reshape_alias": on((2, 3), do=lambda t: aten._reshape_alias(t, [5, 6], [6, 1]).cos()),
    "view_as": on((2, 2), (4,), do=lambda t, u: t.softmax(2).view_as(u) + u),
    "reshape_as": on((4,), (2, 2), do=lambda t, u: t.reshape_as(u) * u.cos()),
    "view_copy": on((2, 3), do=lambda t: aten.view_copy(t, [5, 6])),
}

APART = "copies of one unit could change places by themselves"
COPIES = {
    "expand": on((1, 3), do=lambda t: t.expand(5, 2, 3)),
    "expand_as": on((1, 3), (2, 3), do=lambda t, u: t.expand_as(u) * u),
    "broadcast_to": on((1, 3), do=lambda t: torch.broadcast_to(t, (5, 2, 3))),
    "expand_copy": on((1, 3), do=lambda t: aten.expand_copy(t, [5, 2, 3])),
    "broadcast_tensors": on((1, 3), (2, 1), do=lambda t, u: torch.stack(torch.broadcast_tensors(t, u), 1)),
    "repeat": on((3,), do=lambda t: t.repeat(1, 2), smaller=APART),
    "repeat along two axes": on((1, 2), do=lambda t: t.repeat(1, 2, 2), smaller=APART),
    "tile": on((3,), do=lambda t: torch.tile(t, (1, 2)), smaller=APART),
    "repeat_interleave": on((3,), do=lambda t: t.repeat_interleave(2, dim=1)),
}


def told_apart(parts: Callable[[Tensor], Sequence[Tensor]]) -> Case:
    """The parts of an axis of four, each through another function."""
    functions = (torch.sin, torch.cos, torch.tanh)
    return on((4,), do=lambda t: torch.cat([f(part) for f, part in zip(functions, parts(t), strict=False)], 1))


PARTS = {
    "slice": on((4,), do=lambda t: torch.cat([t[:, 1:].cos(), t[:, :1]], 1)),
    "slice from the end": on((4,), do=lambda t: torch.cat([t[:, -2:].cos(), t[:, :-2]], 1)),
    "slice across blocks": on((4,), do=lambda t: t.view(5, 2, 2).softmax(-1).view(5, 4)[:, 1:]),
    "slice with steps": on((4,), do=lambda t: t[:, ::2].cos() * t[:, 1::2]),
    "slice of one axis of two": on((2, 3), do=lambda t: torch.cat([t[:, :1].cos(), t[:, 1:]], 1)),
    "narrow": on((4,), do=lambda t: torch.cat([t.narrow(1, 0, 2).cos(), t.narrow(1, -2, 2).sin()], 1)),
    "slice_copy": on((3,), do=lambda t: torch.cat([aten.slice_copy(t, 1, 1).cos(), t[:, :1]], 1)),
    "select": on((3,), do=lambda t: t * t.select(1, 0)[:, None]),
    "select from the end": on((2, 3), do=lambda t: t * t[:, -1][:, None]),
    "select_copy": on((3,), do=lambda t: t * aten.select_copy(t, 1, 0)[:, None]),
    **{
        name: told_apart(parts)
        for name, parts in {
            "split": lambda t: t.split(2, 1),
            "split_with_sizes": lambda t: t.split([1, 3], 1),
            "chunk": lambda t: t.chunk(2, 1),
            "tensor_split": lambda t: torch.tensor_split(t, 3, 1),
            "unsafe_split": lambda t: torch.unsafe_split(t, 2, 1),
            "unsafe_chunk": lambda t: torch.unsafe_chunk(t, 2, 1),
            "split_copy": lambda t: aten.split_copy(t, 3, 1),
        }.items()
    },
    "unbind": on((2, 3), do=lambda t: t.unbind(1)[0].sin() * t.unbind(1)[1]),
    "unbind_copy": on((2, 3), do=lambda t: aten.unbind_copy(t, 1)[0].sin() * aten.unbind_copy(t, 1)[1]),
}

JOINS = {
    "cat": on((2,), (3,), do=lambda t, u: torch.cat([t, u.tanh()], 1)),
    "cat of the same": on((3,), do=lambda t: torch.cat([t, t.tanh()], 1)),
    "cat along another axis": on((2, 2), (1, 2), do=lambda t, u: torch.cat([t, u], 1).softmax(-1)),
    "concat": on((2,), (3,), do=lambda t, u: torch.concat([t, u], 1)),
    "concatenate": on((2,), (3,), do=lambda t, u: torch.concatenate([t, u], 1)),
    "stack": on((3,), (3,), do=lambda t, u: torch.stack([t, u.tanh()], 1)),
    "stack along the last axis": on((3,), (3,), do=lambda t, u: torch.stack([t, u.tanh()], -1)),
    "slice_scatter": on((4,), (2,), do=lambda t, u: torch.slice_scatter(t, u, 1, 0, 2) + t),
    "slice_scatter with steps": on(
        (4,), (2,), do=lambda t, u: torch.slice_scatter(t, u, 1, 0, 4, 2) + t, smaller="steps are not followed"
    ),
    "select_scatter": on((2, 3), (3,), do=lambda t, u: torch.select_scatter(t, u, 1, 1) + t),
}

MOVED = "only orders that move whole parts are followed"
BORDERS = {
    "roll": on((3,), do=lambda t: t + 2 * t.roll(1, 1), smaller=MOVED),
    "roll of another axis": on((2, 3), do=lambda t: t + 2 * t.roll(1, 2), smaller=MOVED),
    "roll of everything": on((3,), do=lambda t: t + 2 * t.roll(2)),
    "flip": on((3, 2), do=lambda t: t + 2 * t.flip(1), smaller=MOVED),
    "constant_pad_nd": on((3,), do=lambda t: aten.constant_pad_nd(t, [1, 2], 0.5).exp(), smaller=MOVED),
    "pad": on((2, 3), do=lambda t: pad(t, (0, 1, 1, 0), value=2.0).exp()),
    "pad that cuts": on((4,), do=lambda t: pad(t, (-1, 1)).exp() + t),
    "pad by reflection": on((2, 3), do=lambda t: pad(t, (1, 2), mode="reflect"), smaller=MOVED),
    "pad by replication": on((2, 3), do=lambda t: pad(t, (1, 0), mode="replicate"), smaller=MOVED),
    "pad in a circle": on((2, 3), do=lambda t: pad(t, (1, 0), mode="circular"), smaller=MOVED),
    "pixel_shuffle": on((4, 1, 2), do=lambda t: pixel_shuffle(t, 2)),
    "pixel_unshuffle": on((2, 2, 2), do=lambda t: pixel_unshuffle(t, 2)),
    "channel_shuffle": on((4, 2, 1), do=lambda t: channel_shuffle(t, 2).cos(), smaller=MOVED),
    "native_channel_shuffle": on((4, 2, 1), do=lambda t: torch.native_channel_shuffle(t, 2).cos(), smaller=MOVED),
}

CASES = {**AXES, **SHAPES, **COPIES, **PARTS, **JOINS, **BORDERS}
