// Opcode table, part 4: Hopper's mbarriers, bulk copies and wgmma.
#include <algorithm>
#include <cstring>

#include "ptx_table.h"
#include "wgmma_math.h"

namespace simt::ptx {

namespace {

AsyncUnits& units(Warp& warp) { return *warp.machine->async; }

uint32_t shared_address(Warp& warp, const Instruction& i, int operand, int lane) {
  return warp.lanes<uint32_t>(i.operand[operand])[lane] + uint32_t(i.offset);
}

Mbarrier& find(Warp& warp, const Instruction& i, uint32_t address) {
  const auto found = units(warp).barriers.find(address);
  if (found == units(warp).barriers.end()) fail(warp, i, "no mbarrier has been initialized here");
  shared_pointer(warp, i, address, 8, Access::kRead);
  return found->second;
}

template <class F>
void each_active(LaneMask mask, F f) {
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) f(lane);
}

void init(Warp& warp, const Instruction& i, LaneMask mask) {  // address, count
  each_active(mask, [&](int lane) {
    const uint32_t address = shared_address(warp, i, 0, lane);
    shared_pointer(warp, i, address, 8, Access::kWrite);
    auto& barriers = units(warp).barriers;
    if (barriers.contains(address)) fail(warp, i, "mbarrier initialized twice");
    const int index = int(barriers.size());
    if (index == AsyncRace::kMaxBarriers) fail(warp, i, "more mbarriers than the simulator has clocks for");
    Mbarrier& barrier = barriers[address];
    barrier.count = barrier.pending = int(warp.lanes<uint32_t>(i.operand[1])[lane]);
    barrier.index = index;
  });
}

void fence_init(Warp& warp, const Instruction&, LaneMask) {
  for (auto& [address, barrier] : units(warp).barriers) barrier.fenced = true;
}

void arrive(Warp& warp, const Instruction& i, LaneMask mask) {  // address{, bytes}
  each_active(mask, [&](int lane) {
    Mbarrier& barrier = find(warp, i, shared_address(warp, i, 0, lane));
    if (barrier.pending == 0) fail(warp, i, "more arrivals at an mbarrier than its count");
    units(warp).race.release(warp.id, barrier.arrivals);
    if (i.count > 1) barrier.bytes += warp.lanes<uint32_t>(i.operand[1])[lane];
    barrier.pending--;
    barrier.complete_if_due(units(warp).race);
  });
}

// try_wait p, address, parity: a failure stops the warp until the phase ends; the program then asks again.
void try_wait(Warp& warp, const Instruction& i, LaneMask mask) {
  Machine& machine = *warp.machine;
  if (machine.config.copies == Visibility::kRandom && next_random(machine) % 2 == 0) advance_copies(machine);
  LaneMask past = 0;
  warp.waits_for = nullptr;
  each_active(mask, [&](int lane) {
    const uint32_t parity = warp.lanes<uint32_t>(i.operand[2])[lane] & 1;
    const Mbarrier& barrier = find(warp, i, shared_address(warp, i, 1, lane));
    if (barrier.is_past(parity)) {
      units(warp).race.acquire(warp.id, barrier.completed);
      past |= LaneMask(1) << lane;
    } else {
      warp.waits_for = &barrier;
      warp.parity = parity;
    }
  });
  assign_predicate(warp, i.operand[0], past, mask);
}

void land(Machine& machine, size_t index) {
  AsyncUnits& async = *machine.async;
  const BulkCopy copy = async.copies[index];
  async.copies.erase(async.copies.begin() + ptrdiff_t(index));
  std::memcpy(&machine.shared[copy.dst - kSharedWindow], copy.src, size_t(copy.bytes));
  Mbarrier& barrier = async.barriers.at(copy.barrier);
  barrier.bytes -= copy.bytes;
  barrier.complete_if_due(async.race);
}

void bulk_copy(Warp& warp, const Instruction& i, LaneMask mask) {  // dst, src, bytes, barrier
  Machine& machine = *warp.machine;
  AsyncUnits& async = units(warp);
  each_active(mask, [&](int lane) {
    const uint32_t dst = warp.lanes<uint32_t>(i.operand[0])[lane], bytes = warp.lanes<uint32_t>(i.operand[2])[lane];
    const uint64_t src = warp.lanes<uint64_t>(i.operand[1])[lane];
    const uint32_t address = warp.lanes<uint32_t>(i.operand[3])[lane];
    const Mbarrier& barrier = find(warp, i, address);
    if (!barrier.fenced) fail(warp, i, "no fence.mbarrier_init after the barrier's init");
    if (bytes == 0 || bytes % 16 != 0 || dst % 16 != 0 || src % 16 != 0)
      fail(warp, i, "addresses and size must be multiples of 16");
    const size_t offset = dst - kSharedWindow;
    if (dst < kSharedWindow || offset + bytes > machine.shared_bytes) fail(warp, i, "target out of bounds");
    for (uint32_t at = 0; at < bytes; at += 16) global_pointer(warp, i, src + at, 16, /*is_write=*/false);
    if (const char* wrong = async.race.copy_write(warp.id, offset, bytes, barrier.index, barrier.phases + 1))
      fail(warp, i, wrong);
    statistics().async_copies += bytes / 16;
    async.copies.push_back({dst, reinterpret_cast<const char*>(src), int(bytes), address});
    const Visibility mode = machine.config.copies;
    if (mode == Visibility::kEarly || (mode == Visibility::kRandom && next_random(machine) % 4 == 0))
      land(machine, async.copies.size() - 1);
    else
      std::memset(&machine.shared[offset], 0xA5, bytes);  // neither the old bytes nor the new ones may be relied upon
  });
}

void fence_proxy(Warp& warp, const Instruction&, LaneMask) {
  if (warp.machine->async) units(warp).race.proxy_fence(warp.id);
}

// --------------------------------------------------------------------------------------------------------------
// wgmma

constexpr uint32_t kMark = 0x5EAD0000;

void compute(Warp& warp, WarpProduct& p) {
  if (p.done) return;
  p.done = true;
  const unsigned char* memory = warp.machine->shared.data() - kSharedWindow;
  const bool in_registers = p.instruction->count == 6;
  const bool is_unsigned = p.instruction->text.find(".u8.s8") != std::string::npos;
  const WarpShare share =
      in_registers ? WarpShare::from_registers([&](int lane, int i) { return p.a_values[i][lane]; }, is_unsigned)
                   : WarpShare::from_memory(MatrixOperand(p.a), warp.id, memory);
  share.multiply(MatrixOperand(p.b), int(p.instruction->matrix.size()) * 2, p.accumulate, memory,
                 p.accumulator->values);
}

void read_operand(Warp& warp, const Instruction& i, uint64_t descriptor, int rows, uint32_t group) {
  if (const std::string wrong = unsupported_descriptor(descriptor); !wrong.empty()) fail(warp, i, wrong);
  each_core_matrix(MatrixOperand(descriptor), rows, [&](uint32_t address) {
    const size_t offset = address - kSharedWindow;
    if (address < kSharedWindow || offset + 128 > warp.machine->shared_bytes) fail(warp, i, "operand out of bounds");
    if (const char* wrong = units(warp).race.product_read(warp.id, offset, 128, group)) fail(warp, i, wrong);
  });
}

uint64_t uniform(Warp& warp, const Instruction& i, int operand) {
  const uint64_t* lanes = warp.lanes<uint64_t>(i.operand[operand]);
  for (int lane = 1; lane < 32; lane++)
    if (lanes[lane] != lanes[0]) fail(warp, i, "lanes have different descriptors");
  return lanes[0];
}

// {d}, {a} or descriptor, descriptor, predicate: accumulate
void multiply(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  ProductQueue& queue = units(warp).products[size_t(warp.id)];
  if (!queue.fenced) fail(warp, i, "no wgmma.fence since registers were last accessed");
  const bool in_registers = i.count == 6;
  const int last = i.count - 1;
  const uint32_t group = queue.committed_groups + 1;
  WarpProduct p{nullptr, &i, read_predicate(warp, i, last) != 0, false, 0, uniform(warp, i, last - 1), {}};
  if (in_registers) {
    for (int k = 0; k < 4; k++) std::memcpy(p.a_values[k], warp.lanes<uint32_t>(i.operand[k]), sizeof p.a_values[k]);
  } else {
    p.a = uniform(warp, i, 0);
    read_operand(warp, i, p.a, 64, group);
  }
  read_operand(warp, i, p.b, int(i.matrix.size()) * 2, group);
  std::vector<IssuedProduct>& issued = units(warp).issued[size_t(warp.id) / 4];
  const IssuedProduct product{&i, p.a, p.b};
  if (queue.issued == issued.size()) issued.push_back(product);
  if (issued[queue.issued++] != product) fail(warp, i, "the warps of a warpgroup are in different wgmma");

  const uint32_t mark = warp.lanes<uint32_t>(i.matrix[0])[0];
  for (WarpProduct& other : queue.products)
    if (other.accumulator->first_mark == mark) p.accumulator = other.accumulator;
  if (!p.accumulator) {
    p.accumulator = std::make_shared<MarkedAccumulator>();
    p.accumulator->first_mark = kMark + queue.marks;
    queue.marks = (queue.marks + 128) & 0xffff;
    for (int lane = 0; lane < 32; lane++)
      for (const int slot : i.matrix) p.accumulator->values[lane].push_back(int32_t(warp.lanes<uint32_t>(slot)[lane]));
  }
  for (size_t k = 0; k < i.matrix.size(); k++) {
    uint32_t* d = warp.lanes<uint32_t>(i.matrix[k]);
    if (p.accumulator->in_flight > 0 && d[0] != p.accumulator->first_mark + k)
      fail(warp, i, "an accumulator changed while products to it were in flight");
    std::fill_n(d, 32, p.accumulator->first_mark + uint32_t(k));
  }
  p.accumulator->in_flight++;
  queue.products.push_back(std::move(p));
  queue.uncommitted++;
  const Config& config = warp.machine->config;
  if (config.copies == Visibility::kEarly ||
      (config.copies == Visibility::kRandom && next_random(*warp.machine) % 2 == 0))
    for (WarpProduct& each : queue.products) compute(warp, each);
  statistics().mma += warp.id % 4 == 0;  // one per warpgroup
}

// Puts the results wherever the program has moved the registers.
void unmark(Warp& warp, const MarkedAccumulator& accumulator) {
  const uint32_t first = accumulator.first_mark, count = uint32_t(accumulator.values[0].size());
  for (int slot = 0; slot < warp.machine->kernel->slots_32; slot++) {
    uint32_t* lanes = warp.lanes<uint32_t>(slot);
    const uint32_t at = lanes[0] - first;
    if (at >= count) continue;
    for (int lane = 0; lane < 32; lane++) lanes[lane] = uint32_t(accumulator.values[lane][at]);
  }
}

void give_registers(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  RegisterFile& registers = units(warp).registers;
  if (const std::string wrong = registers.wrong(warp.id, int(i.immediate), /*more=*/false); !wrong.empty())
    fail(warp, i, wrong);
  registers.set(warp.id, int(i.immediate));
}

// Where there are not enough, the warp stops, and gets them when it runs again.
void take_registers(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  RegisterFile& registers = units(warp).registers;
  if (const std::string wrong = registers.wrong(warp.id, int(i.immediate), /*more=*/true); !wrong.empty())
    fail(warp, i, wrong);
  warp.wants_registers = registers.set(warp.id, int(i.immediate)) ? 0 : int(i.immediate);
}

void fence(Warp& warp, const Instruction&, LaneMask) { units(warp).products[size_t(warp.id)].fenced = true; }

void commit(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  ProductQueue& queue = units(warp).products[size_t(warp.id)];
  queue.groups.push_back(queue.uncommitted);
  queue.uncommitted = 0;
  queue.committed_groups++;
}

void wait(Warp& warp, const Instruction& i, LaneMask mask) {
  require_full_warp(warp, i, mask);
  ProductQueue& queue = units(warp).products[size_t(warp.id)];
  while (int64_t(queue.groups.size()) > i.immediate) {
    const int count = queue.groups.front();
    queue.groups.erase(queue.groups.begin());
    for (int k = 0; k < count; k++) {
      WarpProduct& p = queue.products[size_t(k)];
      compute(warp, p);
      if (--p.accumulator->in_flight == 0) unmark(warp, *p.accumulator);
    }
    queue.products.erase(queue.products.begin(), queue.products.begin() + count);
  }
  units(warp).race.products_complete(warp.id, queue.committed_groups - uint32_t(queue.groups.size()));
  queue.fenced = false;
}

}  // namespace

