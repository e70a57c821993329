// What the ONNX Runtime adapter's files share: the API's version, the node's vocabulary, and errors as statuses.
#pragma once

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"
#undef ORT_API_MANUAL_INIT

#include <cstdint>
#include <stdexcept>
#include <string>

#include "adapters/node.h"

namespace intfa::ort {

using namespace intfa::node;  // inputs and outputs by name, Refusal, Shape

constexpr uint32_t kApiVersion = 18;

// What the core refuses, with ONNX Runtime's code for it.
struct Failure : std::runtime_error {
  Failure(OrtErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  OrtErrorCode code;
};

// No exception leaves the library: whatever `function` throws becomes a status that names the node, where that is
// known.
template <typename Function>
OrtStatus* guarded(const std::string& node_name, Function function) noexcept {
  const auto status = [&](OrtErrorCode code, const char* message) {
    const std::string where = node_name.empty() ? "" : "node '" + node_name + "': ";
    return Ort::GetApi().CreateStatus(code, ("intfa: " + where + message).c_str());
  };
  try {
    function();
    return nullptr;
  } catch (const Refusal& refusal) {
    return status(ORT_INVALID_ARGUMENT, refusal.what());
  } catch (const Failure& failure) {
    return status(failure.code, failure.what());
  } catch (const Ort::Exception& error) {
    return status(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return status(ORT_RUNTIME_EXCEPTION, error.what());
  }
}

// Sets the outputs' types and what is known of their shapes.
void infer_shapes(OrtShapeInferContext* context);

}  // namespace intfa::ort
