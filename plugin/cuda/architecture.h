// The GPU that a launch would go to.
#pragma once

#include <string_view>

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#else
#include "simt.h"
#endif

namespace intfa::cuda {

#if defined(__CUDACC__)

// 10 * major + minor of the current device; 0 where there is none, for the launch to report.
inline int device_architecture() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return 0;
  }
  return 10 * major + minor;
}

// sm_90's own instructions exist in code for sm_90a only, which nothing but sm_90 runs.
inline bool has_wgmma() {
  constexpr bool kBuilt = std::string_view(INTFA_CUDA_ARCHITECTURES).find("90a") != std::string_view::npos;
  return kBuilt && device_architecture() == 90;
}

// SMs of the current device; 1 where there is none, for the launch to report.
inline int multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    (void)cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  }
  return count;
}

#else

inline bool has_wgmma() { return simt::device() == 90; }
inline int multiprocessors() { return simt::multiprocessors(); }

#endif

}  // namespace intfa::cuda
