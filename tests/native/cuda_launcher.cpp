// The CUDA launcher on a runtime that answers what it is told: cuda_launcher CALL ERROR COMPUTE_CAPABILITY DRIVER
// SMS. CALL (attribute, launch) fails with the number ERROR. Prints the status code and how the launch went, what the
// dispatch learns of the GPU, and the message.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/architecture.h"
#include "cuda/launch.h"

namespace {
std::string failing_call;
cudaError_t error, last_error;
int capability, driver, sms;
std::string launched = "not launched";

cudaError_t answer(const char* call) { return last_error = failing_call == call ? error : cudaSuccess; }
}  // namespace

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"Fake GPU", capability / 10, capability % 10};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMultiProcessorCount) {
    if (sms == 0) return cudaErrorNoDevice;
    *value = sms;
  } else {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = driver, cudaSuccess; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return answer("attribute"); }
cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 block, void** arguments, size_t smem_bytes,
                             cudaStream_t stream) {
  if (const cudaError_t e = answer("launch"); e != cudaSuccess) return e;
  launched = std::to_string(grid.x) + "x" + std::to_string(grid.y) + "x" + std::to_string(grid.z) + " of " +
             std::to_string(block.x) + " with " + std::to_string(smem_bytes) + " bytes, " +
             std::to_string(*static_cast<int*>(arguments[0])) + ", stream " +
             std::to_string(reinterpret_cast<uintptr_t>(stream));
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "words"; }
const char* cudaGetErrorName(cudaError_t) { return "name"; }

int main(int, char** argv) {
  failing_call = argv[1];
  error = static_cast<cudaError_t>(std::atoi(argv[2]));
  capability = std::atoi(argv[3]);
  driver = std::atoi(argv[4]);
  sms = std::atoi(argv[5]);
  void (*kernel)(int) = [](int) {};
  const intfa::Status status =
      intfa::cuda::launch(kernel, {3, 5, 7}, 128, 60000, reinterpret_cast<void*>(uintptr_t{64}), 42);
  std::printf("%d %s\n%s, %d SMs\n%s\n", static_cast<int>(status.code()), launched.c_str(),
              intfa::cuda::has_wgmma() ? "wgmma" : "mma", intfa::cuda::multiprocessors(), status.message().c_str());
  // The host's next check is not to find an error that was answered; a failed launch stays for whoever asks.
  return failing_call == "attribute" && error == cudaErrorInvalidValue && last_error != cudaSuccess;
}
