// The wgmma kernel of 192 queries: three warpgroups that compute and one that loads, on a work list. What it computes:
// attention_sm90.cuh, bit for bit.
//
// CTA: one per SM, which stays. Three warpgroups have 64 queries each and share K and V, for a third of the traffic
// from L2. One thread of the fourth brings the tiles, of one item of the list after another, as fast as stages come
// back: the first tiles of an item arrive while the one before it is being finished. setmaxnreg moves the registers
// that this warpgroup does not need to the others.
//
// An item is 192 rows (RowMap) of a head. Items are sorted by length, the longest (the last queries, under causal)
// first, and dealt out back and forth: 0 1 2 2 1 0 0 1 2, so that who had the longer one gets the shorter one next.
//
// Hazards, besides those of wgmma_rows.cuh:
//  - both roles must count the same tiles: each walks the same items, and the tiles that some query of the item
//  attends.
//    A warpgroup hands a tile on that none of its own queries attends;
//  - Q of the next item overwrites Q that the other warps' products have read: a barrier of the warpgroup comes before;
//  - setmaxnreg: all warps of a warpgroup, and what some take must have been given by others.
//
// Source: roles and registers after FlashAttention-3 (arXiv 2407.08608). Simulated, not run on a GPU.
#pragma once

#include "cuda/wgmma_rows.cuh"

namespace intfa::cuda {

// The item of a CTA's n-th turn; there is one while it is below the number of items.
INTFA_DEVICE int item_of(int turn) {
  const int ctas = ptx::num_ctas_x(), cta = ptx::cta_x();
  return turn * ctas + (turn & 1 ? ctas - 1 - cta : cta);
}

template <typename Shape>
INTFA_DEVICE int num_items(const AttentionParams& params) {
  return Shape::row_tiles(params) * params.rows.groups * params.batch;
}

// By one thread.
template <int kDim, typename Shape>
INTFA_DEVICE void load_items(const AttentionParams& params, uint32_t smem) {
  unsigned visit = 0;
#pragma unroll 1
  for (int turn = 0; item_of(turn) < num_items<Shape>(params); ++turn) {
    const Work work = Work::of_item<Shape>(params, item_of(turn));
    const Tiles tiles = Tiles::of<Shape>(params, work, Limits(params, work.batch), work.cta_row, Shape::kTileM);
    const char* source = packed_tile<kDim>(params, work, tiles.first);
#pragma unroll 1
    for (int tile = tiles.first; tile < tiles.last; ++tile, ++visit) {
      const Stage<Shape> stage(smem, visit);
      ptx::mbarrier_wait(stage.empty_k(), stage.parity ^ 1);  // of the phase before: at once for the first tiles
      load_k<kDim>(stage, source);
      ptx::mbarrier_wait(stage.empty_v(), stage.parity ^ 1);
      load_v<kDim>(stage, source);
      source += 2 * PackedTile<kDim, false>::kBytes;
    }
  }
}

template <int kDim, typename Shape>
INTFA_DEVICE void attend_items(const AttentionParams& params, uint32_t smem) {
  WgmmaRows<kDim, Shape> rows;
  rows.smem = smem;
  rows.lane = ptx::thread_index() & 31;
  int turn = 0, visits = 0;  // to tiles, before this item
#pragma unroll 1
  while (item_of(turn) < num_items<Shape>(params)) {
    const Work work = Work::of_item<Shape>(params, item_of(turn));
    const Limits limits(params, work.batch);
    const int warpgroup = ptx::thread_index() / 128;
    ptx::sync_warpgroup(1 + warpgroup);  // all have left the Q before
    rows.quantize(params, work, limits);
    ptx::sync_warpgroup(1 + warpgroup);
    rows.begin();

    const Tiles all = Tiles::of<Shape>(params, work, limits, work.cta_row, Shape::kTileM);
    const int first_row = work.cta_row + 64 * warpgroup, first_tile = all.first - visits;
    Tiles own = {all.last, all.last, all.last};
    if (first_row < params.rows.count) own = Tiles::of<Shape>(params, work, limits, first_row, 64);
    own.first = min(own.first, all.last);
    own.last = max(own.first, own.last);
    if (rows.lane == 0) {
      ptx::st_shared(rows.own_notes(), static_cast<uint32_t>(turn));
      ptx::st_shared(rows.own_notes() + 4, static_cast<uint32_t>(all.last - first_tile));
    }
    auto hand_on = [&](int begin, int end) {
#pragma unroll 1
      for (int visit = begin; visit < end; ++visit) give_back(Stage<Shape>(smem, visit), rows.lane);
    };
    auto nothing = [](const Stage<Shape>&, int) {};
    hand_on(visits, own.first - first_tile);
    rows.attend_all(params, own, first_tile, nothing, nothing);
    turn = ptx::ld_shared_s32(rows.own_notes());
    visits = ptx::ld_shared_s32(rows.own_notes() + 4);
    hand_on(rows.last_visit(), visits);
    rows.store(params, Work::of_item<Shape>(params, item_of(turn)));
    ++turn;
  }
}

template <int kDim>
INTFA_DEVICE void attention_persistent(const AttentionParams& params) {
  using Shape = PersistentShape<kDim>;
  const uint32_t smem = ptx::smem_u32(ptx::dynamic_smem());
  if (threadIdx.x == 0) init_stages<Shape>(smem);
  ptx::sync_block();
  if (threadIdx.x >= 32 * Shape::kWarps) {
    ptx::give_registers<Shape::kLoadingRegisters>();
    if (threadIdx.x == 32 * Shape::kWarps) load_items<kDim, Shape>(params, smem);
  } else {
    ptx::take_registers<Shape::kRegisters>();
    attend_items<kDim, Shape>(params, smem);
  }
}

}  // namespace intfa::cuda
