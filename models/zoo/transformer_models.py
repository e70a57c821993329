"""Models of the transformers library, a few layers each: encoders, vision, decoders with and without a past, both."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare
from zoo.transformer_parts import (
    BERT,
    BF16,
    FP16,
    GPT2,
    HEADS,
    HIDDEN,
    LAYERS,
    LLAMA,
    SEQ2SEQ,
    SPECIAL,
    SPEECH,
    T5,
    TEXT,
    TOKENS,
    VIT,
    decoder_case,
    decoder_with_past_case,
    encoder_case,
    seq2seq_case,
    vision_case,
)

# ---- encoders ----


@define("encoder", extra=(("torchscript", 11), ("torchscript", 14), ("dynamo", 20), ("dynamo", 22), ("dynamo", 24)))
def bert(attention: str) -> Case:
    return encoder_case(t.BertModel(t.BertConfig(**BERT, attn_implementation=attention)))


@define("encoder")
def bert_static(attention: str) -> Case:
    case = bert(attention)
    for name, spec in case.inputs.items():
        case.inputs[name] = Input(spec.kind, (2, 12))
    case.sizes = {}
    return case


@define("encoder")
def bert_fp16(attention: str) -> Case:
    return encoder_case(t.BertModel(t.BertConfig(**BERT, attn_implementation=attention)), dtype=FP16)


@define("encoder")
def bert_bf16(attention: str) -> Case:
    return encoder_case(t.BertModel(t.BertConfig(**BERT, attn_implementation=attention)), dtype=BF16)


@define("encoder")
def bert_nomask(attention: str) -> Case:
    model = prepare(t.BertModel(t.BertConfig(**BERT, attn_implementation=attention)))
    module = Call(model, lambda m, i: m(input_ids=i).last_hidden_state)
    return Case(module, {"input_ids": Input("ids", ("batch", "seq"))}, TEXT, LAYERS, peer=("bert", HEADS, HIDDEN))


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
    return encoder_case(t.RobertaModel(t.RobertaConfig(**BERT, attn_implementation=attention)))


@define("encoder")
def distilbert(attention: str) -> Case:
    config = t.DistilBertConfig(
        vocab_size=100, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=64, attn_implementation=attention
    )
    return encoder_case(t.DistilBertModel(config))


@define("encoder")
def albert(attention: str) -> Case:
    return encoder_case(t.AlbertModel(t.AlbertConfig(**BERT, embedding_size=32, attn_implementation=attention)))


@define("encoder", ("eager",))
def deberta_v2(attention: str) -> Case:
    """Disentangled attention: relative positions enter as two further products."""
    config = t.DebertaV2Config(
        **BERT,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        attn_implementation=attention,
    )
    return encoder_case(t.DebertaV2Model(config))


@define("encoder")
def modernbert(attention: str) -> Case:
    """Rotary positions, packed QKV, a window in two of three layers."""
    config = t.ModernBertConfig(
        **{**BERT, "num_hidden_layers": 3},
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        global_attn_every_n_layers=3,
        local_attention=8,
        attn_implementation=attention,
    )
    return encoder_case(t.ModernBertModel(config), 3)


@define("encoder")
def clip_text(attention: str) -> Case:
    config = t.CLIPTextConfig(**{**BERT, "max_position_embeddings": 32}, attn_implementation=attention)
    module = Call(prepare(t.CLIPTextModel(config)), lambda m, i: m(input_ids=i).last_hidden_state)
    return Case(module, {"input_ids": Input("ids", ("batch", "seq"))}, TEXT, LAYERS, peer=("clip", HEADS, HIDDEN))


@define("encoder")
def wav2vec2(attention: str) -> Case:
    config = t.Wav2Vec2Config(
        **SPEECH,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        attn_implementation=attention,
    )
    module = Call(prepare(t.Wav2Vec2Model(config)), lambda m, x: m(x).last_hidden_state)
    inputs = {"input_values": Input("float", ("batch", "samples"))}
    return Case(module, inputs, {"batch": 2, "samples": 800}, LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- vision ----


@define("vision")
def vit(attention: str) -> Case:
    return vision_case(t.ViTModel(t.ViTConfig(**VIT, attn_implementation=attention)))


@define("vision")
def vit_fp16(attention: str) -> Case:
    return vision_case(t.ViTModel(t.ViTConfig(**VIT, attn_implementation=attention)), dtype=FP16)


@define("vision")
def deit(attention: str) -> Case:
    return vision_case(t.DeiTModel(t.DeiTConfig(**VIT, attn_implementation=attention)))


@define("vision")
def dinov2(attention: str) -> Case:
    config = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    return vision_case(t.Dinov2Model(t.Dinov2Config(**config, attn_implementation=attention)))


@define("vision")
def siglip(attention: str) -> Case:
    """The pooling head, a third attention, is no ancestor of the output."""
    model = t.SiglipVisionModel(t.SiglipVisionConfig(**VIT, attn_implementation=attention))
    return vision_case(model, peer="clip", gain=2)  # its weights start out larger


@define("vision")
def clip_vision(attention: str) -> Case:
    return vision_case(t.CLIPVisionModel(t.CLIPVisionConfig(**VIT, attn_implementation=attention)), peer="clip")


@define("vision", ("eager",))
def swin(attention: str) -> Case:
    """Windows, half of them shifted: a mask that is added through a reshape to five dimensions."""
    config = t.SwinConfig(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return vision_case(t.SwinModel(config), 4, peer="swin")


@define("vision", ("eager",))
def segformer(attention: str) -> Case:
    """Keys of a reduced image; one of the head sizes is 10."""
    config = t.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], num_attention_heads=[1, 2, 4, 4], sr_ratios=[8, 4, 2, 1]
    )
    return vision_case(t.SegformerModel(config), 4, 64)


@define("vision", ("eager",))
def mobilevit(attention: str) -> Case:
    """Head sizes 8, 12 and 16."""
    config = t.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64], num_attention_heads=2
    )
    return vision_case(t.MobileViTModel(config), 9, 64)


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
    return vision_case(t.SamVisionModel(config), 2, 64, "sam2")


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
        **{k: v for k, v in SEQ2SEQ.items() if k != "vocab_size"},
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


@define("decoder")
def gpt2(attention: str) -> Case:
    return decoder_case(t.GPT2LMHeadModel(t.GPT2Config(**GPT2, attn_implementation=attention)))


@define("decoder")
def gpt2_nomask(attention: str) -> Case:
    return decoder_case(t.GPT2LMHeadModel(t.GPT2Config(**GPT2, attn_implementation=attention)), mask=False)


@define("decoder")
def gpt2_past(attention: str) -> Case:
    return decoder_with_past_case(t.GPT2LMHeadModel(t.GPT2Config(**GPT2, attn_implementation=attention)))


@define("decoder", extra=(("torchscript", 15), ("dynamo", 19), ("dynamo", 21), ("dynamo", 25)))
def llama(attention: str) -> Case:
    return decoder_case(t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, attn_implementation=attention)))


@define("decoder")
def llama_mha(attention: str) -> Case:
    config = t.LlamaConfig(**{**LLAMA, "num_key_value_heads": HEADS}, attn_implementation=attention)
    return decoder_case(t.LlamaForCausalLM(config))


@define("decoder")
def llama_past(attention: str) -> Case:
    return decoder_with_past_case(t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, attn_implementation=attention)), 2)


@define("decoder")
def llama_past_fp16(attention: str) -> Case:
    return decoder_with_past_case(t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, attn_implementation=attention)), 2, FP16)


@define("decoder")
def qwen2(attention: str) -> Case:
    return decoder_case(t.Qwen2ForCausalLM(t.Qwen2Config(**LLAMA, attn_implementation=attention)))


@define("decoder")
def qwen3(attention: str) -> Case:
    return decoder_case(t.Qwen3ForCausalLM(t.Qwen3Config(**LLAMA, head_dim=16, attn_implementation=attention)))


@define("decoder")
def qwen3_past(attention: str) -> Case:
    config = t.Qwen3Config(**LLAMA, head_dim=16, attn_implementation=attention)
    return decoder_with_past_case(t.Qwen3ForCausalLM(config), 2)


@define("decoder")
def mistral(attention: str) -> Case:
    config = t.MistralConfig(**LLAMA, sliding_window=6, attn_implementation=attention)
    return decoder_case(t.MistralForCausalLM(config))


@define("decoder", ("eager",))
def gemma2(attention: str) -> Case:
    """A softcap, and a window in every other layer."""
    config = t.Gemma2Config(
        **LLAMA,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=6,
        attn_logit_softcapping=50.0,
        attn_implementation=attention,
    )
    return decoder_case(t.Gemma2ForCausalLM(config))


@define("decoder")
def phi(attention: str) -> Case:
    return decoder_case(t.PhiForCausalLM(t.PhiConfig(**BERT, **SPECIAL, attn_implementation=attention)), "phi")


@define("decoder")
def gpt_neox(attention: str) -> Case:
    config = t.GPTNeoXConfig(**BERT, **SPECIAL, attn_implementation=attention)
    return decoder_case(t.GPTNeoXForCausalLM(config))


@define("decoder", ("eager",))
def gpt_neo(attention: str) -> Case:
    config = t.GPTNeoConfig(
        **TOKENS,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        attn_implementation=attention,
    )
    return decoder_case(t.GPTNeoForCausalLM(config))


@define("decoder")
def opt(attention: str) -> Case:
    config = t.OPTConfig(
        **{**BERT, "ffn_dim": 64}, **SPECIAL, word_embed_proj_dim=HIDDEN, attn_implementation=attention
    )
    return decoder_case(t.OPTForCausalLM(config))


@define("decoder", ("eager",))
def bloom(attention: str) -> Case:
    """ALiBi: a slope per head times the distance, added to the scores."""
    config = t.BloomConfig(**TOKENS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, attn_implementation=attention)
    return decoder_case(t.BloomForCausalLM(config))


# ---- encoder and decoder ----


@define("encoder")
def t5_encoder(attention: str) -> Case:
    model = t.T5EncoderModel(t.T5Config(**T5, attn_implementation=attention))
    return encoder_case(model, peer="t5", gain=2)  # no scale, and larger weights


@define("encoder-decoder")
def t5(attention: str) -> Case:
    """No scale; a learned bias per head and distance."""
    return seq2seq_case(t.T5ForConditionalGeneration(t.T5Config(**T5, attn_implementation=attention)), "t5", gain=2)


@define("encoder-decoder")
def bart(attention: str) -> Case:
    config = t.BartConfig(**SEQ2SEQ, max_position_embeddings=64, attn_implementation=attention)
    return seq2seq_case(t.BartModel(config), "bart")


def _whisper(attention: str) -> Any:
    config = t.WhisperConfig(
        **SEQ2SEQ,
        **SPECIAL,
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
