"""What a family returns: a match, which states an attention in the terms of the standard ``Attention``, or a rejection.

A match is data. It refers to values of the graph and, where the graph holds no value with the needed meaning (a key
stored transposed, a mask made of three additions), to small expressions over them; ``lower`` turns these into nodes.
Nothing here, and nothing in the families, changes the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Const:
    """A small constant."""

    array: np.ndarray


@dataclass(frozen=True, eq=False)
class Call:
    """A standard operator over operands. ``axes`` is given as an attribute for every operator and opset."""

    op_type: str
    inputs: tuple[Operand, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Result:
    """Stands for the fused node's first output in ``AttentionMatch.outputs``, for the present one in ``presents``."""


@dataclass(frozen=True, eq=False)
class Lse:
    """Stands for the fused node's lse in ``AttentionMatch.outputs``: float32 [B, Hq, Sq]."""


@dataclass(frozen=True, eq=False)
class Shared:
    """An expression over values of the graph that several attentions read: it is computed once.

    Attributes:
        expression: what is computed.
        before: node before which all that it reads is there, and which comes before all that read it.
    """

    expression: Call
    before: ir.Node


Operand = Union[ir.Value, Const, Call, Result, Lse, Shared]  # noqa: UP007
RESULT = Result()
LSE = Lse()


@dataclass(frozen=True, eq=False)
class AttentionMatch:
    """One attention: ``outputs[0] = softmax(cap(Q K^T * scale) + mask) V``, inputs and attributes as in ``op_schema``.

    Attributes:
        anchor: the node by which it was found and is named.
        family: the module that found it.
        place: the node before which everything that the attention reads is computed: the product with V.
        inputs: operand of each used input, by its name in ``op_schema.INPUTS``.
        attributes: attributes by their name in ``op_schema.ATTRIBUTES``, defaults left out.
        outputs: graph value -> operand that takes its place; the one that the attention computes comes first.
        around: whether nodes around the attention may be absorbed.
        states: graph values that become present_key, present_value; None where unused.
        presents: operand that takes the place of each of them.
        head_dim, head_dim_v, num_heads, kv_num_heads: None where not known statically.
        dtype: element type of Q, K and V.
        rank: number of axes of Q, K, V and the scores; ``absorb`` brings it to 4, or to 3 with the heads packed.
        merged_heads: of three axes, how many heads the first holds beside the batch, where the mask has four axes.
        absorbed: see ``AttentionReport.absorbed``.
        notes: what a user should know though the attention is replaced.
    """

    anchor: ir.Node
    family: str
    place: ir.Node
    inputs: Mapping[str, Operand]
    attributes: Mapping[str, Any]
    outputs: Mapping[ir.Value, Operand]
    dtype: ir.DataType
    rank: int = 4
    merged_heads: int | None = None
    around: bool = False
    states: tuple[ir.Value | None, ir.Value | None] = (None, None)
    presents: tuple[Operand, Operand] = (RESULT, RESULT)
    head_dim: int | None = None
    head_dim_v: int | None = None
    num_heads: int | None = None
    kv_num_heads: int | None = None
    absorbed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rejection:
    """An anchor that is not replaced, with the reason and the node at which the match ended."""

    anchor: ir.Node
    family: str
    reason: str
    supported: bool = False  # True: it is attention that stays as it is on purpose ("kept" in the report)


class NoMatch(Exception):
    """Raised inside a family to end a match; carries the reason."""


def node_name(node: ir.Node) -> str:
    """Return the node's name, or its first output's where it has none."""
    return node.name or next((o.name for o in node.outputs if o.name), "") or node.op_type


def operation(x: Operand | None) -> Call | None:
    """Return ``x`` as a call, whether it is one or a standard node of the graph computes it; None for a constant."""
    if isinstance(x, Call):
        return x
    node = x.producer() if isinstance(x, ir.Value) else None
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type == "Constant" or len(node.outputs) != 1:
        return None
    if any(i is None for i in node.inputs) or any(a.is_ref() for a in node.attributes.values()):
        return None
    inputs = tuple(i for i in node.inputs if i is not None)
    return Call(node.op_type, inputs, {name: a.value for name, a in node.attributes.items()})


def transpose(x: Operand, perm: tuple[int, ...]) -> Operand:
    """Return ``x`` transposed; ``x`` itself where ``perm`` is the identity."""
    return x if perm == tuple(range(len(perm))) else Call("Transpose", (x,), {"perm": list(perm)})


def substitute(x: Operand, result: Operand) -> Operand:
    """Return ``x`` with ``RESULT`` replaced."""
    if x is RESULT:
        return result
    return Call(x.op_type, tuple(substitute(i, result) for i in x.inputs), x.attributes) if isinstance(x, Call) else x


def uses_lse(x: Operand) -> bool:
    """Return whether an expression reads the fused node's lse."""
    return x is LSE or (isinstance(x, Call) and any(uses_lse(i) for i in x.inputs))


def slice_of(x: Operand, start: int, end: int | None) -> Operand:
    """Return ``x[start:end]`` of a tensor with one axis."""
    bounds = (start, np.iinfo(np.int64).max if end is None else end)
    return Call("Slice", (x, *(Const(np.array([b], np.int64)) for b in bounds)))


def shape_slice(x: Operand, start: int, end: int | None) -> Operand:
    """Return some of the sizes of ``x``."""
    return slice_of(Call("Shape", (x,)), start, end)


def join(a: Operand, b: Operand) -> Operand:
    """Return the concatenation of two lists of sizes."""
    return Call("Concat", (a, b), {"axis": 0})


def float_dtype(dtype: ir.DataType | None) -> ir.DataType:
    """Return the element type, if the operator knows it.

    Raises:
        NoMatch: it does not.
    """
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or dtype is None:
        found = dtype.name if dtype is not None else "unknown"
        raise NoMatch(f"element type {found} is unsupported (supported: FLOAT, FLOAT16, BFLOAT16)")
    return dtype


def required(value: ir.Value | None) -> ir.Value:
    """Return an input that has to be there.

    Raises:
        NoMatch: it is missing.
    """
    if value is None:
        raise NoMatch("an input is missing")
    return value
