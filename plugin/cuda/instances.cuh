// Defines the kernels of one head size and their table entry; each kernels_d<head size>.cu is one use of it.
#pragma once

#include "cuda/attention_sm80.cuh"
#include "cuda/kernels.h"
#include "cuda/merge.cuh"
#include "cuda/prologue.cuh"

// clang-format off
#define INTFA_ATTENTION(NAME, ARITHMETIC, SCORED, D)                                                               \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::AttentionShape<D, ARITHMETIC, SCORED>::kThreads,               \
                                               intfa::cuda::AttentionShape<D, ARITHMETIC, SCORED>::kMinBlocks)             \
  NAME(const __grid_constant__ intfa::cuda::AttentionParams params) {                                              \
    intfa::cuda::attention<D, ARITHMETIC, SCORED>(params);                                                         \
  }

#define INTFA_ATTENTION_ENTRY(NAME, ARITHMETIC, SCORED, D)                                                         \
  {ARITHMETIC, SCORED, NAME, intfa::cuda::AttentionShape<D, ARITHMETIC, SCORED>::kTileM,                                   \
   intfa::cuda::AttentionShape<D, ARITHMETIC, SCORED>::kThreads, intfa::cuda::AttentionShape<D, ARITHMETIC, SCORED>::kSmemBytes}

#define INTFA_ATTENTION_KERNELS(X, SEPARATOR, D)                                                                   \
  X(intfa_attention_tile_d##D, intfa::cuda::Arithmetic::kTileInt8, false, D) SEPARATOR                             \
  X(intfa_attention_tile_scored_d##D, intfa::cuda::Arithmetic::kTileInt8, true, D) SEPARATOR                       \
  X(intfa_attention_paper_d##D, intfa::cuda::Arithmetic::kPaperInt8, false, D) SEPARATOR                           \
  X(intfa_attention_paper_scored_d##D, intfa::cuda::Arithmetic::kPaperInt8, true, D) SEPARATOR                     \
  X(intfa_attention_half_d##D, intfa::cuda::Arithmetic::kHalfPV, false, D) SEPARATOR                               \
  X(intfa_attention_half_scored_d##D, intfa::cuda::Arithmetic::kHalfPV, true, D)

#define INTFA_NOTHING
#define INTFA_COMMA ,

#define INTFA_KERNELS(D)                                                                                           \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::kPrologueThreads)                                      \
  intfa_statistics_d##D(const __grid_constant__ intfa::cuda::PrologueParams params) {                              \
    intfa::cuda::statistics<D>(params);                                                                            \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::kPrologueThreads, 2)                                   \
  intfa_quantize_kv_d##D(const __grid_constant__ intfa::cuda::PrologueParams params) {                             \
    intfa::cuda::quantize_kv<D>(params);                                                                           \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(intfa::cuda::kMergeThreads)                                         \
  intfa_merge_d##D(const __grid_constant__ intfa::cuda::MergeParams params) {                                      \
    intfa::cuda::merge(params);                                                                                    \
  }                                                                                                                \
  INTFA_ATTENTION_KERNELS(INTFA_ATTENTION, INTFA_NOTHING, D)                                                       \
  const intfa::cuda::KernelSet intfa::cuda::kKernels##D = {                                                        \
      D, intfa::cuda::PackedTile<D, false>::kBytes, intfa::cuda::PackedTile<D, true>::kBytes,                      \
      intfa_statistics_d##D, intfa::cuda::kStatisticsSmem<D>, intfa_quantize_kv_d##D,                           \
      intfa::cuda::kQuantizeSmem<D>, intfa_merge_d##D, {INTFA_ATTENTION_KERNELS(INTFA_ATTENTION_ENTRY, INTFA_COMMA, D)}};
// clang-format on
