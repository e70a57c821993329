"""The float meaning of ``IntFlashAttention`` as model-local functions: the file then runs without the library too.

ONNX Runtime runs the registered kernel when there is one and the function body when there is none. A body is written
for one configuration (which inputs are there, packed or separate heads, attribute values); each further configuration
of a model is an overload of the same function. The bodies state the exact attention, without quantization, in float32.

ONNX Runtime before 1.27 knows no overloads and runs the last function for all nodes (onnx.reference too): a model with
several has one more, the last, that no node refers to and that does not load. Its only operator says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intfa_onnx import op_schema
from intfa_onnx.emit import Emitter, Names
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.lower import is_boolean
from intfa_onnx.patterns.match import Call, Const, Operand, slice_of
from intfa_onnx.patterns.view import View

# Model-local functions need IR version 8, overloads 10.
_IR_VERSION, _IR_VERSION_OVERLOADS = 8, 10
_GUARD_OVERLOAD, _GUARD_OP = "guard", "OverloadsNeedOnnxRuntime127OrTheLibraryOfIntfa"


@dataclass(frozen=True)
class Configuration:
    """What a function body depends on."""

    inputs: tuple[str, ...]
    num_outputs: int
    dtype: ir.DataType
    packed: bool  # 3-D inputs
    bool_mask: bool
    head_dim: int
    q_num_heads: int
    kv_num_heads: int
    grouped: bool  # fewer key heads than query heads, or not known
    scale: float
    softcap: float
    is_causal: bool
    window_left: int
    window_right: int
    lower_right: bool


def is_portable(model: ir.Model) -> bool:
    """Return whether a model carries the operator's float meaning."""
    return any(function.domain == op_schema.DOMAIN for function in model.functions.values())


def add_functions(model: ir.Model, view: View, nodes: list[tuple[ir.Node, int, int | None, int | None]]) -> None:
    """Add a function for each configuration among ``nodes`` and let the nodes refer to it.

    Args:
        model: the rewritten model.
        view: facts about its values.
        nodes: each fused node with its head_dim, num_heads and kv_num_heads.
    """
    if not nodes:
        return
    model.functions.pop((op_schema.DOMAIN, op_schema.OP_TYPE, _GUARD_OVERLOAD), None)
    overloads: dict[tuple[Configuration, int], str] = {}
    for node, head_dim, num_heads, kv_num_heads in nodes:
        key = _configuration(view, node, head_dim, num_heads, kv_num_heads), view.opset(node)
        if key not in overloads:
            overloads[key] = _free_overload(model)
            function = _function(*key, overloads[key])
            model.functions[function.identifier()] = function
        node.overload = overloads[key]
    several = _free_overload(model) != "1"
    if several:
        guard = _guard(view.opset(nodes[0][0]))
        model.functions[guard.identifier()] = guard
    model.ir_version = max(model.ir_version or 0, _IR_VERSION_OVERLOADS if several else _IR_VERSION)


def _free_overload(model: ir.Model) -> str:
    """Return the first of "", "1", "2", ... that no function of the operator has."""
    taken = {overload for domain, name, overload in model.functions if domain == op_schema.DOMAIN}
    return next(name for name in ("", *map(str, range(1, len(taken) + 2))) if name not in taken)


def _guard(opset: int) -> ir.Function:
    """Return a function with as many parameters as any node may give, so that its operator is what is missed first."""
    parameters = [ir.Value(name=name) for name in op_schema.INPUTS]
    node = ir.node(_GUARD_OP, parameters[:1], domain=op_schema.DOMAIN, num_outputs=len(op_schema.OUTPUTS))
    for name, output in zip(op_schema.OUTPUTS, node.outputs, strict=True):
        output.name = name
    opsets = {"": opset, op_schema.DOMAIN: op_schema.OPSET_VERSION}
    graph = ir.Graph(parameters, node.outputs, nodes=[node], opset_imports=opsets, name=op_schema.OP_TYPE)
    return ir.Function(op_schema.DOMAIN, op_schema.OP_TYPE, _GUARD_OVERLOAD, graph=graph, attributes=())


