// What the ONNX Runtime adapter's files share: the order of inputs and outputs, and refusals as statuses.
#pragma once

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"
#undef ORT_API_MANUAL_INIT

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace intfa::ort {

constexpr uint32_t kApiVersion = 18;

enum Input { kQ, kK, kV, kMask, kPastKey, kPastValue, kNonpad, kQScale, kKScale, kVScale, kNumInputs };
enum Output { kY, kPresentKey, kPresentValue, kLse, kNumOutputs };

// A refusal that ends up as an OrtStatus.
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

inline std::string text(const Shape& shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? "," : "") << shape[i];
  out << ']';
  return out.str();
}

// No exception leaves the library: whatever `function` throws becomes a status.
template <typename Function>
OrtStatus* guarded(Function function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Refusal& refusal) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, (std::string("intfa: ") + refusal.what()).c_str());
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_RUNTIME_EXCEPTION, (std::string("intfa: ") + error.what()).c_str());
  }
}

// Sets the outputs' types and what is known of their shapes.
void infer_shapes(OrtShapeInferContext* context);

}  // namespace intfa::ort
