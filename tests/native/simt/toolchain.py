"""Builds the simulators, kernels for the host and PTX, into ``build/simt``, whenever anything they are made of changes.

``python tests/native/simt/toolchain.py`` builds what the default tests need and prints where it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIMT = Path(__file__).resolve().parent
ROOT = SIMT.parents[2]
PLUGIN = ROOT / "plugin"
BUILD = ROOT / "build" / "simt"

# No contraction: the host's float arithmetic must round as the PTX says.
_CXX = [
    "g++",
    "-std=c++20",
    "-fPIC",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-fwrapv",
    "-march=native",
    "-Wall",
    "-Wextra",
]
_KERNEL_WARNINGS = ["-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-psabi"]
_RUNTIME = [
    "fiber.cc",
    "scheduler.cc",
    "shared_memory.cc",
    "collectives.cc",
    "async_copy.cc",
    "async_race.cc",
    "mbarrier.cc",
    "wgmma.cc",
    "wgmma_math.cc",
    "warp_math.cc",
    "ptx_arithmetic.cc",
    "ptx_memory.cc",
    "ptx_warp_instructions.cc",
    "ptx_parser.cc",
    "ptx_machine.cc",
    "ptx_race.cc",
    "ptx_global_race.cc",
    "ptx_async.cc",
    "c_api.cc",
]
SANITIZERS = {
    "": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
}


def _digest(paths: Sequence[Path], command: Sequence[str]) -> str:
    h = hashlib.sha256(repr(command).encode())
    for path in sorted(paths):
        h.update(path.name.encode())
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def _sources(*folders: Path) -> list[Path]:
    kinds = {".h", ".cuh", ".cc", ".cu", ".cpp", ".inc"}
    return [p for folder in folders for p in folder.rglob("*") if p.suffix in kinds]


# ptxas: "Potential Performance Loss: wgmma.mma_async instructions are serialized" (C7510 and its neighbours), which is
# no warning to it.
_SERIALIZED = "(C75"


def _run(command: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0 or _SERIALIZED in done.stderr + done.stdout:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def _build(stem: str, suffix: str, inputs: Sequence[Path], command: Sequence[str]) -> Path:
    """Run ``command + ["-o", output]`` unless the output for exactly these inputs is there."""
    BUILD.mkdir(parents=True, exist_ok=True)
    output = BUILD / f"{stem}-{_digest(inputs, command)}{suffix}"
    with open(BUILD / f"{stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist workers
        if not output.exists():
            for old in BUILD.glob(f"{stem}-{'?' * 16}{suffix}"):
                old.unlink()
            partial = output.with_suffix(".partial" + suffix)
            _run([*command, "-o", str(partial)], BUILD)
            partial.rename(output)
    return output


def _parallel(jobs: Sequence[Callable[[], Path]]) -> list[Path]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: job(), jobs))


def runtime(sanitizer: str = "") -> Path:
    """The simulators as a shared library; ``sanitizer`` is what its kernels are built with, itself it never is."""
    sources = [SIMT / name for name in _RUNTIME]
    define = [f"-DSIMT_{sanitizer.upper()}"] if sanitizer else []
    headers = [p for p in _sources(SIMT) if p.suffix == ".h"]
    compile_ = [*_CXX, "-O2", "-c", "-Wno-psabi", *define, "-fvisibility=hidden"]
    objects = _parallel(
        [(lambda s=s: _build(f"simt{sanitizer}-{s.stem}", ".o", [*headers, s], [*compile_, str(s)])) for s in sources]
    )
    # -Bsymbolic: an inline function that an instrumented kernel library also has must not replace the runtime's own.
    command = [*_CXX, "-shared", "-Wl,-Bsymbolic", *map(str, objects), "-ldl"]
    return _build(f"libsimt{sanitizer}", ".so", objects, command)


def host_library(
    sources: Sequence[Path],
    stem: str,
    *,
    plugin: Path = PLUGIN,
    sanitizer: str = "",
    not_sanitized: Sequence[Path] = (),
    optimize: str = "-O1",
) -> Path:
    """Kernels and their driver, compiled by g++ against the runtime.

    Args:
        sources: driver and kernels, of the project's tree or of ``plugin``, each compiled with the headers of its own.
        stem: name of the library.
        plugin: a patched copy of the plugin tree, if there is one.
        sanitizer: "", "asan" or "tsan".
        not_sanitized: further sources, which save the time that a sanitizer costs.
        optimize: the compiler's level for the sources of a patched tree without a sanitizer.
    """
    library = runtime(sanitizer)

    def compile_(source: Path, kind: str) -> Path:
        tree = plugin if source.is_relative_to(plugin) else PLUGIN
        headers = [p for p in _sources(tree, SIMT) if p.suffix in (".h", ".cuh")]
        include = [f"-I{SIMT}", f"-I{tree}", f"-I{tree / 'include'}", "-xc++"]
        level = "-O1" if tree == PLUGIN or kind else optimize
        flags = [level, "-g1", *SANITIZERS[kind]] if kind else [level]
        command = [*_CXX, "-c", *flags, *_KERNEL_WARNINGS, *include, str(source)]
        # Libraries share the objects of the project's own sources.
        return _build(f"{tree.name}{kind}-{source.stem}", ".o", [*headers, source], command)

    jobs = [(lambda s=s: compile_(s, sanitizer)) for s in sources]
    objects = _parallel(jobs + [(lambda s=s: compile_(s, "")) for s in not_sanitized])
    link = [*_CXX, "-shared", *SANITIZERS[sanitizer], *map(str, objects), str(library), f"-Wl,-rpath,{BUILD}"]
    return _build(f"{stem}{sanitizer}", ".so", [*objects, library], link)


def nvcc() -> str | None:
    """Path of nvcc, or None."""
    return cuda_tool("nvcc")


def cuda_tool(name: str) -> str | None:
    """Path of ``nvcc``, ``cuobjdump`` or ``nvdisasm``: on PATH, in the CUDA toolkit, or from packages nvidia-cuda-*."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return _tool(name, [f"/usr/local/cuda/bin/{name}", *map(str, site.glob(f"*/bin/{name}"))])


