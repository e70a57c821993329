"""The ONNX Runtime adapter on fake backends: what it asks of the runtime for CUDA; CPU sessions do not notice it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import CASES, AttentionCase, typed_inputs
from native_build import build
from test_ort_op import RUN_IN_OLD, attributes_of, make_model, old_python, ort, run  # noqa: F401


@pytest.fixture(scope="module")
def built() -> Path:
    """Folder with the contract program, and with the adapter as a library that has CUDA and computes nothing."""
    return build("test_adapter", "ort_adapter_contract", "ort_adapter_on_fakes", options=("-DINTFA_BUILD_TRT=OFF",))


def test_contract_under_sanitizers(built: Path) -> None:
    """Stream, allocator, memory types, every refusal; nothing leaks."""
    answer = subprocess.run([built / "ort_adapter_contract"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert re.fullmatch(r"\d{3,} checks\n", answer.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_cpu_session_takes_the_cpu_kernel(case: AttentionCase, built: Path) -> None:
    """The fake backends fill Y's bytes with 1 on the CPU and 2 on CUDA."""
    inputs = typed_inputs(case)
    model = make_model(inputs, attributes_of(case), ("Y",))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(built / "libort_adapter_on_fakes.so"))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert set(run(session, inputs)["Y"].view(np.uint8).ravel()) <= {1}


def test_old_onnxruntimes_take_it_too(built: Path, old_python: str, tmp_path: Path) -> None:  # noqa: F811
    inputs = typed_inputs(CASES[0])
    model = make_model(inputs, attributes_of(CASES[0]), ("Y",))
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    expected = np.frombuffer(b"\1" * inputs["Q"].nbytes, np.float32).reshape(inputs["Q"].shape)
    np.savez(tmp_path / "data.npz", **inputs, expected_Y=expected)
    command = [old_python, "-c", RUN_IN_OLD, str(built / "libort_adapter_on_fakes.so")]
    answer = subprocess.run(
        [*command, str(tmp_path / "model.onnx"), str(tmp_path / "data.npz")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
