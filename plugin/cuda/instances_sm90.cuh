// Defines the wgmma kernels and their table entries. Names: intfa_attention_wgmma_d64,
// intfa_attention_wgmma_scored_d64, intfa_attention_wgmma192_d64 (by the queries of a CTA that has more than 64), ...
#pragma once

#include "cuda/attention_sm90.cuh"
#include "cuda/attention_sm90_persistent.cuh"
#include "cuda/kernels_sm90.h"

namespace intfa::cuda {

// Compilations for other architectures have the kernel's name, which the table needs, and no body; no launcher picks
// it.
template <int kDim, bool kScored, bool kHasWgmma = ptx::kHasWgmma>
INTFA_DEVICE void attention_where_wgmma(const AttentionParams& params) {
  if constexpr (kHasWgmma) attention_wgmma<kDim, kScored>(params);
}
template <int kDim, bool kHasWgmma = ptx::kHasWgmma>
INTFA_DEVICE void persistent_where_wgmma(const AttentionParams& params) {
  if constexpr (kHasWgmma) attention_persistent<kDim>(params);
}

template <typename Shape>
constexpr AttentionKernel wgmma_entry(void (*kernel)(AttentionParams)) {
  return {Arithmetic::kTileInt8, Shape::kScored, kernel,        Shape::kTileM,     Shape::kThreads,
          Shape::kSmemBytes,     Shape::kKeys,   Shape::kOrder, Shape::kPersistent};
}

}  // namespace intfa::cuda

#define INTFA_WGMMA_KERNEL(NAME, SHAPE, BODY)                                                                \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::SHAPE::kThreads, intfa::cuda::SHAPE::kMinBlocks) \
      NAME(const __grid_constant__ intfa::cuda::AttentionParams params) {                                    \
    intfa::cuda::BODY(params);                                                                               \
  }
#define INTFA_COMMA ,
#define INTFA_WGMMA(NAME, SCORED, D) \
  INTFA_WGMMA_KERNEL(NAME, WgmmaShape<D INTFA_COMMA SCORED>, attention_where_wgmma<D INTFA_COMMA SCORED>)
#define INTFA_PERSISTENT(NAME, D) INTFA_WGMMA_KERNEL(NAME, PersistentShape<D>, persistent_where_wgmma<D>)
