// What a CTA and a warp of the attention kernel work on.
#pragma once

#include "cuda/attention_shape.h"
#include "cuda/ptx.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

// Read from the special registers each time, not kept: the main loop has no registers to carry it to the epilogue.
struct Work {
  int batch, head;
  int kv_head;   // batch * Hkv + the head's K/V head: index of the packed tensors
  int cta_row;   // first query of the CTA
  int warp_row;  // first query of the warp
  int lane;

  template <typename Shape>
  INTFA_DEVICE static Work of(const AttentionParams& params) {
    Work work;
    const int thread = ptx::thread_index();
    work.head = ptx::cta_y();
    work.batch = ptx::cta_z();
    work.kv_head = work.batch * params.kv_num_heads + work.head / params.heads_per_kv;
    // The last rows come first, because under causal they are the longest.
    work.cta_row = (ptx::num_ctas_x() - 1 - ptx::cta_x()) * Shape::kTileM;
    work.warp_row = work.cta_row + (thread >> 5) * Shape::kWarpRows;
    work.lane = thread & 31;
    return work;
  }
};

// What the warp's rows need besides registers, in shared memory: four values per row, each an array over the CTA's
// rows.
template <int kTileM>
struct RowTable {
  uint32_t first;  // shared address of the unit of the warp's first row

  // f32: log2 units per unit of S * k_scale: q_scale * softmax_scale * log2(e); positive.
  INTFA_DEVICE uint32_t unit(int row) const { return first + 4 * row; }
  // f32: softmax_scale * q . mean(K), what smoothing took off the row's scores (nats); NaN where the query has a
  // non-finite channel.
  INTFA_DEVICE uint32_t shift(int row) const { return first + 4 * (kTileM + row); }
  // s32: the keys [begin, end) that limits of position leave to the row.
  INTFA_DEVICE uint32_t begin(int row) const { return first + 4 * (2 * kTileM + row); }
  INTFA_DEVICE uint32_t end(int row) const { return first + 4 * (3 * kTileM + row); }
};

}  // namespace intfa::cuda
