"""ONNX's own backend tests of ``Attention``, which ship with the onnx package, lowered to ``IntFlashAttention``.

Each is rewritten by ``intfa_onnx.rewrite`` and run three ways: by the reference in float, which must match the expected
outputs; by the reference in INT8; and by ONNX Runtime with our library where that is built. The INT8 bound is the noise
that the rounding steps predict for the test's own data (``truth.py``).
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from cases import DTYPES, AttentionCase
from onnx import helper
from onnx_attention_cases import OPERATOR_CASES
from truth import HALF, TILE, truth_of

import intfa_onnx
from intfa_onnx import op_schema, reference_op
from intfa_onnx.errors import UnsupportedError
from intfa_onnx.session import open_session

# With onnx 1.23.2: 57 of 93. A newer onnx may bring more tests, never fewer supported ones.
KNOWN_SUPPORTED = 57

BFLOAT16 = DTYPES["bfloat16"]
NOISE = {"int8": TILE, "int8_qk": HALF}


@dataclass(frozen=True)
class Lowered:
    """A node test, the model it becomes, and its data."""

    test: Any
    model: onnx.ModelProto
    feed: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @property
    def by_parameter(self) -> dict[str, np.ndarray]:
        """The inputs by the names that Attention gives its parameters."""
        node = self.test.model.graph.node[0]
        return {name: self.feed[at] for name, at in zip(op_schema.INPUTS, node.input, strict=False) if at}


def lower(name: str, precision: str = "int8") -> Lowered:
    test = OPERATOR_CASES[name]
    result = intfa_onnx.rewrite(test.model, precision=precision)
    (row,) = result.attentions
    if row.decision != "replaced":
        raise UnsupportedError(row.reason)
    inputs, outputs = test.data_sets[0]
    feed = {i.name: np.asarray(x) for i, x in zip(test.model.graph.input, inputs, strict=True)}
    expected = {o.name: np.asarray(x) for o, x in zip(test.model.graph.output, outputs, strict=True)}
    return Lowered(test, result.to_proto(), feed, expected)


def reason_of_refusal(name: str) -> str:
    try:
        lower(name)
    except UnsupportedError as error:
        return str(error)
    return ""


REFUSED = {name: reason for name in OPERATOR_CASES if (reason := reason_of_refusal(name))}
SUPPORTED = sorted(set(OPERATOR_CASES) - set(REFUSED))
each_supported = pytest.mark.parametrize("name", SUPPORTED)


class FloatMeaning(reference_op.IntFlashAttention):
    """The operator with the quantization left out."""

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        return super()._run(*inputs, **attributes | {"precision": "float"})


FloatMeaning.__name__ = op_schema.OP_TYPE  # by which ReferenceEvaluator finds it


def evaluate(lowered: Lowered, operator: type) -> dict[str, np.ndarray]:
    evaluator = onnx.reference.ReferenceEvaluator(lowered.model, new_ops=[operator])
    return dict(zip(evaluator.output_names, evaluator.run(None, lowered.feed), strict=True))


def case_of(lowered: Lowered) -> tuple[AttentionCase, dict[str, np.ndarray]]:
    """Describe a node test as a case: the case and its inputs, [B, H, S, D] in float32."""
    given = {a.name: helper.get_attribute_value(a) for a in lowered.test.model.graph.node[0].attribute}
    inputs = {
        name: x if x.dtype in (np.bool_, np.int64) else x.astype(np.float32) for name, x in lowered.by_parameter.items()
    }
    for name, heads in (("Q", "q_num_heads"), ("K", "kv_num_heads"), ("V", "kv_num_heads")):
        if inputs[name].ndim == 3:
            inputs[name] = inputs[name].reshape(*inputs[name].shape[:2], given[heads], -1).swapaxes(1, 2)
    q, k, v = (inputs[n].shape for n in "QKV")
    case = AttentionCase(
        lowered.test.name,
        "from ONNX",
        batch=q[0],
        num_heads=q[1],
        kv_num_heads=k[1],
        seqlen_q=q[2],
        seqlen_new=k[2],
        seqlen_past=inputs["past_key"].shape[2] if "past_key" in inputs else 0,
        head_dim=q[3],
        head_dim_v=v[3],
        causal=bool(given.get("is_causal", 0)),
        window_left=given.get("left_window_size", -1),
        window_right=given.get("right_window_size", -1),
        softcap=given.get("softcap", 0.0),
        scale=given.get("scale", 0.0),
        nonpad=tuple(inputs.get("nonpad_kv_seqlen", ())),
    )
    return case, inputs


def check_int8(lowered: Lowered, outputs: dict[str, np.ndarray], precision: str) -> None:
    """Compare Y with the exact result within the predicted noise, and the caches exactly."""
    case, inputs = case_of(lowered)
    truth = truth_of(case, NOISE[precision], inputs=inputs)
    (y_name, expected), *states = lowered.expected.items()
    y = outputs[y_name]
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    if y.ndim == 3:
        y = y.reshape(case.batch, case.seqlen_q, case.num_heads, -1).swapaxes(1, 2)
    truth.check(y.astype(np.float64), truth.lse, output_step=resolution(expected.dtype))
    for name, state in states:
        np.testing.assert_array_equal(outputs[name], state)


def resolution(dtype: np.dtype) -> float:
    """Half a unit in the last place, relative."""
    return 2.0 ** -{"float32": 24, "float16": 11, "bfloat16": 8}[dtype.name]


def test_count(record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = Counter(reason.partition(" is unsupported")[0] for reason in REFUSED.values())
    lines = [f"ONNX Attention node tests: {len(SUPPORTED)} of {len(OPERATOR_CASES)} supported"]
    lines += [f"  {count} not: {reason}" for reason, count in reasons.most_common()]
    record_property("node_tests", lines)
    with capsys.disabled():
        print("", *lines, sep="\n")
    if tuple(map(int, onnx.__version__.split(".")[:2])) >= (1, 23):  # an older onnx has fewer tests
        assert len(SUPPORTED) >= KNOWN_SUPPORTED, "\n".join(f"{n}: {r}" for n, r in REFUSED.items())
    for reason in REFUSED.values():  # nothing is refused for another reason than these two
        assert reason.startswith("head_dim") or reason == "the output qk_matmul_output is used"


@each_supported
def test_float_meaning(name: str) -> None:
    lowered = lower(name)
    outputs = evaluate(lowered, FloatMeaning)
    for output, expected in lowered.expected.items():
        assert outputs[output].dtype == expected.dtype
        # The expected values were computed in their own type, rounding each step: about ten roundings one upon another.
        step = 10 * resolution(expected.dtype)
        np.testing.assert_allclose(
            outputs[output].astype(np.float64), expected.astype(np.float64), rtol=step, atol=step, err_msg=output
        )


@pytest.mark.parametrize("precision", NOISE)
@each_supported
def test_int8_reference(name: str, precision: str) -> None:
    lowered = lower(name, precision)
    check_int8(lowered, evaluate(lowered, reference_op.IntFlashAttention), precision)


def to_ort(x: np.ndarray) -> Any:
    """Wrap an array, bfloat16 among them, which ONNX Runtime's numpy interface does not know."""
    from onnxruntime import OrtValue

    if x.dtype != BFLOAT16:
        return OrtValue.ortvalue_from_numpy(x)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint16), onnx.TensorProto.BFLOAT16)


def from_ort(value: Any, dtype: np.dtype) -> np.ndarray:
    if dtype != BFLOAT16:
        return value.numpy()
    bits = (ctypes.c_uint16 * math.prod(value.shape())).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).view(BFLOAT16).reshape(value.shape()).copy()


@pytest.mark.parametrize("precision", NOISE)
@each_supported
def test_int8_onnxruntime(name: str, precision: str) -> None:
    lowered = lower(name, precision)
    try:
        session = open_session(lowered.model.SerializeToString())
    except UnsupportedError as error:
        pytest.skip(str(error))
    names = list(lowered.expected)
    outputs = session.run_with_ort_values(names, {n: to_ort(x) for n, x in lowered.feed.items()})
    arrays = [from_ort(o, lowered.expected[n].dtype) for n, o in zip(names, outputs, strict=True)]
    check_int8(lowered, dict(zip(names, arrays, strict=True)), precision)
