"""ONNX's own test cases of ``Attention``, the operator and its function body written out, through the rewriter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from attention_graphs import run
from onnx.reference import ReferenceEvaluator
from onnx_attention_cases import CASES

import intfa_onnx
from intfa_onnx.reference_op import IntFlashAttention

# Why a case stays as it is. The counts are of onnx 1.23; a newer onnx adds cases, not reasons.
REASONS = {
    "the scores or probabilities are an output": "qk_matmul_output is used",
    "the same, function body": "other consumers",
    "the same, function body, after softmax": "consumers (Identity, MatMul)",
}


# V is 1000 at keys that the mask excludes from every row. The scale of a V channel covers all valid tokens, and a mask
# does not make a token invalid (nonpad_kv_seqlen does), so nothing of the other keys is left.
POISONED = {"test_attention_4d_softcap_neginf_mask_poison", "test_attention_4d_softcap_neginf_mask_poison_expanded"}


def reason_of(row: intfa_onnx.AttentionReport) -> str:
    return next((why for why, part in REASONS.items() if part in row.reason), row.reason)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


@pytest.fixture(scope="module")
def rewritten() -> dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    """Each supported case as (with the float body, for the INT8 operator)."""
    found = {}
    for name, case in CASES.items():
        result = intfa_onnx.rewrite(case.model, portable=True)
        if [a.decision for a in result.attentions] == ["replaced"]:
            found[name] = result.to_proto(), intfa_onnx.rewrite(case.model).to_proto()
    return found


def inputs(name: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    values, expected = CASES[name].data_sets[0]
    return {i.name: x for i, x in zip(CASES[name].model.graph.input, values, strict=True)}, list(expected)


def test_every_case_is_supported_or_has_a_known_reason():
    counts: Counter[str] = Counter()
    for case in CASES.values():
        [row] = intfa_onnx.rewrite(case.model).attentions
        counts[row.decision if row.decision == "replaced" else reason_of(row)] += 1
    print(f"\n{counts['replaced']} of {len(CASES)} cases are replaced; {dict(counts)}")
    assert set(counts) <= {"replaced", *REASONS}
    assert counts["replaced"] >= 150


def test_float_meaning_is_the_expected_output(rewritten):
    for name, (model, _) in rewritten.items():
        feed, expected = inputs(name)
        # ONNX Runtime has no bfloat16 kernels and cannot take bfloat16 from numpy.
        got = ReferenceEvaluator(model).run(None, feed) if "bf16" in name else run(model, feed)
        epsilon = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[str(expected[0].dtype)]
        for a, b in zip(got, expected, strict=True):
            # A few ulp: the expected output of a half type was computed with roundings in between.
            assert relative_error(a, b) < 2 * epsilon, name


def test_int8_is_within_its_error(rewritten):
    worst = 0.0
    for name, (_, model) in rewritten.items():
        if name in POISONED:
            continue
        feed, expected = inputs(name)
        got = ReferenceEvaluator(model, new_ops=[IntFlashAttention]).run(None, feed)
        error = relative_error(got[0], expected[0])
        worst = max(worst, error)
        # Twice the 1.4 % that docs/accuracy.md gives for N(0, 1).
        assert error < 0.028, f"{name}: {error:.2%}"
        for a, b in zip(got[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32), err_msg=name)
    print(f"\nworst error {worst:.2%}")
