"""The contract of ``intfa::IntFlashAttention`` version 1 as data: the one place that names its inputs and attributes.

The reference, the rewriter, the portable function body and the documentation read this table. The native side states
the same contract in ``plugin/include/intfa/attention.h``; a test compares both.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "intfa"
TRT_EP_DOMAIN = "trt.plugins"  # where ONNX Runtime's TensorRT provider looks for plugins, and nowhere else
OP_TYPE = "IntFlashAttention"
OPSET_VERSION = 1

INPUTS = (
    "Q",  # [B, Hq, Sq, D] or [B, Sq, Hq*D]
    "K",  # [B, Hkv, Skv, D] or [B, Skv, Hkv*D]
    "V",  # [B, Hkv, Skv, Dv] or [B, Skv, Hkv*Dv]
    "attn_mask",  # bool (true = attend) or float (added), broadcastable to [B, Hq, Sq, Skv]
    "past_key",  # [B, Hkv, Spast, D]
    "past_value",  # [B, Hkv, Spast, Dv]
    "nonpad_kv_seqlen",  # int64 [B]
    "q_scale",  # float32: per tensor [1] or per head [Hq]
    "k_scale",  # float32: per tensor [1] or per head [Hkv]
    "v_scale",  # float32: per tensor [1], per head [Hkv] or per channel [Hkv, Dv]
)
OUTPUTS = ("Y", "present_key", "present_value", "lse")

MAX_HEAD_DIM, HEAD_DIM_STEP = 256, 8


@dataclass(frozen=True)
class Attribute:
    """One attribute: its default and, for strings, the values it may take."""

    name: str
    default: int | float | str
    choices: tuple[str, ...] = ()


ATTRIBUTES = {
    a.name: a
    for a in (
        Attribute("q_num_heads", 0),  # needed for 3-D inputs
        Attribute("kv_num_heads", 0),
        Attribute("scale", 0.0),  # 0: 1/sqrt(D)
        Attribute("is_causal", 0),
        # standard: ONNX Attention's offset (past length, or nonpad_kv_seqlen - Sq, or 0); lower_right: Skv - Sq
        Attribute("causal_alignment", "standard", ("standard", "lower_right")),
        Attribute("softcap", 0.0),
        Attribute("window_left", -1),
        Attribute("window_right", -1),
        Attribute("precision", "int8", ("int8", "int8_qk")),
        Attribute("scheme", "tile", ("tile", "paper")),
        Attribute("k_granularity", "auto", ("auto", "token", "group")),
        Attribute("smooth_k", 1),
        Attribute("output_dtype", 0),  # onnx.TensorProto.DataType; 0: the type of Q
        # What follows is for TensorRT alone; ONNX Runtime ignores it. The first two are read by TensorRT's parser.
        Attribute("plugin_namespace", DOMAIN),
        Attribute("plugin_version", str(OPSET_VERSION)),
        # A TensorRT plugin is not told which inputs are absent, nor how many outputs are used.
        Attribute("plugin_inputs", ""),  # names of the inputs given, joined by ","; empty: the first ones, no gaps
        Attribute("plugin_outputs", 1),
    )
}
