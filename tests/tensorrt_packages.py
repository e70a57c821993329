"""Environments with NVIDIA's small TensorRT packages, kept in the cache between runs; importing them needs no GPU.

Run as a program, in one of these environments, it loads the plugin library in a given order of steps:
``tensorrt_packages.py MODULE STEP...`` with the steps early:PATH (dlopen before TensorRT is imported), dlopen:PATH,
load:PATH (into the process-wide registry), builder:PATH (into a builder's own registry), unload, drop (the builder),
create. After each it prints a line of JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

NAME, VERSION, NAMESPACE = "IntFlashAttention", "1", "intfa"


def environment(requirement: str) -> Path:
    """Return the Python of an environment with ``requirement`` and numpy; skip the test where it cannot be had."""
    import pytest

    cache = Path(os.environ.get("INTFA_CACHE_DIR", Path.home() / ".cache/intfa"))
    tag = requirement.replace("==", "-").replace(".*", "")
    folder = cache / f"venv-{tag}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin/python", folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may want it at the same time
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "-q", "--no-cache-dir", requirement, "numpy"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode != 0:
                pytest.skip(f"{requirement} cannot be installed: {answer.stderr.strip().splitlines()[-1]}")
            done.touch()
    return python


def perform(module: str, steps: list[str]) -> None:
    """Take the steps one by one and print what the registries know after each."""
    early = [step for step in steps if step.startswith("early:")]
    for step in early:
        ctypes.CDLL(step.partition(":")[2])
    trt = importlib.import_module(module)

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and text.startswith("intfa"):
                self.lines.append(text)

    log = Log()
    registry = trt.get_plugin_registry()
    builder: Any = None
    handle: Any = None
    for step in ["start", *steps[len(early) :]]:
        action, _, path = step.partition(":")
        said: dict[str, Any] = {"step": action}
        if action == "dlopen":
            ctypes.CDLL(path)
        elif action == "load":
            handle = registry.load_library(path)
            said["loaded"] = handle is not None
        elif action == "unload":
            registry.deregister_library(handle)
        elif action == "builder":
            builder = builder or trt.Builder(log)
            said["loaded"] = builder.get_plugin_registry().load_library(path) is not None
        elif action == "drop":
            builder = None
        elif action == "create":
            said |= create(trt, (builder.get_plugin_registry() if builder else registry))
        said["creators"] = sum(c.name == NAME and c.plugin_namespace == NAMESPACE for c in registry.all_creators)
        said["log"] = log.lines.copy()
        log.lines.clear()
        print(json.dumps(said), flush=True)


def create(trt: Any, registry: Any) -> dict[str, Any]:
    """Make one plugin, and one that has to be refused."""
    import numpy as np

    creator = registry.get_creator(NAME, VERSION, NAMESPACE)
    kinds = {np.dtype(np.float32): trt.PluginFieldType.FLOAT32, np.dtype(np.int32): trt.PluginFieldType.INT32}

    def plugin(**attributes: Any) -> Any:
        arrays = {n: np.array([x], np.float32 if isinstance(x, float) else np.int32) for n, x in attributes.items()}
        fields = [trt.PluginField(name, x, kinds[x.dtype]) for name, x in arrays.items()]
        return creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)

    good = plugin(scale=0.5, is_causal=1)
    capabilities = trt.PluginCapabilityType.__members__.values()
    return {
        "fields": {f.name: str(f.type).rpartition(".")[2] for f in creator.field_names},
        "created": good is not None,
        "capabilities": [good.get_capability_interface(kind) is not None for kind in capabilities],
        "refused": plugin(is_casual=1) is None,
    }


if __name__ == "__main__":
    perform(sys.argv[1], sys.argv[2:])
