"""Say what of an installation works, what does not, and what to do about it."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

import intfa_onnx
from intfa_onnx import c_abi, native
from intfa_onnx.errors import IntfaError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE, OPSET_VERSION
from intfa_onnx.session import CPU, CUDA, open_session
from intfa_onnx.trt_plugin import TENSORRT_MAJORS

# What each library has to export: the host's entry points, and of the C interface what this module calls.
_EXPORTS = {
    "ort": ("RegisterCustomOps", "intfa_version", "intfa_cuda_architectures"),
    "trt": ("getCreators", "setLoggerFinder"),
}
_MIN_CAPABILITY = 8.0  # mma.sync.m16n8k32

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and the remedy if it is not well.

    ``absent`` marks an optional part that is not installed; only ``broken`` makes an installation unusable.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def diagnose() -> tuple[Check, ...]:
    """Run every check, in the order in which their failures explain each other."""
    library = _guard("native library", lambda: _library("ort"), "reinstall the package, or build it: pip install .")
    runtime = _onnxruntime()
    operator = Check("operator in ONNX Runtime", "broken", "not tried: see above")
    on_cuda = Check("operator on CUDA", "absent", "not tried: see above")
    if library.state == runtime.state == "ok":
        operator = _guard("operator in ONNX Runtime", _operator, "update onnxruntime, or reinstall the package")
        on_cuda = _optional("operator on CUDA", lambda: _operator((CUDA, CPU)))
    driver = _driver()
    return (
        Check(
            "intfa-onnx", "ok", f"{intfa_onnx.__version__}, Python {platform.python_version()}, {platform.platform()}"
        ),
        _package("onnx"),
        library,
        _cuda_code(driver) if library.state == "ok" else Check("CUDA code", "absent", "not looked for: see above"),
        runtime,
        operator,
        on_cuda,
        _optional("TensorRT plugin", lambda: _library("trt")),
        _tensorrt(),
        _package("polygraphy", remedy="for `intfa-onnx compare`: pip install 'intfa-onnx[polygraphy]'"),
        _package("torch", remedy="only to export models: pip install 'intfa-onnx[models]'"),
        driver,
    )


def usable(checks: tuple[Check, ...]) -> bool:
    """Return whether rewritten models run here."""
    return all(check.state != "broken" for check in checks)


def probe_model() -> onnx.ModelProto:
    """Return a model of one ``IntFlashAttention`` node: Q, K, V and Y are float32 [1, 1, 4, 8]."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 8]) for name in "QKVY"}
    node = helper.make_node(OP_TYPE, ["Q", "K", "V"], ["Y"], name="probe", domain=DOMAIN)
    graph = helper.make_graph([node], "probe", [values[n] for n in "QKV"], [values["Y"]])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _package(name: str, remedy: str = "") -> Check:
    """Report a package's version; one that is not required is ``absent`` rather than ``broken``."""
    try:
        return Check(name, "ok", str(importlib.import_module(name).__version__))
    except ModuleNotFoundError:
        state: State = "broken" if name in ("onnx", "onnxruntime") else "absent"
        return Check(name, state, "not installed", remedy)
    except Exception as error:  # a half-installed package fails in its own way; the report must go on
        return Check(name, "broken", f"cannot be imported: {_one_line(error)}", f"reinstall {name}")


def _guard(name: str, check: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, "ok", check())
    except IntfaError as error:  # carries its own remedy
        return Check(name, "broken", _one_line(error))
    except Exception as error:  # whatever the loader or the runtime raises is the finding
        return Check(name, "broken", _one_line(error), remedy)


def _optional(name: str, check: Callable[[], str]) -> Check:
    """Guard a part without which rewritten models still run."""
    found = _guard(name, check, "reinstall the package, or build it: pip install .")
    return found if found.state == "ok" else Check(name, "absent", found.found, found.remedy)


def _onnxruntime() -> Check:
    names = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    both = {"onnxruntime", "onnxruntime-gpu"}
    if both <= names:
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted"
        return Check("onnxruntime", "broken", "onnxruntime and onnxruntime-gpu overwrite each other's files", remedy)
    return _package("onnxruntime", remedy="pip install 'intfa-onnx[ort]'")


