// The TensorRT of this process, found at run time: its log and its plugin registry. Nothing of it is linked, so one
// binary serves TensorRT 10 and 11.
#pragma once

#include <string>

#include "adapters/trt_api.h"

namespace intfa::trt {

enum class Severity : int32_t { kInternalError, kError, kWarning, kInfo, kVerbose };

// Writes one line to TensorRT's log, or to stderr where no log can be found.
void log(Severity severity, const std::string& message) noexcept;

// The creator of the plugin; lives as long as the process.
nvinfer1::IPluginCreatorV3One& creator();

}  // namespace intfa::trt
