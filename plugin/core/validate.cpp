// What every backend requires of a problem, and each refusal in words: value found, what is supported, remedy.
#include <cmath>
#include <sstream>

#include "core/backend.h"

namespace intfa {
namespace {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
Status invalid(const Parts&... parts) {
  return {StatusCode::kInvalidArgument, text(parts...)};
}

template <typename... Parts>
Status unsupported(const Parts&... parts) {
  return {StatusCode::kUnsupported, text(parts...)};
}

const char* name(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return "float32";
    case DataType::kFloat16:
      return "float16";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kInt8:
      return "int8";
    case DataType::kBool:
      return "bool";
  }
  return "unknown";
}

const char* name(ScaleGranularity granularity) {
  switch (granularity) {
    case ScaleGranularity::kNone:
      return "none";
    case ScaleGranularity::kPerTensor:
      return "per tensor";
    case ScaleGranularity::kPerHead:
      return "per head";
    case ScaleGranularity::kPerChannel:
      return "per channel";
  }
  return "unknown";
}

bool is_float(DataType dtype) {
  return dtype == DataType::kFloat32 || dtype == DataType::kFloat16 || dtype == DataType::kBFloat16;
}

Status check_head_dim(const char* which, int64_t value) {
  if (value >= 8 && value <= 256 && value % 8 == 0) return {};
  return unsupported(which, "=", value, " is unsupported (supported: multiples of 8 from 8 to 256). ",
                     "Keep this attention in float (--skip), or pad the head with zeros");
}

// The C interface takes enumerations as integers, and a caller's may be none of them.
Status check_choices(const AttentionProblem& p) {
  struct Choice {
    const char* which;
    int value, count;
  };
  for (const Choice& choice :
       {Choice{"precision", static_cast<int>(p.precision), 2}, Choice{"scheme", static_cast<int>(p.scheme), 2},
        Choice{"k_granularity", static_cast<int>(p.k_granularity), 3},
        Choice{"causal_alignment", static_cast<int>(p.causal_alignment), 2},
        Choice{"q_scale", static_cast<int>(p.q_scale), 4}, Choice{"k_scale", static_cast<int>(p.k_scale), 4},
        Choice{"v_scale", static_cast<int>(p.v_scale), 4}})
    if (choice.value < 0 || choice.value >= choice.count)
      return invalid(choice.which, "=", choice.value,
                     " is no value of its enumeration in intfa/attention.h (supported: 0 to ", choice.count - 1, ")");
  return {};
}

Status check_shapes(const AttentionProblem& p) {
  if (p.batch < 0 || p.seqlen_q < 0 || p.seqlen_new < 0 || p.seqlen_past < 0)
    return invalid("negative size: batch=", p.batch, " seqlen_q=", p.seqlen_q, " seqlen_new=", p.seqlen_new,
                   " seqlen_past=", p.seqlen_past);
  if (p.num_heads <= 0 || p.kv_num_heads <= 0 || p.num_heads % p.kv_num_heads != 0)
    return invalid("num_heads=", p.num_heads, " is not a positive multiple of kv_num_heads=", p.kv_num_heads,
                   "; check q_num_heads and kv_num_heads");
  if (Status s = check_head_dim("head_dim", p.head_dim); !s.ok()) return s;
  if (Status s = check_head_dim("head_dim_v", p.head_dim_v); !s.ok()) return s;
  for (const TensorStrides* strides : {&p.q_strides, &p.k_strides, &p.v_strides, &p.y_strides})
    if (strides->batch < 0 || strides->head < 0 || strides->token < 0)
      return invalid("negative stride (batch ", strides->batch, ", head ", strides->head, ", token ", strides->token,
                     "); strides are in elements and at least 0");
  constexpr int64_t kMaxTokens = int64_t{1} << 31;
  if (p.seqlen_q >= kMaxTokens || p.seqlen_new >= kMaxTokens || p.seqlen_past >= kMaxTokens ||
      p.seqlen_kv() >= kMaxTokens)
    return unsupported("seqlen_q=", p.seqlen_q, " seqlen_new=", p.seqlen_new, " seqlen_past=", p.seqlen_past,
                       " (supported: under 2^31 tokens, past and new together)");
  return {};
}

Status check_types(const AttentionProblem& p) {
  if (!is_float(p.dtype) && p.dtype != DataType::kInt8)
    return unsupported("Q, K, V of type ", name(p.dtype), " (supported: float32, float16, bfloat16, int8)");
  if (!is_float(p.output_dtype))
    return unsupported("output of type ", name(p.output_dtype), " (supported: float32, float16, bfloat16)",
                       p.dtype == DataType::kInt8 ? "; int8 inputs need the attribute output_dtype" : "");
  if (p.mask.present && p.mask.dtype != DataType::kBool && !is_float(p.mask.dtype))
    return unsupported("attn_mask of type ", name(p.mask.dtype), " (supported: bool, float32, float16, bfloat16)");
  if (p.mask.present && (p.mask.seqlen_kv < 0 || p.mask.seqlen_kv > p.seqlen_kv()))
    return invalid("attn_mask covers ", p.mask.seqlen_kv, " keys of ", p.seqlen_kv());
  return {};
}

Status check_numbers(const AttentionProblem& p) {
  if (!std::isfinite(p.softmax_scale) || p.softmax_scale < 0.f)
    return invalid("scale=", p.softmax_scale, " (supported: positive, or 0 for 1/sqrt(head_dim))");
  if (!std::isfinite(p.softcap) || p.softcap < 0.f)
    return invalid("softcap=", p.softcap, " (supported: positive, or 0 for none)");
  constexpr int64_t kMaxWindow = int64_t{1} << 40;  // beyond any key; its sum with a position does not overflow
  if (p.window_left < -1 || p.window_right < -1 || p.window_left > kMaxWindow || p.window_right > kMaxWindow)
    return invalid("window_left=", p.window_left, " window_right=", p.window_right,
                   " (supported: 0 to 2^40, or -1 for unbounded)");
  if (p.tile_n < 0 || p.tile_n % 16 != 0)
    return unsupported("tile_n=", p.tile_n, " (supported: multiples of 16, or 0 for the backend's choice)");
  return {};
}

Status check_scales(const AttentionProblem& p) {
  struct Scale {
    const char* which;
    ScaleGranularity granularity;
    bool per_channel_allowed;
  };
  for (const Scale& scale :
       {Scale{"q_scale", p.q_scale, false}, Scale{"k_scale", p.k_scale, false}, Scale{"v_scale", p.v_scale, true}}) {
    if (scale.granularity == ScaleGranularity::kPerChannel && !scale.per_channel_allowed)
      return unsupported(scale.which, " ", name(scale.granularity), " (supported: per tensor, per head)");
    if (p.dtype == DataType::kInt8 && scale.granularity == ScaleGranularity::kNone)
      return invalid(scale.which, " is missing: int8 Q, K, V need q_scale, k_scale and v_scale");
  }
  return {};
}

}  // namespace

