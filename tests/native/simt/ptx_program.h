// A decoded PTX module. Every operand is a slot: registers, special registers and constants all live in the same
// per-warp arrays, so that executing an instruction needs no further decoding.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace simt::ptx {

struct Warp;
struct Instruction;
using LaneMask = uint32_t;
using Handler = void (*)(Warp&, const Instruction&, LaneMask);

// What ends the straight-line execution of a warp; everything else is kNone.
enum class Flow { kNone, kBranch, kBarrier, kExit, kWait };

// One opcode, exactly as written, modifiers included: an unknown modifier is an unknown instruction.
// signature, one letter per operand:
//   r  32-bit slot (16- and 8-bit values live in its low bits)      d  64-bit slot      p  predicate, may be negated
//   V  {vector} of 32-bit slots or one of them                      W  same, 64-bit      X  a 64-bit slot or {vector}
//   of 32-bit ones s  [shared address + offset]      g  [global address + offset]      a  [address in the parameter
//   block + offset] i  integer constant      l  label      t  32-bit result, optionally |predicate ?  the operands
//   after it may be missing      M  {vector} of any length, into `matrix`      _  a result that is thrown away
struct Opcode {
  std::string signature;
  Handler handler = nullptr;
  Flow flow = Flow::kNone;
  int shared_access_bytes = 0;  // per lane, 0: does not touch shared memory
};
const std::map<std::string, Opcode>& opcodes();
// Loads and stores may have a register wider than their type; with a 64-bit one the table has them under this suffix.
constexpr const char* kWideRegister = "(64-bit register)";

struct Instruction {
  static constexpr int kOperands = 16;

  Handler handler = nullptr;
  Flow flow = Flow::kNone;
  int operand[kOperands];      // slots in the order written, vectors spread out
  int count = 0;               // operands in use
  std::vector<int> matrix;     // slots of `M`
  uint32_t negated = 0;        // bit i: predicate operand i is negated
  int result_predicate = -1;   // of `t`
  int guard = -1;              // @p
  bool guard_negated = false;  // @!p
  int64_t offset = 0;          // of the memory operand
  int64_t immediate = 0;       // of `i`
  int target = -1;             // of `l`: an index into code
  int line = 0;
  std::string text;
};

enum class SlotClass { k32, k64, kPredicate };

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  int slots_32 = 0, slots_64 = 0, slots_predicate = 0;
  std::vector<std::pair<int, uint32_t>> constants_32;
  std::vector<std::pair<int, uint64_t>> constants_64;
  std::vector<std::pair<int, LaneMask>> constants_predicate;
  std::map<std::string, int> special_registers;       // name -> 32-bit slot
  std::vector<std::pair<size_t, size_t>> parameters;  // offset and size in the parameter block
  size_t parameter_bytes = 0;
  bool has_mbarriers = false;  // its races are checked over both proxies
  int shared_granule = 16;     // the smallest shared access, in bytes: the race check works in these units
};

struct Module {
  std::map<std::string, Kernel> kernels;
};

constexpr uint32_t kSharedWindow = 1024;  // shared address of byte 0

}  // namespace simt::ptx
