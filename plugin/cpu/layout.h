// Where everything lies in the workspace, and the shapes of the packed buffers.
//
// Per KV head, written by pack.cpp and read by every query block; a tile occupies tile_stride keys of each. A worker
// that takes whole heads packs each where the one before was, in its cache. Where there is one block of queries
// (decoding) nothing would be read twice: the head then has room for one tile, which is packed when its turn comes and
// never leaves the cache. Codes that so few queries read are not packed at all (code_product.h).
//   k_codes u8  [num_tiles][tile_stride / 16][D/4][16 keys][4 channels]: code + 128, for instructions that take u8 x s8
//   v_codes s8  [num_tiles][tile_stride / 64][channel_groups][16 quads][16 channels][4 keys]: the 16 quads of keys of
//               each 64 stand in the order in which softmax.cpp leaves P's bytes
//   v_float f32 [num_tiles][tile_stride][channel_groups * 16]: instead of v_codes for Precision::kInt8QK
//   k_scale f32 [num_tiles][tile_stride]; v_scale, v_inverse f32 [channel_groups * 16]; k_mean f32 [256]
//   bad     u8  [num_tiles][tile_stride]: non-finite tokens, kBadK and kBadV
// Per worker: the state of one query block (struct Block).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "intfa/attention.h"

namespace intfa::cpu {

constexpr int kGroup = 16;        // keys (K) or channels (V) that lie side by side in a packed buffer
constexpr int kChunk = 64;        // keys whose P codes are made and multiplied together
constexpr int kRows = 16;         // query rows that one call of a kernel handles
constexpr int kFewRows = 8;       // query rows up to which codes are not packed; with 12 it pays (AVX-512, Zen 5)
constexpr int kBlockRows = 64;    // query rows of a task; they share each K/V tile while it is in the cache
constexpr int kManyTiles = 4;     // tiles from which the next rows are worth asking for
constexpr int kChannelStep = 64;  // channels of a row of codes that are multiplied together where they lie
constexpr int kMaxHeadDim = 256;
constexpr int kDefaultTileN = 128;
constexpr int kMaxTileN = 4096;
constexpr size_t kAlignment = 64;

constexpr float kHalfOverflow = 65520.f;  // rounds to infinity in float16

constexpr uint8_t kBadK = 1;
constexpr uint8_t kBadV = 2;

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The packed form of one KV head.
struct PackedHead {
  uint8_t* k_codes = nullptr;
  int8_t* v_codes = nullptr;
  float* v_float = nullptr;
  float* k_scale = nullptr;
  float* v_scale = nullptr;
  float* v_inverse = nullptr;  // what V's codes are made with; not set for static scales
  float* k_mean = nullptr;     // zeros without smoothing
  uint8_t* bad = nullptr;      // null for INT8
  int32_t* any_bad = nullptr;  // kBadK | kBadV
};

// State of one block of query rows. Row r is query r % seqlen_q of the r / seqlen_q-th head of the group.
struct Block {
  int8_t* q_codes = nullptr;     // [kBlockRows][D]
  int32_t* q_sum = nullptr;      // [kBlockRows] sum of the codes
  float* row_factor = nullptr;   // [kBlockRows] q_scale * softmax_scale * log2 e
  float* row_offset = nullptr;   // [kBlockRows] softmax_scale * q.k_mean * log2 e
  float* row_max = nullptr;      // [kBlockRows] running max, log2
  float* row_sum = nullptr;      // [kBlockRows]
  float* alpha = nullptr;        // [kRows] what the old output is multiplied by
  float* beta = nullptr;         // [kRows] what the new product is multiplied by
  int32_t* key_begin = nullptr;  // [kBlockRows] attended keys of each row
  int32_t* key_end = nullptr;
  uint8_t* bad_row = nullptr;  // [kBlockRows] non-finite query
  float* output = nullptr;     // [kBlockRows][output_width]
  float* scores = nullptr;     // [kRows][tile_stride] int32 scores, then float32 scores, then float P (kInt8QK)
  uint8_t* p = nullptr;        // [kRows][tile_stride]
  float* bias = nullptr;       // [kRows][tile_stride] mask, log2
};

struct Layout {
  enum class Heads { kAsNeeded, kWhole };  // kWhole: all tiles of a head at once
  Layout(const AttentionProblem& problem, int num_threads, Heads heads = Heads::kAsNeeded);

  int64_t tile_n, tile_stride, num_tiles, padded_keys, channel_groups, blocks_per_head;
  bool whole_heads;
  bool in_place;         // the products take the caller's codes
  int64_t output_width;  // channels of a row of Block::output
  int64_t num_kv_heads;  // B * Hkv
  int num_workers;
  bool head_by_head;  // a worker takes a head with all its blocks
  size_t head_bytes = 0, block_bytes = 0;

  int64_t padded_channels() const { return channel_groups * kGroup; }
  // Where a tile starts in the packed buffers of its head, in keys.
  int64_t packed_start(int64_t tile) const { return whole_heads ? tile * tile_stride : 0; }
  // Where key j stands in PackedHead::bad, which always has all keys.
  int64_t bad_index(int64_t j) const { return j / tile_n * tile_stride + j % tile_n; }
  int64_t num_packed() const { return head_by_head ? num_workers : num_kv_heads; }  // heads at a time
  size_t bytes() const { return num_packed() * head_bytes + num_workers * block_bytes; }
  PackedHead packed(void* workspace, int64_t index) const;
  Block block(void* workspace, int worker) const;

 private:
  template <typename Visit>
  void visit_head(PackedHead& head, Visit visit) const;
  template <typename Visit>
  void visit_block(Block& block, Visit visit) const;
  bool half_pv;
  bool finite;  // INT8: nothing to note in PackedHead::bad
  int64_t head_dim;
};

}  // namespace intfa::cpu
