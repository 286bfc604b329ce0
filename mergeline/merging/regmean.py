"""RegMean and RegMean++: least squares over the layers' inputs.

RegMean: Jin et al. 2023, Dataless knowledge fusion by merging weights of language models, arXiv 2212.09849.
RegMean++: Nguyen et al. 2025, Enhancing effectiveness and generalization of regression mean, arXiv 2508.03121.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mergeline.errors import InputError
from mergeline.merging.least_squares import solve
from mergeline.merging.registry import method
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from mergeline.merging.registry import Piece

RIDGE = 1e-5  # of the scaled Gram matrix: what is much smaller is the rounding of its float32 entries
Alpha = Annotated[float, Field(ge=0, le=1)]


@method("regmean", needs_base=False, evidence="gram", whole_tensors=True, idempotent=True)
def regmean(models: Tensor, *, where: Piece, evidence: Tensor | None, alpha: Alpha = 0.9) -> Tensor:
    """Each layer's outputs stay as near as they can to those of the task models on their own data (least squares).

    W = (sum_i W_i G_i) (sum_i G_i)^-1 for W [out, in],  G_i = X_i^T X_i / rows of X_i
    Convolutions are matrices [out, in * k * k]. Tensors without a Gram matrix, and what no data says, are averaged.
    models: [n, *shape] float32. evidence: G_i [n, in, in] float32, or None. alpha: factor of the off-diagonals of G_i;
    0 is an average weighted by input, 1 may be near singular. Returns [*shape] float32.
    """
    return regression_mean(where.name, models, evidence, alpha)


@method("regmean_plusplus", needs_base=False, evidence="merged_gram", whole_tensors=True, idempotent=True)
def regmean_plusplus(models: Tensor, *, where: Piece, evidence: Tensor | None, alpha: Alpha = 0.9) -> Tensor:
    """RegMean on the inputs that each layer has in the merged model, whose earlier layers are merged already.

    W = (sum_i W_i G_i) (sum_i G_i)^-1,  G_i = X_i^T X_i / rows of X_i,  X_i: inputs of the layer where the data of task
    i run through the merged layers before it (`merged_gram_matrices`; it must have used the same alpha).
    models: [n, *shape] float32. evidence: G_i [n, in, in] float32, or None: then the mean. alpha: factor of the
    off-diagonals of G_i. Returns [*shape] float32.
    """
    return regression_mean(where.name, models, evidence, alpha)


def regression_mean(name: str, models: Tensor, evidence: Tensor | None, alpha: float) -> Tensor:
    """The formula of both: models [n, *shape] and G_i [n, in, in] or None, float32 -> [*shape] float32.

    InputError naming the tensor where the Gram matrices are of another width. Sums and solution are float64.
    """
    mean = weighted_sum(models, None) / len(models)
    if evidence is None:
        return mean.float()
    shape = models.shape[1:]
    weights = models.reshape(len(models), shape[0], -1)
    inputs = weights.shape[2]
    if tuple(evidence.shape) != (len(models), inputs, inputs):
        width = evidence.shape[-1]
        raise InputError(f"regmean: the Gram matrices of {name!r} are {width} x {width}, not {inputs} x {inputs}.")
    mean = mean.view(shape[0], inputs)
    total = mean.new_zeros(inputs, inputs)
    pull = mean.new_zeros(mean.shape)
    from mergeline.threads import one_thread

    with one_thread():
        for weight, gram in zip(weights, evidence, strict=True):
            gram = gram.double()
            gram = gram.mul(alpha).diagonal_scatter(gram.diagonal())
            total += gram
            pull += (weight.double() - mean) @ gram  # from the mean, so that what no data says stays there
        return (mean + _solve(total, pull)).float().view(shape)


def _solve(gram: Tensor, pull: Tensor) -> Tensor:
    """pull @ gram^-1 for a symmetric gram [in, in] >= 0, and nearly 0 along directions that no data has: [out, in].

    The matrix is scaled to a unit diagonal, so that inputs of all sizes count alike, and gets a ridge.
    """
    scale = gram.diagonal().clamp(min=0).rsqrt()
    scale[~scale.isfinite()] = 0  # inputs that are always 0
    scaled = (gram * scale[:, None] * scale).fill_diagonal_(1)
    return solve(scaled, pull * scale, RIDGE) * scale
