"""Exports cases to ONNX files: which exporters and opsets there are, and a cache of what was exported before."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from zoo.case import DEFINITIONS, Case
from zoo.digest import digest

USUAL = (("torchscript", 17), ("dynamo", 18), ("dynamo", 23))


@dataclass(frozen=True)
class Variant:
    """One file of the zoo; a finished graph has the exporter "graph" and opset 0."""

    name: str
    exporter: str
    opset: int
    implementation: str

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return f"{self.name}-{self.exporter}-{self.opset}-{self.implementation}"

    def build(self) -> Case:
        """Return the case with its seeded weights."""
        torch.manual_seed(0)
        return DEFINITIONS[self.name].build(self.implementation)


@dataclass(frozen=True)
class Exported:
    """What became of a variant: a file, or an error of the exporter.

    Attributes:
        static: the exporter refused dynamic axes, and took the sizes as they were.
        key: changes with the definition, the exporter and their libraries' versions.
    """

    variant: Variant
    file: str | None
    static: bool
    error: str
    key: str


def one_thread() -> None:
    """Prepare a worker process: the processes share the cores, and nothing is fetched."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    os.environ["HF_HUB_OFFLINE"] = "1"


def variants(names: list[str] | None = None) -> list[Variant]:
    """Return every variant of the named models, or of all; without those whose library is not installed."""
    found = []
    for definition in DEFINITIONS.values():
        if names and definition.name not in names:
            continue
        if definition.requires and find_spec(definition.requires) is None:
            continue
        if definition.implementations == ("graph",):
            found.append(Variant(definition.name, "graph", 0, "graph"))
            continue
        for exporter, opset in (*USUAL, *definition.extra):
            found += [Variant(definition.name, exporter, opset, i) for i in definition.implementations]
    return found


def key(variant: Variant) -> str:
    """Return a digest of all that the exported file depends on."""
    build = DEFINITIONS[variant.name].build
    return digest(build.__module__.removeprefix("zoo."), build.__name__)


def export(variant: Variant, folder: Path) -> Exported:
    """Export one variant, or return what an earlier call left in the folder.

    Raises:
        Exception: the model cannot be built on this machine, whose libraries do not fit; that is no exporter's answer.
    """
    record, path, now = folder / f"{variant.stem}.json", folder / f"{variant.stem}.onnx", key(variant)
    if record.exists():
        known = json.loads(record.read_text())
        if known["key"] == now:
            return Exported(variant, known["file"], known["static"], known["error"], now)
    path.unlink(missing_ok=True)
    case, partial = variant.build(), path.with_suffix(".partial")
    try:
        static = _write(case, variant, partial)
        partial.replace(path)
        done = Exported(variant, path.name, static, "", now)
    except Exception as error:  # whatever an exporter raises: it is its answer for this model
        partial.unlink(missing_ok=True)
        done = Exported(variant, None, False, f"{type(error).__name__}: {error}"[:500], now)
    write_json(record, asdict(done))
    return done


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing: a process may be killed at any time."""
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _write(case: Case, variant: Variant, path: Path) -> bool:
    """Write the file; return whether it has static sizes though the case has dynamic ones."""
    if isinstance(case.model, onnx.ModelProto):
        onnx.save(case.model, path)
        return False
    write = write_torchscript if variant.exporter == "torchscript" else write_dynamo
    torch.backends.mha.set_fastpath_enabled(variant.exporter != "torchscript")  # its fused layers have no ONNX form
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            write(case, variant.opset, path, True)
            return False
        except Exception:
            if not case.sizes:
                raise
            write(case, variant.opset, path, False)
            return True


def _arguments(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.from_numpy(array.copy()).to(case.dtype)
        if case.inputs[name].kind == "float"
        else torch.from_numpy(array.copy())
        for name, array in case.feed({}).items()
    )


def _dynamic(case: Case) -> dict[str, dict[int, str]]:
    return {n: {i: a for i, a in enumerate(s.axes) if isinstance(a, str)} for n, s in case.inputs.items()}


def write_torchscript(case: Case, opset: int, path: Path, dynamic: bool) -> None:
    """Write the file as the exporter of TorchScript does; ``dynamic`` names the dynamic axes."""
    torch.onnx.export(
        case.model,
        _arguments(case),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(case.inputs),
        output_names=case.outputs,
        dynamic_axes={n: axes for n, axes in _dynamic(case).items() if axes} if dynamic else None,
    )


def write_dynamo(case: Case, opset: int, path: Path, dynamic: bool) -> None:
    """Write the file as the exporter of torch.export does; ``dynamic`` names the dynamic axes."""
    shapes: Any = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for axes in _dynamic(case).values())
    variadic = type(case.model).forward.__code__.co_flags & 0x04  # *tensors takes them as one tuple
    torch.onnx.export(
        case.model,
        _arguments(case),
        path,
        dynamo=True,
        opset_version=opset,
        input_names=list(case.inputs),
        output_names=case.outputs,
        dynamic_shapes=((shapes,) if variadic else shapes) if dynamic else None,
        external_data=False,
        verbose=False,
    )
