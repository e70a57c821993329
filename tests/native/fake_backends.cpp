#include "fake_backends.h"

#include <cstring>

#include "core/backend.h"

namespace intfa {
namespace fake {

Call& last_call() {
  static Call call;
  return call;
}

Status& answer() {
  static Status status;
  return status;
}

namespace {

size_t element_size(DataType dtype) {
  return dtype == DataType::kFloat32 ? 4 : dtype == DataType::kFloat16 || dtype == DataType::kBFloat16 ? 2 : 1;
}

Status supports(const AttentionProblem&) { return {}; }

Status workspace_bytes(const AttentionProblem&, const Execution&, size_t* bytes) {
  *bytes = kWorkspaceBytes;
  return {};
}

// Touches every byte that it was promised; a Y of the CPU is 1 and one of CUDA 2 in each byte.
Status run(const AttentionProblem& p, const AttentionTensors& t, const Execution& execution) {
  last_call() = {last_call().runs + 1, p, t, execution};
  memset(t.workspace, 0, kWorkspaceBytes);
  const size_t rows = p.batch * p.num_heads * p.seqlen_q, keys = p.batch * p.kv_num_heads * p.seqlen_kv();
  memset(t.y, execution.device == Device::kCuda ? 2 : 1, rows * p.head_dim_v * element_size(p.output_dtype));
  if (t.lse != nullptr) memset(t.lse, 0, rows * sizeof(float));
  if (t.present_key != nullptr) memset(t.present_key, 0, keys * p.head_dim * element_size(p.dtype));
  if (t.present_value != nullptr) memset(t.present_value, 0, keys * p.head_dim_v * element_size(p.dtype));
  return answer();
}

constexpr Backend kBackend = {supports, workspace_bytes, run};

}  // namespace
}  // namespace fake

const Backend& cpu_backend() { return fake::kBackend; }
const Backend& cuda_backend() { return fake::kBackend; }

}  // namespace intfa
