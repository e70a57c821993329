"""Further decoders of the transformers library: ALiBi, partial rotary, experts, latents, static caches."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare
from zoo.transformer_parts import BERT, EXPERTS, HEADS, HIDDEN, LAYERS, LLAMA, SPECIAL, TEXT, TOKENS, decoder_case


@define("decoder", ("eager",))
def mpt(attention: str) -> Case:
    """ALiBi, added by the model itself."""
    config = t.MptConfig(
        **TOKENS,
        d_model=HIDDEN,
        n_heads=HEADS,
        n_layers=LAYERS,
        max_seq_len=64,
        expansion_ratio=1,
        attn_implementation=attention,
    )
    return decoder_case(t.MptForCausalLM(config))


@define("decoder")
def falcon(attention: str) -> Case:
    """One head of K and V for all."""
    config = t.FalconConfig(
        **TOKENS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        attn_implementation=attention,
    )
    return decoder_case(t.FalconForCausalLM(config))


@define("decoder")
def falcon_alibi(attention: str) -> Case:
    config = t.FalconConfig(
        **TOKENS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        alibi=True,
        multi_query=False,
        attn_implementation=attention,
    )
    return decoder_case(t.FalconForCausalLM(config))


@define("decoder")
def gpt_bigcode(attention: str) -> Case:
    config = t.GPTBigCodeConfig(
        **TOKENS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=64, attn_implementation=attention
    )
    return decoder_case(t.GPTBigCodeForCausalLM(config))


@define("decoder", ("eager",))
def gptj(attention: str) -> Case:
    """Interleaved rotary positions on a part of the head."""
    config = t.GPTJConfig(**TOKENS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=64, rotary_dim=8)
    return decoder_case(t.GPTJForCausalLM(config))


@define("decoder")
def phi3(attention: str) -> Case:
    """Q, K and V from one projection."""
    return decoder_case(t.Phi3ForCausalLM(t.Phi3Config(**LLAMA, attn_implementation=attention)))


@define("decoder")
def stablelm(attention: str) -> Case:
    """Rotary positions on a quarter of the head."""
    return decoder_case(t.StableLmForCausalLM(t.StableLmConfig(**LLAMA, attn_implementation=attention)))


@define("decoder")
def cohere(attention: str) -> Case:
    return decoder_case(t.CohereForCausalLM(t.CohereConfig(**LLAMA, use_qk_norm=True, attn_implementation=attention)))


@define("decoder")
def olmo2(attention: str) -> Case:
    """Q and K normalized over all heads at once."""
    return decoder_case(t.Olmo2ForCausalLM(t.Olmo2Config(**LLAMA, attn_implementation=attention)))


@define("decoder")
def gemma3(attention: str) -> Case:
    """Q and K normalized per head; five layers with a window for one without."""
    config = t.Gemma3TextConfig(
        **LLAMA, head_dim=16, query_pre_attn_scalar=16, sliding_window=6, attn_implementation=attention
    )
    return decoder_case(t.Gemma3ForCausalLM(config))


@define("decoder")
def gemma4(attention: str) -> Case:
    """Heads of two sizes, K and V of one layer used by another, no scale; a window in the first layer."""
    config = t.Gemma4TextConfig(
        **LLAMA,
        head_dim=16,
        global_head_dim=32,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=16,
        attn_implementation=attention,
    )
    return decoder_case(t.Gemma4ForCausalLM(config))


@define("decoder")
def smollm3(attention: str) -> Case:
    """Every other layer without positions."""
    config = t.SmolLM3Config(**LLAMA, no_rope_layer_interval=2, attn_implementation=attention)
    return decoder_case(t.SmolLM3ForCausalLM(config))


@define("decoder")
def cohere2(attention: str) -> Case:
    """Interleaved rotary positions where there is a window, none where there is not."""
    config = t.Cohere2Config(
        **LLAMA,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation=attention,
    )
    return decoder_case(t.Cohere2ForCausalLM(config))


@define("decoder")
def lfm2(attention: str) -> Case:
    """A short convolution in the first layer, attention in the second."""
    config = t.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"], attn_implementation=attention)
    return decoder_case(t.Lfm2ForCausalLM(config), attentions=1)


@define("decoder")
def qwen3_5(attention: str) -> Case:
    """A linear attention in the first layer, which stays; in the second one whose output is gated."""
    config = t.Qwen3_5TextConfig(
        **LLAMA,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        attn_implementation=attention,
    )
    return decoder_case(t.Qwen3_5ForCausalLM(config), attentions=1)


@define("decoder")
def granite(attention: str) -> Case:
    """The scale is a number of the configuration."""
    config = t.GraniteConfig(**LLAMA, attention_multiplier=0.2, attn_implementation=attention)
    return decoder_case(t.GraniteForCausalLM(config))


@define("decoder")
def mixtral(attention: str) -> Case:
    config = t.MixtralConfig(**EXPERTS, num_local_experts=2, attn_implementation=attention)
    return decoder_case(t.MixtralForCausalLM(config))


@define("decoder")
def qwen3_moe(attention: str) -> Case:
    config = t.Qwen3MoeConfig(
        **EXPERTS, head_dim=16, num_experts=2, moe_intermediate_size=32, attn_implementation=attention
    )
    return decoder_case(t.Qwen3MoeForCausalLM(config))


@define("decoder", ("eager",))
def gpt_oss(attention: str) -> Case:
    """Sinks: a learned logit per head in every softmax; a window in every other layer."""
    config = t.GptOssConfig(
        **EXPERTS, head_dim=16, num_local_experts=2, sliding_window=6, attn_implementation=attention
    )
    return decoder_case(t.GptOssForCausalLM(config))


@define("decoder")
def deepseek_v3(attention: str) -> Case:
    """Latent attention: 24 channels for Q and K, of which 8 turn, and 16 for V."""
    config = t.DeepseekV3Config(
        **{**LLAMA, "num_key_value_heads": HEADS},
        kv_lora_rank=16,
        q_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=LAYERS,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=1,
        attn_implementation=attention,
    )
    return decoder_case(t.DeepseekV3ForCausalLM(config))


@define("decoder")
def biogpt(attention: str) -> Case:
    return decoder_case(t.BioGptForCausalLM(t.BioGptConfig(**BERT, **SPECIAL, attn_implementation=attention)))


@define("decoder")
def llama_static_cache(attention: str) -> Case:
    """A cache of fixed length: new keys are written into it, and the mask leaves out what is not written yet."""
    length = 16

    def function(m: Any, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        keys, values = past[0::2], past[1::2]
        cache = t.DynamicCache()
        where = positions[0]
        keep = torch.arange(length)[None, None, None, :] <= positions[:, None, :, None]
        mask = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
        for layer in range(LAYERS):
            cache.update(keys[layer], values[layer], layer)
            cache.layers[layer].update = _writer(cache.layers[layer], where)
        out = m(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        return (out.logits, *(x for layer in cache.layers for x in (layer.keys, layer.values)))

    def _writer(layer: Any, where: torch.Tensor) -> Any:
        def update(keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
            layer.keys = layer.keys.index_copy(2, where, keys)
            layer.values = layer.values.index_copy(2, where, values)
            return layer.keys, layer.values

        return update

    model = prepare(t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, attn_implementation=attention)))
    inputs = {"input_ids": Input("ids", ("batch", 3)), "position_ids": Input("positions", ("batch", 3))}
    outputs = ["logits"]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            inputs[f"past.{layer}.{part}"] = Input("float", ("batch", 2, length, HIDDEN // HEADS))
            outputs.append(f"present.{layer}.{part}")
    return Case(Call(model, function), inputs, {"batch": 2}, LAYERS, outputs, ("gpt2", HEADS, HIDDEN))


@define("decoder")
def mistral_packed(attention: str) -> Case:
    """Several texts in one row: the mask is an input of four dimensions."""

    def function(m: Any, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        mask = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
        return m(input_ids=ids, attention_mask=mask, use_cache=False).logits

    model = prepare(t.MistralForCausalLM(t.MistralConfig(**LLAMA, sliding_window=None, attn_implementation=attention)))
    inputs = {"input_ids": Input("ids", ("batch", "seq")), "keep": Input("keep", ("batch", 1, "seq", "seq"))}
    return Case(Call(model, function), inputs, TEXT, LAYERS, peer=("gpt2", HEADS, HIDDEN))