def _tensorrt() -> Check:
    check = _package("tensorrt", remedy="only to run engines: pip install 'intfa-onnx[trt]'")
    major = check.found.partition(".")[0]
    if check.state == "ok" and major not in map(str, TENSORRT_MAJORS):
        supported = " and ".join(map(str, TENSORRT_MAJORS))
        return Check("tensorrt", "absent", f"{check.found} (supported: {supported})", "install one that is supported")
    return check


def _library(host: native.Host) -> str:
    path = native.get_library_path(host)
    floor, here = glibc_floor(path), platform.libc_ver()[1]
    if here and floor > _numbers(here):
        raise RuntimeError(f"{path} needs glibc {_dotted(floor)}, and this system has {here}")
    library = ctypes.CDLL(str(path))
    missing = [name for name in _EXPORTS[host] if not hasattr(library, name)]
    if missing:
        raise RuntimeError(f"{path} does not export {', '.join(missing)}")
    if host == "ort":
        library.intfa_version.restype = ctypes.c_char_p
        version = library.intfa_version().decode()
        if version != intfa_onnx.__version__:
            raise RuntimeError(f"{path} is of version {version}, the package of version {intfa_onnx.__version__}")
    size = path.stat().st_size / 1e6
    return f"{path}, {size:.1f} MB, exports {', '.join(_EXPORTS[host])}, needs glibc {_dotted(floor)}"


def _cuda_code(driver: Check) -> Check:
    """Report the GPUs that the library has code for, and those of this machine that it has none for."""
    built = c_abi.cuda_architectures()
    if not built:
        remedy = "to run on a GPU: build it where nvcc is found (INTFA_CUDA=ON)"
        return Check("CUDA code", "absent", "CPU kernels only", remedy)
    capabilities = re.findall(r", (\d+\.\d)(?=;|$)", driver.found) if driver.state == "ok" else []
    without = [c for c in capabilities if not c_abi.has_cuda_code(c)]
    if not without:
        return Check("CUDA code", "ok", f"for {built}")
    old = [c for c in without if float(c) < _MIN_CAPABILITY]
    remedy = (
        f"run on the CPU: the kernels need compute capability {_MIN_CAPABILITY}"
        if old
        else (f"build it with -DINTFA_CUDA_ARCHITECTURES={without[0].replace('.', '')}")
    )
    return Check("CUDA code", "absent", f"for {built}; none for compute capability {', '.join(without)}", remedy)


def glibc_floor(library: Path) -> tuple[int, ...]:
    """Return the oldest glibc, e.g. (2, 34), that has every symbol version that a library asks for."""
    return max(map(_numbers, re.findall(r"\x00GLIBC_(2[.0-9]+)(?=\x00)", library.read_bytes().decode("latin-1"))))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _operator(providers: Sequence[str] = (CPU,)) -> str:
    """Run one node; every key has the same score, so each query's output is the mean of V."""
    session = open_session(probe_model().SerializeToString(), providers=providers)
    v = np.arange(32, dtype=np.float32).reshape(1, 1, 4, 8)
    q = np.ones_like(v)
    (y,) = session.run(None, {"Q": q, "K": q, "V": v})
    error = float(np.abs(y - v.mean(axis=2, keepdims=True)).max())
    bound = float(np.abs(v).max()) / 127  # one step of V's INT8 code
    if not error <= bound:
        raise RuntimeError(f"runs, but is off by {error:.3g} (bound {bound:.3g})")
    return f"runs on {session.get_providers()[0]}, off by {error:.2g} of at most {bound:.2g}"


def _driver() -> Check:
    remedy = "only for CUDA and TensorRT: install NVIDIA's driver"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("NVIDIA driver", "absent", "nvidia-smi not found", remedy)
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("NVIDIA driver", "absent", f"nvidia-smi fails: {_one_line(error)}", remedy)
    return Check("NVIDIA driver", "ok", "; ".join(answer.stdout.split("\n")).strip("; "))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
