"""One checkpoint that several hands fill."""

import pickle
from pathlib import Path

import pytest
import torch
from written import Stream, files_in, model

from mergeline.checkpoints import output
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError


@pytest.mark.parametrize("max_shard_size", [None, 800])
def test_ranges_written_in_any_order_and_twice_give_the_same_bytes(tmp_path: Path, max_shard_size: int | None) -> None:
    expected = write_checkpoint(tmp_path / "whole", model(), max_shard_size=max_shard_size)
    stream = Stream(model())
    layout = pickle.loads(pickle.dumps(output.prepare(tmp_path / "parts", stream.specs, max_shard_size=max_shard_size)))
    pieces = [(name, start, piece.clone()) for name, start, piece in stream.pieces(list(stream.specs))]
    for part in (pieces[100:], pieces[:60], pieces[40:120]):
        output.write_range(layout, reversed(part))
    assert output.publish(layout) == expected
    assert files_in(tmp_path / "parts") == sorted(expected.files)


def test_an_output_with_a_hole_is_not_published(tmp_path: Path) -> None:
    stream = Stream(model())
    layout = output.prepare(tmp_path, stream.specs)
    output.write_range(
        layout, (piece for piece in stream.pieces(list(stream.specs)) if piece[:2] != ("layer2.weight", 6))
    )
    with pytest.raises(InputError, match=r"tensor 'layer2\.weight' was not written from entry 6 on"):
        output.publish(layout)
    output.abandon(layout)
    assert files_in(tmp_path) == []


def test_a_range_that_is_not_finite_does_not_count_as_written(tmp_path: Path) -> None:
    layout = output.prepare(tmp_path, {"w": ((2,), torch.float32)})
    with pytest.raises(InputError, match="1 of 2 values of tensor 'w' are NaN"):
        output.write_range(layout, [("w", 0, torch.tensor([1.0, float("inf")]))])
    with pytest.raises(InputError, match="not written from entry 0"):
        output.publish(layout)
