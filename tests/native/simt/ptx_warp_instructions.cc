// Opcode table, part 3: what the lanes of a warp, or the warps of a block, do together; and control flow.
#include <algorithm>
#include <cstring>

#include "ptx_table.h"
#include "warp_math.h"

namespace simt::ptx {

namespace {

// The member mask must name exactly the lanes that execute the instruction together.
void require_members(Warp& warp, const Instruction& i, int mask_operand, LaneMask mask) {
  const uint32_t* members = warp.lanes<uint32_t>(i.operand[mask_operand]);
  for (int lane = 0; lane < 32; lane++)
    if ((mask >> lane & 1) && (members[lane] & warp.alive) != mask)
      fail(warp, i, "member mask differs from the converged lanes");
}

enum class ShuffleMode { kButterfly, kUp, kDown, kIndex };

// shfl.sync d{|p}, a, b, c, members. c: clamp in bits 0-4, segment mask in bits 8-12.
template <ShuffleMode kMode>
void shuffle(Warp& warp, const Instruction& i, LaneMask mask) {
  require_members(warp, i, 4, mask);
  const uint32_t *a = warp.lanes<uint32_t>(i.operand[1]), *b = warp.lanes<uint32_t>(i.operand[2]),
                 *c = warp.lanes<uint32_t>(i.operand[3]);
  uint32_t result[32];
  LaneMask in_range = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    const int segment = int(c[lane] >> 8 & 31), clamp = int(c[lane] & 31), amount = int(b[lane] & 31);
    const int highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    int source = 0;
    bool valid = false;
    switch (kMode) {
      case ShuffleMode::kButterfly:
        source = lane ^ amount, valid = source <= highest;
        break;
      case ShuffleMode::kUp:
        source = lane - amount, valid = source >= highest;
        break;
      case ShuffleMode::kDown:
        source = lane + amount, valid = source <= highest;
        break;
      case ShuffleMode::kIndex:
        source = lowest | (amount & ~segment), valid = source <= highest;
        break;
    }
    if (!valid) source = lane;
    if (!(mask >> source & 1)) fail(warp, i, "shfl.sync reads from an inactive lane");
    result[lane] = a[source];
    in_range |= LaneMask(valid) << lane;
  }
  statistics().shuffles++;
  uint32_t* d = warp.lanes<uint32_t>(i.operand[0]);
  each_lane(mask, [&](int lane) { d[lane] = result[lane]; });
  if (i.result_predicate >= 0) assign_predicate(warp, i.result_predicate, in_range, mask);
}

template <auto F>
void vote(Warp& warp, const Instruction& i, LaneMask mask) {  // p, a, members
  require_members(warp, i, 2, mask);
  const LaneMask votes = read_predicate(warp, i, 1) & mask;
  assign_predicate(warp, i.operand[0], F(votes, mask) ? mask : 0, mask);
}

void ballot(Warp& warp, const Instruction& i, LaneMask mask) {
  require_members(warp, i, 2, mask);
  const LaneMask votes = read_predicate(warp, i, 1) & mask;
  uint32_t* d = warp.lanes<uint32_t>(i.operand[0]);
  each_lane(mask, [&](int lane) { d[lane] = votes; });
}

void sync_warp(Warp& warp, const Instruction& i, LaneMask mask) { require_members(warp, i, 0, mask); }

template <int kCount, bool kTransposed>
void load_matrices(Warp& warp, const Instruction& i, LaneMask mask) {  // operands: kCount results, address
  require_full_warp(warp, i, mask);
  const uint32_t* base = warp.lanes<uint32_t>(i.operand[kCount]);
  uint8_t rows[32][16];
  uint32_t addresses[32] = {};
  for (int lane = 0; lane < 8 * kCount; lane++) {
    addresses[lane] = base[lane] + uint32_t(i.offset);
    std::memcpy(rows[lane], shared_pointer(warp, i, addresses[lane], 16, Access::kRead), 16);
  }
  statistics().ldmatrix++;
  statistics().bank_conflicts += uint64_t(extra_passes(addresses, uint32_t((uint64_t(1) << (8 * kCount)) - 1), 16));
  LaneRegister result[4];
  distribute_matrices(result, kCount, rows, kTransposed);
  for (int k = 0; k < kCount; k++) std::memcpy(warp.lanes<uint32_t>(i.operand[k]), result[k], sizeof(LaneRegister));
}

// mma d[4], a[4], b[2], c[4]
template <class Number, auto Multiply>
void multiply_accumulate(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  LaneRegister a[4], b[2];
  for (int k = 0; k < 4; k++) std::memcpy(a[k], warp.lanes<uint32_t>(i.operand[4 + k]), sizeof(LaneRegister));
  for (int k = 0; k < 2; k++) std::memcpy(b[k], warp.lanes<uint32_t>(i.operand[8 + k]), sizeof(LaneRegister));
  Number matrix[16][8];
  for (int k = 0; k < 4; k++)
    for (int lane = 0; lane < 32; lane++)
      matrix[accumulator_row(lane, k)][accumulator_column(lane, k)] =
          bit_copy<Number>(warp.lanes<uint32_t>(i.operand[10 + k])[lane]);
  Multiply(matrix, a, b);
  for (int k = 0; k < 4; k++)
    for (int lane = 0; lane < 32; lane++)
      warp.lanes<uint32_t>(i.operand[k])[lane] =
          bit_copy<uint32_t>(matrix[accumulator_row(lane, k)][accumulator_column(lane, k)]);
  statistics().mma++;
}

template <bool kAUnsigned, bool kBUnsigned>
constexpr auto kMultiply16832 = [](auto& d, auto* a, auto* b) { multiply_16832(d, a, b, kAUnsigned, kBUnsigned); };
template <Half kType>
constexpr auto kMultiply16816 = [](auto& d, auto* a, auto* b) { multiply_16816(d, a, b, kType); };

void block_barrier(Warp& warp, const Instruction& i, LaneMask) {
  const int threads = i.count > 1 ? int(warp.lanes<uint32_t>(i.operand[1])[0]) : int(warp.machine->warps.size()) * 32;
  arrive_at_barrier(warp, i, int(warp.lanes<uint32_t>(i.operand[0])[0]), threads);
}

// p, id, threads, predicate
void reduce_at_barrier(Warp& warp, const Instruction& i, LaneMask mask) {
  const auto value = [&](int operand) { return int(warp.lanes<uint32_t>(i.operand[operand])[0]); };
  arrive_at_barrier(warp, i, value(1), value(2), i.operand[0], (read_predicate(warp, i, 3) & mask) != 0);
}

void nothing(Warp&, const Instruction&, LaneMask) {}

}  // namespace

