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
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);  // 0 without a driver
    const auto version = [](int number) {
      return std::to_string(number / 1000) + "." + std::to_string(number % 100 / 10);
    };
    return {StatusCode::kUnsupported,
            (driver == 0 ? std::string("No NVIDIA driver is found") : "The NVIDIA driver has CUDA " + version(driver)) +
                ", and this build needs CUDA " + version(CUDART_VERSION) +
                ". Install or update the driver, or run this model on the CPU."};
  }
  return {StatusCode::kRuntimeError,
          std::string(call) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")"};
}

template <typename Params>
Status launch(void (*kernel)(Params), const Grid& grid, int threads, int smem_bytes, void* stream, Params params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (smem_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes);
    if (error == cudaErrorInvalidValue) {  // no GPU of today: attention_shape.h keeps to the least that they have
      (void)cudaGetLastError();            // the host's next check is not to find it
      return {StatusCode::kUnsupported, "CUDA: the kernel needs " + std::to_string(smem_bytes) +
                                            " bytes of shared memory per block, more than this GPU has. Use precision "
                                            "int8, or keep this attention in float."};
    }
    if (const Status status = check(error, "cudaFuncSetAttribute(shared memory)"); !status.ok()) return status;
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
