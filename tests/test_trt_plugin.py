"""The TensorRT plugin without TensorRT and without a GPU: its contract method by method, and every case on the host."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import CASES, AttentionCase, typed_inputs
from native_build import build
from trt_layer import CHAR, FLOAT32, INT32, build_driver, run_layer
from truth import HALF, PAPER, TILE, Scheme, truth_of

from intfa_onnx import op_schema

NO_ORT = ("-DINTFA_BUILD_ORT=OFF",)
Run = Callable[..., list[np.ndarray]]
BY_NAME = {case.name: case for case in CASES}

pytestmark = pytest.mark.xdist_group("trt_plugin")


def run_contract(program: Path, plugin: Path, version: int) -> str:
    command = [program / "trt_contract", plugin / "libtrt_plugin_on_fakes.so", str(version)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert re.search(r"\d{4,} checks\n$", answer.stdout)
    return answer.stdout


@pytest.mark.parametrize("version", [10, 11])
def test_contract_under_sanitizers(version: int) -> None:
    """Every method, every refusal and its log line, every allocation that fails; registered in any order."""
    folder = build("test_trt", "trt_contract", "trt_plugin_on_fakes", options=NO_ORT)
    said = run_contract(folder, folder, version)
    fields = dict(re.findall(r"field (\w+) (\d+)", said))
    # The parser itself reads the two that choose the plugin.
    expected = {n: a for n, a in op_schema.ATTRIBUTES.items() if n not in ("plugin_namespace", "plugin_version")}
    types = {int: INT32, float: FLOAT32, str: CHAR}
    assert fields == {name: str(types[type(a.default)]) for name, a in expected.items()}


def test_a_build_without_cuda_says_so() -> None:
    """The library that such a build installs: it loads, and refuses each call in words."""
    folder = build("test_trt", "trt_contract", "intfa_trt", options=NO_ORT)
    command = [folder / "trt_contract", folder.parent.parent / "libintfa_trt.so", "11"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert re.search(r"\d+ checks\n$", answer.stdout)


def test_contract_with_the_headers_of_tensorrt() -> None:
    """Our declaration of the interface and NVIDIA's are one ABI: programs and libraries of both work together."""
    root = os.environ.get("TENSORRT_ROOT")
    if not root:
        pytest.skip("TENSORRT_ROOT is not set; no package of the index has TensorRT's headers")
    header = (Path(root) / "include/NvInferVersion.h").read_text()
    found = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", header)
    assert found
    targets = ("trt_contract", "trt_plugin_on_fakes")
    ours = build("test_trt", *targets, options=NO_ORT)
    theirs = build("test_trt_headers", *targets, options=(*NO_ORT, f"-DTENSORRT_ROOT={root}"))
    for program, plugin in ((theirs, theirs), (theirs, ours), (ours, theirs)):
        run_contract(program, plugin, int(found[1]))


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs a layer of the plugin over the CPU's kernels."""
    plugin = build("test_trt", "trt_plugin_on_host", options=NO_ORT) / "libtrt_plugin_on_host.so"
    return functools.partial(run_layer, build_driver(), plugin)


def attributes_of(case: AttentionCase, **options: Any) -> dict[str, Any]:
    attributes = case.attributes() | {"plugin_outputs": 4} | options
    return attributes | ({"output_dtype": onnx.TensorProto.FLOAT} if case.dtype == "int8" else {})


cached_truth = functools.cache(truth_of)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_case(case: AttentionCase, run: Run) -> None:
    """Within the predicted noise of the float64 truth; the cache is what went in."""
    check_case(run, case, TILE)


def check_case(run: Run, case: AttentionCase, noise: Scheme, **options: Any) -> None:
    inputs = typed_inputs(case)
    y, present_key, present_value, lse = run(inputs, attributes_of(case, **options))
    q = inputs["Q"]
    half_step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(case.dtype, 2.0**-24)
    assert y.dtype == (np.float32 if q.dtype == np.int8 else q.dtype)
    assert y.shape == (*q.shape[:-1], case.head_dim_v if q.ndim == 4 else case.num_heads * case.head_dim_v)
    y = y.astype(np.float64)
    if q.ndim == 3:
        y = y.reshape(case.batch, case.seqlen_q, case.num_heads, case.head_dim_v).swapaxes(1, 2)
    cached_truth(case, noise).check(y, lse, half_step)
    for present, past, new in ((present_key, "past_key", "K"), (present_value, "past_value", "V")):
        x = inputs[new]
        if x.ndim == 3:
            x = x.reshape(case.batch, case.seqlen_new, case.kv_num_heads, -1).swapaxes(1, 2)
        expected = np.concatenate([inputs[past], x], axis=2) if past in inputs else x
        np.testing.assert_array_equal(present.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))


@pytest.mark.parametrize(
    ("noise", "options"), [(HALF, {"precision": "int8_qk"}), (PAPER, {"scheme": "paper"})], ids=["int8_qk", "paper"]
)
def test_schemes(noise: Scheme, options: dict[str, str], run: Run) -> None:
    check_case(run, BY_NAME["causal_past"], noise, **options)


@pytest.mark.parametrize("name", ["causal_past", "static_head", "nonpad"])
def test_gaps_between_inputs_may_be_closed(name: str, run: Run) -> None:
    case = BY_NAME[name]
    inputs, attributes = typed_inputs(case), attributes_of(case)
    kept, closed = (run(inputs, attributes, gaps_closed=closed) for closed in (False, True))
    for a, b in zip(kept, closed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_outputs(count: int, run: Run) -> None:
    case = BY_NAME["gqa"]
    inputs = typed_inputs(case)
    every = run(inputs, attributes_of(case))
    some = run(inputs, attributes_of(case, plugin_outputs=count))
    assert len(some) == count
    for a, b in zip(some, every, strict=False):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_output_dtype(dtype: int, run: Run) -> None:
    case = BY_NAME["int8_tensor"]
    y = run(typed_inputs(case), attributes_of(case) | {"output_dtype": dtype})[0]
    wide = run(typed_inputs(case), attributes_of(case))[0]
    assert y.dtype == onnx.helper.tensor_dtype_to_np_dtype(dtype)
    np.testing.assert_array_equal(y, wide.astype(y.dtype))
