// The TensorRT of this process, found at run time: its log and its plugin registry. Nothing of it is linked, so one
// binary serves TensorRT 10 and 11.
#pragma once

#include <exception>
#include <new>

#include "adapters/trt_api.h"

namespace intfa::trt {

// Writes one line to TensorRT's log, or to stderr where no log can be found. Needs no memory.
void log_error(const char* layer, const char* what) noexcept;

// Nothing that `function` throws reaches TensorRT: it is logged. Returns 0, or 1 after an exception.
template <typename Function>
int32_t guarded(const char* layer, Function function) noexcept {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    log_error(layer, "out of host memory");
  } catch (const std::exception& error) {
    log_error(layer, error.what());
  }
  return 1;
}

// Defined in trt_creator.cpp.
nvinfer1::IPluginCreatorV3One* new_creator();

// A creator is in use: make sure that the process-wide registry has one; see trt_host.cpp.
void restore_registration() noexcept;

}  // namespace intfa::trt
