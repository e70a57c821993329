"""The rewriter's interface: options, report, what must not change, opsets, odd but valid models."""

from __future__ import annotations

import json

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from attention_graphs import KT, TAIL, VARIANTS, attributes, canonical, check_raise, check_same, feed, fused, parse, run
from onnx import TensorProto, helper

import intfa_onnx
from intfa_onnx import UnsupportedError


def test_rewriting_twice_changes_nothing():
    once = intfa_onnx.rewrite(parse(*VARIANTS["added mask"])).to_proto()
    again = intfa_onnx.rewrite(once)
    assert [(a.decision, a.reason) for a in again.attentions] == [("kept", "already IntFlashAttention")]
    assert again.summary() == "1 attention found: 1 kept"
    assert again.to_proto().SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_no_attention_leaves_a_valid_model():
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N] X) => (float[N] Y) { Y = Relu (X) }'
    )
    result = intfa_onnx.rewrite(model, portable=True)
    assert result.summary() == "no attention found: the model is unchanged"
    assert result.to_proto() == canonical(model)


def test_input_is_not_changed():
    model = parse(*VARIANTS["added mask"])
    before = model.SerializeToString(deterministic=True)
    intfa_onnx.rewrite(model)
    assert model.SerializeToString(deterministic=True) == before
    parsed = ir.from_proto(model)
    intfa_onnx.rewrite(parsed)
    assert ir.to_proto(parsed) == canonical(model)


def test_names_and_metadata_are_kept():
    model = parse(*VARIANTS["scale after"])
    model.graph.doc_string, model.producer_name = "a graph", "a producer"
    model.metadata_props.add(key="author", value="someone")
    pv = model.graph.node[-1]
    softmax = model.graph.node[-2]
    softmax.doc_string = "the softmax"
    softmax.metadata_props.add(key="namespace", value="layer.0")
    rewritten = intfa_onnx.rewrite(model).to_proto()
    assert (rewritten.graph.doc_string, rewritten.producer_name) == ("a graph", "a producer")
    assert rewritten.metadata_props == model.metadata_props
    assert rewritten.graph.input == model.graph.input
    assert rewritten.graph.output == model.graph.output
    [node] = fused(rewritten)
    assert node.output[0] == pv.output[0]
    assert node.name == softmax.name
    assert node.doc_string == "the softmax"
    assert node.metadata_props == softmax.metadata_props
    assert {o.domain: o.version for o in rewritten.opset_import} == {"": 18, "intfa": 1}
    assert rewritten.ir_version == model.ir_version


def test_attributes_are_only_those_that_differ():
    plain = attributes(fused(intfa_onnx.rewrite(parse(*VARIANTS["scale after"])).to_proto())[0])
    assert plain == {"scale": pytest.approx(0.3), "plugin_namespace": b"intfa", "plugin_version": b"1"}
    chosen = intfa_onnx.rewrite(parse(*VARIANTS["plain"]), precision="int8_qk", scheme="paper")
    found = attributes(fused(chosen.to_proto())[0])
    assert (found["precision"], found["scheme"]) == (b"int8_qk", b"paper")


def two_layers() -> onnx.ModelProto:
    second = KT.replace("Kt", "Kt2") + "X2 = MatMul (Y1, Kt2)\n P2 = Softmax <axis = -1> (X2)\n Y = MatMul (P2, V)"
    model = parse(KT + "X = MatMul (Q, Kt)\n" + TAIL.replace("Y =", "Y1 =") + "\n" + second)
    for node in model.graph.node:
        node.name = f"/layer.{int(any('2' in o for o in node.output))}/{node.op_type}_{node.output[0]}"
    return model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["replaced", "replaced"]),
        ({"only": ["/layer.1/*"]}, ["kept", "replaced"]),
        ({"skip": ["/layer.1/*"]}, ["replaced", "kept"]),
        ({"only": ["/layer.*"], "skip": ["*.0/*"]}, ["kept", "replaced"]),
    ],
)
def test_only_and_skip(options, expected):
    result = intfa_onnx.rewrite(two_layers(), **options)
    assert [a.decision for a in result.attentions] == expected
    assert all(a.reason for a in result.attentions if a.decision == "kept")
    assert len(fused(result.to_proto())) == expected.count("replaced")


def test_a_name_is_a_pattern_whatever_it_holds():
    """Brackets stand for themselves in a name, and for a choice in a glob."""
    model = two_layers()
    for node in model.graph.node:
        node.name = node.name.replace("/layer.1/", "/layer[1]/")
    result = intfa_onnx.rewrite(model, skip=["/layer[1]/Softmax_P2"])
    assert [a.decision for a in result.attentions] == ["replaced", "kept"]


def test_patterns_that_name_no_attention_are_told():
    result = intfa_onnx.rewrite(two_layers(), only=["/layer.1/*", "/layer.2/*"], skip=["/layer.1/MatMul*"])
    assert result.unmatched == ("/layer.2/*", "/layer.1/MatMul*")
    assert result.to_dict()["unmatched"] == ["/layer.2/*", "/layer.1/MatMul*"]


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_string_is_not_a_list_of_patterns(option):
    with pytest.raises(UnsupportedError, match=rf"{option} is the string '\*decoder\*'"):
        intfa_onnx.rewrite(two_layers(), **{option: "*decoder*"})


def test_report():
    result = intfa_onnx.rewrite(two_layers(), skip=["/layer.1/*"])
    report = json.loads(result.to_json())
    assert report["summary"] == "2 attentions found: 1 replaced, 1 kept"
    first = report["attentions"][0]
    assert first["node"] == "/layer.0/Softmax_P"
    assert (first["head_dim"], first["head_dim_v"], first["num_heads"], first["kv_num_heads"]) == (16, 16, 2, 2)
    assert (first["precision"], first["scheme"], first["output"]) == ("int8", "tile", "Y1")
    assert report["nodes_before"] - report["nodes_after"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"scheme": "x"}, "scheme 'x' is unknown"),
        ({"target": "x"}, "target 'x' is unknown"),
        ({"target": "trt", "portable": True}, "TensorRT's parser prefers the function body"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UnsupportedError, match=message):
        intfa_onnx.rewrite(two_layers(), **options)


@pytest.mark.parametrize("opset", range(11, 26))
def test_opsets(opset):
    """Every opset from 11 on is rewritten."""
    rewritten = check_raise(parse(*VARIANTS["added mask"], opset=opset))
    assert len(fused(rewritten)) == 1
    assert next(o.version for o in rewritten.opset_import if o.domain == "") == opset


def test_unsorted_nodes_and_missing_shapes():
    model = parse(*VARIANTS["two added masks"])
    nodes = list(model.graph.node)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(nodes))
    rewritten = intfa_onnx.rewrite(shuffled, portable=True).to_proto()
    onnx.checker.check_model(rewritten)
    values = feed(model)
    check_same(run(rewritten, values)[0], run(model, values)[0])


def test_duplicate_and_missing_node_names():
    model = two_layers()
    for node in model.graph.node:
        node.name = ""
    check_raise(model, count=2)
    for node in model.graph.node:
        node.name = "same"
    assert len(fused(intfa_onnx.rewrite(model).to_proto())) == 2


def test_unrelated_unused_initializer_and_node_stay():
    model = parse(*VARIANTS["plain"])
    model.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT, [1], [1.0]))
    model.graph.node.append(helper.make_node("Neg", ["Q"], ["dead"]))
    rewritten = intfa_onnx.rewrite(model).to_proto()
    assert [i.name for i in rewritten.graph.initializer] == ["unused"]
    assert "dead" in [o for n in rewritten.graph.node for o in n.output]
