"""benchmarks/gpu_session.sh with stand-ins for its tools: budgets, what stays of a failed run, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu_session.sh"
TOOLS = {
    "nvidia-smi": "echo 9.0",
    "cmake": 'echo "$@" >>"$CALLS"',
    "compute-sanitizer": 'echo "========= ERROR SUMMARY: 0 errors"',
    # The benchmark of decoding fails, that of `llm` data hangs; both have written a result before, as the others do.
    "python": """result() { while [ "$1" != --output ]; do shift; done; echo "$RESULT" >"$2"; }
case "$*" in
  *op_sentence*) exec "$REAL_PYTHON" "$@" ;;
  *"--data llm"*) result "$@"; sleep 60 ;;
  *"--decode"*) result "$@"; exit 3 ;;
  *"bench op"*) result "$@" ;;
  *"bench scale"*) echo '{"kind": "scale"}' ;;
  *pytest*) echo "5 passed in 0.1s" ;;
  *cuda_architectures*) echo "sm 90a" ;;
esac""",
}


RESULT = json.dumps(
    {
        "kind": "op",
        "results": [{"label": "B1", "rows": [{"candidate": "intfa int8", "seconds": 0.001, "tops": 700.0}]}],
    }
)
STEPS = [
    "build",
    "library",
    "peers",
    "wgmma",
    "memcheck",
    "racecheck",
    "graphs",
    "op_d128",
    "kernels",
    "op_d64",
    "decode",
    "hosts",
    "op_cpu",
    "op_llm",
    "scale",
]


def session(tmp_path: Path, *arguments: str, seconds: int) -> tuple[subprocess.CompletedProcess[str], Path]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    environment |= {"CALLS": str(tmp_path / "calls"), "INTFA_SESSION_SECONDS": str(seconds), "RESULT": RESULT}
    environment["REAL_PYTHON"] = sys.executable
    out = tmp_path / "out"
    command = ["bash", str(SCRIPT), *arguments, str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False), out


def test_a_step_that_hangs_or_fails_costs_its_own_time_only(tmp_path) -> None:
    start = time.monotonic()
    done, out = session(tmp_path, seconds=9)
    assert time.monotonic() - start < 20
    assert done.returncode == 1
    table, brief = done.stdout.split("\n\n")
    rows = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert list(rows) == STEPS
    outcomes = {"decode": "exit 3", "op_llm": "exit 124", "scale": "no time"}  # 124: at the budget's end
    for step in STEPS:
        assert rows[step].startswith(outcomes.get(step, "ok ")), table
    assert "5 passed" in rows["wgmma"]
    names = ["op_cpu_1t_d64", "op_cuda_d128", "op_cuda_d128_llm", "op_cuda_d64", "op_cuda_decode"]
    assert sorted(p.stem for p in out.glob("*.json")) == names
    assert brief.splitlines() == [line for name in names for line in (name, "B1: 1.000 ms, 700.0 TOPS")]
    assert (out / "summary.txt").read_text() == done.stdout
    assert "===== racecheck: sanitize racecheck" in (out / "session.log").read_text()
    assert "-DINTFA_CUDA_ARCHITECTURES=90a" in (tmp_path / "calls").read_text()


def test_dry_run_reaches_its_end(tmp_path) -> None:
    done, out = session(tmp_path, "--dry-run", seconds=60)
    assert done.returncode == 0, done.stdout + done.stderr
    table, _ = done.stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == STEPS
    assert all(" ok " in line for line in table.splitlines())
    assert len(list(out.iterdir())) <= 8  # as many files as a lent machine gives back


def test_it_ends_at_a_library_without_code_for_the_gpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(TOOLS, "python", 'case "$*" in *cuda_architectures*) exit 1 ;; esac')
    done, _ = session(tmp_path, seconds=9)
    assert done.returncode == 1
    assert [line.split()[:3] for line in done.stdout.splitlines() if line] == [
        ["build", "ok", "0"],
        ["library", "exit", "1"],
    ]


@pytest.mark.parametrize("script", ["gpu_session.sh", "bring_peers.sh"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPT.with_name(script))], check=True)


def test_an_unknown_option_is_refused() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "supported: --dry-run, --help" in done.stderr
