// What the SASS gates need of the kernel table.
#include "cuda/kernels.h"
#include "cuda/kernels_sm90.h"
#include "simt.h"

extern "C" {

// {queries per block, threads, bytes of shared memory} of one attention kernel, or false if there is none.
SIMT_API bool attention_shape(int head_dim, int arithmetic, bool scored, int* out) {
  using namespace intfa::cuda;
  for (const KernelSet* set : {&kKernels32, &kKernels64, &kKernels96, &kKernels128, &kKernels256})
    for (const AttentionKernel& kernel : set->attention) {
      if (set->head_dim != head_dim || int(kernel.arithmetic) != arithmetic || kernel.scored != scored) continue;
      out[0] = kernel.tile_m;
      out[1] = kernel.threads;
      out[2] = kernel.smem_bytes;
      return true;
    }
  return false;
}

// The same of the wgmma kernel, and its keys per tile.
SIMT_API bool wgmma_shape(int head_dim, int tile_m, bool scored, int* out) {
  for (const auto& [dim, kernel] : intfa::cuda::kWgmmaKernels) {
    if (dim != head_dim || kernel.tile_m != tile_m || kernel.scored != scored) continue;
    out[0] = kernel.tile_m;
    out[1] = kernel.threads;
    out[2] = kernel.smem_bytes;
    out[3] = kernel.tile_n;
    return true;
  }
  return false;
}

}  // extern "C"
