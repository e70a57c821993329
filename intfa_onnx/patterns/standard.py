"""Family: the standard ``Attention`` operator (opset 23 and later), whose meaning the fused operator extends."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from intfa_onnx.patterns.match import RESULT, AttentionMatch, NoMatch, Operand, float_dtype
from intfa_onnx.patterns.view import View

NAME = "attention"

_INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
_ATTRIBUTES = {
    "scale": "scale",
    "is_causal": "is_causal",
    "softcap": "softcap",
    "q_num_heads": "q_num_heads",
    "kv_num_heads": "kv_num_heads",
    "left_window_size": "window_left",
    "right_window_size": "window_right",
}


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every standard Attention of the graph itself, bodies not included."""
    yield from (n for n in graph if n.op_type == "Attention" and n.domain in ("", "ai.onnx"))


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Read a standard Attention.

    Raises:
        NoMatch: its scores are an output, or its element type is not supported.
    """
    present_key, present_value, scores = (*anchor.outputs[1:], None, None, None)[:3]
    if scores is not None and (scores.uses() or scores.is_graph_output()):
        raise NoMatch("the output qk_matmul_output is used")
    inputs: dict[str, Operand] = {n: v for n, v in zip(_INPUTS, anchor.inputs, strict=False) if v is not None}
    attributes = {
        ours: anchor.attributes[name].value for name, ours in _ATTRIBUTES.items() if name in anchor.attributes
    }
    q, k, v = anchor.inputs[:3]
    if any(anchor.attributes[name].is_ref() for name in _ATTRIBUTES if name in anchor.attributes):
        raise NoMatch("an attribute refers to a parameter of the enclosing function")
    dtype, rank = float_dtype(view.dtype(q)), view.rank(q)
    if rank not in (3, 4):
        raise NoMatch(f"Q has {'an unknown number of' if rank is None else rank} axes (supported: 3 and 4)")
    if rank == 3:
        num_heads, kv_heads = attributes.get("q_num_heads"), attributes.get("kv_num_heads")
        sizes = [(view.dim(x, 2), h) for x, h in ((q, num_heads), (v, kv_heads))]
        head_dim, head_dim_v = (size // h if size and h else None for size, h in sizes)
    else:
        num_heads, kv_heads = view.dim(q, 1), view.dim(k, 1)
        head_dim, head_dim_v = view.dim(q, 3) or view.dim(k, 3), view.dim(v, 3)
        attributes = {n: a for n, a in attributes.items() if not n.endswith("num_heads")}
    used = [o if o is not None and (o.uses() or o.is_graph_output()) else None for o in (present_key, present_value)]
    absorbed = tuple(
        name
        for name, present in (
            ("mask", "attn_mask" in inputs),
            ("causal", attributes.get("is_causal")),
            ("softcap", attributes.get("softcap")),
            ("gqa", num_heads != kv_heads),
            ("bshd", rank == 3),
            ("past", "past_key" in inputs),
        )
        if present
    )
    return AttentionMatch(
        anchor=anchor,
        place=anchor,
        family=NAME,
        inputs=inputs,
        attributes=attributes,
        outputs={anchor.outputs[0]: RESULT},
        dtype=dtype,
        rank=rank,
        around=rank == 4,
        states=(used[0], used[1]),
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        num_heads=num_heads,
        kv_num_heads=kv_heads,
        absorbed=absorbed,
    )
