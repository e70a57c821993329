// ONNX Runtime as an adapter sees it, with no ONNX Runtime behind it: one node, its tensors, an allocator that counts.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

// The runtime's opaque types, as far as this fake needs them.
struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};
struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};
struct OrtTypeInfo {
  OrtTensorTypeAndShapeInfo tensor;
};
struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  std::vector<char> bytes;
};
struct OrtMemoryInfo {};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  std::vector<const OrtCustomOpDomain*> domains;
};
struct OrtKernelInfo {
  std::string node = "attention";
  ONNXTensorElementDataType q_type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  std::map<std::string, int64_t> ints;
  std::map<std::string, std::string> strings;
};
struct OrtOpAttr {
  int64_t value;
};
struct OrtShapeInferContext {
  std::vector<OrtTensorTypeAndShapeInfo> inputs;  // a size of -1 is unknown
  std::map<std::string, OrtOpAttr> attributes;
  std::map<size_t, OrtTensorTypeAndShapeInfo> outputs;
};
struct OrtKernelContext {
  std::vector<OrtValue*> inputs;  // null: absent
  size_t num_outputs = 4;
  std::map<size_t, OrtValue> outputs;  // made when the kernel asks for them
  void* stream = nullptr;
};

namespace intfa::fake_ort {

enum class Scratch { kGiven, kRefused, kNull };

// What the runtime was asked for.
struct Journal {
  int plain_allocs = 0;
  int scratch_allocs = 0;
  int frees = 0;
  int live_allocators = 0;
  Scratch scratch = Scratch::kGiven;
};

Journal& journal();
OrtValue tensor(ONNXTensorElementDataType type, std::vector<int64_t> shape);
// supports_api_18: false for a runtime that is too old.
const OrtApiBase* api_base(bool supports_api_18 = true);

}  // namespace intfa::fake_ort
