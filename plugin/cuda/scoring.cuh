// Which keys a query attends, and what happens to a score before the softmax: limits, softcap, masks.
#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/online_softmax.cuh"
#include "cuda/quantize.cuh"
#include "cuda/traits.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// The keys [begin, end) that limits of position leave to a query: lengths, causal, window. With everything masked,
// begin >= end.
struct Limits {
  int valid;   // keys that exist for this batch entry and that the mask covers
  int offset;  // query i stands at key i + offset
  int window_left, window_right;

  INTFA_DEVICE Limits(const AttentionParams& params, int batch)
      : valid(min(params.seqlen_kv, params.mask_seqlen_kv)),
        offset(params.offset),
        window_left(params.window_left),
        window_right(params.window_right) {
    if (params.nonpad_kv_seqlen != nullptr) {
      const int nonpad = valid_keys(params.nonpad_kv_seqlen, batch, params.seqlen_kv);
      valid = min(valid, nonpad);
      if (params.offset_from_nonpad) offset = nonpad - params.seqlen_q;
    }
  }
  // Kept in shared memory over the main loop: what is not a parameter.
  INTFA_DEVICE void store(uint32_t address) const {
    ptx::st_shared(address, static_cast<uint32_t>(valid));
    ptx::st_shared(address + 4, static_cast<uint32_t>(offset));
  }
  INTFA_DEVICE Limits(const AttentionParams& params, uint32_t address)
      : valid(ptx::ld_shared_s32(address)),
        offset(ptx::ld_shared_s32(address + 4)),
        window_left(params.window_left),
        window_right(params.window_right) {}

  INTFA_DEVICE int begin(int query) const { return max(0, query + offset - window_left); }
  INTFA_DEVICE int end(int query) const { return max(0, min(valid, query + offset + window_right + 1)); }
};

// What the mask adds to a score, in log2 units: -inf excludes the key, finfo.min does not.
INTFA_DEVICE float mask_term(float value, DataType dtype) {
  if (dtype == DataType::kBool) return value != 0.f ? 0.f : -INFINITY;
  return mask_log2(value);
}

// Index of the mask's element for key 0 and a row.
INTFA_DEVICE int64_t mask_row(const AttentionParams& params, const Work& work, int row) {
  const MaskParams& mask = params.mask;
  const RowMap& rows = params.rows;
  row = min(row, rows.count - 1);
  return work.batch * mask.batch + (work.head + rows.head(row)) * mask.head + rows.query(row) * mask.query;
}

// Where a lane keeps its mask terms of one row half of a strip and group of 16 keys: shared bytes from the warp's part.
// keys: of the tile.
INTFA_DEVICE uint32_t mask_slot(int keys, int half, int group, int lane) {
  return ((half * (keys / 16) + group) * 32 + lane) * 16;
}

// Whether the terms of one row half stand for all rows. kKnown: kernels that have no registers for the choice do not
// ask.
template <bool kKnown>
INTFA_DEVICE bool same_rows(const AttentionParams& params) {
  return kKnown && params.mask.same_rows;
}

// Brings the mask of a tile to shared memory for the 16 * kStrips rows from `row`, as log2 terms, each lane its own: in
// a loop of its own, because a mask of any type and stride takes much code. key: the lane's first of the tile. Returns
// whether one of the lane's rows attends one of its keys.
template <int kKeys, int kStrips, bool kSameRows>
INTFA_DEVICE bool stage_mask(const AttentionParams& params, const Work& work, int row, int key, uint32_t terms) {
  const MaskParams& mask = params.mask;
  bool attended = false;
#pragma unroll 1
  for (int half = 0; half < (same_rows<kSameRows>(params) ? 1 : 2 * kStrips); ++half) {
    const int64_t index = mask_row(params, work, row + 8 * half + work.lane / 4);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      const int first = key + 16 * i;
      float term[4];
      load4(term, mask.data, index + first * mask.key, mask.key, params.mask_seqlen_kv - first, mask.dtype,
            mask.vector4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        term[k] = mask_term(term[k], mask.dtype);
        attended |= term[k] != -INFINITY;
      }
      ptx::st_shared(terms + mask_slot(kKeys, half, i, work.lane), term);
    }
  }
  return attended;
}

