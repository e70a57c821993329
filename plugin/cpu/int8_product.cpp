// The two INT8 products with Highway: u8 x s8 dot products of four, accumulated in int32 (vpdpbusd where there is one).
// Each inner block keeps kR rows x kV vectors of accumulators in registers.
#include "cpu/int8_product.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/int8_product.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/factors-inl.h"
#include "cpu/vector-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

// 32 vector registers hold 4 x 4 accumulators, their operands and a broadcast; 16 registers hold 4 x 2.
constexpr int kBlockVectors = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64 ? 4 : 2;

// Where the scores of a block of keys come from and go to: copies of what ScoreProduct says, as the compiler cannot
// know that the stores leave that alone, and would load it again after each.
struct ScoreKeys {
  const uint8_t* k;  // of the first key
  const int32_t* q_sum;
  int32_t* scores;
  int64_t head_dim, stride;
};

// Scores of kR rows and kV vectors of keys.
template <int kR, int kV>
HWY_INLINE void score_block(const ScoreKeys& a, RowCodes<DB> q, int row) {
  const DI di;
  const DUB dub;
  const uint8_t* k[kV];
  for (int v = 0; v < kV; ++v) k[v] = a.k + v * kLanes / kGroup * (kGroup * a.head_dim) + v * kLanes % kGroup * 4;
  VI sum[kR][kV];
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v) sum[r][v] = hn::Set(di, -128 * a.q_sum[row + r]);  // takes K's +128 off again
  for (int64_t c = 0; c < a.head_dim; c += 4) {
    decltype(factors(hn::Zero(dub))) kv[kV];
    for (int v = 0; v < kV; ++v) kv[v] = factors(hn::Load(dub, k[v] + c * kGroup));
    for (int r = 0; r < kR; ++r) {
      const auto qv = q.at((row + r) * a.head_dim + c);
      for (int v = 0; v < kV; ++v) add_products(kv[v], qv, sum[r][v]);
    }
  }
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v) hn::Store(sum[r][v], di, a.scores + (row + r) * a.stride + v * kLanes);
}

void scores(const ScoreProduct& a) {
  constexpr int kKeys = kBlockVectors * kLanes;
  const int64_t end = a.chunk_end * kChunk, head_dim = a.head_dim, stride = a.stride;
  const int rows = a.rows;
  HWY_ALIGN uint8_t scratch[2 * kRows * kMaxHeadDim];
  const RowCodes<DB> q = row_codes(DB(), a.q_codes, kRows * head_dim, scratch);
  for (int64_t key = a.chunk_begin * kChunk; key < end; key += kKeys) {
    const ScoreKeys keys = {a.k_codes + key / kGroup * (kGroup * head_dim) + key % kGroup * 4, a.q_sum, a.scores + key,
                            head_dim, stride};
    if (rows == 1) {
      score_block<1, kBlockVectors>(keys, q, 0);
      continue;
    }
    for (int row = 0; row < rows; row += 4) score_block<4, kBlockVectors>(keys, q, row);
  }
}

// Output of kR rows and kV vectors of channels, from `channel` on.
template <int kR, int kV>
HWY_INLINE void output_block(const OutputProduct& a, RowCodes<DUB> p, int row, int channel) {
  const DI di;
  const DF d;
  const DB db;
  const int64_t stride = a.stride, width = a.channel_groups * kGroup;
  VI sum[kR][kV];
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v) sum[r][v] = hn::Zero(di);
  const int8_t* v_group[kV];
  for (int v = 0; v < kV; ++v) {
    const int first = channel + v * kLanes;
    v_group[v] = a.v_codes + first / kGroup * (kGroup * kChunk) + first % kGroup * 4;
  }
  const int64_t end = a.chunk_end * kChunk;
  for (int64_t chunk = a.chunk_begin * kChunk; chunk < end; chunk += kChunk)
    for (int64_t quad = 0; quad < kChunk; quad += 4) {
      decltype(factors(hn::Zero(db))) vv[kV];
      for (int v = 0; v < kV; ++v) vv[v] = factors(hn::Load(db, v_group[v] + chunk * width + quad * kGroup));
      for (int r = 0; r < kR; ++r) {
        const auto pv = p.at((row + r) * stride + chunk + quad);
        for (int v = 0; v < kV; ++v) add_products(pv, vv[v], sum[r][v]);
      }
    }
  float* out = a.output + row * width + channel;
  VF alpha[kR], beta[kR];
  for (int r = 0; r < kR; ++r) {
    alpha[r] = hn::Set(d, a.alpha[row + r]);
    beta[r] = hn::Set(d, a.beta[row + r]);
  }
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v) {
      float* o = out + r * width + v * kLanes;
      hn::Store(hn::MulAdd(hn::ConvertTo(d, sum[r][v]), beta[r], hn::Mul(hn::Load(d, o), alpha[r])), d, o);
    }
}

