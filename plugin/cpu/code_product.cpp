// Products on codes in the caller's memory; see code_product.h.
//
// Scores: vpdpbusd leaves 16 sums of a key's channels in a vector; four keys' vectors become one with two steps of
// interleaving and adding, and the vectors of 16 keys their scores.
// Output: four rows of V, interleaved by bytes, are what vpdpbusd takes for four keys' P.
#include "cpu/code_product.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/code_product.cpp"
// clang-format off: foreach_target.h comes first
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "cpu/vector-inl.h"
// clang-format on
#include "cpu/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace intfa::cpu::HWY_NAMESPACE {

constexpr int kBytes = 4 * kLanes;
// 32 vector registers hold four rows' sums of four vectors beside the operands; 16 registers those of two rows.
constexpr int kMostRows = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64 ? 4 : 2;
// How many keys ahead of the one at hand the rows are asked for: the processor's own prefetcher stops at a page's end.
constexpr int64_t kAhead = 128;

// `bytes` codes, all of a vector if there are as many. A code of -128 becomes -127.
template <bool kWhole>
HWY_INLINE hn::Vec<DB> load_codes(const int8_t* from, size_t bytes, int64_t ahead) {
  const DB d;
  if (ahead != 0) __builtin_prefetch(from + ahead, 0, 2);
  return hn::Max(kWhole ? hn::LoadU(d, from) : hn::LoadN(d, from, bytes), hn::Set(d, int8_t{-127}));
}

// sum[r][i] += q[r] . k[i] over up to a vector of channels.
template <int kR, bool kWhole>
HWY_INLINE void add_key_products(const int8_t* const* k, int64_t c, int64_t ahead, const int8_t* q, int64_t head_dim,
                                 VI (&sum)[kR][4]) {
  const DB db;
  const hn::Repartition<uint8_t, DI> dub;
  const size_t n = head_dim - c;
  hn::Vec<decltype(dub)> codes[4];
  for (int i = 0; i < 4; ++i)
    codes[i] = hn::Xor(hn::BitCast(dub, load_codes<kWhole>(k[i] + c, n, ahead)), hn::Set(dub, uint8_t{128}));
  for (int r = 0; r < kR; ++r) {
    const int8_t* from = q + r * head_dim + c;
    const auto qv = kWhole ? hn::LoadU(db, from) : hn::LoadN(db, from, n);
    for (int i = 0; i < 4; ++i) add_products(codes[i], qv, sum[r][i]);
  }
}

// kVectors: the head size in vectors of codes, 0: any. What is known makes twice as fast what fills the registers.
template <int kR, int kVectors>
HWY_INLINE void score_rows(const CodeScoreProduct& a, int row) {
  const DI di;
  constexpr int kSets = kLanes / 4;
  const auto add = [](VI x, VI y) HWY_ATTR { return hn::Add(x, y); };
  const CodeTile tile = a.k;
  const int64_t head_dim = kVectors != 0 ? kVectors * kBytes : tile.rows.channels;
  const int64_t ahead = row == 0 ? kAhead * tile.rows.stride_at(tile.first) : 0;
  const int8_t* q = a.q_codes + row * head_dim;
  const int64_t end = a.chunk_end * kChunk;
  for (int64_t key = a.chunk_begin * kChunk; key < end; key += kLanes) {
    VI fours[kR][kSets];
    for (int set = 0; set < kSets; ++set) {
      const int8_t* k[4];
      tile.rows.four(tile.first + key + 4 * set, tile.end, k);
      VI sum[kR][4];
      for (int r = 0; r < kR; ++r)
        for (int i = 0; i < 4; ++i) sum[r][i] = hn::Zero(di);
      int64_t c = 0;
      for (; c + kBytes <= head_dim; c += kBytes) add_key_products<kR, true>(k, c, ahead, q, head_dim, sum);
      if (c < head_dim) add_key_products<kR, false>(k, c, ahead, q, head_dim, sum);
      for (int r = 0; r < kR; ++r)
        fours[r][set] = reduce_fours(di, reduce_pairs(di, sum[r][0], sum[r][1], add),
                                     reduce_pairs(di, sum[r][2], sum[r][3], add), add);
    }
    for (int r = 0; r < kR; ++r) {
      const VI offset = hn::Set(di, 128 * a.q_sum[row + r]);  // what K's +128 makes of it
      hn::Store(hn::Sub(reduce_blocks(di, fours[r], add), offset), di, a.scores + (row + r) * a.stride + key);
    }
  }
}

template <int kVectors>
HWY_INLINE void score_all_rows(const CodeScoreProduct& a) {
  if (a.rows == 1) return score_rows<1, kVectors>(a, 0);
  for (int row = 0; row < a.rows; row += kMostRows) score_rows<kMostRows, kVectors>(a, row);
}

void code_scores(const CodeScoreProduct& a) {
  switch (a.k.rows.channels) {
    case kBytes:
      return score_all_rows<1>(a);
    case 2 * kBytes:
      return score_all_rows<2>(a);
    default:
      return score_all_rows<0>(a);
  }
}

