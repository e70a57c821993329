// TensorRT's plugin interface: NVIDIA's headers where the build has them (-DTENSORRT_ROOT=), else our declaration.
#pragma once

#ifdef INTFA_TENSORRT_HEADERS
#include "NvInferRuntime.h"
#else
#include "adapters/trt_interface.h"
#endif

namespace intfa::trt {

inline constexpr char kName[] = "IntFlashAttention";
inline constexpr char kVersion[] = "1";
inline constexpr char kNamespace[] = "intfa";

}  // namespace intfa::trt
