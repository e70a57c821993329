// The TensorRT of this process, found at run time: its log and its plugin registry. Nothing of it is linked, so one
// binary serves TensorRT 10 and 11.
#pragma once

#include <string>

#include "adapters/trt_api.h"

namespace intfa::trt {

enum class Severity : int32_t { kInternalError, kError, kWarning, kInfo, kVerbose };

// Writes one line to TensorRT's log, or to stderr where no log can be found.
void log(Severity severity, const std::string& message) noexcept;

// Defined in trt_creator.cpp.
nvinfer1::IPluginCreatorV3One* new_creator();

// A creator is in use: make sure that the process-wide registry has one; see trt_host.cpp.
void restore_registration() noexcept;

}  // namespace intfa::trt
