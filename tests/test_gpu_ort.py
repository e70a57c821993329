"""The operator in ONNX Runtime on a real GPU: exported models, sessions side by side, memory that stays flat."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from cases import CASES, AttentionCase, typed_inputs
from test_gpu_attention import device_call
from test_ort_op import attributes_of, make_model, run

import intfa_onnx
from intfa_onnx.op_schema import OUTPUTS
from intfa_onnx.session import CPU, CUDA, check_placement, open_session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="this onnxruntime has no CUDA provider"),
]
RUNS, THREADS = 10_000, 4


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    difference = np.where(finite, found - expected, 0).astype(np.float64)
    return float(np.linalg.norm(difference) / (np.linalg.norm(np.where(finite, expected, 0)) or 1))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_case_equals_the_core(case: AttentionCase) -> None:
    """The adapter adds nothing: bit-equal to the C ABI, whose results ``test_gpu_attention`` checks."""
    inputs = typed_inputs(case)
    model = make_model(inputs, attributes_of(case)).SerializeToString()
    found = run(open_session(model, providers=(CUDA, CPU)), inputs)
    expected = device_call(case).run()
    for output, array in zip(OUTPUTS, ("y", "present_key", "present_value", "lse"), strict=True):
        assert found[output].tobytes() == expected[array].tobytes(), output


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_exported_models(name: str, tmp_path: Path) -> None:
    """The error against the float model is at most twice that of the CPU kernels."""
    pytest.importorskip("transformers")
    from zoo.export import Variant, export

    variant = Variant(name, "torchscript", 17, "eager")
    original = tmp_path / str(export(variant, tmp_path).file)
    result = intfa_onnx.rewrite(original)
    assert result.attentions
    result.save(tmp_path / "int8.onnx")
    sessions = [
        open_session(tmp_path / file, providers=providers)
        for file, providers in ((original.name, (CPU,)), ("int8.onnx", (CPU,)), ("int8.onnx", (CUDA, CPU)))
    ]
    for _, feed in variant.build().feeds():
        expected, on_cpu, on_cuda = (session.run(None, feed)[0] for session in sessions)
        assert relative_error(on_cuda, expected) <= 2 * relative_error(on_cpu, expected) + 1e-4


def memory_in_use() -> int:
    """MiB of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def test_soak() -> None:
    """Several sessions on several threads, each run on its own stream: every result is right, and nothing grows."""
    case = next(c for c in CASES if c.name == "mask_padding")
    inputs = typed_inputs(case)
    model = make_model(inputs, attributes_of(case)).SerializeToString()
    sessions = [open_session(model, providers=(CUDA, CPU)) for _ in range(2)]
    for session in sessions:
        check_placement(session, CUDA)
    expected = run(sessions[0], inputs)["Y"]

    def work(runs: int) -> None:
        for i in range(runs):
            np.testing.assert_array_equal(run(sessions[i % 2], inputs)["Y"], expected)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, [RUNS // 20 // THREADS] * THREADS))
        before = memory_in_use()
        list(pool.map(work, [RUNS // THREADS] * THREADS))
    assert memory_in_use() <= before + 16
