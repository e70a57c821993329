"""From a rewritten model to a TensorRT engine: the commands that do it, and the same through its Python package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from intfa_onnx import model_io, native, op_schema
from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.inputs import parse_shapes
from intfa_onnx.portable import is_portable
from intfa_onnx.trt_plugin import import_tensorrt, load_trt_plugin

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, usual and greatest sizes of an input
_WHICH = ("Min", "Opt", "Max")


@dataclass(frozen=True)
class EngineRequest:
    """What to build; see :func:`plan_engine`."""

    model: Path
    engine: Path
    plugin: Path
    ranges: Mapping[str, Range]
    timing_cache: Path | None
    embed_plugin: bool

    def trtexec(self) -> list[str]:
        """Return the command that does the same with NVIDIA's ``trtexec``."""
        command = ["trtexec", f"--onnx={self.model}", f"--saveEngine={self.engine}", "--stronglyTyped"]
        command.append(f"--{'dynamic' if self.embed_plugin else 'static'}Plugins={self.plugin}")
        if self.embed_plugin:
            command.append(f"--setPluginsToSerialize={self.plugin}")
        for i, which in enumerate(_WHICH):
            sizes = [f"{name}:{'x'.join(map(str, r[i]))}" for name, r in self.ranges.items()]
            command += [f"--{which.lower()}Shapes={','.join(sizes)}"] if sizes else []
        return command + ([f"--timingCacheFile={self.timing_cache}"] if self.timing_cache else [])

    def polygraphy(self) -> list[str]:
        """Return the command that does the same with Polygraphy, which cannot embed a plugin."""
        command = ["polygraphy", "convert", str(self.model), "-o", str(self.engine), "--strongly-typed"]
        command += ["--plugins", str(self.plugin)]
        for i, which in enumerate(_WHICH):
            sizes = [f"{name}:[{','.join(map(str, r[i]))}]" for name, r in self.ranges.items()]
            command += [f"--trt-{which.lower()}-shapes", *sizes] if sizes else []
        if self.timing_cache:
            cache = str(self.timing_cache)
            command += [
                *(["--load-timing-cache", cache] if self.timing_cache.exists() else []),
                "--save-timing-cache",
                cache,
            ]
        return command


def plan_engine(
    model: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    *,
    shapes: Sequence[str] = (),
    timing_cache: str | os.PathLike[str] | None = None,
    embed_plugin: bool = False,
    force: bool = False,
) -> EngineRequest:
    """Check what is asked for, before anything is built.

    Args:
        model: a rewritten model.
        engine: where to write the engine.
        shapes: of each input with a dynamic size: ``NAME:DIMS``, or ``NAME:MIN,OPT,MAX`` (``ids:1x16,8x128,32x512``).
        timing_cache: file of TensorRT's timings, read if it is there and written.
        embed_plugin: put the plugin library into the engine.
        force: overwrite ``engine``.
    Raises:
        ModelError: the model cannot be read, ``engine`` exists or is the model, or a folder is missing.
        UnsupportedError: nothing to use the plugin for, shapes that do not fit, or the library is not built.
    """
    model, engine = Path(model), Path(engine)
    loaded = model_io.load(model)
    _check_nodes(loaded, model)
    model_io.check_target(engine, force)
    cache = Path(timing_cache) if timing_cache else None
    if cache:
        model_io.check_target(cache, force=True)
    files = [path.resolve() for path in (model, engine, cache) if path]
    if len(set(files)) < len(files):
        raise ModelError("two of model, engine and timing cache would overwrite each other. Give other names")
    return EngineRequest(model, engine, native.get_library_path("trt"), _ranges(loaded, shapes), cache, embed_plugin)


