"""Code for which GPUs: what the library says of itself, what is in it, and what a launch on another GPU answers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native.simt import toolchain

from intfa_onnx import c_abi, doctor, native
from intfa_onnx.doctor import Check

NATIVE = Path(__file__).resolve().parent / "native"
OK, UNSUPPORTED, RUNTIME_ERROR = 0, 2, 4


def test_library_has_the_code_that_it_lists() -> None:
    listed = c_abi.cuda_architectures()
    if not listed:
        pytest.skip("the library that is installed has CPU kernels only")
    cuobjdump = toolchain.cuda_tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("cuobjdump is missing: pip install nvidia-cuda-cuobjdump")

    def found(option: str) -> set[str]:
        command = [cuobjdump, option, str(native.get_library_path("ort"))]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\.sm_(\w+)\.(?:cubin|ptx)", answer))

    code, _, ptx = listed.removeprefix("sm ").partition("; PTX ")
    assert found("--list-elf") == set(code.split(", "))
    assert found("--list-ptx") == {ptx}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("7.5", False),  # before the first
        ("8.0", True),
        ("8.7", True),  # 86's code runs there
        ("9.0", True),  # 90a is its own
        ("10.0", True),
        ("10.3", True),
        ("11.0", False),  # between the last code and the PTX
        ("12.0", True),
        ("12.1", True),
        ("13.0", True),  # PTX
    ],
)
def test_which_gpus_find_code(monkeypatch: pytest.MonkeyPatch, capability: str, expected: bool) -> None:
    monkeypatch.setattr(c_abi, "cuda_architectures", lambda: "sm 80, 86, 89, 90a, 100, 120; PTX 120")
    assert c_abi.has_cuda_code(capability) is expected


def test_code_for_one_gpu_serves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_abi, "cuda_architectures", lambda: "sm 90a; PTX 90a")
    assert [c_abi.has_cuda_code(c) for c in ("8.9", "9.0", "10.0")] == [False, True, False]
    monkeypatch.setattr(c_abi, "cuda_architectures", lambda: "")
    assert not c_abi.has_cuda_code("9.0")


@pytest.mark.parametrize(
    ("built", "gpus", "state", "said"),
    [
        ("", "Some, 570.1, 9.0", "absent", "CPU kernels only"),
        ("sm 80; PTX 80", "", "ok", "for sm 80; PTX 80"),
        ("sm 80; PTX 80", "A, 570.1, 8.6; B, 570.1, 12.0", "ok", "for sm 80; PTX 80"),
        ("sm 89, 90a; PTX 90a", "A, 570.1, 8.6; B, 570.1, 9.0", "absent", "for sm 89, 90a; PTX 90a; none for compute "
         "capability 8.6 build it with -DINTFA_CUDA_ARCHITECTURES=86"),
        ("sm 80; PTX 80", "T4, 570.1, 7.5", "absent", "for sm 80; PTX 80; none for compute capability 7.5 run on the "
         "CPU: the kernels need compute capability 8.0"),
    ],
)  # fmt: skip
def test_doctor_tells_the_gpus(monkeypatch: pytest.MonkeyPatch, built: str, gpus: str, state: str, said: str) -> None:
    monkeypatch.setattr(c_abi, "cuda_architectures", lambda: built)
    driver = Check("NVIDIA driver", "ok" if gpus else "absent", gpus)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    check = next(check for check in doctor.diagnose() if check.name == "CUDA code")
    assert check.state == state
    assert f"{check.found} {check.remedy}".startswith(said)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product's launcher on a CUDA runtime of our own."""
    program = tmp_path_factory.mktemp("launcher") / "cuda_launcher"
    include = [NATIVE / "fake_cuda", toolchain.PLUGIN, toolchain.PLUGIN / "include"]
    defines = ["-D__CUDACC__", '-DINTFA_CUDA_ARCHITECTURES="sm 80, 90a; PTX 90a"']
    command = ["g++", "-std=c++20", *defines, *(f"-I{folder}" for folder in include)]
    subprocess.run([*command, str(NATIVE / "cuda_launcher.cpp"), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("call", "error", "capability", "driver", "code", "said"),
    [
        ("launch", 0, 80, 13000, OK, ""),
        *((call, error, 75, 13000, UNSUPPORTED, r"No code for this GPU: it is Fake GPU, sm_75, and this build has code "
           r"for sm 80, 90a; PTX 90a\. Build with -DINTFA_CUDA_ARCHITECTURES")
          for call in ("attribute", "launch") for error in (98, 209)),
        ("attribute", 1, 86, 13000, UNSUPPORTED, "needs 60000 bytes of shared memory per block, more than this"),
        ("launch", 35, 80, 0, UNSUPPORTED, r"No NVIDIA driver is found, and this build needs CUDA 13\.0"),
        ("launch", 222, 80, 12080, UNSUPPORTED, r"The NVIDIA driver has CUDA 12\.8, and this build needs CUDA 13\.0"),
        ("launch", 701, 80, 13000, RUNTIME_ERROR, r"cudaLaunchKernel: words \(name\)"),
        ("attribute", 100, 80, 13000, RUNTIME_ERROR, r"cudaFuncSetAttribute\(shared memory\): words"),
    ],
)  # fmt: skip
def test_launch_answers_in_words(
    launcher: Path, call: str, error: int, capability: int, driver: int, code: int, said: str
) -> None:
    command = [launcher, call, str(error), str(capability), str(driver), "132"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    how = "3x5x7 of 128 with 60000 bytes, 42, stream 64" if code == OK else "not launched"
    assert answer[0] == f"{code} {how}"
    assert re.match(r"(CUDA: the kernel )?" + said, answer[2] if len(answer) > 2 else "")


@pytest.mark.parametrize(
    ("capability", "sms", "learned"),
    [
        (80, 108, "mma, 108 SMs"),
        (90, 132, "wgmma, 132 SMs"),
        (90, 16, "wgmma, 16 SMs"),  # what MIG gives of it
        (90, 0, "wgmma, 1 SMs"),  # the runtime does not say
        (100, 148, "mma, 148 SMs"),
    ],
)
def test_wgmma_is_for_hopper(launcher: Path, capability: int, sms: int, learned: str) -> None:
    command = [launcher, "none", "0", str(capability), "13000", str(sms)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[1] == learned
