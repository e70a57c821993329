// The product's CUDA backend, launcher and kernels, compiled by g++ and run by either simulator.
#include "c_api.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "simt.h"

namespace {
void require(const intfa::Status& status) {
  if (!status.ok()) throw simt::Error(status.message());
}
}  // namespace

extern "C" {

// The structs cross from Python by their layout; attention.py compares these sizes with its own.
SIMT_API size_t attention_problem_bytes() { return sizeof(intfa::AttentionProblem); }
SIMT_API size_t attention_tensors_bytes() { return sizeof(intfa::AttentionTensors); }

SIMT_API int attention_workspace(const intfa::AttentionProblem* problem, size_t* bytes, char* error,
                                 size_t error_bytes) {
  return simt::guarded(error, error_bytes, [&] { require(intfa::cuda::workspace_bytes(*problem, bytes)); });
}

SIMT_API int attention_run(const intfa::AttentionProblem* problem, const intfa::AttentionTensors* tensors, char* error,
                           size_t error_bytes) {
  return simt::guarded(error, error_bytes, [&] { require(intfa::cuda::run(*problem, *tensors, nullptr)); });
}

// {queries per block, threads, bytes of shared memory} of one attention kernel, or false if there is none.
SIMT_API bool attention_shape(int head_dim, int arithmetic, bool scored, int* out) {
  using namespace intfa::cuda;
  for (const KernelSet* set : {&kKernels32, &kKernels64, &kKernels96, &kKernels128, &kKernels256})
    for (const AttentionKernel& kernel : set->attention) {
      if (set->head_dim != head_dim || int(kernel.arithmetic) != arithmetic || kernel.scored != scored) continue;
      out[0] = kernel.tile_m;
      out[1] = kernel.threads;
      out[2] = kernel.smem_bytes;
      return true;
    }
  return false;
}

}  // extern "C"
