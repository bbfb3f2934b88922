"""The kinds of base that :mod:`zoft.assets.make_base` makes: which network, how many steps, which learning rate.

All kinds share the tokenizer, the text and its order. ``llama`` is the one that comes with the package; the others
are there so that a result can be seen on more than one size and family. They differ in what matters to a
perturbation of blocks: GPT-2 has biases, layer norms with a shift and a table of positions, Qwen2 has biases of the
queries, keys and values, fewer heads of keys and values than of queries, and an output layer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from zoft.models import initialised

#: Deviation of the initial weights.
SPREAD = 0.08


@dataclass(frozen=True)
class Kind:
    """A kind of base.

    Attributes:
        config, model: the family's classes in transformers.
        shape: fields of the configuration besides the vocabulary and the special tokens.
        steps: optimizer steps by default.
        rate: the highest learning rate.
        about: what it is, for the command line and the documentation.
    """

    config: Callable[..., Any]
    model: Callable[[Any], PreTrainedModel]
    shape: Mapping[str, Any]
    steps: int
    rate: float
    about: str

    def build(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
        """The untrained network; the global random state is left as it was."""
        config = self.config(
            vocab_size=len(tokenizer),
            **self.shape,
            initializer_range=SPREAD,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with initialised(seed):
            return self.model(config)


#: The kind that comes with the package.
SHIPPED_KIND = "llama"

KINDS: dict[str, Kind] = {
    SHIPPED_KIND: Kind(
        LlamaConfig,
        LlamaForCausalLM,
        {
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
        },
        steps=5000,
        rate=3e-3,
        about="Llama, output tied to the embedding, no biases; comes with the package as zoft-base",
    ),
    "gpt2-small": Kind(
        GPT2Config,
        GPT2LMHeadModel,
        {
            "n_embd": 64,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 256,
            "tie_word_embeddings": True,
            # Dropout draws from the global generator, which is not to be touched.
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        steps=5000,
        rate=3e-3,
        about="GPT-2, output tied to the embedding, biases everywhere, a table of 256 positions",
    ),
    "qwen2": Kind(
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
        },
        steps=3500,
        rate=3e-3,
        about="Qwen2, untied, biases of q, k and v, two heads of keys and values for four of queries",
    ),
}
