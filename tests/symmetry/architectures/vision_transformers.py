"""Vision transformers as timm and as torchvision write them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.symmetry.architectures.architecture import Architecture, images


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values, ordered (3, heads, width)."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.width, self.fused = heads, dim // heads, fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(self.width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.width) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)  # [n, heads, tokens, width]
        if self.fused:
            mixed = scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.width**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, scaled: bool, qk_norm: bool, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, qk_norm, fused)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # [n, patches, dim]


class VisionTransformer(nn.Module):
    def __init__(
        self,
        dim: int = 32,
        depth: int = 3,
        heads: int = 4,
        hidden: int = 128,
        image: int = 16,
        patch: int = 4,
        outputs: int = 10,
        registers: int = 0,
        norm_before: bool = False,
        scaled: bool = False,
        qk_norm: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        patches = (image // patch) ** 2
        self.patch_embed = PatchEmbed(patch, dim, bias=not norm_before)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + 1 + registers, dim))
        self.norm_pre = nn.LayerNorm(dim) if norm_before else nn.Identity()
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, scaled, qk_norm, fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        tokens = [self.cls_token.expand(len(x), -1, -1)]
        if self.reg_token is not None:
            tokens.append(self.reg_token.expand(len(x), -1, -1))
        x = torch.cat([*tokens, x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(self.norm_pre(x)))[:, 0])


class EncoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.ln_2(x))


class TorchvisionViT(nn.Module):
    """torchvision's: patches by reshape, attention by nn.MultiheadAttention."""

    def __init__(self, dim: int = 32, depth: int = 2, heads: int = 4, patches: int = 16) -> None:
        super().__init__()
        self.dim, self.patches = dim, patches
        self.conv_proj = nn.Conv2d(3, dim, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, patches + 1, dim))
        self.layers = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.ln = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.conv_proj(x).reshape(n, self.dim, self.patches).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


ARCHITECTURES = {
    "vit_timm": Architecture(VisionTransformer, images(16)),
    "vit_timm_matmul": Architecture(lambda: VisionTransformer(fused=False), images(16)),
    "vit_timm_qknorm_ls": Architecture(
        lambda: VisionTransformer(qk_norm=True, scaled=True, norm_before=True), images(16)
    ),
    "vit_timm_reg": Architecture(lambda: VisionTransformer(registers=4), images(16)),
    "vit_tv_mha": Architecture(TorchvisionViT, images(16)),
}
