// The CUDA backend: functions on a problem that intfa::validate has accepted. Nothing here allocates device
// memory or synchronizes; everything goes to the caller's stream, so a call can be captured in a CUDA graph.
#pragma once

#include <cstddef>
#include <string>

#include "intfa/attention.h"

namespace intfa::cuda {

// kUnsupported, with the reason, for what the operator allows and these kernels do not have.
Status supports(const AttentionProblem& problem);

// The GPUs that this build has code for, as the build was told: "sm 80, 86, 89, 90a, 100, 120; PTX 120".
const char* architectures();

// What run() would launch, in words.
std::string describe(const AttentionProblem& problem, const AttentionTensors& tensors);

// Device memory that run() needs, at a multiple of 256 bytes.
Status workspace_bytes(const AttentionProblem& problem, size_t* bytes);

// The same for any problem up to this one: with a smaller batch, fewer queries, fewer keys.
Status max_workspace_bytes(const AttentionProblem& problem, size_t* bytes);

// Enqueues the prologue and the attention kernel on `stream`. All pointers are device pointers, the scales' and
// lengths' too.
Status run(const AttentionProblem& problem, const AttentionTensors& tensors, void* stream);

}  // namespace intfa::cuda
