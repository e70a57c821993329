// The C interface: struct by struct into the core, and a thread per worker for callers without a pool.
#include "intfa/c_api.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/inspect.h"
#include "cpu/softmax.h"
#include "intfa/attention.h"

#define INTFA_API extern "C" __attribute__((visibility("default")))

namespace {

using intfa::Status;
using intfa::StatusCode;

intfa::TensorStrides strides(const int64_t (&s)[3]) { return {s[0], s[1], s[2]}; }

intfa::AttentionProblem to_problem(const intfa_problem& c) {
  intfa::AttentionProblem p;
  p.batch = c.batch;
  p.num_heads = c.num_heads;
  p.kv_num_heads = c.kv_num_heads;
  p.seqlen_q = c.seqlen_q;
  p.seqlen_new = c.seqlen_new;
  p.seqlen_past = c.seqlen_past;
  p.head_dim = c.head_dim;
  p.head_dim_v = c.head_dim_v;
  p.dtype = static_cast<intfa::DataType>(c.dtype);
  p.output_dtype = static_cast<intfa::DataType>(c.output_dtype);
  p.q_strides = strides(c.q_strides);
  p.k_strides = strides(c.k_strides);
  p.v_strides = strides(c.v_strides);
  p.y_strides = strides(c.y_strides);
  p.softmax_scale = static_cast<float>(c.softmax_scale);
  p.softcap = static_cast<float>(c.softcap);
  p.causal = c.causal != 0;
  p.causal_alignment = static_cast<intfa::CausalAlignment>(c.causal_alignment);
  p.window_left = c.window_left;
  p.window_right = c.window_right;
  p.mask = {c.mask_present != 0, static_cast<intfa::DataType>(c.mask_dtype),
            c.mask_strides[0],   c.mask_strides[1],
            c.mask_strides[2],   c.mask_strides[3],
            c.mask_seqlen_kv};
  p.has_nonpad_kv_seqlen = c.has_nonpad_kv_seqlen != 0;
  p.precision = static_cast<intfa::Precision>(c.precision);
  p.scheme = static_cast<intfa::Scheme>(c.scheme);
  p.k_granularity = static_cast<intfa::KGranularity>(c.k_granularity);
  p.smooth_k = c.smooth_k != 0;
  p.tile_n = c.tile_n;
  p.q_scale = static_cast<intfa::ScaleGranularity>(c.q_scale);
  p.k_scale = static_cast<intfa::ScaleGranularity>(c.k_scale);
  p.v_scale = static_cast<intfa::ScaleGranularity>(c.v_scale);
  return p;
}

intfa::AttentionTensors to_tensors(const intfa_tensors& c) {
  intfa::AttentionTensors t;
  t.q = c.q;
  t.k = c.k;
  t.v = c.v;
  t.past_key = c.past_key;
  t.past_value = c.past_value;
  t.mask = c.mask;
  t.nonpad_kv_seqlen = c.nonpad_kv_seqlen;
  t.q_scale = c.q_scale;
  t.k_scale = c.k_scale;
  t.v_scale = c.v_scale;
  t.y = c.y;
  t.present_key = c.present_key;
  t.present_value = c.present_value;
  t.lse = c.lse;
  return t;
}

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

INTFA_API void intfa_exp2_cpu(const float* x, float* out, int64_t count) { intfa::cpu::exp2_array(x, out, count); }
