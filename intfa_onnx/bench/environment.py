"""What a figure needs beside it to mean anything: machine, clocks, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import intfa_onnx
from intfa_onnx import c_abi
from intfa_onnx.errors import UnsupportedError

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "sageattention", "numpy")
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")


def describe() -> dict[str, Any]:
    """Return devices, clocks, driver and versions as plain JSON types; what is absent is left out."""
    versions = {"intfa-onnx": intfa_onnx.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu() | _instruction_set(),
        "gpu": gpu(),
        "python": platform.python_version(),
        "versions": versions,
    }


def sentences(header: dict[str, Any]) -> list[str]:
    """Return a header in words, one sentence per element."""
    cpu = header["cpu"]
    features = ", ".join(cpu.get("features", ()))
    parts = [cpu["model"], f"{cpu.get('cores', '?')} cores"]
    parts += [f"{cpu['clock_mhz']} MHz reported"] if cpu.get("clock_mhz") else []
    parts += [f"({features})"] if features else []
    parts += [f"ours on {cpu['instruction_set']}"] if "instruction_set" in cpu else []
    lines = [f"{header['date']}, on {header['device']}, {header['threads']} CPU thread(s)."]
    lines.append(f"CPU: {', '.join(parts)}.")
    if header["gpu"]:
        lines.append("GPU: " + ", ".join(f"{k} {v}" for k, v in header["gpu"].items()) + ".")
    lines.append(f"Versions: {', '.join(f'{name} {version}' for name, version in header['versions'].items())}.")
    if "data" in header:
        lines.append(f"Data: {header['data']}.")
    return lines


def peak_memory() -> int:
    """Return the greatest resident size of this process so far, in bytes.

    Not getrusage's figure: that one survives exec, so a child of a large process begins with its parent's size.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _cpu() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"model": platform.processor(), "cores": os.cpu_count()}
    model = re.search(r"model name\s*:\s*(.*)", text)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.*)", text)
    clocks = [float(mhz) for mhz in re.findall(r"cpu MHz\s*:\s*(\S+)", text)]
    features = [f for f in CPU_FEATURES if flags and f in flags[1].split()]
    return {
        "model": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "clock_mhz": round(max(clocks, default=0)),  # as the system reports it; a guest may see the nominal one
        "features": features,
    }


def _instruction_set() -> dict[str, str]:
    try:
        return {"instruction_set": c_abi.cpu_instruction_set()}
    except UnsupportedError:  # the library is not built
        return {}


def gpu() -> dict[str, str] | None:
    """Return name, driver, clocks and power limit of the first GPU as its driver reports them now, if there is one."""
    fields = "name,driver_version,clocks.max.sm,clocks.sm,power.limit"
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(fields.split(","), output.splitlines()[0].split(", "), strict=False))