def _tool(name: str, places: Sequence[str]) -> str | None:
    return next((p for p in [shutil.which(name), *places] if p and os.access(p, os.X_OK)), None)


def _nvcc_flags(plugin: Path) -> list[str]:
    compiler = nvcc()
    assert compiler is not None, "ask nvcc() first"
    return [compiler, "-std=c++20", "--expt-relaxed-constexpr", f"-I{SIMT}", f"-I{plugin}", f"-I{plugin / 'include'}"]


def ptx(source: Path, stem: str, *, plugin: Path = PLUGIN, arch: str = "80") -> Path:
    """PTX of a .cu file without contraction, so that its arithmetic is the host's, bit for bit."""
    command = [*_nvcc_flags(plugin), "-ptx", "-fmad=false", f"-arch=compute_{arch}", str(source)]
    return _build(stem, ".ptx", [*_sources(plugin, SIMT), source], command)


def cubin(source: Path, stem: str, arch: str, defines: Sequence[str] = (), *, plugin: Path = PLUGIN) -> Path:
    """Machine code of a .cu file for ``sm_<arch>``, as the product is compiled.

    Raises:
        RuntimeError: a compiler failed, or ptxas serializes wgmma.
    """
    command = [*_nvcc_flags(plugin), "-cubin", f"-arch=sm_{arch}", *defines, str(source)]
    return _build(f"{stem}-sm{arch}", ".cubin", [*_sources(plugin), source], command)


Replacements = Sequence[tuple[str, str]]


def patched_tree(name: str, patches: Mapping[str, Replacements]) -> Path:
    """A copy of the plugin and of the simulators' own kernels with text replaced, for seeded bugs.

    Args:
        name: of the copy's folder.
        patches: file, relative to the copy (``cuda/...``, ``simt/...``) -> (old, new) pairs; each old text must occur
            exactly once.
    Raises:
        ValueError: a text does not occur once: the kernel has moved on and the mutation must follow it.
    """
    copy = BUILD / "patched" / name
    shutil.rmtree(copy, ignore_errors=True)
    for part, origin in (*((p, PLUGIN / p) for p in ("core", "cuda", "include")), ("simt", SIMT)):
        shutil.copytree(origin, copy / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file, replacements in patches.items():
        path = copy / file
        text = path.read_text()
        for old, new in replacements:
            if text.count(old) != 1:
                raise ValueError(f"mutation {name}: {old!r} occurs {text.count(old)} times in {file}, expected once")
            text = text.replace(old, new)
        path.write_text(text)
    return copy


if __name__ == "__main__":
    print(runtime())
    print(host_library([SIMT / "probe_driver.cc"], "libprobe"))
