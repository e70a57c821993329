"""The custom op inside ONNX Runtime: types, layouts, optional inputs and outputs, dynamic shapes, refusals."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import c_abi
import ml_dtypes
import numpy as np
import onnx
import pytest
from attention_graphs import MASK, feed, parse
from attention_graphs import run as run_float
from cases import CASES, AttentionCase, typed_inputs
from onnx import TensorProto, helper
from test_portable import TWO

import intfa_onnx
from intfa_onnx import native, op_schema, reference
from intfa_onnx.errors import UnsupportedError

ort = pytest.importorskip("onnxruntime")
try:
    native.get_library_path("ort")
except UnsupportedError as error:
    pytest.skip(str(error), allow_module_level=True)

BY_NAME = {case.name: case for case in CASES}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def onnx_type(dtype: np.dtype) -> int:
    return TensorProto.BFLOAT16 if dtype == BFLOAT16 else helper.np_dtype_to_tensor_dtype(dtype)


def make_model(
    inputs: dict[str, np.ndarray],
    attributes: dict[str, Any],
    outputs: tuple[str, ...] = op_schema.OUTPUTS,
    shapes: str = "dynamic",
) -> onnx.ModelProto:
    """Build a model of one node. ``shapes``: dynamic (named), static, or none (not even the rank is known)."""

    def shape_of(name: str) -> list[Any] | None:
        x = inputs[name]
        return {"dynamic": [f"{name}_{i}" for i in range(x.ndim)], "static": list(x.shape), "none": None}[shapes]

    q_type = onnx_type(inputs["Q"].dtype)
    types = dict.fromkeys(op_schema.OUTPUTS, q_type) | {"lse": TensorProto.FLOAT}
    types["Y"] = attributes.get("output_dtype") or q_type
    names = [name if name in inputs else "" for name in op_schema.INPUTS]
    while names[-1] == "":
        names.pop()
    node = helper.make_node(
        op_schema.OP_TYPE, names, list(outputs), name="attention", domain=op_schema.DOMAIN, **attributes
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(n, onnx_type(x.dtype), shape_of(n)) for n, x in inputs.items()],
        [helper.make_tensor_value_info(n, types[n], None) for n in outputs if n],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(op_schema.DOMAIN, op_schema.OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def open_session(model: onnx.ModelProto, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    native.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run with inputs and outputs of any type; numpy has no bfloat16, so those go by address."""
    feeds = {}
    for name, x in inputs.items():
        raw = x.view(np.uint16) if x.dtype == BFLOAT16 else x
        feeds[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(raw), onnx_type(x.dtype))
    names = [output.name for output in session.get_outputs()]
    results = session.run_with_ort_values(names, feeds)
    return {name: to_numpy(value) for name, value in zip(names, results, strict=True)}


def to_numpy(value: Any) -> np.ndarray:
    if value.element_type() != TensorProto.BFLOAT16:
        return value.numpy()
    import ctypes

    size = math.prod(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * size) if size else b""
    return np.frombuffer(raw, BFLOAT16).reshape(value.shape())


def attributes_of(case: AttentionCase, **options: Any) -> dict[str, Any]:
    attributes = case.attributes() | options
    return attributes | ({"output_dtype": TensorProto.FLOAT} if case.dtype == "int8" else {})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_case_equals_the_core(case: AttentionCase) -> None:
    """The adapter adds nothing: bit-equal to the C ABI, whose results ``test_native_attention`` checks."""
    inputs = typed_inputs(case)
    session = open_session(make_model(inputs, attributes_of(case)), threads=2)
    found = run(session, inputs)
    call = c_abi.make_call(case)
    assert call.run() == (c_abi.OK, "")
    for output, array in zip(op_schema.OUTPUTS, ("y", "present_key", "present_value", "lse"), strict=True):
        expected = call.arrays[array]
        assert found[output].dtype == expected.dtype
        np.testing.assert_array_equal(found[output].view(np.uint8), expected.view(np.uint8), output)


@pytest.mark.parametrize(
    "options", [{"precision": "int8_qk"}, {"scheme": "paper"}, {"k_granularity": "group"}], ids=str
)
def test_attributes_reach_the_core(options: dict[str, str]) -> None:
    case = BY_NAME["k_bias"]
    inputs = typed_inputs(case)
    found = run(open_session(make_model(inputs, attributes_of(case, **options))), inputs)["Y"]
    call = c_abi.make_call(case, **options)
    assert call.run() == (c_abi.OK, "")
    np.testing.assert_array_equal(found, call.arrays["y"])
    assert (found != run(open_session(make_model(inputs, attributes_of(case))), inputs)["Y"]).any()


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_output_dtype(dtype: int) -> None:
    inputs = typed_inputs(BY_NAME["plain"])
    found = run(open_session(make_model(inputs, {"output_dtype": dtype})), inputs)["Y"]
    assert onnx_type(found.dtype) == dtype
    expected = run(open_session(make_model(inputs, {})), inputs)["Y"]
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


