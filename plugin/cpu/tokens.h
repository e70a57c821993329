// The rows of K or V of one head, in the caller's memory.
#pragma once

#include "cpu/layout.h"

namespace intfa::cpu {

// What stands for a token past the last one.
template <typename T>
alignas(kAlignment) constexpr T kZeros[kMaxHeadDim] = {};

// Past tokens first, then new ones.
template <typename T>
struct TokenRows {
  const T* past;
  const T* fresh;
  int64_t seqlen_past, token_stride, channels;

  const T* operator()(int64_t j) const {
    return j < seqlen_past ? past + j * channels : fresh + (j - seqlen_past) * token_stride;
  }

  int64_t stride_at(int64_t j) const { return j < seqlen_past ? channels : token_stride; }

  // Tokens j to j + 3 of the first `count`.
  void four(int64_t j, int64_t count, const T** rows) const {
    const bool in_past = j + 4 <= seqlen_past;
    if (!in_past && (j < seqlen_past || j + 4 > count)) {
      for (int64_t i = 0; i < 4; ++i) rows[i] = j + i < count ? (*this)(j + i) : kZeros<T>;
      return;
    }
    const int64_t stride = in_past ? channels : token_stride;
    rows[0] = (*this)(j);
    for (int i = 1; i < 4; ++i) rows[i] = rows[i - 1] + stride;
  }
};

template <typename T>
TokenRows<T> token_rows(const void* past, const void* fresh, const AttentionProblem& p, const TensorStrides& strides,
                        int64_t channels, int64_t batch, int64_t kv_head) {
  const T* past_rows = static_cast<const T*>(past);
  const T* fresh_rows = static_cast<const T*>(fresh);
  if (past_rows != nullptr) past_rows += (batch * p.kv_num_heads + kv_head) * p.seqlen_past * channels;
  if (fresh_rows != nullptr) fresh_rows += batch * strides.batch + kv_head * strides.head;
  return {past_rows, fresh_rows, p.seqlen_past, strides.token, channels};
}

template <typename T>
TokenRows<T> key_rows(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head) {
  return token_rows<T>(t.past_key, t.k, p, p.k_strides, p.head_dim, batch, kv_head);
}

template <typename T>
TokenRows<T> value_rows(const AttentionProblem& p, const AttentionTensors& t, int64_t batch, int64_t kv_head) {
  return token_rows<T>(t.past_value, t.v, p, p.v_strides, p.head_dim_v, batch, kv_head);
}

}  // namespace intfa::cpu
