// INT8 FlashAttention forward for sm_90a, by wgmma m64nNk32. What it computes: attention_sm80.cuh, with tiles of 128
// keys.
//
// CTA: one warpgroup, 64 queries, 16 per warp; the two or three CTAs of an SM hide what one of them waits for. Thread 0
// refills a stage as soon as all warps have given it back.
//
// Source: the scheme is attention_sm80.cuh's; one warpgroup per CTA with bulk loads after SageAttention's sm_90 kernel
// (arXiv 2411.10958). Simulated, not run on a GPU.
#pragma once

#include "cuda/wgmma_rows.cuh"

namespace intfa::cuda {

template <int kDim, bool kScored>
INTFA_DEVICE void attention_wgmma(const AttentionParams& params) {
  using Shape = WgmmaShape<kDim, kScored>;
  using Source = PackedTile<kDim, false>;
  const Work work = Work::of<Shape>(params);
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  const Limits limits(params, work.batch);
  const Tiles tiles = Tiles::of<Shape>(params, work, limits, work.cta_row, Shape::kTileM);

  const char* source = packed_tile<kDim>(params, work, tiles.first);  // of the next tile to load
  if (threadIdx.x == 0) {
    init_stages<Shape>(smem);
#pragma unroll
    for (int i = 0; i < Shape::kStages; ++i) {
      if (tiles.first + i >= tiles.last) break;
      load_k<kDim>(Stage<Shape>(smem, i), source);
      load_v<kDim>(Stage<Shape>(smem, i), source);
      source += 2 * Source::kBytes;
    }
  }
  ptx::sync_warp();

  WgmmaRows<kDim, Shape> rows;
  rows.smem = smem;
  rows.lane = work.lane;
  rows.quantize(params, work, limits);
  ptx::sync_block();  // Q, the limits and the barriers are there for all
  rows.begin();

  const int num_tiles = tiles.last - tiles.first;
  auto loads = [&](int visit) { return threadIdx.x == 0 && visit + Shape::kStages < num_tiles; };
  auto refill_k = [&](const Stage<Shape>& stage, int visit) {
    if (loads(visit)) {
      ptx::mbarrier_wait(stage.empty_k(), stage.parity);
      load_k<kDim>(stage, source);
    }
    ptx::sync_warp();
  };
  auto refill_v = [&](const Stage<Shape>& stage, int visit) {
    if (loads(visit)) {
      ptx::mbarrier_wait(stage.empty_v(), stage.parity);
      load_v<kDim>(stage, source);
      source += 2 * Source::kBytes;
    }
    ptx::sync_warp();
  };
  rows.attend_all(params, tiles, tiles.first, refill_k, refill_v);
  rows.store(params, Work::of<Shape>(params));  // not kept: see Work
}

}  // namespace intfa::cuda
