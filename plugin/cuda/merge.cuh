// Merges attention over parts of the keys (split-KV) through their lse:
//   lse = log sum_s exp(lse_s),   Y = sum_s exp(lse_s - lse) * Y_s
//
// With few queries and many keys (decoding) one CTA per row tile and head would leave most of the GPU idle; so the keys
// are split among CTAs, each of which writes a normalized partial result. One warp per row. A part without keys has lse
// -inf and weight 0; a NaN in a part reaches what it belongs to: its channel through Y_s, the row through lse_s.
// Source: FlashDecoding.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/ptx.cuh"
#include "cuda/traits.cuh"

namespace intfa::cuda {

INTFA_DEVICE void merge(const MergeParams& params) {
  const AttentionParams& out = params.out;
  const int lane = threadIdx.x & 31, query = blockIdx.x * (kMergeThreads / 32) + (threadIdx.x >> 5);
  if (query >= out.seqlen_q) return;
  const int head = blockIdx.y, batch = blockIdx.z;
  const int64_t row = (static_cast<int64_t>(batch) * out.num_heads + head) * out.seqlen_q + query;
  const int64_t rows = static_cast<int64_t>(gridDim.z) * out.num_heads * out.seqlen_q;

  float top = -INFINITY;
  for (int s = 0; s < params.num_splits; ++s) top = fmaxf(top, params.lse[s * rows + row]);
  if (top == -INFINITY) top = 0.f;
  float sum = 0.f;
  for (int s = 0; s < params.num_splits; ++s) {
    sum = ptx::add_rn(sum, ptx::ex2(ptx::mul_rn(ptx::add_rn(params.lse[s * rows + row], -top), kLog2E)));
  }
  const float inverse = sum == 0.f ? 0.f : ptx::div_rn(1.f, sum);
  const int64_t index = batch * out.y_batch + head * out.y_head + query * out.y_token;
  for (int c = 2 * lane; c < out.head_dim_v; c += 64) {
    float y0 = 0.f, y1 = 0.f;
    for (int s = 0; s < params.num_splits; ++s) {
      const float weight = ptx::ex2(ptx::mul_rn(ptx::add_rn(params.lse[s * rows + row], -top), kLog2E));
      const float2 y = ptx::ld_global<float2>(params.y + (s * rows + row) * out.head_dim_v + c);
      y0 = ptx::fma_rn(weight, y.x, y0);
      y1 = ptx::fma_rn(weight, y.y, y1);
    }
    store2(out, index, c, ptx::mul_rn(y0, inverse), ptx::mul_rn(y1, inverse));
  }
  if (out.lse != nullptr && lane == 0) {
    out.lse[row] = sum == 0.f ? -INFINITY : ptx::fma_rn(ptx::lg2(sum), kLn2, top);
  }
}

}  // namespace intfa::cuda
