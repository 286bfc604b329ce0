"""Recurrent cells and layers, composed of contractions: the hidden units are one family through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergeline.symmetry.contraction import einsum
from mergeline.symmetry.labels import FIXED, AbstractTensor, UnsupportedError
from mergeline.symmetry.movement import concatenate, select, slice_axis, unsqueeze
from mergeline.symmetry.primitives import drop, freeze, pointwise, tie_all
from mergeline.symmetry.rules.table import Call, rule

Optional = AbstractTensor | None
State = tuple[AbstractTensor, ...]
Weights = Sequence[Optional]  # input weight, hidden weight, input bias, hidden bias
Cell = Callable[[Call, AbstractTensor, State, Weights], State]


def _gates(call: Call, x: AbstractTensor, hidden: AbstractTensor, weights: Weights, count: int) -> list[AbstractTensor]:
    """The `count` parts of the two affine maps of input and hidden state."""
    parts = []
    for source, weight, bias in ((x, weights[0], weights[2]), (hidden, weights[1], weights[3])):
        assert weight is not None
        value = einsum("bi,oi->bo", [source, weight], call.record, call.node)
        value = value if bias is None else pointwise([value, bias])
        units = value.shape[1] // count
        parts += [slice_axis(value, 1, k * units, (k + 1) * units) for k in range(count)]
    return parts


def _lstm(call: Call, x: AbstractTensor, state: State, weights: Weights) -> State:
    hidden, cell = state
    cell = pointwise([*_gates(call, x, hidden, weights, 4), cell])
    return cell, cell


def _gru(call: Call, x: AbstractTensor, state: State, weights: Weights) -> State:
    return (pointwise([*_gates(call, x, state[0], weights, 3), state[0]]),)


def _plain(call: Call, x: AbstractTensor, state: State, weights: Weights) -> State:
    return (pointwise(_gates(call, x, state[0], weights, 1)),)


@rule("lstm_cell")
def lstm_cell(
    call: Call,
    x: AbstractTensor,
    hx: Sequence[AbstractTensor],
    w_ih: AbstractTensor,
    w_hh: AbstractTensor,
    b_ih: Optional = None,
    b_hh: Optional = None,
) -> object:
    """Four gates move like hidden and cell state."""
    return _lstm(call, x, tuple(hx), (w_ih, w_hh, b_ih, b_hh))


@rule("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def simple_cell(
    call: Call,
    x: AbstractTensor,
    hx: AbstractTensor,
    w_ih: AbstractTensor,
    w_hh: AbstractTensor,
    b_ih: Optional = None,
    b_hh: Optional = None,
) -> AbstractTensor:
    """The gates move like the hidden state."""
    cell = _gru if call.name == "gru_cell" else _plain
    return cell(call, x, (hx,), (w_ih, w_hh, b_ih, b_hh))[0]


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent_layers(
    call: Call,
    x: AbstractTensor,
    params: Sequence[AbstractTensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    hx: AbstractTensor | Sequence[AbstractTensor],
    batch_first: bool | None = None,
) -> object:
    """Layers of cells over time: time is in order, each layer and direction has its hidden units."""
    states = [hx] if isinstance(hx, AbstractTensor) else list(hx)
    directions, count = (2 if bidirectional else 1), (4 if has_biases else 2)
    if batch_first is None or x.ndim != 3 or len(params) != count * directions * num_layers:
        raise UnsupportedError("packed sequences, single sequences or projected states")
    cell: Cell = {"lstm": _lstm, "gru": _gru}.get(call.name, _plain)
    time = 1 if batch_first else 0
    x = tie_all(freeze(x, time, "time is in order"), time)
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = [*params[place * count : (place + 1) * count], None, None]
            state = tuple(select(s, 0, place) for s in states)
            for _ in range(2):  # the second step meets what the first made of the state: a fixed point
                state = cell(call, drop(x, time), state, weights)
            outputs.append(state[0])
            last.append(state)
        length = x.shape[time]
        x = unsqueeze(concatenate(outputs, 1), time)
        shape = (*x.shape[:time], length, *x.shape[time + 1 :])
        x = AbstractTensor(x.domains, shape, (*x.labels[:time], FIXED, *x.labels[time + 1 :]), activation=True)
    stacked = [concatenate([unsqueeze(state[k], 0) for state in last], 0) for k in range(len(states))]
    return (x, *stacked)