// A vector of channels from `channel` on.
template <int kR, bool kWhole>
HWY_INLINE void output_vectors(const CodeOutputProduct& a, const uint8_t* order, int row, int64_t channel, size_t n) {
  const DI di;
  const DF d;
  const DB db;
  const hn::Repartition<uint8_t, DI> dub;
  const hn::Repartition<int16_t, DI> d16;
  const CodeTile tile = a.v;
  const int64_t width = round_up(tile.rows.channels, kChannelStep);
  const int64_t ahead = row == 0 ? kAhead * tile.rows.stride_at(tile.first) : 0;
  const uint8_t* p = a.p + row * a.stride;
  VI sum[kR][4];
  for (auto& of_row : sum)
    for (VI& s : of_row) s = hn::Zero(di);
  const int64_t end = a.chunk_end * kChunk;
  for (int64_t chunk = a.chunk_begin * kChunk; chunk < end; chunk += kChunk)
    for (int quad = 0; quad < kChunk / 4; ++quad) {
      const int8_t* v[4];
      tile.rows.four(tile.first + chunk + 4 * order[quad], tile.end, v);
      hn::Vec<DB> x[4];
      for (int i = 0; i < 4; ++i) x[i] = load_codes<kWhole>(v[i] + channel, n, ahead);
      const auto low01 = hn::BitCast(d16, hn::InterleaveLower(db, x[0], x[1]));
      const auto low23 = hn::BitCast(d16, hn::InterleaveLower(db, x[2], x[3]));
      const auto high01 = hn::BitCast(d16, hn::InterleaveUpper(db, x[0], x[1]));
      const auto high23 = hn::BitCast(d16, hn::InterleaveUpper(db, x[2], x[3]));
      const hn::Vec<DB> by_key[4] = {hn::BitCast(db, hn::InterleaveLower(d16, low01, low23)),
                                     hn::BitCast(db, hn::InterleaveUpper(d16, low01, low23)),
                                     hn::BitCast(db, hn::InterleaveLower(d16, high01, high23)),
                                     hn::BitCast(db, hn::InterleaveUpper(d16, high01, high23))};
      for (int r = 0; r < kR; ++r) {
        const auto pv = hn::BitCast(dub, broadcast4(p + r * a.stride + chunk + 4 * quad));
        for (int i = 0; i < 4; ++i) add_products(pv, by_key[i], sum[r][i]);
      }
    }
  for (int r = 0; r < kR; ++r) {
    float* out = a.output + (row + r) * width + channel;
    const VF alpha = hn::Set(d, a.alpha[row + r]), beta = hn::Set(d, a.beta[row + r]);
    for (int i = 0; i < 4; ++i) {
      float* o = out + i * kLanes;
      hn::Store(hn::MulAdd(hn::ConvertTo(d, sum[r][i]), beta, hn::Mul(hn::Load(d, o), alpha)), d, o);
    }
  }
}

template <bool kWhole>
HWY_INLINE void output_rows(const CodeOutputProduct& a, const uint8_t* order, int64_t channel, size_t n) {
  if (a.rows == 1) return output_vectors<1, kWhole>(a, order, 0, channel, n);
  for (int row = 0; row < a.rows; row += kMostRows) output_vectors<kMostRows, kWhole>(a, order, row, channel, n);
}

void code_output(const CodeOutputProduct& a) {
  uint8_t order[kChunk / 4];
  quad_order(order);
  const int64_t channels = a.v.rows.channels, whole = channels / kBytes * kBytes;
  for (int64_t c = 0; c < whole; c += kBytes) output_rows<true>(a, order, c, kBytes);
  if (whole < channels) output_rows<false>(a, order, whole, channels - whole);
}

// Vector i of a group of kBytes channels holds in its block b the channels 16 b + 4 i to 16 b + 4 i + 3.
void order_output(float* output, int rows, int64_t channels) {
  const int64_t from_width = round_up(channels, kChannelStep), to_width = round_up(channels, kGroup);
  for (int r = 0; r < rows; ++r) {
    float row[kMaxHeadDim];
    memcpy(row, output + r * from_width, from_width * sizeof(float));
    for (int64_t c = 0; c < channels; c += 4) {
      const int64_t group = c / kBytes * kBytes, block = c % kBytes / 16, vector = c % 16 / 4;
      memcpy(output + r * to_width + c, row + group + vector * kLanes + block * 4, 4 * sizeof(float));
    }
  }
}

}  // namespace intfa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace intfa::cpu {

HWY_EXPORT(code_scores);
HWY_EXPORT(code_output);
HWY_EXPORT(order_output);

CodeScoreProductFn code_score_product() { return HWY_DYNAMIC_POINTER(code_scores); }
CodeOutputProductFn code_output_product() { return HWY_DYNAMIC_POINTER(code_output); }
OrderChannelsFn order_channels() { return HWY_DYNAMIC_POINTER(order_output); }

}  // namespace intfa::cpu
#endif
