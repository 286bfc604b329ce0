"""Models of the transformers library that nobody looked at while the rules were written."""

from typing import Any

import torch
from torch import Tensor

from tests.symmetry.architectures.architecture import Architecture, images, vectors, words
from tests.symmetry.architectures.huggingface import TEXT, model, picture_model

IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "use_cache": False,
    **IDS,
}
ENCODER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def decoder(name: str, **options: Any) -> Architecture:
    build = model(f"{name}ForCausalLM", f"{name}Config", **{**DECODER, **options})
    return Architecture(build, words(40, 7), needs="transformers")


def sound_and_text() -> tuple[Tensor, ...]:
    return torch.randn(2, 8, 20), torch.randint(3, 40, (2, 5))


ARCHITECTURES = {
    "hf_gpt_neox": decoder("GPTNeoX", rotary_pct=0.5),
    "hf_bloom": decoder("Bloom", n_layer=1, n_head=4),
    "hf_qwen3": decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "hf_mixtral": decoder("Mixtral", num_key_value_heads=2, num_local_experts=4),
    "hf_mamba": decoder("Mamba", hidden_size=16, state_size=4),
    "hf_deberta": Architecture(
        model(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            max_relative_positions=8,
            **ENCODER,
            **TEXT,
        ),
        words(40, 7),
        needs="transformers",
    ),
    "hf_whisper": Architecture(
        model(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            names=("input_features", "decoder_input_ids"),
            vocab_size=40,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=16,
            use_cache=False,
            decoder_start_token_id=2,
            **IDS,
        ),
        sound_and_text,
        needs="transformers",
    ),
    "hf_wav2vec2": Architecture(
        model(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            names=("input_values",),
            vocab_size=20,
            conv_dim=(16, 16),
            conv_stride=(4, 2),
            conv_kernel=(8, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            **ENCODER,
        ),
        vectors(2, 400),
        needs="transformers",
    ),
    "hf_segformer": Architecture(
        picture_model(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[8, 16, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 2],
            decoder_hidden_size=16,
            num_labels=5,
        ),
        images(32),
        needs="transformers",
    ),
}
