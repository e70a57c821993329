// Q, quantized inside the attention kernel: read once, in whatever type it has, and never written back.
#pragma once

#include "cuda/online_softmax.cuh"
#include "cuda/quantize.cuh"
#include "cuda/traits.cuh"
#include "cuda/work.cuh"

namespace intfa::cuda {

// One warp quantizes its rows: their codes into `tile` (shared address of a Tile: SmemTile<kDim> or another order of
// 16-byte chunks), their values into the rows' table. Rows beyond the last get zero codes.
template <typename Tile, int kDim, int kWarpRows, bool kScored>
INTFA_DEVICE void quantize_queries(const AttentionParams& params, const Work& work, uint32_t tile,
                                   const RowTable& rows) {
  using Layout = WarpRows<kDim>;
  const int lane = work.lane;
  const bool is_codes = params.q_dtype == DataType::kInt8;
  const bool shifted = params.packed.k_mean != nullptr && (params.lse != nullptr || params.softcap > 0.f);
  const float* k_mean = params.packed.k_mean + (shifted ? static_cast<int64_t>(work.kv_head) * kDim : 0);  // [Dp]
#pragma unroll 4
  for (int pass = 0; pass < kWarpRows / Layout::kRows; ++pass) {
    const int row = pass * Layout::kRows + Layout::slot(lane), group_row = work.warp_row + row;
    const bool exists = group_row < params.rows.count;
    const int head = work.head + params.rows.head(group_row);
    const int64_t base =
        work.batch * params.q.batch + head * params.q.head + params.rows.query(group_row) * params.q.token;
    // Loads of any type, four rows at a time, ask for more predicates than there are.
    const DataType dtype = static_cast<DataType>(ptx::opaque(static_cast<int>(params.q_dtype)));
    float x[Layout::kParts][4];
    uint32_t amax_bits = 0;
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
      const int channel = Layout::channel(lane, part);
      load4(x[part], params.q.data, base + channel, 1, exists ? params.head_dim - channel : 0, dtype, params.q.vector4);
#pragma unroll
      for (int i = 0; i < 4; ++i) amax_bits = max_magnitude(amax_bits, x[part][i]);
    }
    amax_bits = Layout::max_bits(amax_bits);
    const bool finite = amax_bits < kInfinityBits;
    const float amax = finite ? ptx::f32_bits(amax_bits) : 0.f;

    const auto [automatic_scale, inverse] = quantizer(amax);
    float scale = automatic_scale;
    if (params.q_scale != nullptr) scale = params.q_scale[params.q_scale_kind == ScaleGranularity::kPerHead ? head : 0];
    float dot = 0.f;
#pragma unroll
    for (int part = 0; part < Layout::kParts; ++part) {
      const int channel = Layout::channel(lane, part);
      int32_t code[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scaled = is_codes                    ? x[part][i]
                             : params.q_scale != nullptr ? ptx::div_rn(x[part][i], scale)
                                                         : ptx::mul_rn(x[part][i], inverse);
        code[i] = finite ? code_of(scaled) : 0;
        if (shifted && channel + i < kDim) dot = ptx::fma_rn(ptx::f32_from_s32(code[i]), k_mean[channel + i], dot);
      }
      if (channel < kDim) ptx::st_shared(tile + Tile::offset(row, channel / 16) + channel % 16, pack_bytes(code));
    }
    if (shifted) dot = Layout::sum(dot);
    if (lane % Layout::kLanes == 0) {
      const float softmax_scale = ptx::mul_rn(scale, params.softmax_scale);
      const float shift = ptx::mul_rn(softmax_scale, dot);
      ptx::st_shared(rows.unit + 4 * row, finite ? fmaxf(ptx::mul_rn(softmax_scale, kLog2E), FLT_MIN) : NAN);
      if constexpr (kScored) ptx::st_shared(rows.shift + 4 * row, shift);
      if (params.lse != nullptr && exists) *lse_of(params, work, group_row) = shift;
    }
  }
}

}  // namespace intfa::cuda
