// What the tests need of the kernel table, and of the rows of a tile.
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

// The query of a row and its head, with so many heads packed; false where the map does not hold for that many rows.
SIMT_API bool row_map(int heads, int row, int* out) {
  const auto map = intfa::cuda::RowMap::of(heads, heads, 1);
  out[0] = map.query(row);
  out[1] = map.head(row);
  return intfa::cuda::RowMap::divides(int64_t{row} + 1, heads);
}

}  // extern "C"
