// The numeric rules that every backend shares: scales, which keys a query attends to, and mask values.
// Plain functions of plain values, usable in host and device code alike.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "intfa/attention.h"

#ifdef __CUDACC__
#define INTFA_HOST_DEVICE __host__ __device__
#else
#define INTFA_HOST_DEVICE
#endif

namespace intfa {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMaxCode = 127.f;   // of Q, K, V; -128 is never used
constexpr float kMaxPCode = 255.f;  // of P under Scheme::kTile

// Rounds a positive scale up to 22 significant bits, so that scale * integer code < 2^2 stays exact in float32 after
// one fused multiply-add (the CUDA kernels remove a bias that way).
INTFA_HOST_DEVICE inline float round_up_22_bits(float scale) {
  uint32_t bits;
  memcpy(&bits, &scale, sizeof bits);
  bits = (bits + 3u) & ~3u;
  memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// One symmetric scale and what codes are made with: code = rint(x * inverse), clamped to [-127, 127].
struct Quantizer {
  float scale = 1.f;
  float inverse = 1.f;
};

// amax: largest magnitude of the group, finite. A group of zeros gets scale 1, and so does one whose scale or inverse
// would leave the normal float32 numbers (amax under 2^-119): its codes are 0.
INTFA_HOST_DEVICE inline Quantizer quantizer(float amax) {
  if (amax < 0x1p-119f) return {1.f, 1.f};
  return {amax / kMaxCode, kMaxCode / amax};
}

INTFA_HOST_DEVICE inline Quantizer k_quantizer(float amax) {
  if (amax < 0x1p-119f) return {1.f, 1.f};
  const float scale = round_up_22_bits(amax / kMaxCode);
  return {scale, 1.f / scale};
}

INTFA_HOST_DEVICE inline float softmax_scale(const AttentionProblem& p) {
  return p.softmax_scale != 0.f ? p.softmax_scale : 1.f / sqrtf(static_cast<float>(p.head_dim));
}

// Keys of a batch entry that are not padding. nonpad: nonpad_kv_seqlen, or null.
INTFA_HOST_DEVICE inline int64_t valid_keys(const AttentionProblem& p, const int64_t* nonpad, int64_t batch) {
  const int64_t all = p.seqlen_past + p.seqlen_new;
  if (nonpad == nullptr) return all;
  return nonpad[batch] < 0 ? 0 : nonpad[batch] < all ? nonpad[batch] : all;
}

// Key position of query 0; see CausalAlignment.
INTFA_HOST_DEVICE inline int64_t causal_offset(const AttentionProblem& p, const int64_t* nonpad, int64_t batch) {
  if (nonpad != nullptr) return nonpad[batch] - p.seqlen_q;
  return p.causal_alignment == CausalAlignment::kLowerRight ? p.seqlen_past + p.seqlen_new - p.seqlen_q : p.seqlen_past;
}

struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Keys that query i may attend to before the mask tensor is looked at.
// offset: causal_offset; num_keys: valid keys, at most those that the mask covers.
INTFA_HOST_DEVICE inline KeyRange attended_keys(const AttentionProblem& p, int64_t i, int64_t offset,
                                                int64_t num_keys) {
  int64_t begin = 0, end = num_keys;
  const int64_t position = i + offset;
  if (p.causal && position + 1 < end) end = position + 1;
  if (p.window_right >= 0 && position + p.window_right + 1 < end) end = position + p.window_right + 1;
  if (p.window_left >= 0 && position - p.window_left > begin) begin = position - p.window_left;
  if (end < begin) end = begin;
  return {begin, end};
}

// A mask value in nats as it is added to log2 scores: -inf excludes the key, any finite value stays finite.
INTFA_HOST_DEVICE inline float mask_log2(float value) {
  if (value == -INFINITY) return value;
  const float scaled = value * kLog2E;
  return scaled < -FLT_MAX ? -FLT_MAX : scaled;
}

}  // namespace intfa
