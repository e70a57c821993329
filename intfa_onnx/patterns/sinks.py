"""Attention sinks: one more logit per head in the softmax, whose probability is thrown away (gpt-oss).

With it a row is ``sum_j exp(x_j) v_j / (sum_j exp(x_j) + exp(sink))``, which is the row without it times
``sigmoid(lse - sink)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import LSE, Call, NoMatch, Operand
from intfa_onnx.patterns.products import Product
from intfa_onnx.patterns.view import View, int_attribute
from intfa_onnx.patterns.walk import check_readers, finds_product, keeps_value, row_maximum


@dataclass(frozen=True, eq=False)
class Sink:
    """A column of logits beside the scores.

    Attributes:
        value: the logits, [..., 1].
        last: whether the column comes after the scores, or before them.
    """

    value: ir.Value
    last: bool


def part_from_sink(view: View, scores: ir.Value, readers: set[ir.Node]) -> tuple[ir.Value, set[ir.Node], Sink | None]:
    """Return the scores without sink, the nodes that may read them, and the sink; what was given where there is none.

    Between the two, the maximum of each row may be subtracted, which softmax does not see.

    Args:
        view: facts about the model.
        scores: operand of the softmax.
        readers: the nodes of the softmax that read the scores.
    """
    value, reading, shifted = scores, readers, False
    while (node := value.producer()) is not None and node.domain in ("", "ai.onnx") and node.inputs[0] is not None:
        try:
            check_readers(view, value, reading)
        except NoMatch:
            break
        if (maximum := row_maximum(view, node)) is not None:
            value, reading, shifted = node.inputs[0], {node, maximum}, True
        elif keeps_value(view, node):
            value, reading = node.inputs[0], {node}
        else:
            found = _sink(view, node)
            if found is not None:
                return found
            break
    return (value, reading, None) if shifted else (scores, readers, None)


def _sink(view: View, node: ir.Node) -> tuple[ir.Value, set[ir.Node], Sink] | None:
    """Read ``Concat(scores, sink)`` over the last axis, in either order."""
    parts, rank = [i for i in node.inputs if i is not None], view.rank(node.outputs[0])
    if node.op_type != "Concat" or len(parts) != 2 or rank is None:
        return None
    if int_attribute(node, "axis", 0) not in (-1, rank - 1):
        return None
    are_scores = [finds_product(view, x) for x in parts]
    if are_scores[0] == are_scores[1]:
        return None
    last = are_scores[0]
    return parts[0 if last else 1], {node}, Sink(parts[1 if last else 0], last)


def drops_sink(view: View, sink: Sink, node: ir.Node) -> bool:
    """Return whether a Slice takes all columns but the sink's."""
    rank = view.rank(node.inputs[0])
    bounds = [view.constant(i) for i in node.inputs[1:]]
    if node.op_type != "Slice" or rank is None or len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return False
    start, end, axis, *step = (int(b.item()) for b in bounds if b is not None)
    wanted = (start, end) == (0, -1) if sink.last else start == 1 and end >= np.iinfo(np.int32).max
    return wanted and axis in (-1, rank - 1) and step in ([], [1])


def apply_sink(view: View, sink: Sink, qk: Product, pv: Product, result: Operand, dtype: ir.DataType) -> Operand:
    """Return the result with the sink.

    Raises:
        NoMatch: there may be more than one column of sinks.
    """
    if qk.rank != 4:
        raise NoMatch(f"a sink in an attention over {qk.rank} axes (supported: 4)")
    logits = sink.value
    expand = logits.producer()
    if expand is not None and expand.op_type == "Expand" and expand.inputs[0] is not None:
        logits = expand.inputs[0]
    # One column is dropped, and V has a row for each that stays: as many as keys, if the sink was that column.
    rank = view.rank(logits)
    same_length = view.dims.dim(qk.second, qk.second_perm[-2]) == view.dims.dim(pv.second, pv.second_perm[-2])
    if rank is None or rank > 4 or view.dim(logits, -1) != 1 or not (same_length or view.dim(sink.value, -1) == 1):
        raise NoMatch("beside the scores there is more than one column, or not provably one")
    to_float = {"to": int(ir.DataType.FLOAT)}
    margin = Call("Sub", (Call("Unsqueeze", (LSE,), {"axes": [3]}), Call("Cast", (logits,), to_float)))
    return Call("Mul", (result, Call("Cast", (Call("Sigmoid", (margin,)),), {"to": int(dtype)})))