@pytest.mark.parametrize("shapes", ["dynamic", "static", "none"])
@pytest.mark.parametrize("name", ["causal_past", "bshd_gqa_float16", "dv_larger", "mask_decode"])
def test_shape_inference(name: str, shapes: str) -> None:
    """What is known of the outputs before the run agrees with the run."""
    case = BY_NAME[name]
    inputs = typed_inputs(case)
    session = open_session(make_model(inputs, attributes_of(case), shapes=shapes))
    found = run(session, inputs)
    for output in session.get_outputs():
        actual = found[output.name].shape
        assert len(output.shape) == len(actual), output
        for said, size in zip(output.shape, actual, strict=True):
            assert isinstance(said, str) or said == size, (output.name, output.shape, actual)
            assert shapes != "static" or said == size


def test_unknown_sizes_are_not_taken_for_equal() -> None:
    """Two nodes whose sizes are unknown: ONNX Runtime must not plan them into each other's memory."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("IntFlashAttention", ["Q", "K", "V", "", "P", "P"], ["y1", "pk1", "pv1"], domain="intfa"),
        node("IntFlashAttention", ["Q", "pk1", "pv1", "", "P", "P"], ["y2", "pk2", "pv2"], domain="intfa"),
        node("ReduceSum", ["pk2"], ["sum"], keepdims=0),
        node("Add", ["y1", "y2"], ["Y"]),
    ]
    value = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)  # noqa: E731
    inputs = [value("Q", [1, 2, "q", 16]), *(value(n, [1, 2, "s", 16]) for n in "KV"), value("P", [1, 2, "p", 16])]
    graph = helper.make_graph(nodes, "g", inputs, [value("Y", None), value("sum", None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("intfa", 1)]
    session = open_session(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    for past in (0, 3, 50):
        feeds = {
            n: rng.standard_normal((1, 2, s, 16)).astype(np.float32)
            for n, s in zip("QKVP", (5, 20, 20, past), strict=True)
        }
        y, total = session.run(None, feeds)
        assert y.shape == (1, 2, 5, 16)
        assert np.isclose(total, feeds["K"].sum() + 2 * feeds["P"].sum(), atol=1e-3)


def test_one_session_serves_many_shapes_and_threads() -> None:
    case = BY_NAME["mask_padding"]
    sessions = [open_session(make_model(typed_inputs(case), {}), threads) for threads in (1, 2, 5)]
    for batch, seqlen in ((1, 1), (2, 333), (4, 60), (1, 1)):
        inputs = typed_inputs(replace(case, batch=batch, seqlen_q=seqlen, seqlen_new=seqlen))
        results = [run(session, inputs) for session in sessions]
        for other in results[1:]:
            np.testing.assert_array_equal(other["Y"], results[0]["Y"])


def test_without_optional_outputs() -> None:
    inputs = typed_inputs(BY_NAME["plain"])
    full = run(open_session(make_model(inputs, {})), inputs)
    for outputs in (("Y",), ("Y", "", "", "lse"), ("Y", "present_key", "present_value")):
        found = run(open_session(make_model(inputs, {}, outputs)), inputs)
        assert set(found) == set(outputs) - {""}
        for name, x in found.items():
            np.testing.assert_array_equal(x, full[name])


REFUSED_AT_RUN_TIME = (
    ("head_dim", {"Q": (1, 2, 4, 12), "K": (1, 2, 6, 12)}, "head_dim=12 is unsupported (supported: multiples of 8"),
    ("head_dim_differs", {"K": (1, 2, 6, 24)}, "do not fit together"),
    ("batch_differs", {"V": (3, 2, 6, 16)}, "do not fit together"),
    ("tokens_differ", {"V": (1, 2, 7, 16)}, "do not fit together"),
    ("heads", {"Q": (1, 3, 4, 16)}, "num_heads=3 is not a positive multiple of kv_num_heads=2"),
    ("mask", {"attn_mask": (1, 1, 5, 6)}, "attn_mask has shape [1,1,5,6], which does not broadcast to [1,2,4,6]"),
    ("mask_too_long", {"attn_mask": (1, 1, 4, 9)}, "does not broadcast"),
    ("past", {"past_key": (1, 2, 3, 8)}, "past_key has shape [1,2,3,8], expected [1,2,3,16]"),
    ("past_value", {"past_value": (1, 2, 4, 16)}, "past_value has shape [1,2,4,16], expected [1,2,3,16]"),
    ("nonpad", {"nonpad_kv_seqlen": (2,)}, "nonpad_kv_seqlen has shape [2], expected [1]"),
    ("scale", {"v_scale": (5,)}, "v_scale has shape [5] (supported: [1], [2] or [2,16])"),
)


@pytest.mark.parametrize(
    ("change", "message"), [x[1:] for x in REFUSED_AT_RUN_TIME], ids=[x[0] for x in REFUSED_AT_RUN_TIME]
)
def test_mismatched_shapes_are_refused_and_the_session_lives_on(
    change: dict[str, tuple[int, ...]], message: str
) -> None:
    shapes = {"Q": (1, 2, 4, 16), "K": (1, 2, 6, 16), "V": (1, 2, 6, 16)}
    if "past_key" in change or "past_value" in change:
        shapes |= {"past_key": (1, 2, 3, 16), "past_value": (1, 2, 3, 16)}
    shapes |= {name: (1,) * len(shape) for name, shape in change.items() if name not in shapes}
    dtypes = {"nonpad_kv_seqlen": np.int64, "attn_mask": np.bool_}
    fill = lambda s: {n: np.ones(shape, dtypes.get(n, np.float32)) for n, shape in s.items()}  # noqa: E731
    session = open_session(make_model(fill(shapes), {}, ("Y",)))
    good = session.run(None, fill(shapes))[0]
    with pytest.raises(Exception, match="intfa: node 'attention': ") as caught:
        session.run(None, fill(shapes | change))
    assert message in str(caught.value)
    np.testing.assert_array_equal(session.run(None, fill(shapes))[0], good)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"precision": "int4"}, "attribute precision='int4' is unknown (supported: int8, int8_qk)"),
        ({"scheme": "x"}, "(supported: tile, paper)"),
        ({"k_granularity": "x"}, "(supported: auto, token, group)"),
        ({"causal_alignment": "x"}, "(supported: standard, lower_right)"),
        ({"scale": 1}, "attribute scale is of another type (supported: float)"),
        ({"softcap": "2"}, "attribute softcap is of another type (supported: float)"),
        ({"is_causal": 1.0}, "attribute is_causal is of another type (supported: int)"),
        ({"precision": 8}, "attribute precision is of another type (supported: string)"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_wrong_attributes_are_refused_at_load(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="intfa: ") as caught:
        open_session(make_model(typed_inputs(BY_NAME["plain"]), attributes))
    assert message in str(caught.value)


@pytest.mark.parametrize("side", ["window_left", "window_right"])
def test_the_greatest_window_is_no_window(side: str) -> None:
    """INT64_MAX, added to a position, would be negative."""
    inputs = typed_inputs(BY_NAME["plain"])
    expected = run(open_session(make_model(inputs, {}, ("Y",))), inputs)["Y"]
    found = run(open_session(make_model(inputs, {side: 2**63 - 1}, ("Y",))), inputs)["Y"]
    np.testing.assert_array_equal(found, expected)
    names = {"Q": "q", "K": "k", "V": "v"}
    arrays = {names[name]: x for name, x in inputs.items()}
    windowed, whole = (reference.attention(**arrays, **{side: width}).y for width in (2**63 - 1, -1))
    np.testing.assert_array_equal(windowed, whole)


def test_wrong_types_are_refused() -> None:
    inputs = typed_inputs(BY_NAME["mask_float"])
    for name, dtype, message in (
        ("K", np.float16, "K is float16, Q is float32; they must agree"),
        ("attn_mask", np.int32, "attn_mask is int32"),
        ("Q", np.float64, r"Type 'tensor\(double\)' of input parameter \(Q\)"),
    ):
        changed = inputs | {name: inputs[name].astype(dtype)}
        with pytest.raises(Exception, match=message):
            run(open_session(make_model(changed, {}, ("Y",))), changed)


def test_int8_needs_an_output_type() -> None:
    inputs = typed_inputs(BY_NAME["int8_tensor"])
    model = make_model(inputs, {}, ("Y",))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(Exception, match="output_dtype is not set"):
        open_session(model)


def test_registering_again_is_harmless() -> None:
    inputs = typed_inputs(BY_NAME["plain"])
    options = ort.SessionOptions()
    for _ in range(3):
        native.register(options)
    options.register_custom_ops_library(str(native.get_library_path("ort")))
    model = make_model(inputs, {}).SerializeToString()
    for _ in range(2):
        assert ort.InferenceSession(model, options).run(None, inputs)[0].shape == inputs["Q"].shape


def test_missing_library_and_runtime_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["intfa_onnx"], "__path__", [str(tmp_path)])
    with pytest.raises(UnsupportedError, match=r"libintfa_ort.so is not built: looked in .*pip install \."):
        native.register(ort.SessionOptions())
    with pytest.raises(UnsupportedError, match="no native library for host 'mars'"):
        native.get_library_path("mars")  # type: ignore[arg-type]
    monkeypatch.setattr(ort, "__version__", "1.17.3")
    with pytest.raises(UnsupportedError, match=r"onnxruntime 1.17.3 is too old \(supported: 1.18 or newer\)"):
        native.register(ort.SessionOptions())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match="pip install 'intfa-onnx"):
        native.check_ort_version()


# The oldest, and the last of those whose own shape inference crashes for absent outputs, so that we offer them none.
OLD_ORTS = ("1.18.1", "1.27.0")
RUN_IN_OLD = """
import sys, numpy as np, onnxruntime as ort
library, model, data = sys.argv[1:]
options = ort.SessionOptions()
options.register_custom_ops_library(library)
options.register_custom_ops_library(library)
arrays = np.load(data)
expected = {n[9:]: arrays[n] for n in arrays.files if n.startswith("expected_")}
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
found = session.run(list(expected), {n: arrays[n] for n in arrays.files if not n.startswith("expected_")})
for (name, x), y in zip(expected.items(), found):
    np.testing.assert_array_equal(x, y, name)
