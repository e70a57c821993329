// A TensorRT that is only a registry and a log: the functions that libnvinfer exports, defined by the test program.
#pragma once

#include <string>
#include <vector>

#include "adapters/trt_api.h"

namespace fake_host {

// Major version to play, 10 or 11; 0 is a version that the plugin does not know. Built with NVIDIA's headers, only
// theirs.
void set_version(int major);
std::vector<int> versions();

struct Line {
  int severity;  // 1 is an error
  std::string text;
};
// What was logged since the last call.
std::vector<Line> take_log();

// What stands in the process-wide registry.
std::vector<nvinfer1::IPluginCreatorInterface*>& creators();

// For setLoggerFinder.
void* logger_finder();

}  // namespace fake_host
