"""The float function bodies: one per configuration, in a file that other tools read too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from attention_graphs import KT, MASK, VARIANTS, check_same, feed, fused, parse, run
from onnx.reference import ReferenceEvaluator
from test_rewrite_scopes import attention_model

import intfa_onnx
from intfa_onnx import UnsupportedError

TWO = (
    KT
    + "s = MatMul (Q, Kt)\n X = Add (s, M)\n P = Softmax <axis = -1> (X)\n Y1 = MatMul (P, V)\n"
    + "X2 = MatMul (Y1, Kt)\n P2 = Softmax <axis = -1> (X2)\n Y = MatMul (P2, V)"
)


def test_one_configuration_is_one_function():
    rewritten = intfa_onnx.rewrite(parse(*VARIANTS["added mask"]), portable=True).to_proto()
    [function] = rewritten.functions
    assert (function.domain, function.name, function.overload) == ("intfa", "IntFlashAttention", "")
    assert rewritten.ir_version == 9


def test_two_configurations_are_overloads():
    model = parse(TWO, MASK)
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    assert [f.overload for f in rewritten.functions] == ["", "1", "guard"]
    assert sorted(n.overload for n in fused(rewritten)) == ["", "1"]
    assert rewritten.ir_version == 10
    onnx.checker.check_model(rewritten, full_check=True)
    values = feed(model)
    check_same(run(rewritten, values)[0], run(model, values)[0])


def test_what_knows_no_overloads_refuses_the_model():
    """ONNX's reference evaluator, like ONNX Runtime before 1.27, would run the last function for every node."""
    rewritten = intfa_onnx.rewrite(parse(TWO, MASK), portable=True).to_proto()
    with pytest.raises(Exception, match="OverloadsNeedOnnxRuntime127OrTheLibraryOfIntfa"):
        ReferenceEvaluator(rewritten).run(None, feed(parse(TWO, MASK)))


def test_rewriting_in_two_steps_keeps_the_first_function():
    """Each attention has its own configuration, and each step gives it the first name that is free."""
    model = parse(TWO, MASK)
    names = [a.node for a in intfa_onnx.rewrite(model).attentions]
    first = intfa_onnx.rewrite(model, only=names[:1], portable=True).to_proto()
    rewritten = intfa_onnx.rewrite(first, portable=True).to_proto()
    assert [f.overload for f in rewritten.functions] == ["", "1", "guard"]
    assert rewritten.ir_version == 10
    values = feed(model)
    check_same(run(rewritten, values)[0], run(model, values)[0])


def test_without_portable_there_is_no_function():
    assert not intfa_onnx.rewrite(parse(TWO, MASK)).to_proto().functions


def test_the_result_says_what_the_file_carries():
    """Not what was asked for: nodes of an earlier rewrite get no function."""
    plain = intfa_onnx.rewrite(parse(TWO, MASK))
    assert not plain.portable
    assert intfa_onnx.rewrite(plain.to_proto(), portable=True).to_dict()["portable"] is False
    carried = intfa_onnx.rewrite(parse(TWO, MASK), portable=True)
    assert carried.portable
    assert intfa_onnx.rewrite(carried.to_proto()).to_dict()["portable"] is True


def test_body_runs_in_the_reference_evaluator():
    model = parse(*VARIANTS["added mask"])
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    values = feed(model)
    got = ReferenceEvaluator(rewritten).run(None, values)[0]
    check_same(got, run(model, values)[0])


def test_rewriting_a_portable_model_again_changes_nothing():
    once = intfa_onnx.rewrite(parse(TWO, MASK), portable=True).to_proto()
    again = intfa_onnx.rewrite(once, portable=True)
    assert [a.decision for a in again.attentions] == ["kept", "kept"]
    assert again.to_proto() == once


def test_old_opset_is_refused():
    with pytest.raises(UnsupportedError, match="portable needs opset 11 or later"):
        intfa_onnx.rewrite(parse(*VARIANTS["plain"], opset=10), portable=True)


def test_opset_25_window():
    shapes = {"Q": ["B", 2, "S", 16], "K": ["B", 2, "T", 16], "V": ["B", 2, "T", 16]}
    model = attention_model(25, shapes, {"Y": ["B", 2, "S", 16]}, left_window_size=2, right_window_size=1)
    rewritten = intfa_onnx.rewrite(model, portable=True).to_proto()
    values = feed(model, 6, 6)
    got = run(rewritten, values)[0]
    i, j = np.arange(6)[:, None], np.arange(6)[None]
    scores = np.where((j >= i - 2) & (j <= i + 1), values["Q"] @ values["K"].transpose(0, 1, 3, 2) / 4, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    check_same(got, (p / p.sum(-1, keepdims=True)) @ values["V"])
