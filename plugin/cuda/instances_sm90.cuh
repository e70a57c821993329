// Defines the wgmma kernels and their table entries. Names: intfa_attention_wgmma_d64,
// intfa_attention_wgmma_scored_d64, intfa_attention_wgmma192_d64 (by the queries of a CTA that has more than 64), ...
#pragma once

#include "cuda/attention_sm90.cuh"
#include "cuda/kernels_sm90.h"

namespace intfa::cuda {

// Compilations for other architectures have the kernel's name, which the table needs, and no body; no launcher picks
// it.
template <int kDim, bool kScored, int kWarpgroups, bool kHasWgmma = ptx::kHasWgmma>
INTFA_DEVICE void attention_where_wgmma(const AttentionParams& params) {
  if constexpr (kHasWgmma) attention_wgmma<kDim, kScored, kWarpgroups>(params);
}

}  // namespace intfa::cuda

// clang-format off
#define INTFA_WGMMA(NAME, SCORED, WARPGROUPS, D)                                                                               \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kThreads,                       \
                                               intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kMinBlocks)                     \
  NAME(const __grid_constant__ intfa::cuda::AttentionParams params) {                                              \
    intfa::cuda::attention_where_wgmma<D, SCORED, WARPGROUPS>(params);                                                         \
  }

#define INTFA_WGMMA_ENTRY(NAME, SCORED, WARPGROUPS, D)                                                                         \
  {D, {intfa::cuda::Arithmetic::kTileInt8, SCORED, NAME, intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kTileM,               \
       intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kThreads, intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kSmemBytes,               \
       intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kKeys, intfa::cuda::WgmmaShape<D, SCORED, WARPGROUPS>::kOrder}},
// clang-format on