def _configuration(
    view: View, node: ir.Node, head_dim: int, num_heads: int | None, kv_num_heads: int | None
) -> Configuration:
    def attribute(name: str) -> int | float | str:
        found = node.attributes.get(name)
        return op_schema.ATTRIBUTES[name].default if found is None else found.value

    inputs = dict(zip(op_schema.INPUTS, node.inputs, strict=False))
    dtype = view.dtype(node.outputs[0])
    assert dtype is not None
    return Configuration(
        inputs=tuple(n for n, v in inputs.items() if v is not None),
        num_outputs=len(node.outputs),
        dtype=dtype,
        packed=bool(attribute("q_num_heads")),
        bool_mask=is_boolean(view, inputs.get("attn_mask")),
        head_dim=head_dim,
        q_num_heads=int(attribute("q_num_heads")),
        kv_num_heads=int(attribute("kv_num_heads")),
        grouped=num_heads is None or num_heads != kv_num_heads,
        scale=float(attribute("scale")) or 1 / math.sqrt(head_dim),
        softcap=float(attribute("softcap")),
        is_causal=bool(attribute("is_causal")),
        window_left=int(attribute("window_left")),
        window_right=int(attribute("window_right")),
        lower_right=attribute("causal_alignment") == "lower_right",
    )


def _function(config: Configuration, opset: int, overload: str) -> ir.Function:
    if opset < 11:
        raise UnsupportedError(f"portable needs opset 11 or later (found {opset}). Export with a newer opset_version")
    last = max(op_schema.INPUTS.index(n) for n in config.inputs)
    parameters = {n: ir.Value(name=n) for n in op_schema.INPUTS[: last + 1]}
    operands = _body({n: parameters[n] for n in config.inputs}, config)[: config.num_outputs]
    names = Names(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    for name in (*op_schema.INPUTS, *op_schema.OUTPUTS):
        names.unique(name)
    emitter = Emitter(opset, names, "")
    outputs = [emitter.value(o) for o in operands]
    for name, output in zip(op_schema.OUTPUTS, outputs, strict=False):
        output.name = name
    graph = ir.Graph(
        list(parameters.values()), outputs, nodes=emitter.nodes, opset_imports={"": opset}, name=op_schema.OP_TYPE
    )
    return ir.Function(op_schema.DOMAIN, op_schema.OP_TYPE, overload, graph=graph, attributes=())


def _body(x: dict[str, ir.Value], c: Configuration) -> list[Operand]:
    """The outputs in terms of the parameters."""
    q, k, v = (
        _heads(x[n], h) if c.packed else x[n]
        for n, h in (("Q", c.q_num_heads), ("K", c.kv_num_heads), ("V", c.kv_num_heads))
    )
    if "past_key" in x:
        k = Call("Concat", (x["past_key"], k), {"axis": 2})
        v = Call("Concat", (x["past_value"], v), {"axis": 2})
    # An Identity each, for an output has to be the result of a node.
    states: list[Operand] = [Call("Identity", (k,)), Call("Identity", (v,))]
    seqlen_q, seqlen_kv = _size(q, 2), _size(k, 2)
    q, k, v = (_float(o) for o in (q, k, v))
    if c.grouped:
        k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    scores: Operand = Call("MatMul", (q, Call("Transpose", (k,), {"perm": [0, 1, 3, 2]})))
    scores = Call("Mul", (scores, _f(c.scale)))
    if c.softcap:
        scores = Call("Mul", (Call("Tanh", (Call("Div", (scores, _f(c.softcap))),)), _f(c.softcap)))
    limits = _limits(x, c, seqlen_q, seqlen_kv)
    if "attn_mask" in x:
        mask: Operand = x["attn_mask"]
        if "nonpad_kv_seqlen" in x:
            mask, covered = _lengthen(mask, seqlen_kv)
            limits.append(covered)
        scores = Call("Where", (mask, scores, _f(-np.inf))) if c.bool_mask else Call("Add", (scores, _float(mask)))
    for allowed in limits:
        scores = Call("Where", (allowed, scores, _f(-np.inf)))
    lse = Call("ReduceLogSumExp", (scores,), {"axes": [-1], "keepdims": 0})
    probs: Operand = Call("Softmax", (scores,), {"axis": -1})
    # A row with every key excluded gives 0.
    empty = Call("Equal", (Call("ReduceMax", (scores,), {"axes": [-1], "keepdims": 1}), _f(-np.inf)))
    probs = Call("Where", (empty, _f(0), probs))
    y: Operand = Call("MatMul", (probs, v))
    if c.packed:
        y = Call("Transpose", (y,), {"perm": [0, 2, 1, 3]})
        y = Call("Reshape", (y, _i([0, 0, -1])))
    return [Call("Cast", (y,), {"to": int(c.dtype)}), *states, lse]


def _limits(x: dict[str, ir.Value], c: Configuration, seqlen_q: Operand, seqlen_kv: Operand) -> list[Operand]:
    """Boolean masks [.., Sq, Skv] of padding, causality and window."""
    zero, one = _i(0), _i(1)
    rows = Call("Unsqueeze", (Call("Range", (zero, _scalar(seqlen_q), one)),), {"axes": [1]})
    columns = Call("Unsqueeze", (Call("Range", (zero, _scalar(seqlen_kv), one)),), {"axes": [0]})
    nonpad: Operand | None = None
    if "nonpad_kv_seqlen" in x:
        nonpad = Call("Reshape", (x["nonpad_kv_seqlen"], _i([-1, 1, 1, 1])))
    offset: Operand = zero
    if nonpad is not None:
        offset = Call("Sub", (nonpad, seqlen_q))
    elif c.lower_right:
        offset = Call("Sub", (seqlen_kv, seqlen_q))
    elif "past_key" in x:
        offset = _size(x["past_key"], 2)
    position = Call("Add", (rows, offset))
    limits: list[Operand] = []
    if nonpad is not None:
        limits.append(Call("Less", (columns, nonpad)))
    if c.is_causal:
        limits.append(_not_greater(columns, position))
    if c.window_left >= 0:
        limits.append(_not_greater(Call("Sub", (position, _i(c.window_left))), columns))
    if c.window_right >= 0:
        limits.append(_not_greater(columns, Call("Add", (position, _i(c.window_right)))))
    return limits


def _lengthen(mask: Operand, seqlen_kv: Operand) -> tuple[Operand, Operand]:
    """Repeat the last column of a mask that covers only the first keys, and say which keys it covers."""
    columns = Call("Range", (_i(0), _scalar(seqlen_kv), _i(1)))
    length = slice_of(Call("Shape", (mask,)), -1, None)
    broadcast = Call("Equal", (length, _i([1])))
    last = Call("Sub", (length, _i([1])))
    covered = _not_greater(columns, Call("Where", (broadcast, seqlen_kv, last)))
    return Call("Gather", (mask, Call("Min", (columns, last))), {"axis": -1}), covered


def _heads(x: Operand, num_heads: int) -> Operand:
    """[B, S, H*D] -> [B, H, S, D]."""
    return Call("Transpose", (Call("Reshape", (x, _i([0, 0, num_heads, -1]))),), {"perm": [0, 2, 1, 3]})


def _repeat_heads(x: Operand, q: Operand) -> Operand:
    """[B, Hkv, S, D] -> [B, Hq, S, D]: key head h serves the query heads h*G .. h*G+G-1."""
    group = Call("Div", (_size(q, 1), _size(x, 1)))
    repeats = Call("Concat", (_i([1, 1]), group, _i([1, 1])), {"axis": 0})
    wide = Call("Expand", (Call("Unsqueeze", (x,), {"axes": [2]}), repeats))
    return Call("Reshape", (wide, Call("Concat", (_size(x, 0), _size(q, 1), _size(x, 2), _size(x, 3)), {"axis": 0})))


def _size(x: Operand, axis: int) -> Operand:
    """One size, as a tensor [1]."""
    return Call("Gather", (Call("Shape", (x,)), _i([axis])), {"axis": 0})


def _scalar(x: Operand) -> Operand:
    return Call("Squeeze", (x,), {"axes": [0]})


def _not_greater(a: Operand, b: Operand) -> Operand:
    """A <= b; LessOrEqual came with opset 12."""
    return Call("Not", (Call("Greater", (a, b)),))


def _float(x: Operand) -> Operand:
    return Call("Cast", (x,), {"to": int(ir.DataType.FLOAT)})


def _f(x: float) -> Const:
    return Const(np.array(x, np.float32))


def _i(x: int | list[int]) -> Const:
    return Const(np.array(x, np.int64))
