#include "cpu/instruction_set.h"
#include "intfa/c_api.h"

extern "C" __attribute__((visibility("default"))) const char* intfa_cpu_instruction_set(void) {
  return intfa::cpu::instruction_set();
}
