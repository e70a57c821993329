// Constants and parameter blocks that the prologue, the attention kernels and their launcher share.
//
// Notation: B batch, Hq query heads, Hkv key/value heads, Sq queries, Skv keys (past included), Sp = Skv rounded up to
// whole tiles, Dp = the head size rounded up to one that has a kernel (32, 64, 96, 128, 256), for K and V alike.
#pragma once

#include <cstdint>

#include "cuda/row_map.cuh"
#include "intfa/attention.h"

namespace intfa::cuda {

constexpr int kTileN = 64;     // keys per tile: part of the numerics (one scale of P per row per tile)
constexpr int kNumWarps = 4;   // of the attention kernel
constexpr int kNumStages = 2;  // K/V tiles in shared memory
constexpr int kPrologueThreads = 256;
constexpr int kMergeThreads = 128;
constexpr int kMaxChunks = 32;  // partial statistics per head: few enough that every quantizing CTA can sum them up

// What the two products are computed in.
//   kTileInt8    P as u8 with one scale per row per tile, V as s8 with one scale per channel
//   kPaperInt8   P as s8 against the running max, V as s8 with one scale per head (arXiv 2409.16997)
//   kHalfPV      P and V as float16
enum class Arithmetic { kTileInt8, kPaperInt8, kHalfPV };

// A float tensor seen as [B, heads, tokens, channels], channels contiguous; `vector4`: any four channels from a
// multiple of four are aligned to their own size, so one load or store moves them.
struct View {
  const void* data = nullptr;
  int64_t batch = 0, head = 0, token = 0;  // strides in elements
  bool vector4 = false;
};

// INT8 K where the caller has it: its rows and strides are multiples of 16 bytes.
struct CodeView {
  const char* data = nullptr;
  int64_t batch = 0, head = 0;
  uint32_t token = 0;
};

// Marks of non-finite input inside the packed tensors. They are values that no finite input produces.
constexpr int8_t kNonFiniteCode = -128;      // V^T as s8: codes end at -127
constexpr uint16_t kNonFiniteHalf = 0x8000;  // V^T as float16: -0, which finite input writes as +0
                                             // K: the key's k_scale is NaN and its codes are 0

// How the 16-byte chunks of an operand's rows lie in a packed tile.
//   kRows          row after row; the kernel places them in shared memory
//   kCoreMatrices  eight rows of one chunk after each other, then their next chunk, then the next eight rows: as wgmma
//                  reads an operand without a swizzle, so that bulk copies bring it ready for use
enum class ChunkOrder { kRows, kCoreMatrices };

// One packed tile of kTileN keys: K, V^T and k_scale behind each other, in the order in which a CTA copies them to
// shared memory.
//   K        [kTileN, Dp] s8, rows in packed_row order; zero beyond Skv and D. Not written where K is read in place
//   V^T      [Dp, kTileN] s8, or float16 in packed_row order; zero beyond Skv and Dv
//   k_scale  [kTileN] f32, 22 significant bits; 1 beyond Skv
template <int kDim, bool kHalfV>
struct PackedTile {
  static constexpr int kElementV = kHalfV ? 2 : 1;
  static constexpr int kV = kTileN * kDim;  // byte offsets
  static constexpr int kScale = kV + kDim * kTileN * kElementV;
  static constexpr int kBytes = kScale + 4 * kTileN;
};

// The packed K and V, in the caller's workspace; [B*Hkv] is the slowest dimension of all.
struct Packed {
  char* tiles = nullptr;     // [B*Hkv, Sp/kTileN] of PackedTile
  float* k_mean = nullptr;   // [B*Hkv, Dp], what smoothing took off; null without smoothing
  float* v_scale = nullptr;  // [B*Hkv, Dp]; 0 for a channel of zeros
  uint32_t* tile_flags =
      nullptr;  // [2, B*Hkv, Sp/kTileN]: nonzero where a K (plane 0) or V (plane 1) tile has non-finite input
};

struct PrologueParams {
  int batch, kv_num_heads, seqlen_past, seqlen_kv, num_tiles, head_dim, head_dim_v;
  int num_chunks, chunk_tokens;  // of the statistics
  DataType dtype;
  View k, v;                        // new tokens [B, Hkv, seqlen_new, D]
  View past_key, past_value;        // [B, Hkv, seqlen_past, D]
  const int64_t* nonpad_kv_seqlen;  // [B] or null
  const float *k_scale, *v_scale;   // static scales or null
  ScaleGranularity k_scale_kind, v_scale_kind;
  bool smooth, group_scale, head_v_scale, half_v;
  bool k_statistics, v_statistics;
  bool k_in_place;  // the attention kernel reads K's codes where they are: scales alone
  ChunkOrder order;
  void *present_key, *present_value;  // [B, Hkv, Skv, D] or null
  float* partial_sum;                 // [B*Hkv, num_chunks, Dp]: of K, over finite valid tokens
  float* partial_count;               // [B*Hkv, num_chunks]: how many they are
  float* partial_amax;                // [B*Hkv, num_chunks, Dp]: of V
  Packed packed;
};

struct MaskParams {
  const void* data;
  DataType dtype;
  int64_t batch, head, query, key;  // strides in elements, 0 where broadcast
  bool vector4;                     // four keys from a multiple of four load at once
  bool same_rows;                   // rows of a head have the same terms: padding, mostly
};

struct AttentionParams {
  int batch, num_heads, heads_per_kv, kv_num_heads, seqlen_q, seqlen_kv, num_tiles, head_dim, head_dim_v;
  RowMap rows;
  View q;  // [B, Hq, Sq, D]
  DataType q_dtype;
  const float* q_scale;  // static, or null: one per token, made in the kernel
  ScaleGranularity q_scale_kind;
  Packed packed;
  int k_in_place;                    // K's codes come from k and past_key, not from `packed`
  int seqlen_past;                   // in past_key
  CodeView k, past_key;              // [B, Hkv, seqlen_new, Dp], [B, Hkv, seqlen_past, Dp]
  void* y;                           // [B, Hq, Sq, Dv]
  int64_t y_batch, y_head, y_token;  // strides in elements
  bool y_pairs;                      // two channels from an even one are aligned to their own size
  DataType y_dtype;
  float* lse;                       // [B, Hq, Sq] or null
  float softmax_scale, softcap;     // softcap 0: none
  const int64_t* nonpad_kv_seqlen;  // [B] or null
  int offset;                       // of query 0 among the keys, where nonpad_kv_seqlen does not set it
  bool offset_from_nonpad, causal;
  int window_left, window_right;    // -1: unbounded
  int mask_seqlen_kv;               // keys beyond it are excluded; Skv without a mask
  MaskParams mask;                  // data null: none
  int num_splits, tiles_per_split;  // of the keys among CTAs (the kernel's tiles); each split writes its own Y and lse:
  int64_t split_y, split_lse;       // elements from one split's to the next's
};

struct MergeParams {
  AttentionParams out;  // Y and lse of the call, and its sizes
  int num_splits;
  const float* y;    // [num_splits, B, Hq, Sq, Dv]
  const float* lse;  // [num_splits, B, Hq, Sq]
};

}  // namespace intfa::cuda
