"""Operations that multiply and sum: all are einsum."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from string import ascii_lowercase as letters

from mergeline.symmetry.contraction import einsum
from mergeline.symmetry.labels import FIXED, AbstractTensor, UnsupportedError
from mergeline.symmetry.movement import expand, merge, unsqueeze
from mergeline.symmetry.primitives import drop, freeze, freeze_all, normalise, pointwise, reduce, tie_all
from mergeline.symmetry.rules.table import Call, rule


@rule("linear")
def linear(call: Call, x: AbstractTensor, weight: AbstractTensor, bias: AbstractTensor | None = None) -> AbstractTensor:
    """Sums over the input units, gives the output units."""
    lead = letters[: x.ndim - 1]
    equation = f"{lead}y,zy->{lead}z" if weight.ndim == 2 else f"{lead}y,y->{lead}"
    result = einsum(equation, [x, weight], call.record, call.node)
    return result if bias is None else pointwise([result, bias])


_EQUATIONS = {"mm": "ay,yz->az", "mv": "ay,y->a", "dot": "y,y->", "vdot": "y,y->", "bmm": "bay,byz->baz"}


@rule("mm", "mv", "dot", "vdot", "bmm")
def product(
    call: Call,
    x: AbstractTensor,
    mat2: AbstractTensor | None = None,
    vec: AbstractTensor | None = None,
    tensor: AbstractTensor | None = None,
    other: AbstractTensor | None = None,
) -> AbstractTensor:
    """Products of matrices and vectors."""
    other = mat2 or vec or tensor or other
    assert other is not None
    return einsum(_EQUATIONS[call.name], [x, other], call.record, call.node)


@rule("addmm")
def addmm(call: Call, x: AbstractTensor, mat1: AbstractTensor, mat2: AbstractTensor) -> AbstractTensor:
    """A matrix product and a sum."""
    return pointwise([einsum("ay,yz->az", [mat1, mat2], call.record, call.node), x])


@rule("baddbmm")
def baddbmm(call: Call, x: AbstractTensor, batch1: AbstractTensor, batch2: AbstractTensor) -> AbstractTensor:
    """Matrix products and a sum."""
    return pointwise([einsum("bay,byz->baz", [batch1, batch2], call.record, call.node), x])


@rule("matmul", "linalg_matmul")
def matmul(call: Call, x: AbstractTensor, other: AbstractTensor) -> AbstractTensor:
    """Matrix products over broadcast leading axes; vectors stand for one row or column."""
    lead = letters[: max(x.ndim, other.ndim, 2) - 2]
    left = "y" if x.ndim == 1 else f"{lead[len(lead) - x.ndim + 2 :]}xy"
    right = "y" if other.ndim == 1 else f"{lead[len(lead) - other.ndim + 2 :]}yz"
    kept = lead + ("x" if x.ndim > 1 else "") + ("z" if other.ndim > 1 else "")
    return einsum(f"{left},{right}->{kept}", [x, other], call.record, call.node)


@rule("einsum")
def einstein(call: Call, equation: str, tensors: Sequence[AbstractTensor]) -> AbstractTensor:
    """Written out; diagonals are not known."""
    terms, kept = _written_out(equation.replace(" ", ""), tensors)
    if any(len(set(term)) < len(term) for term in terms):
        raise UnsupportedError(f"einsum '{equation}'")
    return einsum(f"{','.join(terms)}->{kept}", tensors, call.record, call.node)


def _written_out(equation: str, tensors: Sequence[AbstractTensor]) -> tuple[list[str], str]:
    """The terms and the result with letters for dots; without an arrow, what occurs once is kept, in order."""
    left, arrow, kept = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    hidden = [x.ndim - len(term.replace("...", "")) for x, term in zip(tensors, terms, strict=True)]
    dots = "".join(free[: max(0, *hidden)])
    if not arrow:
        kept = "..." + "".join(sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1))
    written = [term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, hidden, strict=True)]
    return written, kept.replace("...", dots)


@rule("bilinear")
def bilinear(
    call: Call,
    input1: AbstractTensor,
    input2: AbstractTensor,
    weight: AbstractTensor,
    bias: AbstractTensor | None = None,
) -> AbstractTensor:
    """A matrix between two inputs for each output."""
    lead = letters[: input1.ndim - 1]
    result = einsum(f"{lead}x,{lead}y,zxy->{lead}z", [input1, input2, weight], call.record, call.node)
    return result if bias is None else pointwise([result, bias])


@rule("cosine_similarity")
def cosine_similarity(call: Call, x1: AbstractTensor, x2: AbstractTensor, dim: int = 1) -> AbstractTensor:
    """A product of two tensors, summed over an axis and scaled by sums over it."""
    return reduce(pointwise([x1, x2]), [dim])


@rule("tensordot")
def tensordot(
    call: Call, x: AbstractTensor, other: AbstractTensor, dims_self: Sequence[int], dims_other: Sequence[int]
) -> AbstractTensor:
    """Sums over pairs of axes; the other axes of both follow one another."""
    left, right = list(letters[: x.ndim]), list(letters[x.ndim : x.ndim + other.ndim])
    for i, j in zip(dims_self, dims_other, strict=True):
        right[j % other.ndim] = left[i % x.ndim]
    summed = {left[i % x.ndim] for i in dims_self}
    kept = [letter for letter in left + right if letter not in summed]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", [x, other], call.record, call.node)


@rule("outer", "ger")
def outer(call: Call, x: AbstractTensor, vec2: AbstractTensor) -> AbstractTensor:
    """All products of two vectors."""
    return einsum("x,y->xy", [x, vec2], call.record, call.node)


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
)  # fmt: skip
def attention(
    call: Call,
    query: AbstractTensor,
    key: AbstractTensor,
    value: AbstractTensor,
    attn_mask: AbstractTensor | None = None,
    attn_bias: AbstractTensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> object:
    """softmax(q k + mask) v; q and k share their inner units, all three share the heads."""
    if is_causal:
        query = freeze(query, -2, "a causal mask tells places")
        key = freeze(key, -2, "a causal mask tells places")
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeat_heads(t, query.shape[-3]) for t in (key, value))
    lead = letters[: query.ndim - 2]
    scores = einsum(f"{lead}xd,{lead}yd->{lead}xy", [query, key], call.record, call.node)
    mask = attn_mask or attn_bias
    if mask is not None:
        scores = pointwise([scores, mask])
    weights = normalise(scores, [-1])
    return call.first(einsum(f"{lead}xy,{lead}yd->{lead}xd", [weights, value], call.record, call.node))


def _repeat_heads(x: AbstractTensor, heads: int) -> AbstractTensor:
    """Each head of keys or values serves several heads of queries."""
    axis = x.ndim - 3
    x = unsqueeze(x, axis + 1)
    return merge(expand(x, [heads // x.shape[axis] if j == axis + 1 else -1 for j in range(x.ndim)]), axis)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(
    call: Call,
    x: AbstractTensor,
    mat2: AbstractTensor | None = None,
    weight: AbstractTensor | None = None,
    offs: object = None,
) -> AbstractTensor:
    """Rows sorted by expert, each times its expert's matrix: which expert is which is data; the rest is a product."""
    weight = mat2 or weight
    if weight is None or weight.ndim != 3 or x.ndim != 2:
        raise UnsupportedError("grouped products of other shapes")
    if isinstance(offs, AbstractTensor):
        freeze_all(offs, "places of experts among sorted rows")
    x = tie_all(freeze(x, 0, "rows sorted by expert"), 0)
    weight = drop(tie_all(freeze(weight, 0, "experts are chosen by data"), 0), 0)
    result = einsum("tk,kn->tn", [x, weight], call.record, call.node)
    return result.with_label(0, FIXED)
