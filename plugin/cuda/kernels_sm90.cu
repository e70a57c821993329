#include "cuda/instances_sm90.cuh"

// clang-format off
#define INTFA_WGMMA_KERNELS(X)                         \
  X(intfa_attention_wgmma_d64, false, 1, 64)           \
  X(intfa_attention_wgmma192_d64, false, 3, 64)        \
  X(intfa_attention_wgmma_scored_d64, true, 1, 64)     \
  X(intfa_attention_wgmma_d96, false, 1, 96)           \
  X(intfa_attention_wgmma192_d96, false, 3, 96)        \
  X(intfa_attention_wgmma_scored_d96, true, 1, 96)     \
  X(intfa_attention_wgmma_d128, false, 1, 128)         \
  X(intfa_attention_wgmma192_d128, false, 3, 128)      \
  X(intfa_attention_wgmma_scored_d128, true, 1, 128)   \
  X(intfa_attention_wgmma_d256, false, 1, 256)         \
  X(intfa_attention_wgmma_scored_d256, true, 1, 256)
// clang-format on

INTFA_WGMMA_KERNELS(INTFA_WGMMA)

const intfa::cuda::WgmmaKernel intfa::cuda::kWgmmaKernels[] = {INTFA_WGMMA_KERNELS(INTFA_WGMMA_ENTRY)};
