// Status of a native call. No exception leaves the core and nothing aborts: a host process must survive any input.
#pragma once

#include <string>
#include <utility>

namespace intfa {

enum class StatusCode : int {
  kOk = 0,
  kInvalidArgument = 1,  // shapes, strides, null pointers or attributes that contradict each other
  kUnsupported = 2,      // valid ONNX, but outside of what this build or backend implements
  kOutOfMemory = 3,
  kRuntimeError = 4,  // the device refused (driver, launch)
};

// A message says what was found, what is supported, and the remedy.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace intfa
