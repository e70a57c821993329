#include "adapters/node.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace intfa::node {
namespace {

std::optional<DataType> data_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return DataType::kFloat32;
    case ElementType::kFloat16:
      return DataType::kFloat16;
    case ElementType::kBFloat16:
      return DataType::kBFloat16;
    case ElementType::kInt8:
      return DataType::kInt8;
    case ElementType::kBool:
      return DataType::kBool;
    default:
      return std::nullopt;
  }
}

// The value that stands for a string attribute.
template <typename Enum>
Enum choose(const char* name, const std::string& value, std::initializer_list<std::pair<const char*, Enum>> choices) {
  std::string supported;
  for (const auto& [choice, result] : choices) {
    if (value == choice) return result;
    supported += supported.empty() ? choice : std::string(", ") + choice;
  }
  refuse("attribute ", name, "='", value, "' is unknown (supported: ", supported, ")");
}

// Q, K or V as [batch, heads, tokens, channels] with strides, from 4-D or 3-D.
struct HeadsView {
  int64_t batch, heads, tokens, channels;
  TensorStrides strides;
};

HeadsView heads_view(const char* name, const Shape& shape, int64_t heads, const char* attribute) {
  if (shape.size() == 4) {
    if (heads > 0 && heads != shape[1])
      refuse(name, " has shape ", text(shape), ", but ", attribute, "=", heads, "; they must agree");
    return {shape[0], shape[1], shape[2], shape[3], {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3]}};
  }
  if (shape.size() != 3)
    refuse(name, " has shape ", text(shape),
           " (supported: [batch, heads, seqlen, head_dim] or [batch, seqlen, heads * head_dim])");
  if (heads <= 0 || shape[2] % heads != 0)
    refuse(name, " has shape ", text(shape), " and ", attribute, "=", heads,
           "; a 3-D input needs a number of heads that divides its last dimension");
  const int64_t channels = shape[2] / heads;
  return {shape[0], heads, shape[1], channels, {shape[1] * shape[2], channels, shape[2]}};
}

void expect_shape(const char* name, const Shape& found, const Shape& expected) {
  if (found != expected) refuse(name, " has shape ", text(found), ", expected ", text(expected));
}

void expect_type(const char* which, const Tensor& tensor, ElementType expected) {
  if (tensor.type != expected) refuse(which, " is ", name(tensor.type), ", expected ", name(expected));
}

void describe_mask(const Tensor& mask, AttentionProblem& p) {
  if (!mask.present) return;
  const auto dtype = data_type(mask.type);
  if (!dtype || *dtype == DataType::kInt8)
    refuse("attn_mask is ", name(mask.type), " (supported: bool, float32, float16, bfloat16)");
  if (mask.shape.empty() || mask.shape.size() > 4)
    refuse("attn_mask has shape ", text(mask.shape), " (supported: 1 to 4 dimensions)");
  const Shape full = {p.batch, p.num_heads, p.seqlen_q, p.seqlen_kv()};
  Shape shape(4 - mask.shape.size(), 1);
  shape.insert(shape.end(), mask.shape.begin(), mask.shape.end());
  Shape strides(4, 0);
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    const bool fits = shape[i] == full[i] || shape[i] == 1 || (i == 3 && shape[i] < full[i]);
    if (!fits) refuse("attn_mask has shape ", text(mask.shape), ", which does not broadcast to ", text(full));
    if (shape[i] != 1) strides[i] = stride;
    stride *= shape[i];
  }
  // a single column is broadcast; a mask of fewer keys than there are excludes the others
  p.mask = {true, *dtype, strides[0], strides[1], strides[2], strides[3], shape[3] == 1 ? full[3] : shape[3]};
}

