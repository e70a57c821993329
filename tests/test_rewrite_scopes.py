"""Attention inside If, Loop and Scan bodies and model-local functions, and the standard ``Attention`` operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import attributes, check_raise, check_same, feed, fused, run
from onnx import TensorProto, helper

import intfa_onnx

SHAPES = "float[B, 2, S, 16] Q, float[B, 2, T, 16] K, float[B, 2, T, 16] V"
ATTENTION = """
    Kt = Transpose <perm = [0, 1, 3, 2]> (K)
    X = MatMul (Q, Kt)
    P = Softmax <axis = -1> (X)
    Y{0} = MatMul (P, V)
"""


def names(model: onnx.ModelProto) -> onnx.ModelProto:
    for index, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{index}"
    return model


def if_model() -> onnx.ModelProto:
    """Attention in one branch of an If, on values of the outer graph."""
    return names(
        onnx.parser.parse_model(
            f"""<ir_version: 9, opset_import: ["": 18]>
            g ({SHAPES}, bool C) => (float[B, 2, S, 16] Y) {{
                Y = If (C) <
                    then_branch = then_graph () => (float[B, 2, S, 16] Y1) {{ {ATTENTION.format(1)} }},
                    else_branch = else_graph () => (float[B, 2, S, 16] Y2) {{ Y2 = Neg (Q) }}
                >
            }}"""
        )
    )


def loop_model() -> onnx.ModelProto:
    """Three times attention, each on the result of the last."""
    return names(
        onnx.parser.parse_model(
            f"""<ir_version: 9, opset_import: ["": 18]>
            g ({SHAPES}) => (float[B, 2, S, 16] Y) {{
                three = Constant <value = int64 {{3}}> ()
                yes = Constant <value = bool {{1}}> ()
                Y = Loop (three, yes, Q) <
                    body = body (int64 i, bool c, float[B, 2, S, 16] q) => (bool c2, float[B, 2, S, 16] y) {{
                        c2 = Identity (c)
                        Kt = Transpose <perm = [0, 1, 3, 2]> (K)
                        X = MatMul (q, Kt)
                        P = Softmax <axis = -1> (X)
                        y = MatMul (P, V)
                    }}
                >
            }}"""
        )
    )


def function_model() -> onnx.ModelProto:
    """Two calls of a function that holds an attention."""
    return names(
        onnx.parser.parse_model(
            f"""<ir_version: 9, opset_import: ["": 18, "my.domain": 1]>
            g ({SHAPES}) => (float[B, 2, S, 16] Y) {{
                Y1 = my.domain.Block (Q, K, V)
                Y = my.domain.Block (Y1, K, V)
            }}
            <domain: "my.domain", opset_import: ["": 18]>
            Block (q, k, v) => (y) {{
                Kt = Transpose <perm = [0, 1, 3, 2]> (k)
                X = MatMul (q, Kt)
                P = Softmax <axis = -1> (X)
                y = MatMul (P, v)
            }}"""
        )
    )


def test_patterns_of_an_attention_in_a_body():
    """Its label, as the reports print it, is one; so is the bare name of the node."""
    for pattern in ("/If_0.then_branch: P", "/If_0.*", "P"):
        assert [a.decision for a in intfa_onnx.rewrite(if_model(), skip=[pattern]).attentions] == ["kept"], pattern


def test_if_branch():
    model = if_model()
    result = intfa_onnx.rewrite(model, portable=True)
    [row] = result.attentions
    assert (row.decision, row.scope) == ("replaced", "/If_0.then_branch")
    rewritten = result.to_proto()
    onnx.checker.check_model(rewritten, full_check=True)
    for condition in (True, False):
        values = {**feed(model), "C": np.array(condition)}
        check_same(run(rewritten, values)[0], run(model, values)[0])
    branch = next(a.g for a in rewritten.graph.node[0].attribute if a.name == "then_branch")
    assert branch.output == model.graph.node[0].attribute[0].g.output
    assert [n.op_type for n in branch.node] == ["IntFlashAttention"]


def test_loop_body():
    model = loop_model()
    rewritten = check_raise(model)
    body = next(n for n in rewritten.graph.node if n.op_type == "Loop").attribute[0].g
    assert sorted(n.op_type for n in body.node) == ["Identity", "IntFlashAttention"]


def test_function_body():
    """The head size comes from the calls; the function imports our domain."""
    model = function_model()
    result = intfa_onnx.rewrite(model, portable=True)
    [row] = result.attentions
    assert (row.decision, row.scope) == ("replaced", "function my.domain::Block"), row.reason
    rewritten = result.to_proto()
    onnx.checker.check_model(rewritten)
    block = next(f for f in rewritten.functions if f.name == "Block")
    assert {o.domain for o in block.opset_import} == {"", "intfa"}
    assert [n.op_type for n in block.node] == ["IntFlashAttention"]
    # ONNX Runtime does not infer the type of a call through our operator in the body, so it has to be declared.
    assert "Y1" in [v.name for v in rewritten.graph.value_info]
    values = feed(model)
    check_same(run(rewritten, values)[0], run(model, values)[0])


def test_function_called_with_two_head_sizes_is_rejected():
    model = function_model()
    third = helper.make_tensor_value_info("Z", TensorProto.FLOAT, ["B", 2, "S", 12])
    model.graph.input.append(third)
    model.graph.node.append(helper.make_node("Block", ["Z", "Z", "Z"], ["W"], domain="my.domain"))
    model.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, ["B", 2, "S", 12]))
    [row] = intfa_onnx.rewrite(model).attentions
    assert row.decision == "rejected"
    assert "not known statically" in row.reason


def attention_model(opset: int, inputs: dict[str, list], outputs: dict[str, list], **options) -> onnx.ModelProto:
    """One standard Attention; a name that starts with "-" is a missing optional."""
    types = {"attn_mask": TensorProto.FLOAT, "nonpad_kv_seqlen": TensorProto.INT64}
    present = [n for n in inputs if not n.startswith("-")]
    node = helper.make_node(
        "Attention",
        ["" if n.startswith("-") else n for n in inputs],
        ["" if n.startswith("-") else n for n in outputs],
        name="/attn/Attention",
        **options,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), inputs[n]) for n in present],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items() if not n.startswith("-")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


FOUR = {"Q": ["B", 4, "S", 16], "K": ["B", 2, "T", 16], "V": ["B", 2, "T", 24]}
THREE = {"Q": ["B", "S", 64], "K": ["B", "T", 32], "V": ["B", "T", 48]}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    ("inputs", "outputs", "options"),
    [
        (FOUR, {"Y": ["B", 4, "S", 24]}, {}),
        (FOUR, {"Y": ["B", 4, "S", 24]}, {"scale": 0.5, "softcap": 2.0}),
        (FOUR, {"Y": ["B", 4, "S", 24]}, {"is_causal": 1}),
        ({**FOUR, "attn_mask": ["B", 1, "S", "T"]}, {"Y": ["B", 4, "S", 24]}, {}),
        ({**FOUR, "attn_mask": ["S", "T"]}, {"Y": ["B", 4, "S", 24]}, {"is_causal": 1}),
        (THREE, {"Y": ["B", "S", 96]}, {"q_num_heads": 4, "kv_num_heads": 2}),
        (
            {**FOUR, "-mask": [], "past_key": ["B", 2, 3, 16], "past_value": ["B", 2, 3, 24]},
            {"Y": ["B", 4, "S", 24], "present_key": ["B", 2, "U", 16], "present_value": ["B", 2, "U", 24]},
            {"is_causal": 1},
        ),
    ],
    ids=["plain", "scale and softcap", "causal", "mask", "mask and causal", "packed", "past"],
)
def test_standard_attention(opset, inputs, outputs, options):
    model = attention_model(opset, inputs, outputs, **options)
    rewritten = check_raise(model)
    [node] = fused(rewritten)
    assert node.name == "/attn/Attention"
    assert list(node.output) == [n for n in outputs]
    found = attributes(node)
    for name, value in options.items():
        assert found[name] == pytest.approx(value)


def test_standard_attention_with_padding():
    """nonpad_kv_seqlen hides the padding, and causality counts from the last valid key."""
    inputs = {**FOUR, "-mask": [], "-past_key": [], "-past_value": [], "nonpad_kv_seqlen": ["B"]}
    model = attention_model(24, inputs, {"Y": ["B", 4, "S", 24]}, is_causal=1)
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    values = feed(model, 5, 9)
    values["nonpad_kv_seqlen"] = np.array([9, 6])
    got = run(rewritten, values)[0]
    short = {n: v[1:, :, :6] if n in ("K", "V") else v[1:] for n, v in values.items()}
    short["nonpad_kv_seqlen"] = np.array([6])
    check_same(got[1:], run(rewritten, short)[0])
    # Row i of the 5 queries attends the first i + 2 of the 6 keys; here the last row, in numpy.
    q, k, v = values["Q"][1, 3, 4], values["K"][1, 1, :6], values["V"][1, 1, :6]
    p = np.exp(k @ q / 4)
    check_same(got[1, 3, 4], p @ v / p.sum())


def test_standard_attention_whose_scores_are_used_is_rejected():
    outputs = {"Y": ["B", 4, "S", 24], "-pk": [], "-pv": [], "scores": ["B", 4, "S", "T"]}
    [row] = intfa_onnx.rewrite(attention_model(23, FOUR, outputs)).attentions
    assert (row.decision, row.reason) == ("rejected", "the output qk_matmul_output is used")


def test_attention_behind_attention():
    """What one replacement renames or removes must not confuse the next."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 18]>
        g ({SHAPES.replace("T", "S")}) => (float[B, 2, S, 16] Y) {{
            Kt = Transpose <perm = [0, 1, 3, 2]> (K)
            X = MatMul (Q, Kt)
            P = Softmax <axis = -1> (X)
            A = MatMul (P, V)
            At = Transpose <perm = [0, 1, 3, 2]> (A)
            X2 = MatMul (A, At)
            P2 = Softmax <axis = -1> (X2)
            Y = MatMul (P2, A)
        }}"""
    )
    check_raise(model, count=2)