// Whether one of the lane's rows attends one of its keys that the mask covers: of the terms that stage_mask has left,
// those of keys beyond the mask count as attended. For the tile in which the mask ends.
template <int kKeys, bool kSameRows>
INTFA_DEVICE bool attends_covered(const AttentionParams& params, int key, int lane, uint32_t terms) {
  constexpr unsigned kGroups = kKeys / 16;
  const int covered = params.mask_seqlen_kv - key;
  bool attended = false;
#pragma unroll 1
  for (unsigned i = 0; i < 4 * (same_rows<kSameRows>(params) ? kGroups : 2 * kGroups); ++i) {
    const unsigned group = i / 4, k = i % 4;  // mask_slot of both halves, behind each other
    const float term = ptx::ld_shared(terms + mask_slot(kKeys, 0, group, lane) + 4 * k);
    attended |= static_cast<int>(16 * (group % kGroups) + k) < covered && term != -INFINITY;
  }
  return attended;
}

// The plain kernel: scores stay y.
struct NoScoring {
  INTFA_DEVICE void operator()(float (&)[4], int) const {}
};

// y -> score in log2 units, for one row half of a tile of kKeys keys; see mask_scores.
template <int kKeys, bool kSameRows>
class RowScoring {
 public:
  // row: in the warp; half: of its strip. terms: as stage_mask left them.
  INTFA_DEVICE RowScoring(const AttentionParams& params, const RowTable& rows, int row, int half, int lane,
                          uint32_t terms)
      : params_(params),
        unit_(ptx::ld_shared(rows.unit + 4 * row)),
        shift_(ptx::ld_shared(rows.shift + 4 * row)),
        terms_(terms + mask_slot(kKeys, same_rows<kSameRows>(params) ? 0 : half, 0, lane)) {}

  INTFA_DEVICE void operator()(float (&y)[4], int group) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) y[k] = ptx::mul_rn(y[k], unit_);
    if (params_.softcap > 0.f) {
      // cap * tanh(x / cap) with tanh(u) = 1 - 2 / (1 + e^2u): an absolute error of cap * 2^-22, where tanh.approx has
      // 2^-11. A softcap, unlike the softmax, sees what smoothing took off.
      const float to_log2 = 2.f / params_.softcap, shift_log2 = ptx::mul_rn(shift_, kLog2E);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float e = ptx::ex2(ptx::mul_rn(ptx::add_rn(y[k], shift_log2), to_log2));
        y[k] = ptx::mul_rn(ptx::fma_rn(-2.f, ptx::rcp(ptx::add_rn(1.f, e)), 1.f), params_.softcap * kLog2E);
      }
    }
    if (params_.mask.data != nullptr) {
      float term[4];
      ptx::ld_shared(term, terms_ + mask_slot(kKeys, 0, group, 0));
#pragma unroll
      for (int k = 0; k < 4; ++k) y[k] = ptx::add_rn(y[k], term[k]);
    }
  }

 private:
  const AttentionParams& params_;
  float unit_, shift_;
  uint32_t terms_;
};

// Whether the row attends the key: limits and mask together.
template <bool kScored>
INTFA_DEVICE bool attends(const AttentionParams& params, const Limits& limits, const Work& work, int row, int key) {
  const int query = params.rows.query(row);
  if (key < limits.begin(query) || key >= limits.end(query)) return false;
  if (!kScored || params.mask.data == nullptr) return true;
  const float m = load1(params.mask.data, mask_row(params, work, row) + key * params.mask.key, params.mask.dtype);
  return mask_term(m, params.mask.dtype) != -INFINITY;
}

}  // namespace intfa::cuda