def _check_nodes(loaded: ir.Model, model: Path) -> None:
    ours = [n for n in model_io.all_nodes(loaded) if n.op_type == op_schema.OP_TYPE]
    if not ours:
        raise UnsupportedError(
            f"'{model}' has no {op_schema.OP_TYPE}. Rewrite it first: intfa-onnx rewrite {model} -o OUT --target trt"
        )
    if is_portable(loaded):
        raise UnsupportedError(
            f"'{model}' is portable: TensorRT would run the float function body instead of the plugin. Rewrite the "
            "original without --portable, with --target trt"
        )
    mask = op_schema.INPUTS.index("attn_mask")
    for node in ours:
        value = node.inputs[mask] if len(node.inputs) > mask else None
        if value is not None and value.dtype == ir.DataType.BOOL:
            raise UnsupportedError(
                f"node '{node.name}' has a boolean mask, which TensorRT gives to no plugin. Rewrite the "
                "original with --target trt"
            )


def _ranges(loaded: ir.Model, shapes: Sequence[str]) -> dict[str, Range]:
    ranges: dict[str, Range] = {}
    for text in shapes:
        name, _, sizes = text.rpartition(":")
        parts = [parse_shapes([f"{name}:{part}"])[name] for part in sizes.split(",")]
        if len(parts) not in (1, 3) or len({len(part) for part in parts}) != 1:
            raise UnsupportedError(
                f"--shapes {text!r} is not NAME:DIMS or NAME:MIN,OPT,MAX, as in ids:1x16,8x128,32x512"
            )
        least, usual, greatest = parts if len(parts) == 3 else parts * 3
        if not all(a <= b <= c for a, b, c in zip(least, usual, greatest, strict=True)):
            raise UnsupportedError(f"--shapes {text!r} is not in the order MIN,OPT,MAX")
        if name in ranges:
            raise UnsupportedError(f"--shapes gives {name!r} twice; for a range write {name}:MIN,OPT,MAX")
        ranges[name] = least, usual, greatest
    inputs = {str(value.name): value for value in loaded.graph.inputs}
    for name, sizes_of in ranges.items():
        if name not in inputs:
            raise UnsupportedError(f"--shapes {name}: the model has no such input (it has: {', '.join(inputs)})")
        shape = inputs[name].shape
        wrong = shape is not None and (
            len(shape) != len(sizes_of[0])
            or any(isinstance(d, int) and {s[i] for s in sizes_of} != {d} for i, d in enumerate(shape))
        )
        if wrong:
            raise UnsupportedError(f"--shapes {name}: the model's input is {shape}, which other sizes do not fit")
    missing = [name for name, value in inputs.items() if name not in ranges and not _is_static(value)]
    if missing:
        example = f"{missing[0]}:{'x'.join(['1'] * len(inputs[missing[0]].shape or [1]))}"
        raise UnsupportedError(f"the sizes of {', '.join(missing)} are dynamic. Give each, e.g. --shapes {example}")
    return ranges


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def build_engine(request: EngineRequest) -> int:
    """Build an engine with TensorRT's Python package and write it atomically.

    Returns:
        Its size in bytes.
    Raises:
        UnsupportedError: TensorRT is missing, or refuses the model; its errors are in the message.
        ModelError: a file cannot be written.
    """
    trt = import_tensorrt()
    load_trt_plugin()
    log = _logger(trt)
    builder = trt.Builder(log)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(request.model)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise UnsupportedError(f"TensorRT cannot parse '{request.model}': {'; '.join(log.errors or errors)}")
    config = builder.create_builder_config()
    if request.ranges:
        profile = builder.create_optimization_profile()
        for name, sizes in request.ranges.items():
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)
    if request.timing_cache:
        known = request.timing_cache.read_bytes() if request.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    if request.embed_plugin:
        config.plugins_to_serialize = [str(request.plugin)]
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise UnsupportedError(f"TensorRT cannot build '{request.model}': {'; '.join(log.errors) or 'see its log'}")
    data = bytes(serialized)
    try:
        model_io.write_atomically(request.engine, data)
        if request.timing_cache:
            model_io.write_atomically(request.timing_cache, bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise ModelError(f"cannot write '{error.filename}': {error.strerror}") from error
    return len(data)


def _logger(trt: ModuleType) -> Any:
    """Return a TensorRT logger that keeps errors for our message and passes warnings on to stderr."""

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self._other = trt.Logger(trt.Logger.WARNING)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(text)
            else:
                self._other.log(severity, text)

    return Log()
