"""Sentence encoders: BERT (Devlin et al. 2019), mean of its tokens, unit length, as in Sentence-BERT (1908.10084).

The defaults describe all-MiniLM-L6-v2, and the names of the tensors are those of its published weights. Those also hold
a pooler, which the sentence embedding does not use, and the list of positions; this module has neither.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from mergeline.errors import InputError
from mergeline.threads import one_import


def sentence_bert(
    *,
    vocab_size: int = 30522,
    hidden_size: int = 384,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 12,
    intermediate_size: int = 1536,
    max_position_embeddings: int = 512,
) -> nn.Module:
    """Build the network with the library's random initialisation: the same under the same `torch.manual_seed`.

    It maps token ids and attention mask [n, 2, length] int64 (`mergeline.evaluation.texts.tokenize`) to embeddings
    [n, hidden_size] of unit length. There is no dropout. Raises InputError where transformers is not installed.
    """
    try:
        with one_import:
            from transformers import BertConfig, BertModel
    except ImportError as error:
        raise InputError(f"sentence encoders need transformers ({error}); pip install 'mergeline[text]'") from error

    class SentenceBert(BertModel):
        def forward(self, inputs: Tensor) -> Tensor:
            ids, mask = inputs.unbind(dim=1)  # [n, length] each
            tokens = super().forward(input_ids=ids, attention_mask=mask).last_hidden_state  # [n, length, hidden]
            weights = mask[:, :, None].to(tokens.dtype)
            return normalize((tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1), dim=1)

    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = "eager"  # the only one that every exporter and the derivation of symmetries can trace
    return SentenceBert(config, add_pooling_layer=False)
