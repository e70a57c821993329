"""Turns operands into nodes of a given opset."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import Call, Const, Lse, Operand, Result, Shared

# From this opset on, ``axes`` is an input instead of an attribute.
_AXES_INPUT_SINCE = {
    "Squeeze": 13,
    "Unsqueeze": 13,
    "ReduceSum": 13,
    "ReduceMax": 18,
    "ReduceMean": 18,
    "ReduceProd": 18,
    "ReduceLogSumExp": 18,
}


class Names:
    """Names that are not yet taken in a model.

    Attributes:
        shared: the value of each ``Shared`` expression that stands in the model, by its graph and structure.
    """

    def __init__(self, model: ir.Model):
        self.shared: dict[Hashable, ir.Value] = {}
        graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
        self._taken: set[str | None] = set()
        for graph in graphs:
            self._taken.update(v.name for v in graph.inputs)
            if isinstance(graph, ir.Graph):
                self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name)
                self._taken.update(o.name for o in node.outputs)

    def unique(self, wanted: str) -> str:
        """Return ``wanted``, or ``wanted_1`` and so on, and take it."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


class Emitter:
    """Makes nodes for operands, each ``Call`` and ``Const`` once.

    Attributes:
        nodes: the nodes made, in topological order.
    """

    def __init__(
        self, opset: int, names: Names, prefix: str, result: ir.Value | None = None, lse: ir.Value | None = None
    ):
        self.nodes: list[ir.Node] = []
        self._opset = opset
        self._names = names
        self._prefix = prefix
        self._result = result
        self._lse = lse
        self._done: dict[Call | Const, ir.Value] = {}

    def value(self, operand: Operand) -> ir.Value:
        """Return the graph value of ``operand``, making nodes as needed."""
        if isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, Result):
            assert self._result is not None
            return self._result
        if isinstance(operand, Lse):
            assert self._lse is not None
            return self._lse
        if isinstance(operand, Shared):
            return self._shared(operand)
        if operand not in self._done:
            self._done[operand] = self._constant(operand) if isinstance(operand, Const) else self._call(operand)
        return self._done[operand]

    def _shared(self, operand: Shared) -> ir.Value:
        graph = operand.before.graph
        assert graph is not None
        key = graph, _structure(operand.expression)
        if key not in self._names.shared:
            emitter = Emitter(self._opset, self._names, f"{self._prefix}/shared")
            self._names.shared[key] = emitter.value(operand.expression)
            graph.insert_before(operand.before, emitter.nodes)
        return self._names.shared[key]

    def _constant(self, operand: Const) -> ir.Value:
        return self._node("Constant", [], {"value": ir.tensor(operand.array)})

    def _call(self, operand: Call) -> ir.Value:
        inputs = [self.value(i) for i in operand.inputs]
        attributes = dict(operand.attributes)
        if "axes" in attributes and self._opset >= _AXES_INPUT_SINCE[operand.op_type]:
            inputs.append(self._constant(Const(np.array(attributes.pop("axes"), np.int64))))
        return self._node(operand.op_type, inputs, attributes)

    def _node(self, op_type: str, inputs: list[ir.Value], attributes: dict[str, Any]) -> ir.Value:
        name = self._names.unique(f"{self._prefix}/{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = self._names.unique(f"{name}_output")
        self.nodes.append(node)
        return node.outputs[0]


def _structure(operand: Operand) -> Hashable:
    """Return what two operands have in common exactly if they are the same computation."""
    if isinstance(operand, Shared):
        return _structure(operand.expression)
    if isinstance(operand, Const):
        return operand.array.dtype.str, operand.array.shape, operand.array.tobytes()
    if isinstance(operand, Call):
        return operand.op_type, tuple(_structure(i) for i in operand.inputs), repr(sorted(operand.attributes.items()))
    return operand
