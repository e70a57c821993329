"""Absorption of a decoder's cache: ``K = Concat(past, new)`` as past_key and present_key, and V likewise.

The operator reads past and new keys where they lie and writes the present ones once.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from intfa_onnx.patterns.match import AttentionMatch, Call, Operand, Shared, operation
from intfa_onnx.patterns.view import View

_MAX_NODES = 300  # between a cache and the result of its attention there are some ten


def absorb_cache(view: View, match: AttentionMatch) -> AttentionMatch:
    """Give the two parts of K and V where the graph joins them along the keys and returns the whole as its output.

    Whether the match may stay so is for ``may_keep_cache`` to say once its outputs are settled.
    """
    key, value = match.inputs["K"], match.inputs["V"]
    if match.rank != 4 or "past_key" in match.inputs or any(match.states) or _limited(match):
        return match
    keys, values = _parts(view, key), _parts(view, value)
    if keys is None or values is None or not isinstance(key, ir.Value) or not isinstance(value, ir.Value):
        return match
    if not key.is_graph_output() or not value.is_graph_output():
        return match
    inputs = {**match.inputs, "K": keys[1], "V": values[1], "past_key": keys[0], "past_value": values[0]}
    return replace(match, inputs=inputs, states=(key, value), absorbed=(*match.absorbed, "past"))


def _limited(match: AttentionMatch) -> bool:
    """Return whether positions count, which a past shifts: query i then stands at i + past."""
    attributes = match.attributes
    return bool(attributes.get("is_causal")) or any(
        attributes.get(name, -1) >= 0 for name in ("window_left", "window_right")
    )


def _parts(view: View, x: Operand) -> tuple[ir.Value, ir.Value] | None:
    """Return (past, new) of ``Concat(past, new)`` along axis 2 of 4."""
    call = operation(x)
    if call is None or call.op_type != "Concat" or call.attributes["axis"] not in (2, -2) or len(call.inputs) != 2:
        return None
    past, new = call.inputs
    if not isinstance(past, ir.Value) or not isinstance(new, ir.Value) or view.rank(past) != 4 or view.rank(new) != 4:
        return None
    return past, new


def may_keep_cache(match: AttentionMatch) -> bool:
    """Return whether all that reads the joined tensors is the attention and goes with it.

    They become outputs of the fused node: nothing that it reads may depend on them, and nothing may read them earlier.
    """
    joined = [state for state in match.states if state is not None]
    leaves = {v for x in match.inputs.values() for v in _leaves(x)} | set(joined)
    ends, pending, seen = set(match.outputs), joined.copy(), set[ir.Value]()
    while pending:
        value = pending.pop()
        if value in ends or value in seen:
            continue
        seen.add(value)
        if value not in joined and (value in leaves or value.is_graph_output() or len(seen) > _MAX_NODES):
            return False
        pending += [o for node, _ in value.uses() for o in node.outputs]
    return True


def _leaves(x: Operand) -> list[ir.Value]:
    """Return the values of the graph that an expression reads."""
    if isinstance(x, ir.Value):
        return [x]
    if isinstance(x, Shared):
        return _leaves(x.expression)
    return [v for i in x.inputs for v in _leaves(i)] if isinstance(x, Call) else []
