#!/usr/bin/env bash
# Fills .peers/ with what benchmarks/gpu_session.sh needs on a machine without a network: the build's downloads, the peers that are
# pure Python, pycuda for the GPU tests, and ONNX Runtime's CUDA build with the code of one GPU. Copy the checkout with .peers/
# there. What cannot be had is skipped, and the session says what that costs.
#
#   benchmarks/bring_peers.sh [SM]     the GPU's compute capability without the point, default 90
#
# PYTHON names a Python of the GPU machine's version: pycuda and ONNX Runtime hold compiled code that fits one version alone.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-90}" in
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *[!0-9]*) echo "unknown option '$1' (supported: a compute capability such as 90, --help)" >&2; exit 2 ;;
esac
sm=${1:-90}
python=${PYTHON:-python3}
ort_version=1.31.1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
skipped() { echo "skipped: $*" >&2; }

rm -rf .peers/python .peers/*.tar.xz
mkdir -p .peers/cache "$scratch/python"
INTFA_CACHE_DIR=$PWD/.peers/cache cmake -S . -B "$scratch/build" -DINTFA_CUDA=OFF >"$scratch/cmake.log" || # configuring is what downloads
  { tail -n 20 "$scratch/cmake.log" >&2; exit 1; }

# --no-deps throughout: that machine's own numpy and torch stay.
install() { "$python" -m pip install --quiet --no-deps --no-compile --upgrade --target "$scratch/python" "$@"; }
install sageattention==1.0.6 || skipped "sageattention, a peer of the benchmark"

# pycuda is compiled here. It links libcuda.so, which only a driver brings: one of a single function will do (without any, the
# linker drops it), the real one is there at run time. curand is left out because nothing here uses it.
cuda=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' || true) # where the compiler's headers are, wherever nvcc itself is
echo 'extern "C" int cuInit(unsigned) { return 100; }' | g++ -shared -fPIC -x c++ - -o "$scratch/libcuda.so" -Wl,-soname,libcuda.so.1
cat >"$scratch/.aksetup-defaults.py" <<EOF
CUDA_ENABLE_CURAND = False
CUDA_INC_DIR = ["$cuda/include"]
CUDADRV_LIB_DIR = ["$scratch"]
EOF
{ HOME=$scratch install --no-binary=pycuda pycuda pytools siphash24 platformdirs mako markupsafe >"$scratch/pycuda.log" 2>&1 &&
  readelf -d "$scratch"/python/pycuda/_driver*.so | grep -q 'NEEDED.*libcuda.so.1'; } ||
  { grep -m 3 'error:' "$scratch/pycuda.log" >&2 || true; skipped "pycuda: the tests marked gpu need it"; }
find "$scratch/python" -name '*.so' -exec strip --strip-unneeded {} + # 17 MB of pycuda's 19
tar -cJf .peers/python.tar.xz -C "$scratch/python" .

{ "$python" -m pip download --quiet --no-deps --only-binary=:all: -d "$scratch" "onnxruntime-gpu==$ort_version" &&
  "$python" benchmarks/pack_ort.py "$scratch"/onnxruntime_gpu-*.whl "$sm" .peers/ort.tar.xz; } ||
  skipped "onnxruntime-gpu: no benchmark and no test of the operator in ONNX Runtime on CUDA"
du -sh .peers
