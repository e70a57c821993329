// Backends that compute nothing: they record how the core was called, so that an adapter can be tested without a
// device.
#pragma once

#include "intfa/attention.h"

namespace intfa::fake {

struct Call {
  int runs = 0;
  AttentionProblem problem;
  AttentionTensors tensors;
  Execution execution;
};

constexpr size_t kWorkspaceBytes = 1000;

Call& last_call();
// What the next runs answer; kOk unless a test says otherwise.
Status& answer();

}  // namespace intfa::fake
