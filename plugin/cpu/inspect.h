// What tests look at: the packed codes of one KV head in natural order, and the exponential.
#pragma once

#include "intfa/attention.h"
#include "intfa/c_api.h"

namespace intfa::cpu {

// Needs a checked problem of Precision::kInt8.
void inspect_codes(const AttentionProblem& problem, const AttentionTensors& tensors, int64_t batch, int64_t kv_head,
                   const intfa_codes& codes);

}  // namespace intfa::cpu