void add_warp_instructions(Table& table) {
  table.add("shfl.sync.bfly.b32", "trrrr", shuffle<ShuffleMode::kButterfly>);
  table.add("shfl.sync.up.b32", "trrrr", shuffle<ShuffleMode::kUp>);
  table.add("shfl.sync.down.b32", "trrrr", shuffle<ShuffleMode::kDown>);
  table.add("shfl.sync.idx.b32", "trrrr", shuffle<ShuffleMode::kIndex>);
  table.add("vote.sync.any.pred", "ppr", vote<[](LaneMask votes, LaneMask) { return votes != 0; }>);
  table.add("vote.sync.all.pred", "ppr", vote<[](LaneMask votes, LaneMask mask) { return votes == mask; }>);
  table.add("vote.sync.ballot.b32", "rpr", ballot);
  table.add("bar.warp.sync", "r", sync_warp);
  const std::string ldmatrix = "ldmatrix.sync.aligned.m8n8.";
  table.add(ldmatrix + "x1.shared.b16", "Vs", load_matrices<1, false>);
  table.add(ldmatrix + "x2.shared.b16", "Vs", load_matrices<2, false>);
  table.add(ldmatrix + "x4.shared.b16", "Vs", load_matrices<4, false>);
  table.add(ldmatrix + "x2.trans.shared.b16", "Vs", load_matrices<2, true>);
  table.add(ldmatrix + "x4.trans.shared.b16", "Vs", load_matrices<4, true>);
  const std::string int8 = "mma.sync.aligned.m16n8k32.row.col.s32.", half = "mma.sync.aligned.m16n8k16.row.col.f32.";
  table.add(int8 + "s8.s8.s32", "VVVV", multiply_accumulate<int32_t, kMultiply16832<false, false>>);
  table.add(int8 + "u8.s8.s32", "VVVV", multiply_accumulate<int32_t, kMultiply16832<true, false>>);
  table.add(half + "f16.f16.f32", "VVVV", multiply_accumulate<float, kMultiply16816<Half::kF16>>);
  table.add(half + "bf16.bf16.f32", "VVVV", multiply_accumulate<float, kMultiply16816<Half::kBF16>>);
  table.add("bar.sync", "r?r", block_barrier, Flow::kBarrier);
  table.add("barrier.sync", "r?r", block_barrier, Flow::kBarrier);
  table.add("bar.red.or.pred", "prrp", reduce_at_barrier, Flow::kBarrier);
  table.add("bra", "l", nothing, Flow::kBranch);
  table.add("bra.uni", "l", nothing, Flow::kBranch);
  table.add("ret", "", nothing, Flow::kExit);
  table.add("exit", "", nothing, Flow::kExit);
}

const std::map<std::string, Opcode>& opcodes() {
  static const std::map<std::string, Opcode> all = [] {
    std::map<std::string, Opcode> made;
    Table table{made};
    add_arithmetic(table);
    add_memory(table);
    add_warp_instructions(table);
    add_async(table);
    return made;
  }();
  return all;
}

}  // namespace simt::ptx
