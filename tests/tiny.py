"""Tiny random models and a matching tokenizer, made in memory: ``from tests.tiny import tiny_model``.

Hidden size 16, two layers, a vocabulary of about 340 and at most 128 tokens. Everything here is a pure
function of its arguments, and nothing touches the global random number generators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

CAUSAL_FAMILIES = ("llama", "qwen2", "opt", "gpt2", "phi")
FAMILIES = (*CAUSAL_FAMILIES, "roberta")

#: Further families, which tests/test_families.py takes through everything.
MORE_CAUSAL_FAMILIES = ("qwen3", "mistral", "gemma", "gemma2", "gemma3")
MORE_FAMILIES = (*MORE_CAUSAL_FAMILIES, "bert")

MASKED_FAMILIES = ("roberta", "bert")

CONTEXT = 128

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

#: Each of these is a single token; every other text falls apart into bytes and word beginnings.
WORDS = (" great", " terrible", " yes", " no", " good", " bad", " the", " it", " was", " red", " blue")


def tiny_tokenizer(kind: str = "causal", add_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 5 special tokens, 256 bytes, and the beginnings of :data:`WORDS`.

    ``causal`` puts ``<s>`` in front where ``add_bos``; ``masked`` wraps a text in ``<s>`` and ``</s>``.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = [*SPECIALS, *symbols], []
    for word in WORDS:
        spelled = word.replace(" ", "Ġ")
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in pieces:
                merges.append((spelled[: end - 1], spelled[end - 1]))
                pieces.append(spelled[:end])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, lstrip=name == "<mask>") for name in SPECIALS])
    if kind == "masked" or add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if kind == "masked" else "<s> $A",
            special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=CONTEXT,
    )


def tiny_wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT has: lower case, spaces are no part of a token, ``[CLS]`` and ``[SEP]``."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), *(word.strip() for word in WORDS)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=CONTEXT,
    )


def family_kind(family: str) -> str:
    """``masked`` or ``causal``."""
    return "masked" if family in MASKED_FAMILIES else "causal"


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer that fits :func:`tiny_model`."""
    return tiny_wordpiece() if family == "bert" else tiny_tokenizer(family_kind(family))


def tiny_config(family: str, tied: bool = True) -> PreTrainedConfig:
    """The configuration of :func:`tiny_model`."""
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    common: dict[str, Any] = {
        "vocab_size": len(tiny_tokenizer()),
        "initializer_range": 0.2,  # large enough for losses that differ from the uniform one
        "tie_word_embeddings": tied,
        **ids,
    }
    layers: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family in ("llama", "qwen2", "phi", *MORE_CAUSAL_FAMILIES):
        config_class = {
            "llama": LlamaConfig,
            "qwen2": Qwen2Config,
            "phi": PhiConfig,
            "qwen3": Qwen3Config,
            "mistral": MistralConfig,
            "gemma": GemmaConfig,
            "gemma2": Gemma2Config,
            "gemma3": Gemma3TextConfig,
        }[family]
        if family in MORE_CAUSAL_FAMILIES:
            layers["head_dim"] = 12  # theirs is not hidden_size / num_attention_heads
        if family in ("mistral", "gemma2", "gemma3"):
            layers["sliding_window"] = 8  # shorter than the prompts of the tests
        return config_class(
            **common, **layers, num_key_value_heads=1, intermediate_size=32, max_position_embeddings=CONTEXT
        )
    if family == "opt":
        common["init_std"] = common.pop("initializer_range")
        return OPTConfig(**common, **layers, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=CONTEXT)
    if family == "gpt2":
        return GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT)
    if family == "bert":
        return BertConfig(**common, **layers, intermediate_size=32, max_position_embeddings=CONTEXT)
    if family == "roberta":
        return RobertaConfig(
            **common, **layers, intermediate_size=32, max_position_embeddings=CONTEXT + 2, type_vocab_size=1
        )
    raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")


def tiny_model(family: str, tied: bool = True, seed: int = 0) -> PreTrainedModel:
    """A random model of one of :data:`FAMILIES` in evaluation mode, float32."""
    model_class = {
        "llama": LlamaForCausalLM,
        "qwen2": Qwen2ForCausalLM,
        "opt": OPTForCausalLM,
        "gpt2": GPT2LMHeadModel,
        "phi": PhiForCausalLM,
        "roberta": RobertaForMaskedLM,
        "qwen3": Qwen3ForCausalLM,
        "mistral": MistralForCausalLM,
        "gemma": GemmaForCausalLM,
        "gemma2": Gemma2ForCausalLM,
        "gemma3": Gemma3ForCausalLM,
        "bert": BertForMaskedLM,
    }[family]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model_class(tiny_config(family, tied)).eval()


def save_tiny(family: str, folder: str | Path, tied: bool = True, seed: int = 0) -> Path:
    """Write the model and its tokenizer to ``folder`` in the layout that ``from_pretrained`` reads."""
    tiny_model(family, tied, seed).save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return Path(folder)
