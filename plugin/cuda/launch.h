// The seam between launcher and device: kernel<<<grid, threads, smem, stream>>>(params), checked, under nvcc; the host
// SIMT runtime's launch of the same kernel under a host compiler.
#pragma once

#include <string>

#include "intfa/status.h"

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#else
#include "simt.h"
#endif

namespace intfa::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

#if defined(__CUDACC__)

inline Status check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return {};
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    int device = 0;
    cudaDeviceProp properties{};
    if (cudaGetDevice(&device) == cudaSuccess) (void)cudaGetDeviceProperties(&properties, device);
    return {StatusCode::kUnsupported, "No code for this GPU: it is " + std::string(properties.name) + ", sm_" +
                                          std::to_string(10 * properties.major + properties.minor) +
                                          ", and this build has code for " INTFA_CUDA_ARCHITECTURES
                                          ". Build with -DINTFA_CUDA_ARCHITECTURES including it."};
  }
  return {StatusCode::kRuntimeError,
          std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")"};
}

template <typename Params>
Status launch(void (*kernel)(Params), const Grid& grid, int threads, int smem_bytes, void* stream, Params params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (smem_bytes > 48 * 1024) {
    const Status status = check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes),
                                "cudaFuncSetAttribute(shared memory)");
    if (!status.ok()) return status;
  }
  void* arguments[] = {&params};
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  return check(
      cudaLaunchKernel(function, blocks, dim3(threads), arguments, smem_bytes, static_cast<cudaStream_t>(stream)),
      "cudaLaunchKernel");
}

#else

template <typename Params>
Status launch(void (*kernel)(Params), const Grid& grid, int threads, int smem_bytes, void*, Params params) {
  simt::launch_kernel(kernel,
                      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)),
                      dim3(threads), smem_bytes, params);
  return {};
}

#endif

}  // namespace intfa::cuda
