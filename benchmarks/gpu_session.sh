#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, in one go under ten minutes: build for its SM, GPU tests, compute-sanitizer,
# benchmark beside the peers. A table comes last; logs and JSON go to the output folder.
#
#   benchmarks/gpu_session.sh [OUTPUT]             default OUTPUT: build/gpu_session
#   benchmarks/gpu_session.sh --dry-run [OUTPUT]   without a GPU: builds, and checks every step up to the launch
#
# Needs nvcc, cmake, ninja and a Python with this package's dependencies, torch and pytest; no network, if benchmarks/bring_peers.sh
# has filled .peers/ before. INT_FLASHATTENTION_DIR names a checkout of the INT-FlashAttention authors' repository, if there is one.
# Each step has its own limit, and none runs past ten minutes in all: what hangs costs its own time, what is written stays.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

dry_run=
case "${1:-}" in
  --dry-run) dry_run=1; shift ;;
  -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
  -*) echo "unknown option '$1' (supported: --dry-run, --help)" >&2; exit 2 ;;
esac
out=${1:-build/gpu_session}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin
[ -d .peers/cache ] && export INTFA_CACHE_DIR=$PWD/.peers/cache
[ -d .peers/python ] && PYTHONPATH=$PYTHONPATH:$PWD/.peers/python
[ -d .peers/ort ] && PYTHONPATH=$PWD/.peers/ort:$PYTHONPATH # before the CPU build of ONNX Runtime that may be there

if [ -n "$dry_run" ]; then
  architecture=90a
else
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || exit 2
  [ "$architecture" = 90 ] && architecture=90a
fi

budget=${INTFA_SESSION_SECONDS:-$([ -n "$dry_run" ] && echo 3600 || echo 590)} # a dry run has no machine to give back
table=()
failed=0
step() {  # step NAME SECONDS COMMAND...: run, log, note the outcome
  local name=$1 limit=$2 start=$SECONDS code left=$((budget - SECONDS))
  shift 2
  if [ $left -lt 5 ]; then
    table+=("$(printf '%-20s %-9s' "$name" "no time")")
    failed=1
    return 1
  fi
  [ $left -lt "$limit" ] && limit=$left
  timeout --kill-after=5 "$limit" bash -c '"$@"' "$name" "$@" >"$out/$name.log" 2>&1 # a shell of its own: commands are functions too
  code=$?
  table+=("$(printf '%-20s %-9s %4d s   %s' "$name" "$([ $code = 0 ] && echo ok || echo "exit $code")" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-100)")")
  [ $code = 0 ] || failed=1
  return $code
}
build() {
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DINTFA_CUDA=ON "-DINTFA_CUDA_ARCHITECTURES=$architecture" \
    -DCMAKE_INSTALL_PREFIX="$PWD" && cmake --build build/gpu --target install
}
bench() { "$python" -m intfa_onnx.cli bench op --device cuda "$@"; }
cuda_code() { "$python" -c 'from intfa_onnx import c_abi; code = c_abi.cuda_architectures(); print(code); exit(not code)'; }
bench_to() { local file=$1; shift; bench "$@" --json >"$out/$file.part" && mv "$out/$file.part" "$out/$file"; }
sanitize() { compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -m pytest -q -m gpu -k sanitizer tests; }
export python out architecture
export -f build bench bench_to cuda_code sanitize

if step build $((budget > 600 ? 1800 : 300)) build && step library 30 cuda_code; then
  if [ -n "$dry_run" ]; then
    step tests 120 "$python" -m pytest -q -m gpu --collect-only tests
    step sanitizer 20 sh -c 'command -v compute-sanitizer || echo "not here; memcheck and racecheck need it on the GPU machine"'
    step benchmark 60 bench_to dry_run.json --seqlen 64 --head-dim 64 --rounds 3
  else
    step tests 180 "$python" -m pytest -q -m gpu tests
    step memcheck 90 sanitize memcheck
    step racecheck 90 sanitize racecheck
    # 16k tokens in all, as FlashAttention's papers measure: batch * seqlen is constant
    for data in normal llm; do
      for seqlen in 1024 4096 16384; do
        step "d128_${data}_$seqlen" 60 bench_to "op_cuda_d128_${data}_$seqlen.json" --data $data --head-dim 128 --heads 16 \
          --seqlen $seqlen --batch $((16384 / seqlen)) --rounds 9
      done
    done
    step d64 60 bench_to op_cuda_d64_normal_8192.json --head-dim 64 --heads 32 --seqlen 8192 --batch 2 --rounds 9
  fi
fi
printf '%s\n' "${table[@]}"
exit $failed
