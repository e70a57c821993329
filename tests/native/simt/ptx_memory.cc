// Opcode table, part 2: loads, stores, asynchronous copies.
#include <cstring>

#include "ptx_table.h"
#include "warp_math.h"

namespace simt::ptx {

namespace {

enum class Space { kGlobal, kShared };

template <class T, int kCount, Space kSpace, Access kAccess>
char* element_pointer(Warp& warp, const Instruction& i, int address_operand, int lane) {
  constexpr size_t kBytes = sizeof(T) * kCount;
  if constexpr (kSpace == Space::kShared) {
    const uint32_t address = warp.lanes<uint32_t>(i.operand[address_operand])[lane] + uint32_t(i.offset);
    return reinterpret_cast<char*>(shared_pointer(warp, i, address, uint32_t(kBytes), kAccess));
  } else {
    const uint64_t address = warp.lanes<uint64_t>(i.operand[address_operand])[lane] + uint64_t(i.offset);
    return global_pointer(warp, i, address, kBytes, kAccess == Access::kWrite);
  }
}

// One access per warp: counts what shared memory needs beyond the conflict-free passes.
template <class T, int kCount, Space kSpace>
void count_conflicts(Warp& warp, const Instruction& i, int address_operand, LaneMask mask) {
  if constexpr (kSpace == Space::kShared) {
    uint32_t addresses[32];
    for (int lane = 0; lane < 32; lane++)
      addresses[lane] = warp.lanes<uint32_t>(i.operand[address_operand])[lane] + uint32_t(i.offset);
    statistics().bank_conflicts += uint64_t(extra_passes(addresses, mask, unsigned(sizeof(T)) * kCount));
  }
}

// T: the type in memory. Slot: int64_t or uint64_t where a narrower type is loaded into a 64-bit register, which
// extends it.
template <class T, int kCount, Space kSpace, class Slot = T>
void load(Warp& warp, const Instruction& i, LaneMask mask) {  // operands: kCount results, address
  count_conflicts<T, kCount, kSpace>(warp, i, kCount, mask);
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    const char* p = element_pointer<T, kCount, kSpace, Access::kRead>(warp, i, kCount, lane);
    for (int k = 0; k < kCount; k++) {
      T value;
      std::memcpy(&value, p + size_t(k) * sizeof(T), sizeof(T));
      warp.lanes<Slot>(i.operand[k])[lane] = widen<Slot>(value);
    }
  }
}

template <class T, int kCount, Space kSpace, class Slot = T>
void store(Warp& warp, const Instruction& i, LaneMask mask) {  // operands: address, kCount values
  count_conflicts<T, kCount, kSpace>(warp, i, 0, mask);
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    char* p = element_pointer<T, kCount, kSpace, Access::kWrite>(warp, i, 0, lane);
    for (int k = 0; k < kCount; k++) {
      const T value = narrow<T>(warp.lanes<Slot>(i.operand[1 + k])[lane]);
      std::memcpy(p + size_t(k) * sizeof(T), &value, sizeof(T));
    }
  }
}

template <class T, int kCount, class Slot = T>
void load_parameter(Warp& warp, const Instruction& i, LaneMask mask) {
  const auto& parameters = warp.machine->parameters;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    const uint64_t at = warp.lanes<uint64_t>(i.operand[kCount])[lane] + uint64_t(i.offset);
    if (at + sizeof(T) * kCount > parameters.size()) fail(warp, i, "parameter out of bounds");
    for (int k = 0; k < kCount; k++) {
      T value;
      std::memcpy(&value, &parameters[at + size_t(k) * sizeof(T)], sizeof(T));
      warp.lanes<Slot>(i.operand[k])[lane] = widen<Slot>(value);
    }
  }
}

template <class T, int kCount>
void add_access(Table& table, const std::string& suffix) {  // ".v2.f32"
  constexpr char kValue = sizeof(T) == 8 ? 'W' : 'V';
  constexpr int kBytes = int(sizeof(T)) * kCount;
  for (const char* kind : {"", ".nc", ".nc.L1::no_allocate", ".volatile"}) {
    const std::string name = std::string(kind) == ".volatile" ? "ld.volatile.global" : std::string("ld.global") + kind;
    table.add(name + suffix, {kValue, 'g'}, load<T, kCount, Space::kGlobal>);
  }
  table.add("st.global" + suffix, {'g', kValue}, store<T, kCount, Space::kGlobal>);
  for (const char* kind : {"", ".volatile"}) {
    table.add(std::string("ld") + kind + ".shared" + suffix, {kValue, 's'}, load<T, kCount, Space::kShared>,
              Flow::kNone, kBytes);
    table.add(std::string("st") + kind + ".shared" + suffix, {'s', kValue}, store<T, kCount, Space::kShared>,
              Flow::kNone, kBytes);
  }
  table.add("ld.param" + suffix, {kValue, 'a'}, load_parameter<T, kCount>);
}