bool advance_copies(Machine& machine) {
  if (!machine.async || machine.async->copies.empty()) return false;
  const size_t count = machine.async->copies.size();
  land(machine, machine.config.copies == Visibility::kRandom ? size_t(next_random(machine) % count) : count - 1);
  return true;
}

void add_async(Table& table) {
  table.add("mbarrier.init.shared::cta.b64", "sr", init, Flow::kNone, 8);
  table.add("fence.mbarrier_init.release.cluster", "", fence_init);
  table.add("mbarrier.arrive.shared::cta.b64", "_s", arrive, Flow::kNone, 8);
  table.add("mbarrier.arrive.expect_tx.shared::cta.b64", "_sr", arrive, Flow::kNone, 8);
  table.add("mbarrier.try_wait.parity.shared::cta.b64", "psr", try_wait, Flow::kWait, 8);
  table.add("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", "sgrs", bulk_copy, Flow::kNone, 16);
  table.add("fence.proxy.async.shared::cta", "", fence_proxy);
  table.add("setmaxnreg.dec.sync.aligned.u32", "i", give_registers);
  table.add("setmaxnreg.inc.sync.aligned.u32", "i", take_registers, Flow::kWait);
  table.add("wgmma.fence.sync.aligned", "", fence);
  table.add("wgmma.commit_group.sync.aligned", "", commit);
  table.add("wgmma.wait_group.sync.aligned", "i", wait);
  for (const char* n : {"64", "96", "128"})
    for (const char* types : {"s8.s8", "u8.s8"})
      table.add(std::string("wgmma.mma_async.sync.aligned.m64n") + n + "k32.s32." + types, "MXdp", multiply);
}

}  // namespace simt::ptx
