"""Sizes that are computed in the graph: what is said of them is true of every tensor when the model runs."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from intfa_onnx.patterns.sizes import Atom, Polynomial, Token, difference, named, product, quotient, terms, total
from intfa_onnx.patterns.view import View

SIZES = {"b": 2, "s": 3, "t": 5}
TOKENS: tuple[Token, ...] = (0, 1, 6, "b", "s", total(("s", "t")), product(("b", 4)), product(("b", total(("s", 2)))))


def number(token: Token, sizes: dict[Atom, int] = SIZES) -> int:  # type: ignore[assignment]
    if isinstance(token, Polynomial):
        return sum(
            n * int(np.prod([number(atom, sizes) ** power for atom, power in monomial])) for monomial, n in token.terms
        )
    return token if isinstance(token, int) else sizes[token]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(TOKENS, TOKENS)))
def test_arithmetic_is_true_of_numbers(a: Token, b: Token) -> None:
    assert number(total((a, b))) == number(a) + number(b)
    assert number(product((a, b))) == number(a) * number(b)
    assert sum(n * number(atoms) for n, atoms in terms(a)) == number(a)
    if (less := difference(a, b)) is not None:
        assert number(less) == number(a) - number(b) >= 0
    if (part := quotient(a, b)) is not None:
        assert number(part) * number(b) == number(a)


def test_one_normal_form() -> None:
    assert product(("b", total(("s", "t")))) == total((product(("s", "b")), product(("b", "t"))))
    assert quotient(product(("b", 64, "s")), product((16, "b"))) == product((4, "s"))
    assert quotient("b", "s") is None
    assert quotient(product(("b", 3)), 2) is None
    assert difference(total(("s", "t")), "t") == "s"
    assert difference("s", "t") is None
    assert named("s + t") == total(("t", "s"))
    assert named("2*s") == product((2, "s"))
    assert named("s*t//2") == "s*t//2"


def model_of_sizes() -> onnx.ModelProto:
    """Heads merged into the batch as older transformers do it, quantized; Expand and Range as TorchScript has them."""
    vectors = {"minus": [-1], "four": [4], "sixteen": [16], "flat": [0]}
    initializers = [helper.make_tensor(n, TensorProto.INT64, [1], v) for n, v in vectors.items()]
    initializers += [helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in (("zero", 0), ("one", 1))]
    initializers += [helper.make_tensor("step", TensorProto.FLOAT, [], [1])]
    one = helper.make_tensor("value", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["b"]),
        helper.make_node("Gather", ["shape", "one"], ["s"]),
        helper.make_node("Unsqueeze", ["b", "flat"], ["b1"]),
        helper.make_node("Unsqueeze", ["s", "flat"], ["s1"]),
        helper.make_node("Mul", ["b1", "four"], ["rows"]),
        helper.make_node("Concat", ["b1", "minus", "four", "sixteen"], ["to_heads"], axis=0),
        helper.make_node("Reshape", ["x", "to_heads"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["bhsd"], perm=[0, 2, 1, 3]),
        helper.make_node("Concat", ["rows", "minus", "sixteen"], ["to_rows"], axis=0),
        helper.make_node("Reshape", ["bhsd", "to_rows"], ["rounded"]),
        helper.make_node("QuantizeLinear", ["rounded", "step"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step"], ["merged"]),
        helper.make_node("Concat", ["past", "merged"], ["longer"], axis=1),
        helper.make_node("Transpose", ["longer"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["merged", "turned"], ["scores"]),
        helper.make_node("Shape", ["longer"], ["longer_shape"]),
        helper.make_node("Gather", ["longer_shape", "one"], ["t"]),
        helper.make_node("Range", ["s", "t", "one"], ["rest"]),  # t - s is what was there before
        helper.make_node("Range", ["zero", "t", "one"], ["keys"]),
        helper.make_node("Concat", ["minus", "s1", "minus"], ["open"], axis=0),
        helper.make_node("Shape", ["open"], ["three"]),
        helper.make_node("ConstantOfShape", ["three"], ["ones"], value=one),
        helper.make_node("Mul", ["ones", "minus"], ["marks"]),
        helper.make_node("Equal", ["open", "marks"], ["is_open"]),
        helper.make_node("Where", ["is_open", "ones", "open"], ["closed"]),
        helper.make_node("Expand", ["keys", "closed"], ["expanded"]),
        helper.make_node("Cast", ["expanded"], ["bias"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scores", "bias"], ["biased"]),
        helper.make_node("Clip", ["biased"], ["clipped"]),
        helper.make_node("GatherElements", ["clipped", "expanded"], ["gathered"], axis=2),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 64]),
        helper.make_tensor_value_info("past", TensorProto.FLOAT, ["n", "p", 16]),
    ]
    outputs = [helper.make_empty_tensor_value_info("biased")]
    graph = helper.make_graph(nodes, "sizes", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_sizes_are_true_when_the_model_runs() -> None:
    proto = model_of_sizes()
    model = ir.from_proto(proto)
    view = View(model)
    values = {str(o.name): o for node in model.graph for o in node.outputs}
    expected = {
        "merged": (product(("b", 4)), "s", 16),
        "turned": (view.dims.dim(values["longer"], 0), 16, total(("p", "s"))),
        "rest": ("p",),
        "keys": (total(("p", "s")),),
        "expanded": (1, "s", total(("p", "s"))),
        "biased": (view.dims.dim(values["scores"], 0), "s", total(("p", "s"))),
    }
    assert {name: view.dims.of(values[name]) for name in expected} == expected

    sizes: dict[Atom, int] = {"b": 2, "s": 3, "n": 8, "p": 4}
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    feed = {"x": np.zeros((2, 3, 64), np.float32), "past": np.zeros((8, 4, 16), np.float32)}
    shapes = {name: x.shape for name, x in zip(values, session.run(None, feed), strict=True)}
    for name, value in values.items():
        tokens = view.dims.of(value)
        assert tokens is not None
        for axis, token in enumerate(tokens):
            if isinstance(token, str | tuple):
                sizes.setdefault(token, shapes[name][axis])  # what is open is the same wherever it occurs
            assert number(token, sizes) == shapes[name][axis], (name, axis, token)
