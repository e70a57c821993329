// Which of the instruction sets that the CPU kernels are compiled for a process uses.
#pragma once

#include "intfa/status.h"

namespace intfa::cpu {

// Takes the best that the processor has, or the best up to the environment variable INTFA_MAX_ISA, once. Before that
// Highway's function pointers are slow ones that look at every call.
void choose_instruction_set();

// What is wrong with INTFA_MAX_ISA, if anything is. Chooses, if nothing has.
Status check_instruction_set();

// False where INTFA_MAX_ISA leaves AMX out. Chooses, if nothing has.
bool amx_allowed();

// The name of what is used, one of INTFA_MAX_ISA's values. Chooses, if nothing has.
const char* instruction_set();

}  // namespace intfa::cpu
