// The core's whole public face: a problem, its tensors, and three functions. Host runtimes (ONNX Runtime, TensorRT, the
// C ABI) fill these structs and nothing else; no type of theirs appears here.
//
// Notation: B batch, Hq query heads, Hkv key/value heads, Sq queries, Skv keys in all (past included), D and Dv head
// sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "intfa/status.h"

namespace intfa {

enum class Device { kCpu, kCuda };
enum class DataType { kFloat32, kFloat16, kBFloat16, kInt8, kBool };

// kInt8: both products in INT8. kInt8QK: the paper's half INT8, P.V in 16-bit floating point.
enum class Precision { kInt8, kInt8QK };

// kTile: P quantized per row per tile (the default). kPaper: INT-FlashAttention as published, arXiv 2409.16997.
enum class Scheme { kTile, kPaper };

// Granularity of k_scale. kAuto: the backend's documented choice. kGroup: 4 scales per tile, by (j % 8) / 2.
enum class KGranularity { kAuto, kToken, kGroup };

// Query i sits at key position i + offset; causal and window limits are relative to it.
// kStandard is ONNX Attention's rule: offset = seqlen_past, or nonpad_kv_seqlen[b] - Sq where that input is given, else
// 0. kLowerRight: offset = Skv - Sq, the last query sees the last key.
enum class CausalAlignment { kStandard, kLowerRight };

enum class ScaleGranularity { kNone, kPerTensor, kPerHead, kPerChannel };

// Strides in elements of a [batch, heads, tokens, channels] view; channels are contiguous. BHSD and BSHD are both such
// views.
struct TensorStrides {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t token = 0;
};

struct MaskProblem {
  bool present = false;
  DataType dtype =
      DataType::kBool;  // kBool: true = attend. Otherwise a float type, added to the scaled scores (in nats).
  // Strides in elements over [B, Hq, Sq, Skv]; 0 where the dimension is broadcast.
  int64_t stride_batch = 0;
  int64_t stride_head = 0;
  int64_t stride_query = 0;
  int64_t stride_key = 0;
  int64_t seqlen_kv = 0;  // keys the mask covers; keys beyond are masked out (ONNX allows a mask shorter than Skv)
};

struct AttentionProblem {
  int64_t batch = 0;
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;  // num_heads % kv_num_heads == 0
  int64_t seqlen_q = 0;
  int64_t seqlen_new = 0;   // keys in `k`
  int64_t seqlen_past = 0;  // keys in `past_key`; Skv = seqlen_past + seqlen_new
  int64_t head_dim = 0;
  int64_t head_dim_v = 0;

  DataType dtype = DataType::kFloat32;  // of q, k, v and of the past and present caches
  DataType output_dtype = DataType::kFloat32;
  TensorStrides q_strides, k_strides, v_strides, y_strides;  // the caches are always contiguous [B, Hkv, S, D]

  float softmax_scale = 0.f;  // 0: 1/sqrt(head_dim)
  float softcap = 0.f;        // 0: none
  bool causal = false;
  CausalAlignment causal_alignment = CausalAlignment::kStandard;
  int64_t window_left = -1;  // -1: unbounded
  int64_t window_right = -1;
  MaskProblem mask;
  bool has_nonpad_kv_seqlen = false;

  Precision precision = Precision::kInt8;
  Scheme scheme = Scheme::kTile;
  KGranularity k_granularity = KGranularity::kAuto;
  bool smooth_k = true;  // no effect where k_scale is given
  int64_t tile_n = 0;    // keys per tile, part of the numerics; 0: the backend's choice

  ScaleGranularity q_scale = ScaleGranularity::kNone;
  ScaleGranularity k_scale = ScaleGranularity::kNone;
  ScaleGranularity v_scale = ScaleGranularity::kNone;

  int64_t seqlen_kv() const { return seqlen_past + seqlen_new; }
};

struct AttentionTensors {
  const void* q = nullptr;           // [B, Hq, Sq, D] through q_strides
  const void* k = nullptr;           // [B, Hkv, seqlen_new, D]
  const void* v = nullptr;           // [B, Hkv, seqlen_new, Dv]
  const void* past_key = nullptr;    // [B, Hkv, seqlen_past, D]
  const void* past_value = nullptr;  // [B, Hkv, seqlen_past, Dv]
  const void* mask = nullptr;
  const int64_t* nonpad_kv_seqlen = nullptr;  // [B]
  const float* q_scale = nullptr;             // x ~ scale * code, as DequantizeLinear
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
  void* y = nullptr;              // [B, Hq, Sq, Dv] through y_strides
  void* present_key = nullptr;    // optional [B, Hkv, Skv, D]
  void* present_value = nullptr;  // optional [B, Hkv, Skv, Dv]
  float* lse = nullptr;           // optional [B, Hq, Sq], natural log
  void* workspace = nullptr;      // 64-byte aligned (CPU) or 256-byte aligned (CUDA), workspace_bytes() long
};

// Runs fn(context, task) for task in [0, tasks), in any order and on any threads, and returns when all are done.
using ParallelFor = void (*)(void* pool, void (*fn)(void* context, size_t task), size_t tasks, void* context);

struct Execution {
  Device device = Device::kCpu;
  void* stream = nullptr;              // CUDA: the caller's cudaStream_t
  bool up_to = false;                  // CUDA: workspace_bytes() is for smaller batches and fewer tokens, too
  ParallelFor parallel_for = nullptr;  // CPU: null runs on the calling thread
  void* pool = nullptr;
  int num_threads = 1;  // CPU: a hint for splitting the work; the result does not depend on it
};

// All three check the problem first and say what is wrong; none throws.
Status validate(const AttentionProblem& problem, Device device);
Status workspace_bytes(const AttentionProblem& problem, const Execution& execution, size_t* bytes);
Status run(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution);

}  // namespace intfa
