"""Speech, sound and series of numbers in transformers: recognizers, synthesizers, codecs, forecasters."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare
from zoo.transformer_parts import HEADS, HIDDEN, LAYERS, SPEECH

# ---- speech to text ----


@define("speech", ("eager",))
def wavlm(attention: str) -> Case:
    """A learned bias per head and distance, gated by the query; inside ``multi_head_attention_forward``."""
    config = t.WavLMConfig(**SPEECH, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, num_buckets=16)
    module = Call(prepare(t.WavLMModel(config)), lambda m, x: m(x).last_hidden_state)
    inputs = {"input_values": Input("float", ("batch", 800))}
    return Case(module, inputs, {"batch": 2}, LAYERS, peer=("bart", HEADS, HIDDEN))


@define("speech")
def moonshine(attention: str) -> Case:
    """Rotary positions on a part of the head, in encoder and decoder; the sound's length is dynamic."""
    config = t.MoonshineConfig(
        vocab_size=100,
        hidden_size=HIDDEN,
        intermediate_size=64,
        encoder_num_hidden_layers=LAYERS,
        decoder_num_hidden_layers=LAYERS,
        encoder_num_attention_heads=HEADS,
        decoder_num_attention_heads=HEADS,
        attn_implementation=attention,
    )

    def function(m: Any, sound: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return m(input_values=sound, decoder_input_ids=ids, use_cache=False).last_hidden_state

    inputs = {"sound": Input("float", ("batch", "samples")), "ids": Input("ids", ("batch", "target"))}
    sizes = {"batch": 2, "samples": 4000, "target": 7}
    module = Call(prepare(t.MoonshineModel(config)), function)
    return Case(module, inputs, sizes, 3 * LAYERS, peer=("bart", HEADS, HIDDEN))


@define("speech")
def parakeet(attention: str) -> Case:
    """Fast Conformer: relative positions as a second product, which enters the mask; padding in keys and queries."""
    config = t.ParakeetEncoderConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        subsampling_conv_channels=16,
        num_mel_bins=16,
        conv_kernel_size=3,
        attn_implementation=attention,
    )

    def function(m: Any, sound: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(input_features=sound, attention_mask=mask).last_hidden_state

    inputs = {"input_features": Input("float", ("batch", 96, 16)), "attention_mask": Input("mask", ("batch", 96))}
    module = Call(prepare(t.ParakeetEncoder(config)), function)
    return Case(module, inputs, {"batch": 2}, LAYERS, peer=("bart", HEADS, HIDDEN))


@define("speech", ("eager",))
def wav2vec2_bert(attention: str) -> Case:
    """A key per distance: a third product of the queries, by einsum."""
    config = t.Wav2Vec2BertConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        feature_projection_input_dim=16,
        conv_depthwise_kernel_size=3,
        left_max_position_embeddings=8,
        right_max_position_embeddings=4,
    )

    def function(m: Any, sound: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(input_features=sound, attention_mask=mask).last_hidden_state

    inputs = {
        "input_features": Input("float", ("batch", "frames", 16)),
        "attention_mask": Input("mask", ("batch", "frames")),
    }
    module = Call(prepare(t.Wav2Vec2BertModel(config)), function)
    return Case(module, inputs, {"batch": 2, "frames": 20}, LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- text to speech ----

_SPEECHT5: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_max_relative_position": 16,
    "num_mel_bins": 16,
    "speech_decoder_prenet_units": 32,
    "speech_decoder_prenet_dropout": 0.0,
    "speaker_embedding_dim": 8,
}


@define("speech", ("eager",))
def speecht5(attention: str) -> Case:
    """Text encoder with a key per distance, a product in three dimensions; decoder of frames."""
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5EncoderWithTextPrenet

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(input_values=ids, attention_mask=mask).last_hidden_state

    inputs = {"input_ids": Input("ids", ("batch", "seq")), "attention_mask": Input("mask", ("batch", "seq"))}
    module = Call(prepare(SpeechT5EncoderWithTextPrenet(t.SpeechT5Config(**_SPEECHT5))), function)
    return Case(module, inputs, {"batch": 2, "seq": 12}, LAYERS, peer=("bart", HEADS, HIDDEN))


@define("negative", ("eager",), negative=True)
def vits(attention: str) -> Case:
    """The probabilities are used twice: with V, and with a value per distance."""
    from transformers.models.vits.modeling_vits import VitsTextEncoder

    config = t.VitsConfig(
        vocab_size=100,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=64,
        flow_size=16,
    )

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(ids, mask[..., None].float(), mask).last_hidden_state

    inputs = {"input_ids": Input("ids", ("batch", "seq")), "attention_mask": Input("mask", ("batch", "seq"))}
    module = Call(prepare(VitsTextEncoder(config)), function)
    return Case(module, inputs, {"batch": 2, "seq": 12}, 0, peer=("bart", HEADS, HIDDEN))


# ---- sound ----


@define("speech")
def mimi(attention: str) -> Case:
    """The causal transformer of a codec, with a window."""
    from transformers.models.mimi.modeling_mimi import MimiTransformerModel

    config = t.MimiConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=64,
        sliding_window=6,
        layer_scale_initial_scale=1.0,
        attn_implementation=attention,
    )
    model = prepare(MimiTransformerModel(config), gain=2)  # its weights start out larger
    module = Call(model, lambda m, x: m(x, use_cache=False).last_hidden_state)
    inputs = {"frames": Input("float", ("batch", "seq", HIDDEN))}
    return Case(module, inputs, {"batch": 2, "seq": 12}, LAYERS, peer=("gpt2", HEADS, HIDDEN))


