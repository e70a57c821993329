// What a backend gives to the core. The core has checked the problem (core/validate.cpp) before it calls one.
#pragma once

#include "intfa/attention.h"

namespace intfa {

struct Backend {
  Status (*validate)(const AttentionProblem& problem);  // limits of this backend only
  Status (*workspace_bytes)(const AttentionProblem& problem, const Execution& execution, size_t* bytes);
  Status (*run)(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution);
};

const Backend& cpu_backend();
#ifdef INTFA_HAVE_CUDA
const Backend& cuda_backend();
#endif

// What every backend requires of a problem.
Status validate_problem(const AttentionProblem& problem);
// What every backend requires of the pointers that come with it.
Status validate_tensors(const AttentionProblem& problem, const AttentionTensors& tensors);

// The problem as one line of text, for INTFA_LOG=1.
std::string describe(const AttentionProblem& problem);
bool log_enabled();
void log_line(const std::string& line);

}  // namespace intfa
