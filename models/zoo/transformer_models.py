"""Models of the transformers library, a few layers each: encoders, vision, decoders with and without a past, both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare

HIDDEN, HEADS, LAYERS = 64, 4, 2
FP16, BF16 = torch.float16, torch.bfloat16

_TOKENS: dict[str, Any] = {"vocab_size": 100}
_BERT: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_VIT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA: dict[str, Any] = {**_BERT, **_SPECIAL, "num_key_value_heads": 2}
_GPT2: dict[str, Any] = {**_TOKENS, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
_SEQ2SEQ: dict[str, Any] = {
    **_TOKENS,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_T5: dict[str, Any] = {
    **_TOKENS,
    "d_model": HIDDEN,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
_TEXT = {"batch": 2, "seq": 12}


# ---- encoders ----


def _encoder(
    model: Any, attentions: int = LAYERS, peer: str = "bert", dtype: torch.dtype = torch.float32, gain: float = 8
) -> Case:
    module = Call(prepare(model, dtype, gain), lambda m, i, a: m(input_ids=i, attention_mask=a).last_hidden_state)
    inputs = {"input_ids": Input("ids", ("batch", "seq")), "attention_mask": Input("mask", ("batch", "seq"))}
    return Case(module, inputs, _TEXT, attentions, peer=(peer, HEADS, HIDDEN), dtype=dtype)


@define("encoder", extra=(("torchscript", 11), ("torchscript", 14), ("dynamo", 20), ("dynamo", 22), ("dynamo", 24)))
def bert(attention: str) -> Case:
    return _encoder(t.BertModel(t.BertConfig(**_BERT, attn_implementation=attention)))


@define("encoder")
def bert_static(attention: str) -> Case:
    case = bert(attention)
    for name, spec in case.inputs.items():
        case.inputs[name] = Input(spec.kind, (2, 12))
    case.sizes = {}
    return case


@define("encoder")
def bert_fp16(attention: str) -> Case:
    return _encoder(t.BertModel(t.BertConfig(**_BERT, attn_implementation=attention)), dtype=FP16)


@define("encoder")
def bert_bf16(attention: str) -> Case:
    return _encoder(t.BertModel(t.BertConfig(**_BERT, attn_implementation=attention)), dtype=BF16)


@define("encoder")
def bert_nomask(attention: str) -> Case:
    model = prepare(t.BertModel(t.BertConfig(**_BERT, attn_implementation=attention)))
    module = Call(model, lambda m, i: m(input_ids=i).last_hidden_state)
    return Case(module, {"input_ids": Input("ids", ("batch", "seq"))}, _TEXT, LAYERS, peer=("bert", HEADS, HIDDEN))


@define("encoder")
def minilm(attention: str) -> Case:
    """A sentence embedder as all-MiniLM: BERT, mean pooling over the mask, normalization."""

    def embed(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = m(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return torch.nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=-1)

    case = bert(attention)
    assert isinstance(case.model, Call)
    case.model.function = embed
    return case


@define("encoder")
def roberta(attention: str) -> Case:
    return _encoder(t.RobertaModel(t.RobertaConfig(**_BERT, attn_implementation=attention)))


@define("encoder")
def distilbert(attention: str) -> Case:
    config = t.DistilBertConfig(
        vocab_size=100, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=64, attn_implementation=attention
    )
    return _encoder(t.DistilBertModel(config))


@define("encoder")
def albert(attention: str) -> Case:
    return _encoder(t.AlbertModel(t.AlbertConfig(**_BERT, embedding_size=32, attn_implementation=attention)))


@define("encoder", ("eager",))
def deberta_v2(attention: str) -> Case:
    """Disentangled attention: relative positions enter as two further products."""
    config = t.DebertaV2Config(
        **_BERT,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        attn_implementation=attention,
    )
    return _encoder(t.DebertaV2Model(config))


@define("encoder")
def modernbert(attention: str) -> Case:
    """Rotary positions, packed QKV, a window in two of three layers."""
    config = t.ModernBertConfig(
        **{**_BERT, "num_hidden_layers": 3},
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        global_attn_every_n_layers=3,
        local_attention=8,
        attn_implementation=attention,
    )
    return _encoder(t.ModernBertModel(config), 3)


@define("encoder")
def clip_text(attention: str) -> Case:
    config = t.CLIPTextConfig(**{**_BERT, "max_position_embeddings": 32}, attn_implementation=attention)
    module = Call(prepare(t.CLIPTextModel(config)), lambda m, i: m(input_ids=i).last_hidden_state)
    return Case(module, {"input_ids": Input("ids", ("batch", "seq"))}, _TEXT, LAYERS, peer=("clip", HEADS, HIDDEN))


@define("encoder")
def wav2vec2(attention: str) -> Case:
    config = t.Wav2Vec2Config(
        vocab_size=32,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        attn_implementation=attention,
    )
    module = Call(prepare(t.Wav2Vec2Model(config)), lambda m, x: m(x).last_hidden_state)
    inputs = {"input_values": Input("float", ("batch", "samples"))}
    return Case(module, inputs, {"batch": 2, "samples": 800}, LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- vision ----


def _vision(
    model: Any,
    attentions: int = LAYERS,
    size: int = 32,
    peer: str = "vit",
    dtype: torch.dtype = torch.float32,
    gain: float = 8,
) -> Case:
    module = Call(prepare(model, dtype, gain), lambda m, x: m(pixel_values=x).last_hidden_state)
    inputs = {"pixel_values": Input("float", ("batch", 3, size, size))}
    return Case(module, inputs, {"batch": 2}, attentions, peer=(peer, HEADS, HIDDEN), dtype=dtype)


@define("vision")
def vit(attention: str) -> Case:
    return _vision(t.ViTModel(t.ViTConfig(**_VIT, attn_implementation=attention)))


@define("vision")
def vit_fp16(attention: str) -> Case:
    return _vision(t.ViTModel(t.ViTConfig(**_VIT, attn_implementation=attention)), dtype=FP16)


@define("vision")
def deit(attention: str) -> Case:
    return _vision(t.DeiTModel(t.DeiTConfig(**_VIT, attn_implementation=attention)))


@define("vision")
def dinov2(attention: str) -> Case:
    config = {k: v for k, v in _VIT.items() if k != "intermediate_size"}
    return _vision(t.Dinov2Model(t.Dinov2Config(**config, attn_implementation=attention)))


@define("vision")
def siglip(attention: str) -> Case:
    """The pooling head, a third attention, is no ancestor of the output."""
    model = t.SiglipVisionModel(t.SiglipVisionConfig(**_VIT, attn_implementation=attention))
    return _vision(model, peer="clip", gain=2)  # its weights start out larger


@define("vision")
def clip_vision(attention: str) -> Case:
    return _vision(t.CLIPVisionModel(t.CLIPVisionConfig(**_VIT, attn_implementation=attention)), peer="clip")


@define("vision", ("eager",))
def swin(attention: str) -> Case:
    """Windows, half of them shifted: a mask that is added through a reshape to five dimensions."""
    config = t.SwinConfig(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return _vision(t.SwinModel(config), 4, peer="swin")


@define("vision", ("eager",))
def segformer(attention: str) -> Case:
    """Keys of a reduced image; one of the head sizes is 10."""
    config = t.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], num_attention_heads=[1, 2, 4, 4], sr_ratios=[8, 4, 2, 1]
    )
    return _vision(t.SegformerModel(config), 4, 64)


@define("vision", ("eager",))
def mobilevit(attention: str) -> Case:
    """Head sizes 8, 12 and 16."""
    config = t.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64], num_attention_heads=2
    )
    return _vision(t.MobileViTModel(config), 9, 64)


@define("vision")
def sam_vision(attention: str) -> Case:
    """Windows and decomposed relative positions."""
    config = t.SamVisionConfig(
        hidden_size=HIDDEN,
        output_channels=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        mlp_dim=64,
        attn_implementation=attention,
    )
    return _vision(t.SamVisionModel(config), 2, 64, "sam2")


@define("vision")
def detr(attention: str) -> Case:
    backbone = t.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
        layer_type="basic",
    )
    config = t.DetrConfig(
        **{k: v for k, v in _SEQ2SEQ.items() if k != "vocab_size"},
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=10,
        attn_implementation={"": attention, "backbone_config": "eager"},
    )
    module = Call(prepare(t.DetrModel(config)), lambda m, x, a: m(pixel_values=x, pixel_mask=a).last_hidden_state)
    inputs = {"pixel_values": Input("float", ("batch", 3, 96, 96)), "pixel_mask": Input("mask", ("batch", 96, 96))}
    return Case(module, inputs, {"batch": 2}, 3 * LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- decoders ----


def _decoder(model: Any, peer: str = "gpt2", mask: bool = True, dtype: torch.dtype = torch.float32) -> Case:
    inputs = {"input_ids": Input("ids", ("batch", "seq"))}
    function: Callable[..., Any]
    if mask:
        inputs["attention_mask"] = Input("mask", ("batch", "seq"))

        def function(m: Any, i: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            return m(input_ids=i, attention_mask=a, use_cache=False).logits
    else:

        def function(m: Any, i: torch.Tensor) -> torch.Tensor:
            return m(input_ids=i, use_cache=False).logits

    return Case(Call(prepare(model, dtype), function), inputs, _TEXT, LAYERS, peer=(peer, HEADS, HIDDEN), dtype=dtype)


def _decoder_with_past(model: Any, kv_heads: int = HEADS, dtype: torch.dtype = torch.float32) -> Case:
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


@define("decoder")
def gpt2(attention: str) -> Case:
    return _decoder(t.GPT2LMHeadModel(t.GPT2Config(**_GPT2, attn_implementation=attention)))


@define("decoder")
def gpt2_nomask(attention: str) -> Case:
    return _decoder(t.GPT2LMHeadModel(t.GPT2Config(**_GPT2, attn_implementation=attention)), mask=False)


@define("decoder")
def gpt2_past(attention: str) -> Case:
    return _decoder_with_past(t.GPT2LMHeadModel(t.GPT2Config(**_GPT2, attn_implementation=attention)))


@define("decoder", extra=(("torchscript", 15), ("dynamo", 19), ("dynamo", 21), ("dynamo", 25)))
def llama(attention: str) -> Case:
    return _decoder(t.LlamaForCausalLM(t.LlamaConfig(**_LLAMA, attn_implementation=attention)))


@define("decoder")
def llama_mha(attention: str) -> Case:
    config = t.LlamaConfig(**{**_LLAMA, "num_key_value_heads": HEADS}, attn_implementation=attention)
    return _decoder(t.LlamaForCausalLM(config))


@define("decoder")
def llama_past(attention: str) -> Case:
    return _decoder_with_past(t.LlamaForCausalLM(t.LlamaConfig(**_LLAMA, attn_implementation=attention)), 2)


@define("decoder")
def llama_past_fp16(attention: str) -> Case:
    return _decoder_with_past(t.LlamaForCausalLM(t.LlamaConfig(**_LLAMA, attn_implementation=attention)), 2, FP16)


@define("decoder")
def qwen2(attention: str) -> Case:
    return _decoder(t.Qwen2ForCausalLM(t.Qwen2Config(**_LLAMA, attn_implementation=attention)))


@define("decoder")
def qwen3(attention: str) -> Case:
    return _decoder(t.Qwen3ForCausalLM(t.Qwen3Config(**_LLAMA, head_dim=16, attn_implementation=attention)))


@define("decoder")
def qwen3_past(attention: str) -> Case:
    config = t.Qwen3Config(**_LLAMA, head_dim=16, attn_implementation=attention)
    return _decoder_with_past(t.Qwen3ForCausalLM(config), 2)


@define("decoder")
def mistral(attention: str) -> Case:
    config = t.MistralConfig(**_LLAMA, sliding_window=6, attn_implementation=attention)
    return _decoder(t.MistralForCausalLM(config))


@define("decoder", ("eager",))
def gemma2(attention: str) -> Case:
    """A softcap, and a window in every other layer."""
    config = t.Gemma2Config(
        **_LLAMA,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=6,
        attn_logit_softcapping=50.0,
        attn_implementation=attention,
    )
    return _decoder(t.Gemma2ForCausalLM(config))


@define("decoder")
def phi(attention: str) -> Case:
    return _decoder(t.PhiForCausalLM(t.PhiConfig(**_BERT, **_SPECIAL, attn_implementation=attention)), "phi")


@define("decoder")
def gpt_neox(attention: str) -> Case:
    config = t.GPTNeoXConfig(**_BERT, **_SPECIAL, attn_implementation=attention)
    return _decoder(t.GPTNeoXForCausalLM(config))


@define("decoder", ("eager",))
def gpt_neo(attention: str) -> Case:
    config = t.GPTNeoConfig(
        **_TOKENS,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        attn_implementation=attention,
    )
    return _decoder(t.GPTNeoForCausalLM(config))


@define("decoder")
def opt(attention: str) -> Case:
    config = t.OPTConfig(
        **{**_BERT, "ffn_dim": 64}, **_SPECIAL, word_embed_proj_dim=HIDDEN, attn_implementation=attention
    )
    return _decoder(t.OPTForCausalLM(config))


@define("decoder", ("eager",))
def bloom(attention: str) -> Case:
    """ALiBi: a slope per head times the distance, added to the scores."""
    config = t.BloomConfig(**_TOKENS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, attn_implementation=attention)
    return _decoder(t.BloomForCausalLM(config))


# ---- encoder and decoder ----


def _seq2seq(model: Any, peer: str, gain: float = 8) -> Case:
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


@define("encoder")
def t5_encoder(attention: str) -> Case:
    model = t.T5EncoderModel(t.T5Config(**_T5, attn_implementation=attention))
    return _encoder(model, peer="t5", gain=2)  # no scale, and larger weights


@define("encoder-decoder")
def t5(attention: str) -> Case:
    """No scale; a learned bias per head and distance."""
    return _seq2seq(t.T5ForConditionalGeneration(t.T5Config(**_T5, attn_implementation=attention)), "t5", gain=2)


@define("encoder-decoder")
def bart(attention: str) -> Case:
    config = t.BartConfig(**_SEQ2SEQ, max_position_embeddings=64, attn_implementation=attention)
    return _seq2seq(t.BartModel(config), "bart")


def _whisper(attention: str) -> Any:
    config = t.WhisperConfig(
        **_SEQ2SEQ,
        **_SPECIAL,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=32,
        decoder_start_token_id=1,
        attn_implementation=attention,
    )
    return prepare(t.WhisperModel(config))


@define("encoder")
def whisper_encoder(attention: str) -> Case:
    module = Call(_whisper(attention).encoder, lambda m, x: m(x).last_hidden_state)
    inputs = {"input_features": Input("float", ("batch", 16, 40))}
    return Case(module, inputs, {"batch": 2}, LAYERS, peer=("bart", HEADS, HIDDEN))


@define("encoder-decoder")
def whisper_decoder(attention: str) -> Case:
    def function(m: Any, ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return m(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state

    inputs = {
        "input_ids": Input("ids", ("batch", "target")),
        "encoder_hidden_states": Input("float", ("batch", 20, HIDDEN)),
    }
    module = Call(_whisper(attention).decoder, function)
    return Case(module, inputs, {"batch": 2, "target": 7}, 2 * LAYERS, peer=("bart", HEADS, HIDDEN))
