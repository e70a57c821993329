// The product's CUDA backend, launcher and kernels, compiled by g++ and run by either simulator.
#include <cstdio>

#include "c_api.h"
#include "core/c_problem.h"
#include "cuda/dispatch.h"
#include "simt.h"

namespace {
void require(const intfa::Status& status) {
  if (!status.ok()) throw simt::Error(status.message());
}
}  // namespace

extern "C" {

SIMT_API int attention_workspace(const intfa_problem* problem, size_t* bytes, char* error, size_t error_bytes) {
  return simt::guarded(error, error_bytes,
                       [&] { require(intfa::cuda::workspace_bytes(intfa::to_problem(*problem), bytes)); });
}

SIMT_API int attention_max_workspace(const intfa_problem* problem, size_t* bytes, char* error, size_t error_bytes) {
  return simt::guarded(error, error_bytes,
                       [&] { require(intfa::cuda::max_workspace_bytes(intfa::to_problem(*problem), bytes)); });
}

// What the problem would launch, in words.
SIMT_API void attention_describe(const intfa_problem* problem, const intfa_tensors* tensors, char* out, size_t bytes) {
  const std::string words = intfa::cuda::describe(intfa::to_problem(*problem), intfa::to_tensors(*tensors));
  std::snprintf(out, bytes, "%s", words.c_str());
}

SIMT_API int attention_run(const intfa_problem* problem, const intfa_tensors* tensors, void* workspace, char* error,
                           size_t error_bytes) {
  return simt::guarded(error, error_bytes, [&] {
    intfa::AttentionTensors t = intfa::to_tensors(*tensors);
    t.workspace = workspace;
    require(intfa::cuda::run(intfa::to_problem(*problem), t, nullptr));
  });
}

}  // extern "C"
