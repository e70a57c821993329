#!/usr/bin/env bash
# Fills .peers/ with what benchmarks/gpu_session.sh needs on a machine without a network: the build's downloads, and the peers that
# are pure Python. Copy the checkout with .peers/ there.
#
#   benchmarks/bring_peers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export INTFA_CACHE_DIR=$PWD/.peers/cache
mkdir -p "$INTFA_CACHE_DIR" .peers/python
cmake -S . -B "$(mktemp -d)" -DINTFA_CUDA=OFF >/dev/null # configuring is what downloads
"$python" -m pip install --quiet --no-deps --upgrade --target .peers/python sageattention==1.0.6
# The GPU tests launch the kernels through pycuda. Its wheel is compiled here: CUDA's headers, and libcuda.so or its stub.
# --no-deps: that machine's own numpy stays.
"$python" -m pip install --quiet --no-deps --upgrade --target .peers/python pycuda pytools siphash24 platformdirs mako markupsafe ||
  echo "pycuda could not be built (see above): the tests marked gpu will skip there" >&2
du -sh .peers
