"""Reads and writes models: external data is referenced, never read; a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from intfa_onnx.errors import ModelError

# Every ONNX file starts with the field ir_version, which onnx writes first.
_FIRST_BYTE = b"\x08"
_PROTOBUF_LIMIT = 2**31 - 1


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model; tensors in external files stay there.

    Raises:
        ModelError: the file is missing, is not ONNX, is cut off, has an opset that the installed onnx does not know, or
            an external data file is missing or too short.
    """
    path = Path(path)
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror or error}") from error
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(_unreadable(path)) from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(_unreadable(path))
    return from_proto(proto, f"'{path}'", path.parent)


def from_proto(proto: onnx.ModelProto, source: str = "the model", folder: Path = Path()) -> ir.Model:
    """Convert a protobuf message; ``source`` names it in messages, ``folder`` is where its external data lies.

    Raises:
        ModelError: its opset is unknown to the installed onnx, its content is malformed, or an external data file is
            missing or too short.
    """
    _check_opsets(proto, source)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many kinds on malformed content
        raise ModelError(f"{source} is not a valid ONNX model: {error}") from error
    for tensor in external_tensors(model):
        tensor.base_dir = folder.absolute()  # the caller may go to another folder before the model is saved
    _check_external_data(model, source)
    return model


def _unreadable(path: Path) -> str:
    with open(path, "rb") as file:
        looks_like_onnx = file.read(1) == _FIRST_BYTE
    if path.stat().st_size == 0:
        return f"'{path}' is empty, not an ONNX model. Export it again"
    if looks_like_onnx:
        return f"'{path}' starts like an ONNX model but is cut off or damaged. Copy or export it again"
    return f"'{path}' is not an ONNX model. Give the .onnx file that the exporter wrote"


def _check_opsets(proto: onnx.ModelProto, source: str) -> None:
    versions = {o.domain: o.version for o in proto.opset_import}
    if not versions:
        raise ModelError(f"{source} imports no opset: it is cut off or damaged. Copy or export it again")
    version, newest = versions.get("", versions.get("ai.onnx", 1)), onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise ModelError(
            f"{source} uses opset {version} of ai.onnx (supported by the installed onnx {onnx.__version__}: 1 to "
            f"{newest}). Upgrade onnx, or export with a lower opset_version"
        )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield every tensor that lives in an external file: of weights, and of attributes, e.g. of a Constant."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node: of the graph, of the functions, and of the bodies in both."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _check_external_data(model: ir.Model, source: str) -> None:
    sizes: dict[Path, int] = {}
    for tensor in external_tensors(model):
        file = Path(tensor.path)
        if file not in sizes:
            if not file.is_file():
                raise ModelError(
                    f"{source} keeps tensor '{tensor.name}' in '{tensor.location}', which is missing in "
                    f"'{tensor.base_dir}'. Copy the external data file there, or give the model by its path"
                )
            sizes[file] = file.stat().st_size
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if end > sizes[file]:
            raise ModelError(
                f"{source}: external data file '{tensor.location}' has {sizes[file]} bytes, but tensor '{tensor.name}' "
                f"ends at byte {end}: the file is cut off. Copy it again"
            )


def save(model: ir.Model, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a model; its external data files are copied next to it, unless they are there already.

    Raises:
        ModelError: the output exists and ``force`` is not set, its folder is missing or not writable, its external
            data lies outside of its folder, or it does not fit in one protobuf message. Nothing half-written is left.
    """
    path = Path(path)
    check_target(path, force)
    data = _serialize(model, path)
    try:
        with _all_or_nothing() as staged:
            for source, location in _external_files(model):
                _stage_external(source, location, path, force, staged)
            staged.append((_write_beside(path, data), path))
    except OSError as error:
        raise _unwritable(path, error) from error


def check_target(path: Path, force: bool) -> None:
    """Check that a file may be written, before the work that makes its content.

    Raises:
        ModelError: it exists and ``force`` is not set, is a folder, a device or a pipe, or its folder is missing.
    """
    try:
        exists, is_folder, is_file, has_folder = path.exists(), path.is_dir(), path.is_file(), path.parent.is_dir()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise _unwritable(path, error) from error
    if is_folder:
        raise ModelError(f"'{path}' is a folder. Give a file name")
    if exists and not is_file:  # renaming would put a file in its place, even of /dev/null
        raise ModelError(f"'{path}' is a device or a pipe, and would be replaced by a file. Give a file name")
    if exists and not force:
        raise ModelError(f"'{path}' exists. Choose another name, or give --force (force=True) to replace it")
    if not has_folder:
        raise ModelError(f"the folder '{path.parent}' does not exist. Create it first")


def _unwritable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"cannot write '{path}': {error.strerror or error}. Choose a writable folder with room for it")


def _serialize(model: ir.Model, path: Path) -> bytes:
    embedded = sum(
        v.const_value.nbytes
        for g in model.graphs()
        for v in g.initializers.values()
        if v.const_value is not None and not isinstance(v.const_value, ir.ExternalTensor)
    )
    if embedded > _PROTOBUF_LIMIT:
        raise ModelError(
            f"'{path}' would hold {embedded} bytes of tensors in one protobuf message (limit {_PROTOBUF_LIMIT}). "
            "Save the original with external data, and rewrite that"
        )
    return ir.to_proto(model).SerializeToString()


def _external_files(model: ir.Model) -> list[tuple[Path, str]]:
    """Return each external file and its location relative to the model, once."""
    files = {(Path(t.path).resolve(), str(t.location)) for t in external_tensors(model)}
    return sorted(files)


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[list[tuple[Path, Path]]]:
    """Collect files under temporary names with their own; rename them once all are whole, or remove them all."""
    staged: list[tuple[Path, Path]] = []
    new: list[Path] = []
    try:
        yield staged
        new += [target for _, target in staged if not target.exists()]
        for partial, target in staged:
            os.replace(partial, target)
    except BaseException:
        for file in (*(partial for partial, _ in staged), *new):
            file.unlink(missing_ok=True)
        raise


def _stage_external(source: Path, location: str, path: Path, force: bool, staged: list[tuple[Path, Path]]) -> None:
    target = path.parent / location
    if path.resolve() in (source, target.resolve()):
        raise ModelError(f"'{path}' is where the model's external data is. Choose another name")
    if target.exists() and (os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)):
        return
    if Path(location).is_absolute() or ".." in Path(location).parts:  # would write outside of the output's folder
        raise ModelError(
            f"external data location '{location}' is outside of the model's folder, where ONNX Runtime does not look. "
            "Save the original with its external data beside it, and rewrite that"
        )
    if target.exists() and not force:
        raise ModelError(f"external data file '{target}' exists. Choose another folder, or give --force (force=True)")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    staged.append((partial, target))
    # A copy within the kernel, not a hard link: onnx refuses external data with more than one link, the original's too.
    shutil.copyfile(source, partial)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it: a failure leaves what was there."""
    with _all_or_nothing() as staged:
        staged.append((_write_beside(path, data), path))


def _write_beside(path: Path, data: bytes) -> Path:
    """Write a file under a temporary name, with the permissions that it has or would get; return that name."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
