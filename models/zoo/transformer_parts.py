"""What the definitions of transformers' models share: small configurations, and one kind of case each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, prepare

HIDDEN, HEADS, LAYERS = 64, 4, 2
FP16, BF16 = torch.float16, torch.bfloat16

TOKENS: dict[str, Any] = {"vocab_size": 100}
BERT: dict[str, Any] = {
    **TOKENS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
VIT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA: dict[str, Any] = {**BERT, **SPECIAL, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {**TOKENS, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
SEQ2SEQ: dict[str, Any] = {
    **TOKENS,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
T5: dict[str, Any] = {
    **TOKENS,
    "d_model": HIDDEN,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
EXPERTS: dict[str, Any] = {**LLAMA, "num_experts_per_tok": 1, "experts_implementation": "batched_mm"}
SPEECH: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
}
TEXT = {"batch": 2, "seq": 12}


def encoder_case(
    model: Any, attentions: int = LAYERS, peer: str = "bert", dtype: torch.dtype = torch.float32, gain: float = 8
) -> Case:
    """Return a text encoder with a mask."""
    module = Call(prepare(model, dtype, gain), lambda m, i, a: m(input_ids=i, attention_mask=a).last_hidden_state)
    inputs = {"input_ids": Input("ids", ("batch", "seq")), "attention_mask": Input("mask", ("batch", "seq"))}
    return Case(module, inputs, TEXT, attentions, peer=(peer, HEADS, HIDDEN), dtype=dtype)


def vision_case(
    model: Any,
    attentions: int = LAYERS,
    size: int = 32,
    peer: str = "vit",
    dtype: torch.dtype = torch.float32,
    gain: float = 8,
) -> Case:
    """Return an image encoder; ``size`` is that of the sides."""
    module = Call(prepare(model, dtype, gain), lambda m, x: m(pixel_values=x).last_hidden_state)
    inputs = {"pixel_values": Input("float", ("batch", 3, size, size))}
    return Case(module, inputs, {"batch": 2}, attentions, peer=(peer, HEADS, HIDDEN), dtype=dtype)


def decoder_case(
    model: Any, peer: str = "gpt2", mask: bool = True, dtype: torch.dtype = torch.float32, attentions: int = LAYERS
) -> Case:
    """Return a causal decoder without a past."""
    inputs = {"input_ids": Input("ids", ("batch", "seq"))}
    function: Callable[..., Any]
    if mask:
        inputs["attention_mask"] = Input("mask", ("batch", "seq"))

        def function(m: Any, i: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            return m(input_ids=i, attention_mask=a, use_cache=False).logits
    else:

        def function(m: Any, i: torch.Tensor) -> torch.Tensor:
            return m(input_ids=i, use_cache=False).logits

    return Case(
        Call(prepare(model, dtype), function), inputs, TEXT, attentions, peer=(peer, HEADS, HIDDEN), dtype=dtype
    )


def decoder_with_past_case(model: Any, kv_heads: int = HEADS, dtype: torch.dtype = torch.float32) -> Case:
    """One step with a past: key and value of each layer go in and come out."""

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        cache = t.DynamicCache()
        for layer in range(LAYERS):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = m(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        return (out.logits, *(x for layer in cache.layers for x in (layer.keys, layer.values)))

    inputs = {
        "input_ids": Input("ids", ("batch", "seq")),
        "attention_mask": Input("mask", ("batch", "total")),
        "position_ids": Input("positions", ("batch", "seq")),
    }
    outputs = ["logits"]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = Input("float", ("batch", kv_heads, "past", HIDDEN // HEADS))
            outputs.append(f"present.{layer}.{part}")
    sizes = {"batch": 2, "seq": 3, "past": 5, "total": 8}
    module = Call(prepare(model, dtype), function)
    return Case(module, inputs, sizes, LAYERS, outputs, ("gpt2", HEADS, HIDDEN), dtype)


def seq2seq_case(model: Any, peer: str, gain: float = 8) -> Case:
    """Return encoder and decoder in one, without a past; three attentions for each layer of either."""

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, decoder_ids: torch.Tensor) -> torch.Tensor:
        return m(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)[0]

    inputs = {
        "input_ids": Input("ids", ("batch", "source")),
        "attention_mask": Input("mask", ("batch", "source")),
        "decoder_input_ids": Input("ids", ("batch", "target")),
    }
    sizes = {"batch": 2, "source": 12, "target": 7}
    module = Call(prepare(model, gain=gain), function)
    return Case(module, inputs, sizes, 3 * LAYERS, peer=(peer, HEADS, HIDDEN))