Status validate_problem(const AttentionProblem& problem) {
  for (auto check : {check_choices, check_shapes, check_types, check_numbers, check_scales})
    if (Status s = check(problem); !s.ok()) return s;
  return {};
}

Status validate_tensors(const AttentionProblem& p, const AttentionTensors& t) {
  struct Need {
    const char* which;
    bool needed;
    const void* pointer;
  };
  const bool queries = p.batch > 0 && p.seqlen_q > 0;
  const bool keys = p.batch > 0 && p.seqlen_new > 0;
  const bool past = p.batch > 0 && p.seqlen_past > 0;
  for (const Need& need : {Need{"q", queries, t.q}, Need{"y", queries, t.y}, Need{"k", keys, t.k}, Need{"v", keys, t.v},
                           Need{"past_key", past, t.past_key}, Need{"past_value", past, t.past_value},
                           Need{"mask", p.mask.present && queries && p.mask.seqlen_kv > 0, t.mask},
                           Need{"nonpad_kv_seqlen", p.has_nonpad_kv_seqlen && p.batch > 0, t.nonpad_kv_seqlen},
                           Need{"q_scale", p.q_scale != ScaleGranularity::kNone, t.q_scale},
                           Need{"k_scale", p.k_scale != ScaleGranularity::kNone, t.k_scale},
                           Need{"v_scale", p.v_scale != ScaleGranularity::kNone, t.v_scale},
                           Need{"workspace", queries || keys || past, t.workspace}})
    if (need.needed && need.pointer == nullptr) return invalid("the problem needs ", need.which, ", which is null");
  return {};
}

std::string describe(const AttentionProblem& p) {
  std::string line = text(
      "B=", p.batch, " Hq=", p.num_heads, " Hkv=", p.kv_num_heads, " Sq=", p.seqlen_q, " Skv=", p.seqlen_kv(),
      " past=", p.seqlen_past, " D=", p.head_dim, " Dv=", p.head_dim_v, " ", name(p.dtype), "->", name(p.output_dtype),
      p.precision == Precision::kInt8 ? " int8" : " int8_qk", p.scheme == Scheme::kTile ? " tile" : " paper");
  if (p.causal) line += p.causal_alignment == CausalAlignment::kStandard ? " causal" : " causal(lower_right)";
  if (p.window_left >= 0 || p.window_right >= 0) line += text(" window=", p.window_left, ",", p.window_right);
  if (p.softcap > 0.f) line += text(" softcap=", p.softcap);
  if (p.mask.present) line += text(" mask=", name(p.mask.dtype));
  if (p.has_nonpad_kv_seqlen) line += " nonpad_kv_seqlen";
  return line;
}

}  // namespace intfa
