"""The columns of convolutions and their products are those of the plain definition, and weights survive the round."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad, unfold

from mergeline.calibration.forms import Convolution, Linear, Scale, Taps, against, columns, products, sums


def convolutions() -> st.SearchStrategy[Convolution]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    ends = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return st.builds(
        Convolution,
        kernel=pair,
        stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        padding=st.tuples(ends, ends),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        groups=st.sampled_from([1, 2, 4]),
    )


def plain(form: Convolution, x: Tensor) -> Tensor:
    """[g, inputs, columns] of torch's unfold, in the order of `to_matrix`, columns by row, example, the rest."""
    padded = pad(x, [*form.padding[1], *form.padding[0]])
    reach = [d * (k - 1) + 1 for d, k in zip(form.dilation, form.kernel, strict=True)]
    out = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, form.stride, strict=True)]
    patches = unfold(padded, form.kernel, form.dilation, 0, form.stride)  # [b, c * kh * kw, places]
    patches = patches.unflatten(1, (form.groups, -1, *form.kernel)).unflatten(-1, out)  # [b, g, c, kh, kw, h, w]
    return patches.permute(1, 3, 2, 4, 5, 0, 6).flatten(1, 3).flatten(2)


@given(form=convolutions(), seed=st.integers(0, 99), batch=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_taps_of_a_convolution_are_its_patches_and_products_their_products(
    form: Convolution, seed: int, batch: int
) -> None:
    x = torch.randn(batch, 4, 7, 6, generator=torch.Generator().manual_seed(seed))
    expected = plain(form, x)

    taps = form.taps(x, torch.zeros(4), None)

    torch.testing.assert_close(torch.cat(taps.matrices, dim=1), expected)
    torch.testing.assert_close(products(taps, taps).float(), expected @ expected.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums(taps).float(), expected.sum(dim=2), rtol=1e-4, atol=1e-4)
    values = form.apply(
        x, torch.randn(8, 4 // form.groups, *form.kernel, generator=torch.Generator().manual_seed(seed))
    )
    rows = columns(values, form, None).reshape(form.groups, -1, expected.shape[2])
    torch.testing.assert_close(form.cross(x, values), rows @ expected.mT, rtol=1e-3, atol=1e-3)


@given(form=convolutions(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_weight_as_a_matrix_times_the_columns_is_the_convolution(form: Convolution, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 7, 6, generator=generator)
    weight = torch.randn(8, 4 // form.groups, *form.kernel, generator=generator)
    shift = torch.randn(4, generator=generator)

    given = torch.cat(form.taps(x, shift, None).matrices, dim=1) + form.by_input(shift)[:, :, None]

    expected = columns(form.apply(x, weight), form, None).reshape(form.groups, -1, given.shape[2])
    torch.testing.assert_close(form.to_matrix(weight) @ given, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(form.to_weight(form.to_matrix(weight), weight), weight)


@given(form=convolutions(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_chosen_places_give_the_columns_of_these_places(form: Convolution, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 7, 6, generator=generator)
    weight = torch.randn(8, 4 // form.groups, *form.kernel, generator=generator)
    output = form.apply(x, weight)
    places = torch.randperm(output[0, 0].numel(), generator=generator)[:3].sort().values

    (some,) = form.taps(x, torch.zeros(4), places).matrices

    expected = columns(output, form, places).reshape(form.groups, -1, some.shape[2])
    torch.testing.assert_close(form.to_matrix(weight) @ some, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("places", [None, torch.tensor([0, 2])])
def test_a_linear_layer_over_words_has_a_column_for_each_word(transposed: bool, places: Tensor | None) -> None:
    form, x, weight = Linear(transposed), torch.randn(2, 4, 3), torch.randn(5, 3)
    stored = weight.T if transposed else weight
    (matrix,) = form.taps(x, torch.zeros(3), places).matrices
    expected = columns(form.apply(x, stored), form, places)
    torch.testing.assert_close((form.to_matrix(stored) @ matrix)[0], expected)
    assert expected.shape[1] == (8 if places is None else 4)


def test_a_scale_is_a_map_of_one_input_per_channel() -> None:
    form, x, weight = Scale(3), torch.randn(2, 3, 4, 5), torch.randn(3)
    (matrix,) = form.taps(x, torch.zeros(3), None).matrices
    expected = columns(form.apply(x, weight), form, None)
    torch.testing.assert_close((form.to_matrix(weight) @ matrix).flatten(0, 1), expected)


def test_products_of_many_inputs_are_computed_once_on_each_side_of_the_diagonal() -> None:
    matrix, values = torch.randn(2, 130, 50), torch.randn(2, 3, 50)
    taps = Taps((matrix,))
    torch.testing.assert_close(products(taps, taps).float(), matrix @ matrix.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(against(values, taps).float(), values @ matrix.mT, rtol=1e-4, atol=1e-4)
