#include "cuda/instances_sm90.cuh"

#define INTFA_WGMMA_KERNELS(X)                    \
  X(intfa_attention_wgmma_d64, false, 64)         \
  X(intfa_attention_wgmma_scored_d64, true, 64)   \
  X(intfa_attention_wgmma_d96, false, 96)         \
  X(intfa_attention_wgmma_scored_d96, true, 96)   \
  X(intfa_attention_wgmma_d128, false, 128)       \
  X(intfa_attention_wgmma_scored_d128, true, 128) \
  X(intfa_attention_wgmma_d256, false, 256)       \
  X(intfa_attention_wgmma_scored_d256, true, 256)

INTFA_WGMMA_KERNELS(INTFA_WGMMA)

const intfa::cuda::WgmmaKernel intfa::cuda::kWgmmaKernels[] = {INTFA_WGMMA_KERNELS(INTFA_WGMMA_ENTRY)};