ScaleGranularity scale_granularity(const char* which, const Tensor& scale, int64_t heads, int64_t channels) {
  if (!scale.present) return ScaleGranularity::kNone;
  expect_type(which, scale, ElementType::kFloat32);
  const Shape& shape = scale.shape;
  if (shape.empty() || shape == Shape{1}) return ScaleGranularity::kPerTensor;
  if (shape == Shape{heads}) return ScaleGranularity::kPerHead;
  if (channels > 0 && shape == Shape{heads, channels}) return ScaleGranularity::kPerChannel;
  refuse(which, " has shape ", text(shape), " (supported: [1], [", heads, "]",
         channels > 0 ? " or " + text({heads, channels}) : "", ")");
}

void set_past(const Inputs& in, AttentionProblem& p) {
  if (in[kPastKey].present != in[kPastValue].present) refuse("past_key and past_value must be given together");
  if (!in[kPastKey].present) return;
  if (in[kPastKey].shape.size() != 4)
    refuse("past_key has shape ", text(in[kPastKey].shape), " (supported: [batch, kv_heads, past, head_dim])");
  p.seqlen_past = in[kPastKey].shape[2];
  expect_shape("past_key", in[kPastKey].shape, {p.batch, p.kv_num_heads, p.seqlen_past, p.head_dim});
  expect_shape("past_value", in[kPastValue].shape, {p.batch, p.kv_num_heads, p.seqlen_past, p.head_dim_v});
}

}  // namespace

const std::array<AttributeField, 15> kAttributeFields = {{{"q_num_heads", &Attributes::q_num_heads},
                                                          {"kv_num_heads", &Attributes::kv_num_heads},
                                                          {"scale", &Attributes::scale},
                                                          {"is_causal", &Attributes::is_causal},
                                                          {"causal_alignment", &Attributes::causal_alignment},
                                                          {"softcap", &Attributes::softcap},
                                                          {"window_left", &Attributes::window_left},
                                                          {"window_right", &Attributes::window_right},
                                                          {"precision", &Attributes::precision},
                                                          {"scheme", &Attributes::scheme},
                                                          {"k_granularity", &Attributes::k_granularity},
                                                          {"smooth_k", &Attributes::smooth_k},
                                                          {"output_dtype", &Attributes::output_dtype},
                                                          {"plugin_inputs", &Attributes::plugin_inputs},
                                                          {"plugin_outputs", &Attributes::plugin_outputs}}};

std::string text(const Shape& shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? "," : "") << shape[i];
  out << ']';
  return out.str();
}

const char* name(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "float32";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    case ElementType::kBool:
      return "bool";
    default:
      return "of another type";
  }
}

AttentionProblem problem_of(const Attributes& a) {
  AttentionProblem p;
  p.causal = a.is_causal != 0;
  constexpr int64_t kFar = int64_t{1} << 40;  // beyond any key; its sum with a position does not overflow
  p.window_left = std::min(a.window_left, kFar);
  p.window_right = std::min(a.window_right, kFar);
  p.smooth_k = a.smooth_k != 0;
  p.softmax_scale = a.scale;
  p.softcap = a.softcap;
  p.causal_alignment = choose<CausalAlignment>(
      "causal_alignment", a.causal_alignment,
      {{"standard", CausalAlignment::kStandard}, {"lower_right", CausalAlignment::kLowerRight}});
  p.precision =
      choose<Precision>("precision", a.precision, {{"int8", Precision::kInt8}, {"int8_qk", Precision::kInt8QK}});
  p.scheme = choose<Scheme>("scheme", a.scheme, {{"tile", Scheme::kTile}, {"paper", Scheme::kPaper}});
  p.k_granularity = choose<KGranularity>(
      "k_granularity", a.k_granularity,
      {{"auto", KGranularity::kAuto}, {"token", KGranularity::kToken}, {"group", KGranularity::kGroup}});
  return p;
}

ElementType output_type(const Attributes& attributes, ElementType q_type) {
  const auto type = attributes.output_dtype != 0 ? static_cast<ElementType>(attributes.output_dtype) : q_type;
  if (type == ElementType::kInt8 && attributes.output_dtype == 0)
    refuse("Q is int8 and output_dtype is not set; set it to 1 (float32), 10 (float16) or 16 (bfloat16)");
  if (type != ElementType::kFloat32 && type != ElementType::kFloat16 && type != ElementType::kBFloat16) {
    if (attributes.output_dtype != 0)
      refuse("output_dtype=", attributes.output_dtype, " (supported: 1 float32, 10 float16, 16 bfloat16)");
    refuse("Q is ", name(q_type), " (supported: float32, float16, bfloat16, int8)");
  }
  return type;
}

