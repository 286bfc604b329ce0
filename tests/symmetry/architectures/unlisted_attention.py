"""Attention and mixture models that no list of supported models has, and models under misleading names."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import gelu, relu, scaled_dot_product_attention, silu

from tests.symmetry.architectures.architecture import Architecture, images, vectors, words
from tests.symmetry.architectures.convolutional import BasicResNet
from tests.symmetry.architectures.swin import Swin
from tests.symmetry.architectures.vision_transformers import VisionTransformer

THREE, HEADS, WIDTH = 3, 3, 4  # queries, keys and values; heads; width of a head


class FusedProjection(nn.Module):
    """One attention layer whose projection holds queries, keys and values in any order of (three, heads, width)."""

    def __init__(self, order: str, dim: int = 5) -> None:
        super().__init__()
        self.order = order
        sizes = {"3": THREE, "h": HEADS, "d": WIDTH}
        self.shape = [sizes[letter] for letter in order]
        self.read, self.qkv = nn.Linear(6, dim), nn.Linear(dim, THREE * HEADS * WIDTH)
        self.out, self.head = nn.Linear(HEADS * WIDTH, dim), nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        x = self.read(x)
        fused = self.qkv(x).view(n, tokens, *self.shape)
        places = {letter: 2 + place for place, letter in enumerate(self.order)}
        q, k, v = fused.permute(places["3"], 0, places["h"], 1, places["d"])
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, HEADS * WIDTH)
        return self.head(x + self.out(mixed))


class Alibi(nn.Module):
    """Each head sees distance with its own constant slope, so heads cannot change places; their insides can."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.read = nn.Linear(6, dim)
        self.q, self.k, self.v = (nn.Linear(dim, HEADS * WIDTH) for _ in range(3))
        self.out, self.head = nn.Linear(HEADS * WIDTH, dim), nn.Linear(dim, 2)
        self.slopes: Tensor
        self.register_buffer("slopes", 0.5 ** torch.arange(1.0, HEADS + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        x = self.read(x)
        q, k, v = (part(x).view(n, tokens, HEADS, WIDTH).transpose(1, 2) for part in (self.q, self.k, self.v))
        place = torch.arange(tokens)
        bias = -self.slopes[:, None, None] * (place[:, None] - place[None, :]).abs()
        weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH) + bias).softmax(dim=-1)
        return self.head(x + self.out((weights @ v).transpose(1, 2).flatten(2)))


