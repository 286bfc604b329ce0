"""Models of the transformers library, as they come, in tiny configurations."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.symmetry.architectures.architecture import Architecture, images, words


class Output(nn.Module):
    """A transformers model that returns one tensor of its output; inputs are passed under `names`."""

    def __init__(self, model: nn.Module, key: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.key, self.names = model, key, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)))[self.key]


def model(
    name: str, config: str, *, key: str = "logits", names: tuple[str, ...] = ("input_ids",), **options: Any
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        configuration = getattr(transformers, config)(**options)
        return Output(getattr(transformers, name)(configuration), key, names)

    return build


def picture_model(name: str, config: str, *, key: str = "logits", **options: Any) -> Callable[[], nn.Module]:
    return model(name, config, key=key, names=("pixel_values",), **options)


def t5(width: int, **options: Any) -> Callable[[], nn.Module]:
    shape: dict[str, Any] = {
        "vocab_size": 40,
        "d_model": 32,
        "d_kv": width,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    names = ("input_ids", "decoder_input_ids")
    return model(
        "T5ForConditionalGeneration",
        "T5Config",
        names=names,
        **shape,
        use_cache=False,
        decoder_start_token_id=0,
        **options,
    )


VISION: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION |= {"image_size": 16, "patch_size": 4}
TEXT: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 16}

BUILDERS = {
    "hf_vit": (picture_model("ViTForImageClassification", "ViTConfig", num_labels=10, **VISION), images(16)),
    "hf_resnet": (
        picture_model(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[2, 2, 1],
            num_labels=10,
        ),
        images(32),
    ),
    "hf_swin": (
        picture_model(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            num_labels=10,
        ),
        images(32),
    ),
    "hf_convnext": (
        picture_model(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16, 32],
            depths=[1, 2, 1],
            num_stages=3,
            num_labels=10,
        ),
        images(32),
    ),
    "hf_bert": (
        model(
            "BertForMaskedLM",
            "BertConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            **TEXT,
        ),
        words(40, 7),
    ),
    "hf_distilbert": (
        model(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=48,
            **TEXT,
        ),
        words(40, 7),
    ),
    "hf_gpt2": (
        model(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=40,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=16,
            use_cache=False,
            bos_token_id=1,
            eos_token_id=2,
        ),
        words(40, 7),
    ),
    "hf_llama": (
        model(
            "LlamaForCausalLM",
            "LlamaConfig",
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            use_cache=False,
        ),
        words(40, 7),
    ),
    "hf_t5": (t5(width=8), words(40, 7, 5)),
    "hf_t5_gated": (
        t5(width=6, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        words(40, 7, 5),
    ),
    "hf_clip_vision": (
        picture_model(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", key="image_embeds", projection_dim=24, **VISION
        ),
        images(16),
    ),
}
ARCHITECTURES = {name: Architecture(build, inputs, needs="transformers") for name, (build, inputs) in BUILDERS.items()}
