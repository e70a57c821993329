"""Packs an onnxruntime-gpu wheel for a machine with one kind of GPU and no network: the code of all others is zeroed.

    python benchmarks/pack_ort.py onnxruntime_gpu-*.whl 90 .peers/ort.tar.xz

Most of the wheel is machine code for other GPUs. Zeros in its place keep every offset in the file, and compress to
nothing. For measuring only: a library changed like this is not to be passed on.
"""

from __future__ import annotations

import io
import lzma
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

# What nvcc embeds is containers: magic, version, header size, size of all entries; then entries, each a header and its
# payload. Of an entry's header: kind, version, header size; at 8 the payload's size; at 28 the compute capability. Read
# off what nvcc writes; a test compares with cuobjdump.
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
_MAGIC = 0xBA55ED50
_PTX, _MACHINE_CODE = 1, 2

_LEFT_OUT = ("transformers/", "tools/", "quantization/", "libonnxruntime_providers_tensorrt.so", "libonnxruntime.so")


def prune(library: bytes, architecture: int) -> tuple[bytes, int, int]:
    """Zero the device code of a library, but for the machine code of one architecture.

    Args:
        library: content of a shared library that nvcc has linked.
        architecture: what stays, 10 * major + minor.
    Returns:
        The library, as long as before; the bytes of device code that stay, and those that were zeroed.
    """
    pruned, kept, zeroed = bytearray(library), 0, 0
    magic = _MAGIC.to_bytes(4, "little")
    place = library.find(magic)
    while place >= 0:
        _, version, header_size, size = _CONTAINER.unpack_from(library, place)
        entry = place + header_size
        end = entry + size
        if version != 1 or header_size != _CONTAINER.size or end > len(library):  # the number, and no container
            place = library.find(magic, place + 4)
            continue
        while entry < end:
            kind, _, header_size, size, entry_architecture = _ENTRY.unpack_from(library, entry)
            if kind not in (_PTX, _MACHINE_CODE) or header_size < _ENTRY.size:
                break  # the container's padding
            payload = entry + header_size
            if kind == _MACHINE_CODE and entry_architecture == architecture:
                kept += size
            else:
                pruned[payload : payload + size] = bytes(size)
                zeroed += size
            entry = payload + size
        place = library.find(magic, end)
    return bytes(pruned), kept, zeroed


def pack(wheel: Path, architecture: int, target: Path) -> str:
    """Write the wheel's package, pruned, as ``target``, a .tar.xz; return what became of it, in one line.

    Raises:
        ValueError: the wheel has no CUDA provider, or that one has no code for this architecture.
    """
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**27}]
    with (
        zipfile.ZipFile(wheel) as source,
        lzma.open(target, "wb", filters=filters) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        said = ""
        for info in source.infolist():
            if info.is_dir() or any(f"/{name}" in info.filename for name in _LEFT_OUT):
                continue
            content = source.read(info)
            if info.filename.endswith("/libonnxruntime_providers_cuda.so"):
                content, kept, zeroed = prune(content, architecture)
                if not kept:
                    raise ValueError(f"{wheel.name} has no machine code for sm_{architecture}")
                said = f"sm_{architecture}: {kept / 1e6:.0f} MB of device code kept, {zeroed / 1e6:.0f} MB zeroed"
            member = tarfile.TarInfo(info.filename)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    if not said:
        raise ValueError(f"{wheel.name} has no libonnxruntime_providers_cuda.so")
    return f"{target}: {target.stat().st_size / 2**20:.1f} MiB; {said}"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        print(pack(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
