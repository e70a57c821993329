// A CUDA backend whose device is the host: the CPU's kernels on host pointers. So the plugin itself, unchanged,
// computes where there is no GPU.
#include "core/backend.h"

namespace intfa {
namespace {

Status host_supports(const AttentionProblem& problem) { return cpu_backend().validate(problem); }

Execution on_host(const Execution& execution) {
  Execution host = execution;
  host.device = Device::kCpu;
  return host;
}

Status host_workspace_bytes(const AttentionProblem& problem, const Execution& execution, size_t* bytes) {
  return cpu_backend().workspace_bytes(problem, on_host(execution), bytes);
}

Status host_run(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution) {
  return cpu_backend().run(problem, tensors, on_host(execution));
}

}  // namespace

const Backend& cuda_backend() {
  static constexpr Backend kBackend = {host_supports, host_workspace_bytes, host_run};
  return kBackend;
}

}  // namespace intfa
