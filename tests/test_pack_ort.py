"""benchmarks/pack_ort.py: a wheel of which the code of one GPU stays, at the place where it was."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from native.simt import toolchain

SCRIPT = Path(__file__).parent.parent / "benchmarks/pack_ort.py"
PTX, MACHINE_CODE = 1, 2
MAGIC = bytes.fromhex("50ed55ba")


@pytest.fixture(scope="module")
def pack_ort() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_ort", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(kind: int, architecture: int, payload: bytes, header_size: int = 64) -> bytes:
    header = struct.pack("<HHIQ", kind, 0x101, header_size, len(payload)).ljust(28, b"\x07")
    return (header + struct.pack("<I", architecture)).ljust(header_size, b"\x09") + payload


def container(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(content)) + content


def library(sm90: bytes) -> bytes:
    first = container(entry(MACHINE_CODE, 80, b"a" * 100), entry(MACHINE_CODE, 90, sm90), entry(PTX, 90, b"c" * 40))
    return (
        b"host code" + MAGIC + b"no container" * 3 + first + b"between" + container(entry(PTX, 80, b"d" * 8)) + b"end"
    )


def test_the_code_of_one_gpu_stays(pack_ort: ModuleType) -> None:
    original = library(b"b" * 60)
    pruned, kept, zeroed = pack_ort.prune(original, 90)
    assert (kept, zeroed) == (60, 148)
    expected = original
    for gone in (b"a" * 100, b"c" * 40, b"d" * 8):
        expected = expected.replace(gone, bytes(len(gone)))
    assert pruned == expected
    assert pack_ort.prune(original, 75)[1] == 0


KERNEL = "__global__ void twice(float* x) { x[threadIdx.x] *= 2; } void run(float* x) { twice<<<1, 32>>>(x); }"


def test_the_compilers_own_tool_reads_it_like_this(pack_ort: ModuleType, tmp_path: Path) -> None:
    """Uncompressed: of compressed code that is zeros, the tool reads nothing at all."""
    nvcc, cuobjdump = toolchain.nvcc(), toolchain.cuda_tool("cuobjdump")
    if nvcc is None or cuobjdump is None:
        pytest.skip("nvcc or cuobjdump is missing: pip install nvidia-cuda-nvcc nvidia-cuda-cuobjdump")
    tool = cuobjdump
    (tmp_path / "twice.cu").write_text(KERNEL)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90a")]
    original = tmp_path / "original.so"
    command = [nvcc, "-shared", "-Xcompiler=-fPIC", "--no-compress", *targets, "-o", original, tmp_path / "twice.cu"]
    subprocess.run(command, check=True)

    def extract(library: Path, architecture: str) -> list[bytes]:
        folder = tmp_path / f"{library.stem}_{architecture}"
        folder.mkdir()
        command = [tool, "--gpu-architecture", architecture, "--extract-elf", "all", str(library)]
        subprocess.run(command, capture_output=True, cwd=folder, check=False)  # it fails where the code is zeros
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    content, kept, zeroed = pack_ort.prune(original.read_bytes(), 90)
    pruned = tmp_path / "pruned.so"
    pruned.write_bytes(content)
    code = extract(original, "sm_90a")
    assert code
    assert kept == sum(map(len, code))
    assert zeroed == sum(map(len, extract(original, "sm_80")))
    assert extract(pruned, "sm_90a") == code
    assert not any(map(any, extract(pruned, "sm_80")))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_wheel_becomes_an_archive(tmp_path: Path) -> None:
    wheel, target = tmp_path / "onnxruntime_gpu.whl", tmp_path / "ort.tar.xz"
    files = {
        "onnxruntime/__init__.py": b"x = 1",
        "onnxruntime/transformers/big.py": b"-",
        "onnxruntime/capi/libonnxruntime.so.1.31.1": b"-",
        "onnxruntime/capi/libonnxruntime_providers_shared.so": b"shared",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so": library(b"b" * 60),
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    done = run(wheel, 90, target)
    assert done.returncode == 0, done.stderr
    assert "sm_90: 0 MB of device code kept" in done.stdout
    with tarfile.open(target) as packed:
        names = packed.getnames()
        assert sorted(names) == sorted(name for name in files if files[name] != b"-")
        (provider,) = (name for name in names if name.endswith("cuda.so"))
        content = packed.extractfile(provider)
        assert content
        assert b"b" * 60 in (code := content.read())
        assert b"a" * 100 not in code
    for wrong, said in ((run(wheel, 75, target), "no machine code for sm_75"), (run(SCRIPT, 90, target), "not a zip")):
        assert wrong.returncode == 1
        assert said in wrong.stderr
