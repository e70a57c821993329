#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, in one go under ten minutes, most valuable first: build for its SM, the wgmma and
# the other kernels against the CPU backend, compute-sanitizer, CUDA graphs, the benchmark beside the peers, the hosts' tests; and
# the CPU backend on the machine's processor, which may have what others have not (AMX). A table comes last.
#
#   benchmarks/gpu_session.sh [OUTPUT]             default OUTPUT: build/gpu_session
#   benchmarks/gpu_session.sh --dry-run [OUTPUT]   without a GPU: builds, and checks every step up to the launch
#
# OUTPUT gets summary.txt, session.log and at most six op_*.json or scale_*.json. Each is complete at any time: a step has its own
# limit, none runs past ten minutes in all, and what hangs or fails costs its own time alone.
# Needs nvcc, cmake, ninja and a Python with this package's dependencies, torch and pytest; no network, if benchmarks/bring_peers.sh
# has filled .peers/ before. INT_FLASHATTENTION_DIR names a checkout of the INT-FlashAttention authors' repository, if there is one.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

dry_run=
case "${1:-}" in
  --dry-run) dry_run=1; shift ;;
  -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
  -*) echo "unknown option '$1' (supported: --dry-run, --help)" >&2; exit 2 ;;
esac
out=${1:-build/gpu_session}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin COLUMNS=160
[ -d .peers/cache ] && export INTFA_CACHE_DIR=$PWD/.peers/cache
# Where the archives of .peers are unpacked: before the CPU build of ONNX Runtime that may be there.
compgen -G '.peers/*.tar.xz' >/dev/null && PYTHONPATH=$PWD/build/gpu_peers:$PYTHONPATH
# ONNX Runtime finds CUDA where torch's packages have it, also in a process that does not import torch.
libraries=$("$python" -c '
import glob, nvidia
print(":".join(folder for path in nvidia.__path__ for folder in sorted(glob.glob(path + "/*/lib"))))' 2>/dev/null)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

if [ -n "$dry_run" ]; then
  architecture=90a
else
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || exit 2
  [ "$architecture" = 90 ] && architecture=90a
fi

budget=${INTFA_SESSION_SECONDS:-$([ -n "$dry_run" ] && echo 3600 || echo 570)} # a dry run has no machine to give back
: >"$out/summary.txt" >"$out/session.log"
failed=0
step() {  # step NAME SECONDS COMMAND...: run, log, note the outcome
  local name=$1 limit=$2 start=$SECONDS code left=$((budget - SECONDS)) said
  shift 2
  if [ $left -lt 5 ]; then
    printf '%-12s %-9s\n' "$name" "no time" >>"$out/summary.txt"
    failed=1
    return 1
  fi
  [ $left -lt "$limit" ] && limit=$left
  printf '\n===== %s: %s\n' "$name" "$*" >>"$out/session.log"
  # A shell of its own: commands are functions too.
  timeout --kill-after=5 "$limit" bash -c '"$@"' "$name" "$@" </dev/null >>"$out/session.log" 2>&1
  code=$?
  said=$(tail -n 1 "$out/session.log" | cut -c1-100)
  printf '%-12s %-9s %4d s   %s\n' "$name" "$([ $code = 0 ] && echo ok || echo "exit $code")" $((SECONDS - start)) "$said" >>"$out/summary.txt"
  [ $code = 0 ] || failed=1
  return $code
}
build() {
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DINTFA_CUDA=ON "-DINTFA_CUDA_ARCHITECTURES=$architecture" \
    -DCMAKE_INSTALL_PREFIX="$PWD" && cmake --build build/gpu --target install
}
cuda_code() { "$python" -c 'from intfa_onnx import c_abi; code = c_abi.cuda_architectures(); print(code); exit(not code)'; }
peers() {  # unpack, then say what Python has; what is absent is a skip later
  rm -rf build/gpu_peers
  "$python" -c '
import pathlib, tarfile
for archive in pathlib.Path(".peers").glob("*.tar.xz"):
    tarfile.open(archive).extractall("build/gpu_peers")'
  "$python" -c '
import importlib, os, platform
found, absent = ["python " + platform.python_version()], []
for name in ("torch", "triton", "pycuda", "onnxruntime", "sageattention"):  # torch first: it brings CUDA for the others
    try:
        module = importlib.import_module(name)
    except Exception as error:
        absent.append(f"no {name} ({error})")
    else:
        cuda = "CUDAExecutionProvider" in getattr(module, "get_available_providers", list)()
        found.append(" ".join([name, *filter(None, [str(getattr(module, "__version__", "")), "with CUDA" * cuda])]))
print("; ".join(found + absent))
exit(not os.environ["dry_run"] and any(line.startswith(("no torch", "no pycuda")) for line in absent))'
}
gpu_tests() { "$python" -m pytest -v -m gpu -p no:cacheprovider ${dry_run:+--collect-only -q} "$@"; }
sanitize() {
  if [ -n "$dry_run" ] && ! command -v compute-sanitizer; then
    echo "compute-sanitizer is not here; the GPU machine needs it"
  else
    compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -m pytest -v -m gpu -p no:cacheprovider ${dry_run:+--collect-only} \
      -k sanitizer tests/test_gpu_attention.py
  fi
}
bench() {  # bench NAME DEVICE OPTION...: in a dry run one small problem, where the GPU's candidates say why they are skipped
  local name=$1 device=$2
  shift 2
  [ -n "$dry_run" ] && set -- --seqlen 64 --head-dim 64
  "$python" -m intfa_onnx.cli bench op --device "$device" --rounds 9 --output "$out/$name.json" "$@"
}
scale() {
  "$python" -m intfa_onnx.cli bench scale --device cuda --only operator --json >"$out/scale_cuda.json.part" &&
    mv "$out/scale_cuda.json.part" "$out/scale_cuda.json"
}
export python out architecture dry_run
export -f build cuda_code peers gpu_tests sanitize bench scale

kernels=tests/test_gpu_attention.py
wgmma='int8-tile or wgmma' # the form that has wgmma kernels, where the GPU runs them
lengths=(--tokens 16384) # batch * seqlen is constant, as in FlashAttention's papers
for seqlen in 512 1024 2048 4096 8192 16384; do lengths+=(--seqlen $seqlen); done
if step build $((budget > 600 ? 1800 : 240)) build && step library 30 cuda_code; then
  step peers 60 peers
  step wgmma 90 gpu_tests -k "$wgmma" $kernels
  step memcheck 60 sanitize memcheck
  step racecheck 60 sanitize racecheck
  step graphs 30 gpu_tests -k "graph or streams" $kernels
  step op_d128 120 bench op_cuda_d128 cuda "${lengths[@]}" --head-dim 128 --heads 16
  step kernels 90 gpu_tests -k "not ($wgmma or graph or streams)" $kernels
  step op_d64 90 bench op_cuda_d64 cuda "${lengths[@]}" --head-dim 64 --heads 32
  step decode 60 bench op_cuda_decode cuda --decode --heads 32 --group 4 --head-dim 128 --batch 8 --seqlen 4096 --seqlen 32768
  step hosts 120 gpu_tests tests/test_gpu_ort.py tests/test_gpu_trt_plugin.py
  step op_cpu 60 bench op_cpu_1t_d64 cpu --rounds 5 --head-dim 64 --seqlen 128 --seqlen 1024 --seqlen 4096
  step op_llm 60 bench op_cuda_d128_llm cuda "${lengths[@]}" --head-dim 128 --heads 16 --data llm --no-causal
  step scale 60 scale
fi
{
  printf '\n'
  "$python" -c '
import sys
from pathlib import Path
from intfa_onnx.bench import report
for path in map(Path, sys.argv[1:]):
    print(path.stem)
    print(*(report.op_sentence(result) for result in report.read(path)["results"]), sep="\n")' "$out"/op_*.json
} >>"$out/summary.txt" 2>>"$out/session.log"
cat "$out/summary.txt"
exit $failed
