// A node of IntFlashAttention as every host runtime sees it: attributes and shapes in, AttentionProblem out. Knows no
// host. What is refused is thrown as a Refusal; the adapters turn it into their host's error.
#pragma once

#include <array>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "intfa/attention.h"

namespace intfa::node {

enum Input { kQ, kK, kV, kMask, kPastKey, kPastValue, kNonpad, kQScale, kKScale, kVScale, kNumInputs };
enum Output { kY, kPresentKey, kPresentValue, kLse, kNumOutputs };
inline constexpr std::array<const char*, kNumInputs> kInputNames = {
    "Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale"};
inline constexpr int kRequiredInputs = 3;

// What is wrong with a node, in words: value found, what is supported, remedy.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  throw Refusal(out.str());
}

using Shape = std::vector<int64_t>;
std::string text(const Shape& shape);

// ONNX's numbers of element types; any other number is a type that the operator does not have.
enum class ElementType : int32_t {
  kUndefined = 0,
  kFloat32 = 1,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kBFloat16 = 16
};
const char* name(ElementType type);

// Names and defaults are those of intfa_onnx/op_schema.py.
struct Attributes {
  int64_t q_num_heads = 0, kv_num_heads = 0, is_causal = 0, window_left = -1, window_right = -1, smooth_k = 1;
  int64_t output_dtype = 0;
  float scale = 0.f, softcap = 0.f;
  std::string causal_alignment = "standard", precision = "int8", scheme = "tile", k_granularity = "auto";
  // Only for TensorRT, whose plugins see neither the names of their inputs nor how many outputs are wanted.
  std::string plugin_inputs;   // comma-separated names of the inputs given; empty: the first ones
  int64_t plugin_outputs = 1;  // how many of Y, present_key, present_value, lse
};

// The one table of attributes, for hosts that ask for names and types.
struct AttributeField {
  const char* name;
  std::variant<int64_t Attributes::*, float Attributes::*, std::string Attributes::*> member;
};
extern const std::array<AttributeField, 15> kAttributeFields;

// One input as its host describes it.
struct Tensor {
  bool present = false;
  ElementType type = ElementType::kUndefined;
  Shape shape;
};
using Inputs = std::array<Tensor, kNumInputs>;

// The attributes' part of every problem of a node.
AttentionProblem problem_of(const Attributes& attributes);

// Y's type where Q has type `q_type`.
ElementType output_type(const Attributes& attributes, ElementType q_type);

// A node's tensors by position; null where one is absent or not wanted. The workspace is the caller's to add.
AttentionTensors bind(const std::array<const void*, kNumInputs>& inputs, const std::array<void*, kNumOutputs>& outputs);

// The whole problem. Y is [B, Hq, Sq, Dv], or [B, Sq, Hq * Dv] where Q is 3-D.
AttentionProblem problem_of(const Attributes& attributes, const Inputs& inputs);

}  // namespace intfa::node
