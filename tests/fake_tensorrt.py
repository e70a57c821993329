"""Stands in for the module ``tensorrt``: answers what the real one would, and writes down what it was told.

The names are checked against a real package by ``test_trt_build_engine``.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Any

__version__ = "10.16.1.11"
TOLD = Path("told.json")  # in the working folder
FAIL = Path("fail")  # if it is there: the step that has to fail

told: dict[str, Any] = {}


def _fails(step: str) -> bool:
    return FAIL.exists() and FAIL.read_text() == step


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class Logger(ILogger):
    WARNING = Severity.WARNING

    def __init__(self, _severity: Severity) -> None:
        pass

    def log(self, _severity: Severity, _text: str) -> None:
        pass


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class IPluginRegistry:
    def __init__(self) -> None:
        self.all_creators: list[Any] = []

    def load_library(self, path: str) -> object | None:
        told.setdefault("loaded", []).append(path)
        if _fails("load"):
            return None
        creator = type("Creator", (), {"name": "IntFlashAttention", "plugin_namespace": "intfa"})
        self.all_creators.append(creator())
        return object()


_registry = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _registry


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b" and new timings"


class IBuilderConfig:
    plugins_to_serialize: list[str]

    def add_optimization_profile(self, profile: IOptimizationProfile) -> None:
        told["profile"] = profile.ranges

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> None:
        self._cache = cache

    def get_timing_cache(self) -> _Cache:
        return self._cache


class IOptimizationProfile:
    def __init__(self) -> None:
        self.ranges: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, greatest: Any) -> None:
        self.ranges[name] = [list(least), list(usual), list(greatest)]


class Builder:
    def __init__(self, log: Any) -> None:
        self.log = log

    def create_network(self, flags: int) -> object:
        told["flags"] = flags
        return object()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, _network: object, config: IBuilderConfig) -> bytes | None:
        told["embedded"] = getattr(config, "plugins_to_serialize", [])
        TOLD.write_text(json.dumps(told))
        if _fails("build"):
            self.log.log(Severity.ERROR, "intfa: IntFlashAttention 'layer': head_dim=12 is unsupported")
            return None
        return b"an engine"


class OnnxParser:
    def __init__(self, _network: object, log: Any) -> None:
        self.log = log
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        told["parsed"] = path
        if _fails("parse"):
            self.log.log(Severity.ERROR, "Plugin not found, are the plugin name, version, and namespace correct?")
        return not _fails("parse")

    def get_error(self, _index: int) -> Any:
        raise IndexError
