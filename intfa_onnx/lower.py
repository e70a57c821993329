"""Replaces matched attentions by ``IntFlashAttention``. The only module that changes a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from intfa_onnx import op_schema
from intfa_onnx.emit import Emitter, Names
from intfa_onnx.patterns.match import AttentionMatch, Call, Const, Operand, Shared, node_name, uses_lse
from intfa_onnx.patterns.view import View
from intfa_onnx.plan import Options

_LSE = op_schema.OUTPUTS.index("lse")


def lower(view: View, match: AttentionMatch, names: Names, options: Options) -> ir.Node:
    """Put the fused node in the place of a match and remove what it leaves unused; return the node."""
    anchor_name = node_name(match.anchor)
    graph, opset = match.place.graph, view.opset(match.place)
    assert graph is not None

    emitter = Emitter(opset, names, anchor_name)
    operands = dict(match.inputs)
    if options.target != "ort" and is_boolean(view, operands.get("attn_mask")):
        operands["attn_mask"] = _float_mask(operands["attn_mask"], match.dtype)
    node = _fused_node(match, {n: emitter.value(x) for n, x in operands.items()}, options)
    lse = node.outputs[_LSE] if len(node.outputs) > _LSE else None
    for output in node.outputs:
        output.name, output.dtype = names.unique(f"{anchor_name}/{op_schema.OP_TYPE}_output"), match.dtype
    if lse is not None:
        lse.dtype = ir.DataType.FLOAT
        for state, output in zip(match.states, node.outputs[1:_LSE], strict=True):
            # TensorRT's plugins have their outputs without gaps.
            output.name = "" if state is None and options.target == "ort" else output.name
    graph.insert_before(match.place, [*emitter.nodes, node])
    for old, operand in match.outputs.items():
        emitter, producer = Emitter(opset, names, anchor_name, node.outputs[0], lse), old.producer()
        assert producer is not None
        _replace(view, old, operand, node.outputs[0], emitter, names, producer)
    for state, operand, new in zip(match.states, match.presents, node.outputs[1:], strict=False):
        if state is not None:
            # Not where the cache was joined, which is above the fused node: nothing else reads it.
            _replace(view, state, operand, new, Emitter(opset, names, anchor_name, new), names, node)
    replaced = (*match.outputs, *(state for state in match.states if state is not None))
    for unused in (*(old.producer() for old in replaced), match.place, match.anchor):
        _remove_unused(unused)
    # The anchor is gone: the attention keeps the name that reports and globs use.
    node.name = anchor_name
    return node


def domain_of(target: str) -> str:
    """Return the domain of the fused nodes."""
    return op_schema.TRT_EP_DOMAIN if target == "ort-trt-ep" else op_schema.DOMAIN


def is_boolean(view: View, mask: Operand | None) -> bool:
    """Return whether a mask is of truths, not of numbers to add; its type may have to be read off its nodes."""
    if isinstance(mask, ir.Value):
        if (dtype := view.dtype(mask)) is not None or (node := mask.producer()) is None:
            return dtype == ir.DataType.BOOL
        mask = Call(node.op_type, tuple(i for i in node.inputs if i is not None))
    if isinstance(mask, Shared):
        return is_boolean(view, mask.expression)
    if not isinstance(mask, Call):
        return isinstance(mask, Const) and mask.array.dtype == np.bool_
    if mask.op_type in ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Identity", "Transpose", "Concat"):
        return is_boolean(view, mask.inputs[0])
    return mask.op_type in ("Not", "And", "Or", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")


def _float_mask(mask: Operand, dtype: ir.DataType) -> Operand:
    """Return the same mask as numbers to add: a TensorRT plugin takes no booleans."""
    attended, excluded = (Const(np.array(x, dtype.numpy())) for x in (0.0, -np.inf))
    return Call("Where", (mask, attended, excluded))


def _fused_node(match: AttentionMatch, inputs: dict[str, ir.Value], options: Options) -> ir.Node:
    used = [n for n in op_schema.INPUTS if n in inputs]
    ordered = [inputs.get(n) for n in op_schema.INPUTS[: op_schema.INPUTS.index(used[-1]) + 1]]
    wanted: dict[str, Any] = {**match.attributes, "precision": options.precision, "scheme": options.scheme}
    num_outputs = 1 + max((i + 1 for i, s in enumerate(match.states) if s is not None), default=0)
    if any(uses_lse(x) for x in match.outputs.values()):
        num_outputs = len(op_schema.OUTPUTS)
    wanted |= {"plugin_inputs": "" if None not in ordered else ",".join(used), "plugin_outputs": num_outputs}
    attributes = {n: a for n, a in wanted.items() if a != op_schema.ATTRIBUTES[n].default}
    attributes.update({n: op_schema.ATTRIBUTES[n].default for n in ("plugin_namespace", "plugin_version")})
    if options.target != "ort":  # TensorRT's parser warns of each attribute that a node leaves out
        attributes = {n: attributes.get(n, a.default) for n, a in op_schema.ATTRIBUTES.items()}
    node = ir.node(
        op_schema.OP_TYPE,
        ordered,
        attributes,
        domain=domain_of(options.target),
        num_outputs=num_outputs,
        doc_string=match.anchor.doc_string,
        metadata_props=dict(match.anchor.metadata_props),
    )
    return node


def _replace(
    view: View,
    old: ir.Value,
    operand: Operand,
    result: ir.Value,
    emitter: Emitter,
    names: Names,
    after: ir.Node | None = None,
) -> None:
    """Compute ``operand`` under the name of ``old``: after a given node, or else where ``old`` was computed."""
    new = emitter.value(operand)
    producer = old.producer()
    assert producer is not None
    assert producer.graph is not None
    if after is not None:
        producer.graph.insert_after(after, emitter.nodes)
    else:
        producer.graph.insert_before(producer, emitter.nodes)
    if new is not result:
        new_node = new.producer()
        assert new_node is not None
        new_node.metadata_props.update(producer.metadata_props)
    _take_over(view, old, new, names)


def _take_over(view: View, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Let ``new`` stand for ``old``: uses, graph outputs, name, type, shape, metadata."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = names.unique(f"{name}_replaced")
    new.name, new.shape, new.doc_string = name, old.shape, old.doc_string
    if (dtype := view.dtype(old)) is not None:
        new.dtype = dtype
    new.metadata_props.update(old.metadata_props)
    view.adopt(new, old)


def _remove_unused(node: ir.Node | None) -> None:
    """Remove a node whose outputs nobody reads, then what only it read."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node is None or node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        inputs = [i for i in node.inputs if i is not None]
        node.graph.remove(node, safe=True)
        for value in inputs:
            pending.append(value.producer())
            if (
                value.is_initializer()
                and not value.is_graph_input()
                and not value.is_graph_output()
                and not value.uses()
            ):
                assert value.graph is not None
                assert value.name is not None
                del value.graph.initializers[value.name]
