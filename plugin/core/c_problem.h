// The C interface's structures as the core's.
#pragma once

#include "intfa/attention.h"
#include "intfa/c_api.h"

namespace intfa {

inline TensorStrides strides(const int64_t (&s)[3]) { return {s[0], s[1], s[2]}; }

inline AttentionProblem to_problem(const intfa_problem& c) {
  AttentionProblem p;
  p.batch = c.batch;
  p.num_heads = c.num_heads;
  p.kv_num_heads = c.kv_num_heads;
  p.seqlen_q = c.seqlen_q;
  p.seqlen_new = c.seqlen_new;
  p.seqlen_past = c.seqlen_past;
  p.head_dim = c.head_dim;
  p.head_dim_v = c.head_dim_v;
  p.dtype = static_cast<DataType>(c.dtype);
  p.output_dtype = static_cast<DataType>(c.output_dtype);
  p.q_strides = strides(c.q_strides);
  p.k_strides = strides(c.k_strides);
  p.v_strides = strides(c.v_strides);
  p.y_strides = strides(c.y_strides);
  p.softmax_scale = static_cast<float>(c.softmax_scale);
  p.softcap = static_cast<float>(c.softcap);
  p.causal = c.causal != 0;
  p.causal_alignment = static_cast<CausalAlignment>(c.causal_alignment);
  p.window_left = c.window_left;
  p.window_right = c.window_right;
  p.mask = {c.mask_present != 0, static_cast<DataType>(c.mask_dtype),
            c.mask_strides[0],   c.mask_strides[1],
            c.mask_strides[2],   c.mask_strides[3],
            c.mask_seqlen_kv};
  p.has_nonpad_kv_seqlen = c.has_nonpad_kv_seqlen != 0;
  p.precision = static_cast<Precision>(c.precision);
  p.scheme = static_cast<Scheme>(c.scheme);
  p.k_granularity = static_cast<KGranularity>(c.k_granularity);
  p.smooth_k = c.smooth_k != 0;
  p.tile_n = c.tile_n;
  p.q_scale = static_cast<ScaleGranularity>(c.q_scale);
  p.k_scale = static_cast<ScaleGranularity>(c.k_scale);
  p.v_scale = static_cast<ScaleGranularity>(c.v_scale);
  return p;
}

inline AttentionTensors to_tensors(const intfa_tensors& c) {
  AttentionTensors t;
  t.q = c.q;
  t.k = c.k;
  t.v = c.v;
  t.past_key = c.past_key;
  t.past_value = c.past_value;
  t.mask = c.mask;
  t.nonpad_kv_seqlen = c.nonpad_kv_seqlen;
  t.q_scale = c.q_scale;
  t.k_scale = c.k_scale;
  t.v_scale = c.v_scale;
  t.y = c.y;
  t.present_key = c.present_key;
  t.present_value = c.present_value;
  t.lse = c.lse;
  return t;
}

}  // namespace intfa