AttentionTensors bind(const std::array<const void*, kNumInputs>& inputs,
                      const std::array<void*, kNumOutputs>& outputs) {
  AttentionTensors t;
  t.q = inputs[kQ];
  t.k = inputs[kK];
  t.v = inputs[kV];
  t.past_key = inputs[kPastKey];
  t.past_value = inputs[kPastValue];
  t.mask = inputs[kMask];
  t.nonpad_kv_seqlen = static_cast<const int64_t*>(inputs[kNonpad]);
  t.q_scale = static_cast<const float*>(inputs[kQScale]);
  t.k_scale = static_cast<const float*>(inputs[kKScale]);
  t.v_scale = static_cast<const float*>(inputs[kVScale]);
  t.y = outputs[kY];
  t.present_key = outputs[kPresentKey];
  t.present_value = outputs[kPresentValue];
  t.lse = static_cast<float*>(outputs[kLse]);
  return t;
}

AttentionProblem problem_of(const Attributes& attributes, const Inputs& in) {
  AttentionProblem p = problem_of(attributes);
  const HeadsView q = heads_view("Q", in[kQ].shape, attributes.q_num_heads, "q_num_heads");
  const HeadsView k = heads_view("K", in[kK].shape, attributes.kv_num_heads, "kv_num_heads");
  const HeadsView v = heads_view("V", in[kV].shape, attributes.kv_num_heads, "kv_num_heads");
  if (k.batch != q.batch || v.batch != q.batch || k.heads != v.heads || k.tokens != v.tokens ||
      k.channels != q.channels)
    refuse("Q ", text(in[kQ].shape), ", K ", text(in[kK].shape), " and V ", text(in[kV].shape),
           " do not fit together: batch must agree in all, heads and tokens in K and V, head_dim in Q and K");
  p.batch = q.batch;
  p.num_heads = q.heads;
  p.kv_num_heads = k.heads;
  p.seqlen_q = q.tokens;
  p.seqlen_new = k.tokens;
  p.head_dim = q.channels;
  p.head_dim_v = v.channels;
  p.q_strides = q.strides;
  p.k_strides = k.strides;
  p.v_strides = v.strides;
  const int64_t dv = v.channels;
  p.y_strides = in[kQ].shape.size() == 3 ? TensorStrides{q.tokens * q.heads * dv, dv, q.heads * dv}
                                         : TensorStrides{q.heads * q.tokens * dv, q.tokens * dv, dv};

  const auto dtype = data_type(in[kQ].type);
  if (!dtype || *dtype == DataType::kBool)
    refuse("Q is ", name(in[kQ].type), " (supported: float32, float16, bfloat16, int8)");
  p.dtype = *dtype;
  for (Input other : {kK, kV, kPastKey, kPastValue})
    if (in[other].present && in[other].type != in[kQ].type)
      refuse(kInputNames[other], " is ", name(in[other].type), ", Q is ", name(in[kQ].type), "; they must agree");
  p.output_dtype = *data_type(output_type(attributes, in[kQ].type));

  set_past(in, p);
  if (in[kNonpad].present) {
    expect_type("nonpad_kv_seqlen", in[kNonpad], ElementType::kInt64);
    expect_shape("nonpad_kv_seqlen", in[kNonpad].shape, {p.batch});
    p.has_nonpad_kv_seqlen = true;
  }
  describe_mask(in[kMask], p);
  p.q_scale = scale_granularity("q_scale", in[kQScale], p.num_heads, 0);
  p.k_scale = scale_granularity("k_scale", in[kKScale], p.kv_num_heads, 0);
  p.v_scale = scale_granularity("v_scale", in[kVScale], p.kv_num_heads, p.head_dim_v);
  return p;
}

}  // namespace intfa::node
