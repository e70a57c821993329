// The product's CUDA backend, launcher and kernels, compiled by g++ and run by either simulator.
#include <cstdio>

#include "c_api.h"
#include "cuda/dispatch.h"
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

// What the problem would launch, in words.
SIMT_API void attention_describe(const intfa::AttentionProblem* problem, char* out, size_t bytes) {
  std::snprintf(out, bytes, "%s", intfa::cuda::describe(*problem).c_str());
}

SIMT_API int attention_run(const intfa::AttentionProblem* problem, const intfa::AttentionTensors* tensors, char* error,
                           size_t error_bytes) {
  return simt::guarded(error, error_bytes, [&] { require(intfa::cuda::run(*problem, *tensors, nullptr)); });
}

}  // extern "C"
