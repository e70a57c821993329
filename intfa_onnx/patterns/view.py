"""Read-only facts about a model's values: constants, shapes, element types, consumers.

Shapes come from the model and from ONNX shape inference on a clone; where inference does not reach, the rank is read
off the operators (a Transpose has as many axes as its permutation), and sizes are traced by ``dims``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from intfa_onnx.patterns.dims import Dims

Dim = int | str | None

# Operators that read only the shape or type of the given input: they see no scores, so a match may ignore them.
_METADATA_ONLY = {"Shape": (0,), "Size": (0,), "CastLike": (1,)}
_MAX_FOLDED = 256  # elements; constants of interest are scalars and shapes


class View:
    """Facts about the values of one model; the model is not changed."""

    def __init__(self, model: ir.Model):
        self._opset = model.opset_imports.get("", 1)
        self._opset_of: dict[ir.Node, int] = {
            node: function.opset_imports.get("", self._opset)
            for function in model.functions.values()
            for node in function.all_nodes()
        }
        containers: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        self._places = {node: place for c in containers for place, node in enumerate(c.all_nodes())}
        self._shapes: dict[ir.Value, tuple[Dim, ...]] = {}
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._constants: dict[ir.Value, np.ndarray | None] = {}
        self.dims = Dims(self)
        self._infer(model)

    def _infer(self, model: ir.Model) -> None:
        clone = model.clone()
        _infer_quietly(clone)
        for graph, inferred in zip(model.graphs(), clone.graphs(), strict=True):
            self._learn(graph, inferred)
        self._infer_functions(model)

    def _learn(self, graph: ir.Graph | ir.Function, inferred: ir.Graph | ir.Function) -> None:
        """Take over what was inferred about a clone of ``graph``."""
        for value, twin in zip(_values(graph), _values(inferred), strict=True):
            if twin.shape is not None:
                self._shapes[value] = _dims(twin.shape)
            if twin.dtype is not None:
                self._dtypes[value] = twin.dtype
        self._follow_unknown_operators(graph)

    def _follow_unknown_operators(self, graph: ir.Graph | ir.Function) -> None:
        """Carry types and ranks on where inference stops: at the operators of ONNX Runtime's own optimizer."""
        for node in graph:
            first = node.inputs[0] if node.inputs else None
            fused = node.op_type in OF_FIRST_SHAPE
            for output in node.outputs if first is not None else ():
                shape = self.shape(first if fused else output)
                if output not in self._shapes and shape is not None:
                    self._shapes[output] = shape
                if self.dtype(output) is not None:
                    continue
                if node.op_type == "Cast":
                    self._dtypes[output] = ir.DataType(node.attributes["to"].as_int())
                elif node.op_type in _OF_FIRST_TYPE or fused:
                    typed = node.inputs[1] if node.op_type == "Where" else first
                    if (dtype := self.dtype(typed)) is not None:
                        self._dtypes[output] = dtype

    def _infer_functions(self, model: ir.Model) -> None:
        """Infer each function's body from what all its calls agree on, callers first."""
        pending = dict(model.functions)
        calls: dict[ir.OperatorIdentifier, list[ir.Node]] = {identifier: [] for identifier in pending}
        called_by = {identifier: _calls(function, pending) for identifier, function in pending.items()}
        for node in (*_calls(model.graph, pending), *(n for nodes in called_by.values() for n in nodes)):
            calls[node.op_identifier()].append(node)
        while pending:
            waiting = {n.op_identifier() for i in pending for n in called_by[i]}
            ready = [i for i in pending if i not in waiting]
            if not ready:
                return  # recursion, which ONNX forbids
            for identifier in ready:
                function = pending.pop(identifier)
                clone = function.clone()
                for index, parameter in enumerate(clone.inputs):
                    arguments = [n.inputs[index] if index < len(n.inputs) else None for n in calls[identifier]]
                    parameter.shape = _common_shape([self.shape(a) for a in arguments])
                    dtypes = {self.dtype(a) for a in arguments}
                    if len(dtypes) == 1 and (dtype := dtypes.pop()) is not None:
                        parameter.dtype = dtype
                others = [f.clone() for f in model.functions.values()]
                _infer_quietly(ir.Model(clone.graph, ir_version=model.ir_version or 8, functions=others))
                self._learn(function, clone)

    def opset(self, node: ir.Node) -> int:
        """Return the version of the standard operators in the node's graph or function."""
        return self._opset_of.get(node, self._opset)

    def is_before(self, value: ir.Value, node: ir.Node) -> bool:
        """Return whether a value of the node's own graph is there before the node; no is said of nodes made since."""
        producer = value.producer()
        if value.graph is not node.graph:
            return False
        return producer is None or self._places.get(producer, math.inf) < self._places.get(node, -1)

    def shape(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the dimensions, each an int, a symbolic name or None; None where even the rank is unknown."""
        if value is None:
            return None
        if value in self._shapes:
            return self._shapes[value]
        if value.shape is not None:
            return _dims(value.shape)
        rank = self._rank_from_producer(value, 0)
        return None if rank is None else (None,) * rank

    def adopt(self, new: ir.Value, old: ir.Value) -> None:
        """Give ``new``, which has taken the place of ``old``, what is known about it."""
        if (shape := self.shape(old)) is not None:
            self._shapes[new] = shape
        if (dtype := self.dtype(old)) is not None:
            self._dtypes[new] = dtype

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of dimensions, or None."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dim(self, value: ir.Value | None, axis: int) -> int | None:
        """Return a dimension where it is known statically."""
        rank = self.rank(value)
        if value is None or rank is None or not -rank <= axis < rank:
            return None
        size = self.dims.dim(value, axis % rank)
        return size if isinstance(size, int) else None

    def axes(self, node: ir.Node) -> list[int] | None:
        """Return the axes of Squeeze, Unsqueeze or a reduction, from its attribute or its second input."""
        if "axes" in node.attributes:
            return list(node.attributes["axes"].as_ints())
        array = self.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return None if array is None else [int(a) for a in array.reshape(-1)]

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the element type, or None."""
        if value is None:
            return None
        return self._dtypes.get(value) or value.dtype

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """Return a small constant (folded through shape and scalar arithmetic), or None."""
        if value is None:
            return None
        if value not in self._constants:
            self._constants[value] = None  # a cycle cannot occur in a valid graph; in an invalid one this ends it
            self._constants[value] = self._fold(value)
        return self._constants[value]

    def scalar(self, value: ir.Value | None) -> float | None:
        """Return the value of a one-element constant, or None."""
        array = self.constant(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def is_constant(self, value: ir.Value | None, depth: int = 8) -> bool:
        """Return whether a value of any size depends on constants only."""
        if value is None or (value.is_initializer() and not value.is_graph_input()):
            return value is not None
        node = value.producer()
        if node is None or depth == 0:
            return False
        return node.op_type == "Constant" or (
            len(node.inputs) > 0 and all(i is None or self.is_constant(i, depth - 1) for i in node.inputs)
        )

    def readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Return the (node, input index) pairs that read more than the value's shape or type."""
        return [(n, i) for n, i in value.uses() if i not in _METADATA_ONLY.get(n.op_type, ())]

    def metadata_readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Return the (node, input index) pairs that read only the value's shape or type."""
        return [(n, i) for n, i in value.uses() if i in _METADATA_ONLY.get(n.op_type, ())]

    def _fold(self, value: ir.Value) -> np.ndarray | None:
        if value.is_initializer() and not value.is_graph_input():
            tensor = value.const_value
            return tensor.numpy() if tensor is not None and tensor.size <= _MAX_FOLDED else None
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            return tensor.numpy() if tensor is not None and tensor.size <= _MAX_FOLDED else None
        if node.op_type in _OVER_SIZES and (sizes := self.dims.content(value)) is not None:
            # A size that is not known stays out of the constant, unless nobody asks for it (a Slice of a Shape).
            return np.array(sizes, np.int64) if all(isinstance(x, int) for x in sizes) else None
        if node.op_type == "Shape":
            return None
        arguments = [self.constant(i) for i in node.inputs if i is not None]
        if not arguments or any(a is None for a in arguments[: 1 if node.op_type == "CastLike" else None]):
            return None
        return _evaluate(node, [a for a in arguments if a is not None])

    def _rank_from_producer(self, value: ir.Value, depth: int) -> int | None:
        node = value.producer()
        if node is None or depth > 12:
            return None

        def rank(x: ir.Value | None) -> int | None:
            if x is None:
                return None
            known = self._shapes[x] if x in self._shapes else (_dims(x.shape) if x.shape is not None else None)
            return len(known) if known is not None else self._rank_from_producer(x, depth + 1)

        if node.op_type == "Transpose" and "perm" in node.attributes:
            return len(node.attributes["perm"].as_ints())
        if node.op_type == "Reshape":
            sizes = self.dims.content(node.inputs[1])
            return self.dim(node.inputs[1], 0) if sizes is None else len(sizes)
        if node.op_type == "Expand":
            inner, length = rank(node.inputs[0]), self.dim(node.inputs[1], 0)
            return None if inner is None or length is None else max(inner, length)
        if node.op_type in _ELEMENTWISE:
            ranks = [rank(i) for i in node.inputs if i is not None]
            vectors = node.op_type == "MatMul" and 1 in ranks  # their axis is not in the result
            known = [r for r in ranks if r is not None]
            return max(known, default=None) if len(known) == len(ranks) and not vectors else None
        if node.op_type in _RANK_OF_FIRST and node.inputs:
            return rank(node.inputs[0])
        if node.op_type in ("Squeeze", "Unsqueeze") and (axes := self.axes(node)) is not None:
            inner = rank(node.inputs[0])
            return None if inner is None else inner + (len(axes) if node.op_type == "Unsqueeze" else -len(axes))
        if node.op_type == "Gather" and rank(node.inputs[1]) == 0:
            inner = rank(node.inputs[0])
            return None if inner is None else inner - 1
        return None


# Operators of ONNX Runtime's optimizer, which ONNX does not know: each output is like the first input.
OF_FIRST_SHAPE = (
    *("SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    *("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "RotaryEmbedding"),
)
_OF_FIRST_TYPE = {
    *(
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "Einsum",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Neg",
        "Sqrt",
        "Where",
        "Max",
        "Min",
    ),
    *(
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Tile",
        "Slice",
        "Split",
        "Concat",
    ),
    *("Gather", "Softmax", "Tanh", "Sigmoid", "Relu", "Erf", "Exp", "Clip", "LayerNormalization", "Dropout"),
}
# Computed as sizes first, for there a tensor may be known in part.
_OVER_SIZES = ("Shape", "Gather", "Slice")
_ELEMENTWISE = {
    *("MatMul", "FusedMatMul", "Mul", "Div", "Add", "Sub", "Where", "Max", "Min", "Pow", "And", "Or", "Xor"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"),
}
_RANK_OF_FIRST = {
    "Softmax",
    "Cast",
    "CastLike",
    "Identity",
    "Dropout",
    "Sqrt",
    "Neg",
    "Slice",
    "Concat",
    "Tanh",
    "Split",
    "Not",
    "Abs",
    "Exp",
    "Clip",
    "IsNaN",
    "Trilu",
    "QuantizeLinear",
    "DequantizeLinear",
    "LayerNormalization",
    "Erf",
    "Sigmoid",
    "Relu",
    *OF_FIRST_SHAPE,
}


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _infer_quietly(model: ir.Model) -> None:
    """Infer shapes in place as far as it goes; a failure is not the user's concern."""
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    disabled, logger.disabled = logger.disabled, True
    # To onnx's data propagation every 1-D tensor might be a shape, and costs memory per element: 300 MB for the biases
    # of 500 layers. Those too long for a shape show it no length; what they are added to tells theirs.
    constants = [(v, v.const_value) for v in model.graph.initializers.values() if v.const_value is not None]
    long = [v for v, c in constants if len(c.shape) == 1 and c.size > _MAX_FOLDED]
    lengths = [v.shape for v in long]
    try:
        for value in long:
            value.shape = ir.Shape([None])
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        for value, shape in zip(long, lengths, strict=True):
            value.shape = shape
        logger.disabled = disabled


def _calls(container: ir.Graph | ir.Function, functions: Container[ir.OperatorIdentifier]) -> list[ir.Node]:
    return [n for n in container.all_nodes() if n.op_identifier() in functions]


def _common_shape(shapes: list[tuple[Dim, ...] | None]) -> ir.Shape | None:
    """Return the dimensions that all shapes have in common; None where the ranks differ."""
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or len({len(s) for s in known}) != 1:
        return None
    return ir.Shape([sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*known, strict=True)])


def _values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _dims(shape: ir.Shape) -> tuple[Dim, ...]:
    return tuple(d if isinstance(d, int) else d.value for d in shape)


def _evaluate(node: ir.Node, x: list[np.ndarray]) -> np.ndarray | None:
    """Evaluate one operator of shape or scalar arithmetic; None for any other."""
    op = node.op_type
    if op in ("Identity", "CastLike"):
        return x[0]
    if op == "Cast":
        return x[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if op in ("Unsqueeze", "Squeeze", "Reshape"):
        # The callers look at scalars and one-dimensional shapes, for which the number of axes does not matter.
        return x[0].reshape(-1) if x[0].ndim <= 1 else None
    if op == "ConstantOfShape" and np.all(x[0] >= 0) and np.prod(x[0]) <= _MAX_FOLDED:
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        return np.full(x[0].reshape(-1), fill.reshape(-1)[0])
    if op == "Not":
        return np.logical_not(x[0])
    if op in _UNARY:
        return np.asarray(_UNARY[op](x[0].astype(np.float64)))
    if op == "Where" and len(x) == 3:
        return np.where(*x)
    if op in _BINARY and len(x) == 2:
        with np.errstate(all="ignore"):
            return np.asarray(_BINARY[op](x[0], x[1]))
    if op == "Div" and len(x) == 2:
        integer = np.issubdtype(x[0].dtype, np.integer)
        if np.any(x[1] == 0):
            return None
        return np.asarray(x[0] // x[1] if integer else x[0] / x[1])
    if op == "Gather" and x[0].ndim == 1:
        index = x[1].astype(np.int64)
        return x[0][index] if np.all(np.abs(index) < len(x[0])) else None
    if op == "Slice" and x[0].ndim == 1 and len(x) >= 3:
        step = int(x[4].reshape(-1)[0]) if len(x) > 4 else 1
        return x[0][int(x[1].reshape(-1)[0]) : int(x[2].reshape(-1)[0]) : step]
    if op == "Concat" and all(a.ndim == 1 for a in x):
        return np.concatenate(x)
    return None


_UNARY = {"Sqrt": np.sqrt, "Reciprocal": np.reciprocal, "Neg": np.negative, "Exp": np.exp}
_BINARY = {
    "Mul": np.multiply,
    "Add": np.add,
    "Sub": np.subtract,
    "Pow": np.power,
    "Equal": np.equal,
    "And": np.logical_and,
    "Mod": np.mod,
}