template <int kV>
HWY_INLINE void output_columns(const OutputProduct& a, RowCodes<DUB> p, int channel) {
  // few channels: more rows instead, to keep as many independent sums
  constexpr int kR = kBlockVectors == 4 && kV <= 2 ? 8 : 4;
  if (a.rows == 1) return output_block<1, kV>(a, p, 0, channel);
  int row = 0;
  for (; row + kR <= a.rows; row += kR) output_block<kR, kV>(a, p, row, channel);
  for (; row < a.rows; row += 4) output_block<4, kV>(a, p, row, channel);
}

void output(const OutputProduct& a) {
  const RowCodes<DUB> p = row_codes(DUB(), a.p, a.rows * a.stride, a.scratch);
  const int channels = a.channel_groups * kGroup;
  int channel = 0;
  for (; channel + kBlockVectors * kLanes <= channels; channel += kBlockVectors * kLanes)
    output_columns<kBlockVectors>(a, p, channel);
  for (; channel + 2 * kLanes <= channels; channel += 2 * kLanes) output_columns<2>(a, p, channel);
  for (; channel < channels; channel += kLanes) output_columns<1>(a, p, channel);
}

template <int kV>
HWY_INLINE void float_output_block(const FloatOutputProduct& a, int row, int channel) {
  constexpr int kR = 4;
  const DF d;
  const int64_t width = a.channel_groups * kGroup;
  VF sum[kR][kV];
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v)
      sum[r][v] =
          hn::Mul(hn::Load(d, a.output + (row + r) * width + channel + v * kLanes), hn::Set(d, a.alpha[row + r]));
  for (int64_t key = a.chunk_begin * kChunk; key < a.chunk_end * kChunk; ++key) {
    VF vv[kV];
    for (int v = 0; v < kV; ++v) vv[v] = hn::Load(d, a.v_float + key * width + channel + v * kLanes);
    for (int r = 0; r < kR; ++r) {
      const VF pv = hn::Set(d, a.p[(row + r) * a.stride + key]);
      for (int v = 0; v < kV; ++v) sum[r][v] = hn::MulAdd(pv, vv[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kV; ++v) hn::Store(sum[r][v], d, a.output + (row + r) * width + channel + v * kLanes);
}

void float_output(const FloatOutputProduct& a) {
  const int channels = a.channel_groups * kGroup;
  int channel = 0;
  for (; channel + kBlockVectors * kLanes <= channels; channel += kBlockVectors * kLanes)
    for (int row = 0; row < a.rows; row += 4) float_output_block<kBlockVectors>(a, row, channel);
  for (; channel < channels; channel += kLanes)
    for (int row = 0; row < a.rows; row += 4) float_output_block<1>(a, row, channel);
}

int64_t own_target() { return HWY_TARGET; }

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(scores);
HWY_EXPORT(output);
HWY_EXPORT(float_output);
HWY_EXPORT(own_target);

ScoreProductFn score_product() { return HWY_DYNAMIC_POINTER(scores); }
OutputProductFn output_product() { return HWY_DYNAMIC_POINTER(output); }
FloatOutputProductFn float_output_product() { return HWY_DYNAMIC_POINTER(float_output); }
int64_t dispatched_target() { return HWY_DYNAMIC_DISPATCH(own_target)(); }

}  // namespace intfa::cpu
#endif
