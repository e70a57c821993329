// The C interface: struct by struct into the core, and a thread per worker for callers without a pool.
#include "intfa/c_api.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "core/c_problem.h"
#include "cpu/inspect.h"
#include "cpu/instruction_set.h"
#include "cpu/softmax.h"
#include "cuda/dispatch.h"

#define INTFA_API extern "C" __attribute__((visibility("default")))

namespace {

using intfa::Status;
using intfa::StatusCode;
using intfa::to_problem;
using intfa::to_tensors;

void run_threads(void*, void (*fn)(void*, size_t), size_t tasks, void* context) {
  std::vector<std::thread> threads;
  size_t started = 1;
  try {
    for (; started < tasks; ++started) threads.emplace_back(fn, context, started);
  } catch (const std::system_error&) {  // no more threads to be had: this one does the rest
    for (; started < tasks; ++started) fn(context, started);
  }
  fn(context, 0);
  for (std::thread& thread : threads) thread.join();
}

// Runs `function`, and writes what it says where the caller asked for it.
template <typename Function>
int answer(char* message, size_t message_size, Function function) noexcept {
  Status status;
  try {
    status = function();
  } catch (const std::exception& error) {
    status = {StatusCode::kRuntimeError, error.what()};
  }
  if (message != nullptr && message_size > 0) {
    const size_t n = std::min(status.message().size(), message_size - 1);
    memcpy(message, status.message().data(), n);
    message[n] = '\0';
  }
  return static_cast<int>(status.code());
}

}  // namespace

INTFA_API const char* intfa_version(void) { return INTFA_VERSION; }

INTFA_API const char* intfa_cuda_architectures(void) {
#ifdef INTFA_HAVE_CUDA
  return intfa::cuda::architectures();
#else
  return "";
#endif
}

INTFA_API int intfa_validate(const intfa_problem* problem, int device, char* message, size_t message_size) {
  return answer(message, message_size,
                [&] { return intfa::validate(to_problem(*problem), static_cast<intfa::Device>(device)); });
}

INTFA_API int intfa_run_cpu(const intfa_problem* problem, const intfa_tensors* tensors, int num_threads, char* message,
                            size_t message_size) {
  return answer(message, message_size, [&]() -> Status {
    const intfa::AttentionProblem p = to_problem(*problem);
    intfa::AttentionTensors t = to_tensors(*tensors);
    intfa::Execution execution;
    execution.num_threads = num_threads;
    execution.parallel_for = run_threads;
    size_t bytes = 0;
    if (Status s = intfa::workspace_bytes(p, execution, &bytes); !s.ok()) return s;
    const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, std::max<size_t>(bytes, 64)),
                                                                &std::free);
    if (workspace == nullptr) return {StatusCode::kOutOfMemory, "no memory for the workspace"};
    t.workspace = workspace.get();
    return intfa::run(p, t, execution);
  });
}

INTFA_API int intfa_workspace_bytes_cuda(const intfa_problem* problem, size_t* bytes, char* message,
                                         size_t message_size) {
  return answer(message, message_size,
                [&] { return intfa::workspace_bytes(to_problem(*problem), {.device = intfa::Device::kCuda}, bytes); });
}

INTFA_API int intfa_run_cuda(const intfa_problem* problem, const intfa_tensors* tensors, void* workspace, void* stream,
                             char* message, size_t message_size) {
  return answer(message, message_size, [&] {
    intfa::AttentionTensors t = to_tensors(*tensors);
    t.workspace = workspace;
    return intfa::run(to_problem(*problem), t, {.device = intfa::Device::kCuda, .stream = stream});
  });
}

INTFA_API int intfa_quantize_cpu(const intfa_problem* problem, const intfa_tensors* tensors, int64_t batch,
                                 int64_t kv_head, const intfa_codes* codes, char* message, size_t message_size) {
  return answer(message, message_size, [&]() -> Status {
    const intfa::AttentionProblem p = to_problem(*problem);
    if (Status s = intfa::validate(p, intfa::Device::kCpu); !s.ok()) return s;
    if (p.precision != intfa::Precision::kInt8)
      return {StatusCode::kUnsupported, "codes of V exist only for precision int8; use that"};
    intfa::cpu::inspect_codes(p, to_tensors(*tensors), batch, kv_head, *codes);
    return {};
  });
}

INTFA_API void intfa_exp2_cpu(const float* x, float* out, int64_t count) {
  intfa::cpu::choose_instruction_set();
  intfa::cpu::exp2_array(x, out, count);
}

INTFA_API void intfa_tile_codes_cpu(const float* x, uint8_t* out, int64_t count) {
  intfa::cpu::choose_instruction_set();
  intfa::cpu::tile_codes_array(x, out, count);
}

INTFA_API const char* intfa_cpu_instruction_set(void) { return intfa::cpu::instruction_set(); }
