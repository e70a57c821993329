// Quantizing and packing: what turns float tensors into the integer codes and scales of layout.h.
#pragma once

#include "cpu/layout.h"

namespace intfa::cpu {

// Takes the statistics of KV head `kv_head` of batch entry `batch`: k_mean, v_scale, v_inverse, and which values of V
// are not finite.
using PrepareHeadFn = void (*)(const AttentionProblem& problem, const AttentionTensors& tensors, const Layout& layout,
                               int64_t batch, int64_t kv_head, const PackedHead& head);
PrepareHeadFn prepare_head();

// Packs tile `tile` of a prepared head, and notes which of its keys are not finite. A tile of padding is left alone.
using PackTileFn = void (*)(const AttentionProblem& problem, const AttentionTensors& tensors, const Layout& layout,
                            int64_t batch, int64_t kv_head, const PackedHead& head, int64_t tile);
PackTileFn pack_tile();

// Writes tokens [first, last) of a head into the present caches, if they are asked for.
using CopyPresentFn = void (*)(const AttentionProblem& problem, const AttentionTensors& tensors, int64_t batch,
                               int64_t kv_head, int64_t first, int64_t last);
CopyPresentFn copy_present();

// Which query of which head a row of a block is.
struct RowPosition {
  int64_t head, query;
};

// Row 0 is row `first` of the KV head's group. By counting: a division per row costs as much as its arithmetic.
inline void find_positions(const AttentionProblem& p, int64_t kv_head, int64_t first, int rows,
                           RowPosition* positions) {
  if (rows == 0) return;
  RowPosition at = {kv_head * (p.num_heads / p.kv_num_heads) + first / p.seqlen_q, first % p.seqlen_q};
  for (int r = 0; r < rows; ++r) {
    positions[r] = at;
    if (++at.query == p.seqlen_q) at = {at.head + 1, 0};
  }
}

// Quantizes some query rows into a block; sets q_codes, q_sum, row_factor, row_offset and bad_row, and zeroes the codes
// of the remaining rows up to a multiple of kRows.
struct QueryRows {
  int64_t batch;
  const RowPosition* positions;  // [rows]
  int rows;
  float* q_scale;  // [kBlockRows] out, or null
};
using PackQueriesFn = void (*)(const AttentionProblem& problem, const AttentionTensors& tensors, const PackedHead& head,
                               const QueryRows& rows, const Block& block);
PackQueriesFn pack_queries();

// y = output / divisor * scale as the problem's output type. Multiplied by the reciprocal of the divisor: one more
// rounding in float32 than by a division.
struct OutputRows {
  int64_t batch;
  const RowPosition* positions;  // [rows]
  int rows;
  const float* output;   // [rows][head_dim_v rounded up to a multiple of kGroup], as long as scale is
  const float* divisor;  // [rows]
  const float* scale;
};
using StoreRowsFn = void (*)(const AttentionProblem& problem, const OutputRows& rows, void* y);
StoreRowsFn store_rows();

// Whether the mask leaves keys [first_key, first_key + keys) of a row as they are; may say no of a mask that is not
// contiguous bool or float32. Exporters write masks of all rows, and most of their tiles mask nothing.
using MaskIsZeroFn = bool (*)(const MaskProblem& mask, const void* data, int64_t offset, int64_t first_key,
                              int64_t keys);
MaskIsZeroFn mask_is_zero();

// One row of the mask for keys [first_key, first_key + keys): log2 bias, padded with -inf to a multiple of kChunk.
// offset: element of key 0. Returns whether any key is attended.
using LoadMaskFn = bool (*)(const MaskProblem& mask, const void* data, int64_t offset, int64_t first_key, int64_t keys,
                            float* out);
LoadMaskFn load_mask();

}  // namespace intfa::cpu
