#include "cpu/instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "cpu/amx.h"
#include "hwy/targets.h"

namespace intfa::cpu {
namespace {

// A value of INTFA_MAX_ISA, and Highway's bits for it; the bit of a better one is lower.
struct InstructionSet {
  const char* name;
  int64_t targets;
};

// The better ones come later. AMX has the products only: for the rest it needs what stands before it.
constexpr InstructionSet kInstructionSets[] = {
#if HWY_ARCH_X86
    {"sse2", HWY_SSE2}, {"avx2", HWY_AVX2}, {"avx512", HWY_AVX3}, {"avx512vnni", HWY_AVX3_DL}, {"amx", HWY_AVX3_DL},
#else
    {"neon", HWY_ALL_NEON},
#endif
};
constexpr const InstructionSet* kBest = std::end(kInstructionSets) - 1;

// A build for one kind of processor (-march=...) has no code for lesser ones.
constexpr bool is_built(const InstructionSet& set) { return (set.targets & HWY_TARGETS) != 0; }

struct Choice {
  Status status;
  bool amx_allowed = true;
};

Choice choose() {
  Choice choice;
  const InstructionSet* limit = kBest;
  if (const char* value = std::getenv("INTFA_MAX_ISA"); value != nullptr && value[0] != '\0') {
    limit = nullptr;
    std::string supported;
    for (const InstructionSet& set : kInstructionSets) {
      if (!is_built(set)) continue;
      if (std::strcmp(value, set.name) == 0) limit = &set;
      supported += (supported.empty() ? "" : ", ") + std::string(set.name);
    }
    if (limit == nullptr) {
      choice.status = {StatusCode::kInvalidArgument, "INTFA_MAX_ISA=" + std::string(value) +
                                                         " is unknown (supported: " + supported +
                                                         "); set one of these, or unset it"};
      limit = kBest;
    }
  }
  choice.amx_allowed = limit == kBest;
  const int64_t better = (limit->targets & -limit->targets) - 1;
  hwy::GetChosenTarget().Update(hwy::SupportedTargets() & ~better);
  return choice;
}

const Choice& choice() {
  static const Choice once = choose();
  return once;
}

}  // namespace

void choose_instruction_set() { choice(); }
Status check_instruction_set() { return choice().status; }
bool amx_allowed() { return choice().amx_allowed; }

const char* instruction_set() {
  choose_instruction_set();
  if (amx_usable()) return kBest->name;
  const auto used = [](const InstructionSet& set) { return (set.targets & dispatched_target()) != 0; };
  return std::find_if(std::begin(kInstructionSets), kBest, used)->name;
}

}  // namespace intfa::cpu
