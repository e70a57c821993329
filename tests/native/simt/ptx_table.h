// Helpers for filling the opcode table.
#pragma once

#include <map>
#include <string>
#include <type_traits>

#include "ptx_machine.h"
#include "ptx_program.h"
#include "scalar.h"

namespace simt::ptx {

struct Table {
  std::map<std::string, Opcode>& opcodes;
  void add(const std::string& name, const std::string& signature, Handler handler, Flow flow = Flow::kNone,
           int shared_bytes = 0) {
    opcodes[name] = {signature, handler, flow, shared_bytes};
  }
};

void add_arithmetic(Table& table);         // ptx_arithmetic.cc
void add_memory(Table& table);             // ptx_memory.cc
void add_warp_instructions(Table& table);  // ptx_warp_instructions.cc
void add_async(Table& table);              // ptx_async.cc

// A lane's slot <-> a value. Narrow integers are sign- or zero-extended into the slot, so that ld.s8 into a wider
// register works; reading takes the low bits.
template <class T, class Slot>
T narrow(Slot slot) {
  if constexpr (std::is_same_v<T, float>)
    return bit_copy<float>(uint32_t(slot));
  else
    return T(slot);
}
template <class T, class V>
auto widen(V value) {
  if constexpr (std::is_same_v<T, float>)
    return bit_copy<uint32_t>(float(value));
  else if constexpr (sizeof(T) == 8)
    return uint64_t(T(value));
  else if constexpr (std::is_signed_v<T>)
    return uint32_t(int32_t(T(value)));
  else
    return uint32_t(T(value));
}

// f(lane) for the active lanes. The full mask is the common case and the one that vectorizes; a result register may
// also be an operand, but only of the same lane.
template <class F>
void each_lane(LaneMask mask, F f) {
  if (mask == ~LaneMask(0)) {
#pragma GCC ivdep
    for (int lane = 0; lane < 32; lane++) f(lane);
  } else {
    for (int lane = 0; lane < 32; lane++)
      if (mask >> lane & 1) f(lane);
  }
}

inline void require_full_warp(Warp& warp, const Instruction& i, LaneMask mask) {
  if (mask != ~LaneMask(0)) fail(warp, i, "warp-wide instruction in divergent code");
}

inline LaneMask read_predicate(const Warp& warp, const Instruction& i, int operand) {
  const LaneMask p = warp.predicates[size_t(i.operand[operand])];
  return i.negated >> operand & 1 ? ~p : p;
}
inline void assign_predicate(Warp& warp, int slot, LaneMask value, LaneMask mask) {
  LaneMask& p = warp.predicates[size_t(slot)];
  p = (p & ~mask) | (value & mask);
}

}  // namespace simt::ptx
