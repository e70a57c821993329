// The CUDA dispatch on a runtime of our own, which writes down what is launched. It is linked without undefined
// symbols, so a call of any other function of the CUDA runtime, as one that allocates or synchronizes, fails the build.
#include <cstdio>
#include <string>

#include "core/c_problem.h"
#include "cuda/attention_shape.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/kernels_sm90.h"
#include "cuda/launch.h"

namespace {
using namespace intfa::cuda;

std::string launched;
int launches, failing_launch;

// Their addresses tell them apart.
void statistics(PrologueParams) { std::puts("statistics"); }
void quantize_kv(PrologueParams) { std::puts("quantize_kv"); }
void attention(AttentionParams) { std::puts("attention"); }
void merge(MergeParams) { std::puts("merge"); }

template <int kDim, Arithmetic kArithmetic, bool kScored>
constexpr AttentionKernel entry() {
  using Shape = AttentionShape<kDim, kArithmetic, kScored>;
  return {kArithmetic, kScored, attention, Shape::kTileM, Shape::kThreads, Shape::kSmemBytes};
}

template <int kDim>
constexpr KernelSet kernel_set() {
  return {kDim,
          PackedTile<kDim, false>::kBytes,
          PackedTile<kDim, true>::kBytes,
          statistics,
          0,
          quantize_kv,
          0,
          merge,
          {entry<kDim, Arithmetic::kTileInt8, false>(), entry<kDim, Arithmetic::kTileInt8, true>(),
           entry<kDim, Arithmetic::kPaperInt8, false>(), entry<kDim, Arithmetic::kPaperInt8, true>(),
           entry<kDim, Arithmetic::kHalfPV, false>(), entry<kDim, Arithmetic::kHalfPV, true>()}};
}

template <typename Params>
const void* address(void (*kernel)(Params)) {
  return reinterpret_cast<const void*>(kernel);
}

// quantize_v: quantize_kv that leaves K where it is.
const char* name_of(const void* kernel, void** arguments) {
  if (kernel == address(statistics)) return "statistics";
  if (kernel == address(quantize_kv)) {
    return static_cast<const PrologueParams*>(arguments[0])->k_in_place ? "quantize_v" : "quantize_kv";
  }
  if (kernel == address(attention)) return "attention";
  return kernel == address(merge) ? "merge" : "unknown";
}
}  // namespace

namespace intfa::cuda {
const KernelSet kKernels32 = kernel_set<32>(), kKernels64 = kernel_set<64>(), kKernels96 = kernel_set<96>(),
                kKernels128 = kernel_set<128>(), kKernels256 = kernel_set<256>();
const WgmmaKernel kWgmmaKernels[kNumWgmmaKernels] = {};
}  // namespace intfa::cuda

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int) { return cudaErrorNoDevice; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 0, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3, void** arguments, size_t, cudaStream_t stream) {
  if (launches++ == failing_launch) return cudaErrorLaunchOutOfResources;
  launched += std::string(name_of(kernel, arguments)) + " " + std::to_string(grid.x) + "x" + std::to_string(grid.y) +
              "x" + std::to_string(grid.z) + " " + std::to_string(reinterpret_cast<uintptr_t>(stream)) + "\n";
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "words"; }
const char* cudaGetErrorName(cudaError_t) { return "name"; }

// Runs a problem on `stream` with a launch that fails, counted from 0, or none of them; writes a line per launch, then
// the message. Returns the status code.
extern "C" int cuda_launches(const intfa_problem* problem, const intfa_tensors* tensors, uint64_t stream, int failing,
                             char* out, size_t bytes) {
  launched.clear();
  launches = 0;
  failing_launch = failing;
  const intfa::Status status =
      run(intfa::to_problem(*problem), intfa::to_tensors(*tensors), reinterpret_cast<void*>(stream));
  std::snprintf(out, bytes, "%s%s", launched.c_str(), status.message().c_str());
  return static_cast<int>(status.code());
}
