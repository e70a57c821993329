"""Which boolean masks are provably causal: query i attends key j exactly where j <= i."""

from __future__ import annotations

import onnx_ir as ir

from intfa_onnx.patterns.view import View, int_attribute

_SAME_TRUTH = ("Identity", "Cast", "Expand", "Unsqueeze")


def is_causal(view: View, attend: ir.Value | None) -> bool:
    """Return whether ``attend`` [..., Sq, Skv] is ``j <= i``: a lower triangle, or a comparison of two ranges."""
    node = attend.producer() if attend is not None else None
    if node is None:
        return False
    first, second = (*node.inputs, None, None)[:2]
    if node.op_type == "Not":
        return is_anti_causal(view, first)
    if node.op_type in ("LessOrEqual", "GreaterOrEqual"):
        keys, queries = (first, second) if node.op_type == "LessOrEqual" else (second, first)
        return _is_range_along(view, keys, -1) and _is_range_along(view, queries, -2)
    if node.op_type == "Trilu":
        return _is_lower_triangle(view, attend)
    if node.op_type == "And":
        return any(_is_true(view, a) and is_causal(view, b) for a, b in ((first, second), (second, first)))
    if node.op_type in _SAME_TRUTH:
        return is_causal(view, first)
    return False


def is_anti_causal(view: View, excluded: ir.Value | None) -> bool:
    """Return whether ``excluded`` [..., Sq, Skv] is ``j > i``: zeros of a lower triangle, or a comparison of ranges."""
    node = excluded.producer() if excluded is not None else None
    if node is None:
        return False
    first, second = (*node.inputs, None, None)[:2]
    if node.op_type == "Equal":
        return view.scalar(second) == 0 and _is_lower_triangle(view, first)
    if node.op_type in ("Less", "Greater"):
        queries, keys = (first, second) if node.op_type == "Less" else (second, first)
        return _is_range_along(view, keys, -1) and _is_range_along(view, queries, -2)
    return False


def _is_lower_triangle(view: View, value: ir.Value | None) -> bool:
    """Whether this is a Trilu of ones that keeps the diagonal and what is below."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Trilu" or int_attribute(node, "upper", 1):
        return False
    diagonal = view.scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else 0
    return diagonal == 0 and _is_true(view, node.inputs[0])


def _is_true(view: View, value: ir.Value | None) -> bool:
    """Whether every element is one."""
    constant, node = view.constant(value), value.producer() if value is not None else None
    if constant is not None:
        return bool((constant == 1).all())
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is not None and bool((fill.as_tensor().numpy() == 1).all())
    return node.op_type in _SAME_TRUTH and _is_true(view, node.inputs[0])


def _is_range_along(view: View, value: ir.Value | None, axis: int) -> bool:
    """Whether this is 0, 1, 2, ... along one axis (counted from the back) and one element wide elsewhere."""
    rank = view.rank(value)
    node = value.producer() if value is not None else None
    if value is None or node is None or rank is None:
        return False
    if rank < -axis or any(view.dim(value, a) != 1 for a in range(rank) if a != rank + axis):
        return False
    while node is not None and node.op_type in ("Unsqueeze", "Cast", "Identity", "Reshape"):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return (
        node is not None
        and node.op_type == "Range"
        and view.scalar(node.inputs[0]) == 0
        and view.scalar(node.inputs[2]) == 1
    )
