// What a CTA and a warp of the attention kernel work on.
#pragma once

#include "cuda/attention_shape.h"
#include "cuda/ptx.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

// Read from the special registers each time, not kept: the main loop has no registers to carry it to the epilogue.
struct Work {
  int batch;
  int head;      // the group's first (RowMap)
  int split;     // of the keys
  int kv_head;   // batch * Hkv + the head's K/V head: index of the packed tensors
  int cta_row;   // first row of the CTA
  int warp_row;  // first row of the warp
  int lane;

  template <typename Shape>
  INTFA_DEVICE static Work of(const AttentionParams& params) {
    Work work;
    const int thread = ptx::thread_index();
    work.head = ptx::cta_y() * params.rows.heads;
    const int z = ptx::cta_z();
    work.batch = params.num_splits == 1 ? z : z / params.num_splits;
    work.split = params.num_splits == 1 ? 0 : z % params.num_splits;
    work.kv_head = work.batch * params.kv_num_heads + work.head / params.heads_per_kv;
    // The last rows come first, because under causal they are the longest.
    work.cta_row = (ptx::num_ctas_x() - 1 - ptx::cta_x()) * Shape::kTileM;
    work.warp_row = work.cta_row + (thread >> 5) * Shape::kWarpRows;
    work.lane = thread & 31;
    return work;
  }

  // An item of the work list of a persistent kernel: as many as there are row tiles, groups and batch entries, in the
  // same order, so that the longest come first.
  template <typename Shape>
  INTFA_DEVICE static Work of_item(const AttentionParams& params, int item) {
    Work work;
    const int thread = ptx::thread_index(), row_tile = item / (params.rows.groups * params.batch);
    const int group = item - row_tile * params.rows.groups * params.batch;
    work.batch = group / params.rows.groups;
    work.head = (group - work.batch * params.rows.groups) * params.rows.heads;
    work.split = 0;
    work.kv_head = work.batch * params.kv_num_heads + work.head / params.heads_per_kv;
    work.cta_row = (Shape::row_tiles(params) - 1 - row_tile) * Shape::kTileM;
    work.warp_row = work.cta_row + (thread >> 5) * Shape::kWarpRows;
    work.lane = thread & 31;
    return work;
  }
};

INTFA_DEVICE float* lse_of(const AttentionParams& params, const Work& work, int row) {
  return params.lse + work.split * params.split_lse +
         (static_cast<int64_t>(work.batch) * params.num_heads + work.head + params.rows.head(row)) * params.seqlen_q +
         params.rows.query(row);
}

// Values of a warp's rows in shared memory, by the row in the warp.
struct RowTable {
  // f32: log2 units per unit of S * k_scale: q_scale * softmax_scale * log2(e), positive; NaN where the query has a
  // non-finite channel.
  uint32_t unit;
  // f32: softmax_scale * q . mean(K), what smoothing took off the row's scores, in nats. Only in kernels with scoring;
  // for the lse, the lse itself holds it until the end.
  uint32_t shift;

  template <typename Shape>
  INTFA_DEVICE static RowTable of(uint32_t smem, int warp) {
    return {smem + Shape::kUnitOffset + 4 * warp * Shape::kWarpRows,
            smem + Shape::kShiftOffset + 4 * warp * Shape::kWarpRows};
  }
};

}  // namespace intfa::cuda
