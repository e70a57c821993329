// The CUDA backend as the core sees it.
#include "core/backend.h"

#include "cuda/dispatch.h"

namespace intfa {
namespace {

Status backend_workspace_bytes(const AttentionProblem& problem, const Execution& execution, size_t* bytes) {
  return execution.up_to ? cuda::max_workspace_bytes(problem, bytes) : cuda::workspace_bytes(problem, bytes);
}

Status backend_run(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution) {
  if (log_enabled()) log_line("CUDA: " + describe(problem) + ": " + cuda::describe(problem, tensors));
  return cuda::run(problem, tensors, execution.stream);
}

}  // namespace

const char* cuda::architectures() { return INTFA_CUDA_ARCHITECTURES; }

const Backend& cuda_backend() {
  static constexpr Backend kBackend = {cuda::supports, backend_workspace_bytes, backend_run};
  return kBackend;
}

}  // namespace intfa
