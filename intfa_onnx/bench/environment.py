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

PACKAGES = ("intfa-onnx", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "sageattention", "numpy")
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")


def describe() -> dict[str, Any]:
    """Return device, clocks, driver and versions as plain JSON types; what is absent is left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"model": platform.processor(), "cores": os.cpu_count()}
    model = re.search(r"model name\s*:\s*(.*)", text)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.*)", text)
    features = [f for f in CPU_FEATURES if flags and f in flags[1].split()]
    return {
        "model": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "features": features,
    }


def _gpu() -> dict[str, str] | None:
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