class RotaryDecoder(nn.Module):
    """Grouped queries, rotation of half of each head's width, a gate fused with its values, RMS norms."""

    def __init__(self, dim: int = 7, groups: int = 2, repeats: int = 3, hidden: int = 6) -> None:
        super().__init__()
        self.groups, self.repeats = groups, repeats
        self.embed = nn.Embedding(20, dim)
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q = nn.Linear(dim, groups * repeats * WIDTH, bias=False)
        self.kv = nn.Linear(dim, 2 * groups * WIDTH, bias=False)
        self.out = nn.Linear(groups * repeats * WIDTH, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.head = nn.Linear(dim, 20, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        """[n, heads, tokens, width]: the first two of each head's units turn with the position."""
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
        turned, kept = x[..., :2], x[..., 2:]
        partner = torch.cat([-turned[..., 1:], turned[..., :1]], dim=-1)
        return torch.cat([turned * angle.cos() + partner * angle.sin(), kept], dim=-1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n, tokens, _ = x.shape
        y = self.norm1(x)
        q = self.q(y).view(n, tokens, -1, WIDTH).transpose(1, 2)
        k, v = self.kv(y).view(n, tokens, 2, self.groups, WIDTH).permute(2, 0, 3, 1, 4)
        k, v = (part.repeat_interleave(self.repeats, dim=1) for part in (self.rotate(k), v))
        mixed = scaled_dot_product_attention(self.rotate(q), k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return self.head(x + self.down(silu(gate) * up))


class StackedExperts(nn.Module):
    """A dense mixture: all experts in one tensor, each with its own hidden units, weighted by a router."""

    def __init__(self, bias: bool, dim: int = 5, experts: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.read, self.router, self.head = nn.Linear(6, dim), nn.Linear(dim, experts), nn.Linear(dim, 2)
        self.up = nn.Parameter(torch.randn(experts, dim, hidden))
        self.up_bias = nn.Parameter(torch.randn(experts, hidden)) if bias else None
        self.down = nn.Parameter(torch.randn(experts, hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        gates = self.router(x).softmax(dim=-1)  # [n, experts]
        hidden = torch.einsum("nd,edh->neh", x, self.up)
        hidden = gelu(hidden if self.up_bias is None else hidden + self.up_bias)
        return self.head(x + torch.einsum("ne,neh,ehd->nd", gates, hidden, self.down))


class Mixer(nn.Module):
    """Alternates between mixing patches and mixing channels; the patches of a picture have fixed places."""

    def __init__(self, dim: int = 6, patches: int = 4, across: int = 5, within: int = 7) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.across = nn.Sequential(nn.Linear(patches, across), nn.GELU(), nn.Linear(across, patches))
        self.within = nn.Sequential(nn.Linear(dim, within), nn.GELU(), nn.Linear(within, dim))
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.within(self.norm2(x))).mean(1))


class LatentCrossAttention(nn.Module):
    """Learned latents read the inputs (Perceiver): the latents themselves may change places."""

    def __init__(self, dim: int = 6, latents: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.read = nn.Linear(5, dim)
        self.attend = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.attend(latents, x, x, need_weights=False)[0]
        return self.head(self.norm(latents).mean(1))


class Misnamed(nn.Module):
    """A perceptron whose names say something else."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.embed_tokens = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.qkv, self.head = nn.Linear(6, 9), nn.Linear(9, 4)
        self.conv1 = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(relu(self.head(relu(self.qkv(self.embed_tokens(self.bn1(x)))))))


class Renamed(nn.Module):
    """Another model, its tensors under names that tell nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.hidden_model = [model]  # a list keeps it out of this module's own tensors
        self.originals = {}
        for number, (name, tensor) in enumerate(model.state_dict(keep_vars=True).items()):
            nonsense = f"t{number * 7919 % 1009}"
            self.originals[nonsense] = name
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(nonsense, tensor)
            else:
                self.register_buffer(nonsense, tensor)

    def forward(self, x: Tensor) -> Tensor:
        tensors = {original: getattr(self, nonsense) for nonsense, original in self.originals.items()}
        return functional_call(self.hidden_model[0].eval(), tensors, (x,))


ATTENTION = (HEADS, *[WIDTH] * HEADS, *[WIDTH] * HEADS)  # heads; in each head its queries and keys, its values
ARCHITECTURES = {
    "fused qkv (3, h, d)": Architecture(lambda: FusedProjection("3hd"), vectors(2, 4, 6), sizes=(5, *ATTENTION)),
    "fused qkv (h, 3, d)": Architecture(lambda: FusedProjection("h3d"), vectors(2, 4, 6), sizes=(5, *ATTENTION)),
    # Here the width lies outside the heads; an order of the width that differs by head cannot be written.
    "fused qkv (3, d, h)": Architecture(
        lambda: FusedProjection("3dh"), vectors(2, 4, 6), sizes=(5, HEADS, WIDTH, WIDTH)
    ),
    "alibi": Architecture(Alibi, vectors(2, 4, 6), sizes=(5, *ATTENTION[1:])),
    # Two key groups of three queries each; in each group the unturned half of queries and keys, and the values.
    "rotary decoder": Architecture(RotaryDecoder, words(20, 5), sizes=(7, 6, 2, 3, 3, 2, 2, 4, 4)),
    "stacked experts": Architecture(lambda: StackedExperts(bias=False), vectors(3, 6), sizes=(5, 3, 4, 4, 4)),
    # The axis of a matrix may keep one order for all rows, and the bias is a matrix: hidden units of all experts tied.
    "stacked experts with bias": Architecture(lambda: StackedExperts(bias=True), vectors(3, 6), sizes=(5, 3, 4)),
    "mixer": Architecture(Mixer, images(8), sizes=(6, 5, 7)),
    # One matrix projects latents and inputs alike, so both streams have one order.
    "latent cross attention": Architecture(LatentCrossAttention, vectors(2, 5, 5), sizes=(6, 4, 2, 3, 3, 3, 3)),
    "misnamed": Architecture(Misnamed, vectors(3, 5), sizes=(6, 9, 4)),
    "nonsense names, resnet": Architecture(
        lambda: Renamed(BasicResNet(blocks=(1, 1), widths=(4, 6))), images(8), sizes=(4, 4, 6, 6)
    ),
    "nonsense names, vit": Architecture(
        lambda: Renamed(VisionTransformer(dim=6, depth=1, heads=2, hidden=5)),
        images(16),
        sizes=(6, 2, 3, 3, 3, 3, 5),
    ),
    "nonsense names, swin": Architecture(
        lambda: Renamed(Swin(dim=4, heads=(2, 2))),
        images(32),
        sizes=(4, 8) + 2 * (2, 2, 2, 2, 2, 16) + 2 * (2, 4, 4, 4, 4, 32),
    ),
}
