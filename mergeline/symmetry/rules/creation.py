"""Operations that make tensors from nothing."""

from mergeline.symmetry.labels import AbstractTensor, constant, fixed
from mergeline.symmetry.rules.table import Call, rule


@rule(
    "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
    "empty", "empty_like", "new_empty", "empty_permuted", "empty_strided", "new_empty_strided", "scalar_tensor",
    "zero", "fill",
)  # fmt: skip
def filled(call: Call, **_: object) -> AbstractTensor:
    """One value everywhere: any permutation leaves it as it is."""
    return constant(call.domains, call.shape)


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window", "hamming_window")
def enumerated(call: Call) -> AbstractTensor:
    """The values tell the positions: nothing may move."""
    return fixed(call.domains, call.shape, activation=False)