print(ort.__version__)
"""


@pytest.fixture(scope="module", params=OLD_ORTS)
def old_python(request: pytest.FixtureRequest) -> str:
    """Python of a virtual environment with an old ONNX Runtime, kept in the cache folder between runs."""
    cache = Path(os.environ.get("INTFA_CACHE_DIR", Path.home() / ".cache/intfa"))
    folder = cache / f"venv-ort-{request.param}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin/python", folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two files of tests use it, and may run side by side
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            answer = subprocess.run(
                [str(python), "-m", "pip", "install", "-q", f"onnxruntime=={request.param}", "numpy<2"],
                capture_output=True,
                text=True,
            )
            if answer.returncode != 0:
                reason = answer.stderr.strip().splitlines()[-1]
                pytest.skip(f"onnxruntime {request.param} cannot be installed: {reason}")
            done.touch()
    return str(python)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [(n, op_schema.OUTPUTS) for n in ("causal_past", "bshd_gqa_float16", "mask_padding", "nonpad", "static_head")]
    + [("plain", ("Y",)), ("causal_past", ("Y", "present_key", "present_value")), ("plain", ("Y", "", "", "lse"))],
    ids=lambda x: x if isinstance(x, str) else str(len(x)),
)
def test_same_binary_under_old_onnxruntimes(
    name: str, outputs: tuple[str, ...], old_python: str, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    inputs = typed_inputs(case)
    model = make_model(inputs, attributes_of(case), outputs)
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    expected = run(open_session(model), inputs)
    np.savez(tmp_path / "data.npz", **inputs, **{f"expected_{n}": x for n, x in expected.items()})
    command = [old_python, "-c", RUN_IN_OLD, str(native.get_library_path("ort"))]
    answer = subprocess.run(
        [*command, str(tmp_path / "model.onnx"), str(tmp_path / "data.npz")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.strip() in OLD_ORTS


PORTABLE_IN_OLD = """
import sys, numpy as np, onnxruntime as ort
model, data = sys.argv[1:]
arrays = np.load(data)
try:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
except Exception as error:
    print(error)
else:
    (y,) = session.run(None, {n: arrays[n] for n in "QKVM"})
    print(abs(y - arrays["Y"]).max())
"""


def test_two_portable_configurations_without_the_library(old_python: str, tmp_path: Path) -> None:
    """Before 1.27 ONNX Runtime would run one function for both nodes: it has to refuse the model instead."""
    model = parse(TWO, MASK)
    values = feed(model)
    intfa_onnx.rewrite(model, portable=True).save(tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **values, Y=run_float(model, values)[0])
    command = [old_python, "-c", PORTABLE_IN_OLD, str(tmp_path / "model.onnx"), str(tmp_path / "data.npz")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-2000:]
    if "1.18" in old_python:
        assert "OverloadsNeedOnnxRuntime127OrTheLibraryOfIntfa" in answer.stdout
    else:
        assert float(answer.stdout) < 2e-5  # float32 in another order
