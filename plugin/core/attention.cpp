// The core's three functions: check, choose the backend, and keep exceptions inside.
#include "intfa/attention.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "core/backend.h"

namespace intfa {
namespace {

Status find_backend(Device device, const Backend** backend) {
  if (device == Device::kCpu) {
    *backend = &cpu_backend();
    return {};
  }
#ifdef INTFA_HAVE_CUDA
  *backend = &cuda_backend();
  return {};
#else
  return {StatusCode::kUnsupported,
          "device CUDA: this build of intfa has CPU kernels only; rebuild it where nvcc is found (INTFA_CUDA=ON)"};
#endif
}

// Runs `function`, turning what it may throw into a status.
template <typename Function>
Status guarded(Function function) noexcept {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return {StatusCode::kOutOfMemory, "out of memory"};  // short: it needs no memory of its own
  } catch (const std::exception& error) {
    return {StatusCode::kRuntimeError, error.what()};
  }
}

}  // namespace

bool log_enabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("INTFA_LOG");
    return value != nullptr && value[0] != '\0' && value[0] != '0';
  }();
  return enabled;
}

void log_line(const std::string& line) { std::fprintf(stderr, "intfa: %s\n", line.c_str()); }

Status validate(const AttentionProblem& problem, Device device) {
  return guarded([&]() -> Status {
    const Backend* backend = nullptr;
    if (Status s = find_backend(device, &backend); !s.ok()) return s;
    if (Status s = validate_problem(problem); !s.ok()) return s;
    return backend->validate(problem);
  });
}

Status workspace_bytes(const AttentionProblem& problem, const Execution& execution, size_t* bytes) {
  return guarded([&]() -> Status {
    if (Status s = validate(problem, execution.device); !s.ok()) return s;
    const Backend* backend = nullptr;
    if (Status s = find_backend(execution.device, &backend); !s.ok()) return s;
    return backend->workspace_bytes(problem, execution, bytes);
  });
}

Status run(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution) {
  return guarded([&]() -> Status {
    if (Status s = validate(problem, execution.device); !s.ok()) return s;
    if (Status s = validate_tensors(problem, tensors); !s.ok()) return s;
    const Backend* backend = nullptr;
    if (Status s = find_backend(execution.device, &backend); !s.ok()) return s;
    return backend->run(problem, tensors, execution);
  });
}

}  // namespace intfa
