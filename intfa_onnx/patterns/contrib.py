"""Family: the attention operators of ONNX Runtime's own optimizer, domain ``com.microsoft``.

``MultiHeadAttention`` is read where Q, K and V are three packed tensors; the others are reported.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from intfa_onnx.patterns.match import RESULT, AttentionMatch, Call, NoMatch, Operand, float_dtype, slice_of
from intfa_onnx.patterns.view import View

NAME = "com.microsoft"

_OPERATORS = (
    "MultiHeadAttention",
    "Attention",
    "GroupQueryAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "DecoderMaskedMultiHeadAttention",
    "SparseAttention",
    "QAttention",
)
_MHA_INPUTS = ("query", "key", "value", "bias", "key_padding_mask", "attention_bias")


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every attention operator of com.microsoft in the graph itself, bodies not included."""
    yield from (n for n in graph if n.domain == "com.microsoft" and n.op_type in _OPERATORS)


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Read a MultiHeadAttention.

    Raises:
        NoMatch: another operator, or one of the inputs and layouts that are not read.
    """
    if anchor.op_type != "MultiHeadAttention":
        raise NoMatch(
            f"com.microsoft::{anchor.op_type} is not read yet. Rewrite the model before ONNX Runtime's optimizer"
        )
    inputs = {n: v for n, v in zip(_MHA_INPUTS, anchor.inputs, strict=False) if v is not None}
    q, k, v = (inputs.get(n) for n in ("query", "key", "value"))
    if q is None or k is None or v is None or not view.rank(q) == view.rank(k) == view.rank(v) == 3:
        raise NoMatch("Q, K and V are not three tensors [batch, tokens, channels]")
    if "key_padding_mask" in inputs or any(i is not None for i in anchor.inputs[len(_MHA_INPUTS) :]):
        raise NoMatch("key_padding_mask and the caches of com.microsoft::MultiHeadAttention are not read yet")
    if any(o.uses() or o.is_graph_output() for o in anchor.outputs[1:]):
        raise NoMatch("an output besides the result is used")
    heads = anchor.attributes["num_heads"].as_int()
    sizes = [view.dim(x, 2) for x in (q, v)]
    dtype = float_dtype(view.dtype(q))
    operands: dict[str, Operand] = {"Q": q, "K": k, "V": v}
    if "bias" in inputs:
        if sizes[0] is None or sizes[1] is None:
            raise NoMatch("the size of the bias' parts is not known statically")
        bounds = (0, sizes[0], 2 * sizes[0], 2 * sizes[0] + sizes[1])
        for index, name in enumerate(("Q", "K", "V")):
            part = slice_of(inputs["bias"], bounds[index], bounds[index + 1])
            operands[name] = Call("Add", (operands[name], part))
    if "attention_bias" in inputs:
        operands["attn_mask"] = inputs["attention_bias"]
    attributes: dict[str, int | float] = {"q_num_heads": heads, "kv_num_heads": heads}
    if "scale" in anchor.attributes:
        attributes["scale"] = anchor.attributes["scale"].as_float()
    if "unidirectional" in anchor.attributes and anchor.attributes["unidirectional"].as_int():
        if view.dims.dim(q, 1) != view.dims.dim(k, 1):
            raise NoMatch("unidirectional, and Q and K are not provably of one length")
        attributes["is_causal"] = 1
    return AttentionMatch(
        anchor=anchor,
        family=NAME,
        place=anchor,
        inputs=operands,
        attributes=attributes,
        outputs={anchor.outputs[0]: RESULT},
        dtype=dtype,
        rank=3,
        head_dim=sizes[0] // heads if sizes[0] else None,
        head_dim_v=sizes[1] // heads if sizes[1] else None,
        num_heads=heads,
        kv_num_heads=heads,
        absorbed=("bshd",),
    )