@define("speech")
def musicgen(attention: str) -> Case:
    """A decoder of four codebooks, which attends a text."""
    config = t.MusicgenDecoderConfig(
        vocab_size=100,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=64,
        max_position_embeddings=64,
        add_cross_attention=True,
        is_decoder=True,
        pad_token_id=0,
        attn_implementation=attention,
    )

    def function(m: Any, ids: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        codes = ids.flatten(0, 1)
        return m(codes, encoder_hidden_states=text, encoder_attention_mask=mask, use_cache=False).logits

    inputs = {
        "codes": Input("ids", ("batch", 4, "seq")),
        "text": Input("float", ("batch", "source", HIDDEN)),
        "mask": Input("mask", ("batch", "source")),
    }
    sizes = {"batch": 2, "seq": 7, "source": 12}
    module = Call(prepare(t.MusicgenForCausalLM(config)), function)
    return Case(module, inputs, sizes, 2 * LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- series ----


@define("series")
def timesfm(attention: str) -> Case:
    """A scale per channel of Q, learned; causal over patches."""
    config = t.TimesFmConfig(
        patch_length=4,
        context_length=32,
        horizon_length=8,
        freq_size=8,
        num_hidden_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=64,
        head_dim=HIDDEN // HEADS,
        num_attention_heads=HEADS,
        attn_implementation=attention,
    )
    model = prepare(t.TimesFmModel(config))

    def function(m: Any, values: torch.Tensor, padding: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
        return m(past_values=values, past_values_padding=1 - padding, freq=frequency).last_hidden_state

    inputs = {
        "values": Input("float", ("batch", 32)),
        "counts": Input("mask", ("batch", 32)),
        "frequency": Input("classes", ("batch", 1)),
    }
    return Case(Call(model, function), inputs, {"batch": 2}, LAYERS, peer=("gpt2", HEADS, HIDDEN))


@define("series")
def patchtst(attention: str) -> Case:
    """Patches of each channel attend each other: batch and channels are one axis."""
    config = t.PatchTSTConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=4,
        patch_stride=4,
        num_hidden_layers=LAYERS,
        d_model=HIDDEN,
        num_attention_heads=HEADS,
        ffn_dim=64,
        attn_implementation=attention,
    )
    module = Call(prepare(t.PatchTSTModel(config)), lambda m, x: m(past_values=x).last_hidden_state)
    inputs = {"values": Input("float", ("batch", 32, 3))}
    return Case(module, inputs, {"batch": 2}, LAYERS, peer=("bart", HEADS, HIDDEN))
