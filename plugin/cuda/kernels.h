// The table of kernels in this build: the only list of instances. A launcher picks by head size, arithmetic and
// scoring.
//
// Kernels have C names, so that profilers, the SASS gates and the PTX interpreter can name them: intfa_statistics_d64,
// intfa_quantize_kv_d64, intfa_merge_d64, intfa_attention_tile_d64, intfa_attention_tile_scored_d64, ..._paper_...,
// ..._half_...
#pragma once

#include "cuda/traits.cuh"

namespace intfa::cuda {

struct AttentionKernel {
  Arithmetic arithmetic;
  bool scored;  // softcap or a mask tensor
  void (*kernel)(AttentionParams);
  int tile_m, threads, smem_bytes;
  int tile_n = kTileN;
  ChunkOrder order = ChunkOrder::kRows;  // of the packed tiles that it reads
  bool persistent = false;               // its CTAs, at most one per SM, share a list of row tiles, heads and batch
};

struct KernelSet {
  int head_dim;
  int tile_bytes, tile_bytes_half;  // of a PackedTile with V as int8, as float16
  void (*statistics)(PrologueParams);
  int statistics_smem;
  void (*quantize_kv)(PrologueParams);
  int quantize_smem;
  void (*merge)(MergeParams);
  AttentionKernel attention[6];
};

// One per compiled head size, defined by kernels_d<head size>.cu.
extern const KernelSet kKernels32, kKernels64, kKernels96, kKernels128, kKernels256;

}  // namespace intfa::cuda