template <class T>
void add_accesses(Table& table, const std::string& type) {
  add_access<T, 1>(table, "." + type);
  add_access<T, 2>(table, ".v2." + type);
  if constexpr (sizeof(T) <= 4) add_access<T, 4>(table, ".v4." + type);
  if constexpr (sizeof(T) <= 4 && std::is_integral_v<T>) {
    using Slot = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    const std::string name = "." + type + kWideRegister;
    table.add("ld.global" + name, "dg", load<T, 1, Space::kGlobal, Slot>);
    table.add("ld.shared" + name, "ds", load<T, 1, Space::kShared, Slot>, Flow::kNone, int(sizeof(T)));
    table.add("ld.param" + name, "da", load_parameter<T, 1, Slot>);
    table.add("st.global" + name, "gd", store<T, 1, Space::kGlobal, Slot>);
  }
}

// --------------------------------------------------------------------------------------------------------------
// cp.async

void land(Warp& warp, const Instruction& i, PendingCopy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  unsigned char* dst = shared_pointer(warp, i, copy.dst, 16, Access::kCopyLand);
  std::memcpy(dst, copy.src, copy.bytes);
  std::memset(dst + copy.bytes, 0, 16 - copy.bytes);
}

// cp.async.cg.shared.global [dst], [src], 16{, bytes}: `bytes` are copied, the rest is zeroed. For the race check a
// copy is in flight until its wait, whenever its bytes appear.
void copy_async(Warp& warp, const Instruction& i, LaneMask mask) {
  if (i.immediate != 16) fail(warp, i, "cp.async of other than 16 bytes");
  const uint32_t* dst = warp.lanes<uint32_t>(i.operand[0]);
  const uint64_t* src = warp.lanes<uint64_t>(i.operand[1]);
  const uint32_t* size = i.count > 2 ? warp.lanes<uint32_t>(i.operand[2]) : nullptr;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    const uint32_t bytes = size ? size[lane] : 16;
    if (bytes > 16) fail(warp, i, "cp.async source size above 16");
    if (src[lane] % 16 != 0) fail(warp, i, "misaligned cp.async source");
    const uint32_t unit = bytes == 16 ? 16 : 1;
    for (uint32_t at = 0; at < bytes; at += unit) global_pointer(warp, i, src[lane] + at, unit, /*is_write=*/false);
    unsigned char* p = shared_pointer(warp, i, dst[lane], 16, Access::kCopyIssue);
    statistics().async_copies++;
    PendingCopy copy{dst[lane], reinterpret_cast<const char*>(src[lane]), bytes, false};
    const Visibility mode = warp.machine->config.copies;
    if (mode == Visibility::kEarly || (mode == Visibility::kRandom && next_random(*warp.machine) % 4 == 0)) {
      std::memcpy(p, copy.src, bytes);
      std::memset(p + bytes, 0, 16 - bytes);
    } else {
      std::memset(p, 0xA5, 16);  // neither the old bytes nor the new ones may be relied upon
    }
    warp.copies.push_back(copy);
    warp.uncommitted++;
  }
}

void commit_group(Warp& warp, const Instruction& i, LaneMask mask) {
  if (mask != warp.alive) fail(warp, i, "cp.async.commit_group in divergent code is not supported");
  warp.groups.push_back(warp.uncommitted);
  warp.uncommitted = 0;
}

void wait_group(Warp& warp, const Instruction& i, LaneMask mask) {
  if (mask != warp.alive) fail(warp, i, "cp.async.wait_group in divergent code is not supported");
  while (int64_t(warp.groups.size()) > i.immediate) {
    const int count = warp.groups.front();
    warp.groups.erase(warp.groups.begin());
    for (int k = 0; k < count; k++) land(warp, i, warp.copies[size_t(k)]);
    warp.copies.erase(warp.copies.begin(), warp.copies.begin() + count);
  }
}

}  // namespace

void add_memory(Table& table) {
  add_accesses<uint8_t>(table, "u8");
  add_accesses<uint8_t>(table, "b8");
  add_accesses<int8_t>(table, "s8");
  add_accesses<uint16_t>(table, "u16");
  add_accesses<uint16_t>(table, "b16");
  add_accesses<int16_t>(table, "s16");
  add_accesses<uint32_t>(table, "u32");
  add_accesses<uint32_t>(table, "b32");
  add_accesses<int32_t>(table, "s32");
  add_accesses<float>(table, "f32");
  add_accesses<uint64_t>(table, "u64");
  add_accesses<uint64_t>(table, "b64");
  add_accesses<int64_t>(table, "s64");
  table.add("cp.async.cg.shared.global", "sgi?r", copy_async, Flow::kNone, 16);
  table.add("cp.async.commit_group", "", commit_group);
  table.add("cp.async.wait_group", "i", wait_group);
}

}  // namespace simt::ptx
