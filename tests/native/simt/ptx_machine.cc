// Running a grid: divergence, barriers, schedules, address checks.
#include "ptx_machine.h"

#include <dlfcn.h>

#include <algorithm>
#include <limits>

namespace simt::ptx {

namespace {

// The block's special registers, lane by lane.
uint32_t special_register(const std::string& name, const Machine& machine, const LaunchRequest& request, int thread) {
  const dim3 block = request.block;
  const uint32_t t = uint32_t(thread);
  if (name == "%tid.x") return t % block.x;
  if (name == "%tid.y") return t / block.x % block.y;
  if (name == "%tid.z") return t / (block.x * block.y);
  if (name == "%ntid.x") return block.x;
  if (name == "%ntid.y") return block.y;
  if (name == "%ntid.z") return block.z;
  if (name == "%ctaid.x") return machine.index.x;
  if (name == "%ctaid.y") return machine.index.y;
  if (name == "%ctaid.z") return machine.index.z;
  if (name == "%nctaid.x") return request.grid.x;
  if (name == "%nctaid.y") return request.grid.y;
  if (name == "%nctaid.z") return request.grid.z;
  if (name == "%laneid") return t % 32;
  throw Error("PTX: unknown special register " + name);
}

void start_block(Machine& machine, const LaunchRequest& request, dim3 index) {
  const Kernel& kernel = *machine.kernel;
  machine.index = index;
  machine.block++;
  for (size_t i = 0; i < machine.shared_bytes; i++) machine.shared[i] = static_cast<unsigned char>(0xC5 ^ (i * 7));
  machine.races.start(int(machine.warps.size()), machine.shared_bytes, kernel.shared_granule);
  machine.async =
      kernel.has_mbarriers ? std::make_unique<AsyncUnits>(int(machine.warps.size()), machine.shared_bytes) : nullptr;
  for (Barrier& barrier : machine.barriers) barrier = {};
  for (size_t w = 0; w < machine.warps.size(); w++) {
    Warp& warp = machine.warps[w];
    warp.machine = &machine;
    warp.id = int(w);
    warp.alive = ~LaneMask(0);
    std::fill(std::begin(warp.pc), std::end(warp.pc), 0);
    warp.barrier = -1;
    warp.copies.clear();
    warp.groups.clear();
    warp.uncommitted = 0;
    warp.waits_for = nullptr;
    warp.wants_registers = 0;
    // Poison: an uninitialized register must not look like a zero.
    warp.registers_32.assign(size_t(kernel.slots_32) * 32, 0xBADC0DE5u);
    warp.registers_64.assign(size_t(kernel.slots_64) * 32, 0xDEADBEEFDEADBEEFull);
    warp.predicates.assign(size_t(kernel.slots_predicate), 0xAAAAAAAAu);
    for (const auto& [slot, value] : kernel.constants_32) std::fill_n(warp.lanes<uint32_t>(slot), 32, value);
    for (const auto& [slot, value] : kernel.constants_64) std::fill_n(warp.lanes<uint64_t>(slot), 32, value);
    for (const auto& [slot, value] : kernel.constants_predicate) warp.predicates[size_t(slot)] = value;
    for (const auto& [name, slot] : kernel.special_registers)
      for (int lane = 0; lane < 32; lane++)
        warp.lanes<uint32_t>(slot)[lane] = special_register(name, machine, request, int(w) * 32 + lane);
  }
}

void exit_lanes(Warp& warp, const Instruction& instruction, LaneMask lanes) {
  warp.alive &= ~lanes;
  if (warp.alive != 0) return;
  for (const PendingCopy& copy : warp.copies)
    if (!copy.landed) fail(warp, instruction, "a warp exits with cp.async in flight");
  if (warp.machine->async && !warp.machine->async->products[size_t(warp.id)].products.empty())
    fail(warp, instruction, "a warp exits with wgmma in flight");
  const std::vector<Warp>& warps = warp.machine->warps;
  if (!warp.machine->async || std::any_of(warps.begin(), warps.end(), [](const Warp& w) { return w.alive != 0; }))
    return;
  if (!warp.machine->async->registers.uniform()) fail(warp, instruction, "setmaxnreg by a part of a warpgroup");
  for (const Warp& each : warps)
    if (warp.machine->async->products[size_t(each.id)].issued !=
        warp.machine->async->issued[size_t(each.id) / 4].size())
      fail(warp, instruction, "wgmma by a part of a warpgroup");
}

// Runs until the warp waits at a barrier, ends, or has spent its budget. Of diverged lanes the ones at the lowest
// instruction run, up to where the next ones stand: that reconverges every structured program.
void run_warp(Warp& warp, int64_t budget) {
  const std::vector<Instruction>& code = warp.machine->kernel->code;
  Statistics& total = statistics();
  if (warp.wants_registers > 0) {
    warp.machine->async->registers.set(warp.id, warp.wants_registers);
    warp.wants_registers = 0;
  }
  while (warp.alive != 0 && warp.can_run() && budget > 0) {
    int pc = std::numeric_limits<int>::max(), limit = std::numeric_limits<int>::max();
    for (int lane = 0; lane < 32; lane++)
      if (warp.alive >> lane & 1) pc = std::min(pc, warp.pc[lane]);
    LaneMask mask = 0;
    for (int lane = 0; lane < 32; lane++) {
      if (!(warp.alive >> lane & 1)) continue;
      if (warp.pc[lane] == pc)
        mask |= LaneMask(1) << lane;
      else
        limit = std::min(limit, warp.pc[lane]);
    }
    const auto leave_at = [&](LaneMask lanes, int where) {
      for (int lane = 0; lane < 32; lane++)
        if (lanes >> lane & 1) warp.pc[lane] = where;
    };
    for (bool together = true; together;) {
      const Instruction& instruction = code[size_t(pc)];
      total.instructions++;
      budget--;
      LaneMask active = mask;
      if (instruction.guard >= 0) {
        const LaneMask guard = warp.predicates[size_t(instruction.guard)];
        active &= instruction.guard_negated ? ~guard : guard;
      }
      switch (instruction.flow) {
        case Flow::kNone:
          if (active != 0) instruction.handler(warp, instruction, active);
          pc++;
          break;
        case Flow::kBranch:
          if (active != 0 && active != mask) {
            leave_at(active, instruction.target);
            leave_at(mask & ~active, pc + 1);
            together = false;
          } else {
            pc = active != 0 ? instruction.target : pc + 1;
          }
          break;
        case Flow::kExit:
          if (active != 0) exit_lanes(warp, instruction, active);
          mask &= ~active;
          pc++;
          break;
        case Flow::kWait:
          if (active != 0) instruction.handler(warp, instruction, active);
          pc++;
          if (!warp.can_run()) leave_at(mask, pc), together = false;
          break;
        case Flow::kBarrier:
          if (active != warp.alive) fail(warp, instruction, "barrier in divergent code");
          leave_at(mask, pc + 1);
          instruction.handler(warp, instruction, active);
          together = false;
          break;
      }
      if (together && (mask == 0 || pc >= limit || budget <= 0)) {
        leave_at(mask, pc);
        together = false;
      }
    }
  }
}

int choose(Machine& machine, const std::vector<int>& ready, int last) {
  switch (machine.config.schedule) {
    case Schedule::kGreedyFirst:
      return ready.front();
    case Schedule::kGreedyLast:
      return ready.back();
    case Schedule::kRandom:
      return ready[next_random(machine) % ready.size()];
    case Schedule::kRoundRobin:
      break;
  }
  const auto next = std::upper_bound(ready.begin(), ready.end(), last);
  return next == ready.end() ? ready.front() : *next;
}

void run_block(Machine& machine) {
  std::vector<int> ready;
  for (int last = -1;;) {
    ready.clear();
    const Warp* waiting = nullptr;
    for (const Warp& warp : machine.warps) {
      if (warp.alive == 0) continue;
      if (warp.can_run())
        ready.push_back(warp.id);
      else
        waiting = &warp;
    }
    if (ready.empty() && waiting != nullptr && advance_copies(machine)) continue;
    if (ready.empty()) {
      if (waiting == nullptr) return;
      throw Error("PTX: deadlock, warp " + std::to_string(waiting->id) + " waits at " +
                  (waiting->wants_registers > 0 ? "setmaxnreg.inc for registers that no warp has given"
                   : waiting->barrier < 0
                       ? "an mbarrier whose phase does not end"
                       : "barrier " + std::to_string(waiting->barrier) + " that not every warp reaches"));
    }
    last = choose(machine, ready, last);
    statistics().switches++;
    // The random schedule also stops warps between barriers.
    const bool random = machine.config.schedule == Schedule::kRandom;
    run_warp(machine.warps[size_t(last)],
             random ? 1 + int64_t(next_random(machine) % 256) : std::numeric_limits<int64_t>::max());
  }
}

std::string kernel_name(const LaunchRequest& request) {
  Dl_info info;
  if (dladdr(request.kernel, &info) == 0 || info.dli_sname == nullptr)
    throw Error(
        "the kernel has no exported symbol, so its PTX cannot be found; build the driver with default visibility");
  return info.dli_sname;
}

void set_parameters(Machine& machine, const LaunchRequest& request) {
  const Kernel& kernel = *machine.kernel;
  if (kernel.parameters.size() != request.arguments.size())
    throw Error("PTX: kernel " + kernel.name + " takes " + std::to_string(kernel.parameters.size()) + " parameters, " +
                std::to_string(request.arguments.size()) + " given");
  machine.parameters.assign(kernel.parameter_bytes, 0);
  for (size_t i = 0; i < request.arguments.size(); i++) {
    const auto [offset, bytes] = kernel.parameters[i];
    if (bytes != request.arguments[i].size())
      throw Error("PTX: parameter " + std::to_string(i) + " of " + kernel.name + " has another size");
    std::memcpy(&machine.parameters[offset], request.arguments[i].data(), bytes);
  }
}

void launch(const Module& module, const std::vector<Region>& regions, const LaunchRequest& request) {
  const std::string name = kernel_name(request);
  const auto found = module.kernels.find(name);
  if (found == module.kernels.end()) throw Error("the PTX has no kernel " + name);
  const unsigned threads = request.block.x * request.block.y * request.block.z;
  if (threads == 0 || threads % 32 != 0)
    throw Error("block of " + std::to_string(threads) + " threads; the simulator needs a multiple of 32");
  Machine machine;
  machine.kernel = &found->second;
  machine.config = launch_config();
  machine.random_state = machine.config.seed * 0x9E3779B97F4A7C15ull + 1;
  machine.warps.resize(threads / 32);
  machine.shared_bytes = request.shared_bytes;
  machine.shared.resize(request.shared_bytes + 16);
  machine.regions = regions;
  set_parameters(machine, request);
  const dim3 grid = request.grid;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        start_block(machine, request, {x, y, z});
        run_block(machine);
      }
}

}  // namespace

bool Warp::can_run() const {
  if (wants_registers > 0) {
    const RegisterFile& registers = machine->async->registers;
    return wants_registers - registers.of_warp[size_t(id)] <= registers.free;
  }
  return barrier < 0 && (waits_for == nullptr || waits_for->is_past(parity));
}

void fail(const Warp& warp, const Instruction& instruction, const std::string& what) {
  const dim3 b = warp.machine->index;
  throw Error("PTX: " + what + ", line " + std::to_string(instruction.line) + ": " + instruction.text + ", kernel " +
              warp.machine->kernel->name.substr(0, 80) + ", block (" + std::to_string(b.x) + ", " +
              std::to_string(b.y) + ", " + std::to_string(b.z) + ") warp " + std::to_string(warp.id));
}

uint64_t next_random(Machine& machine) {  // xorshift64
  uint64_t x = machine.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return machine.random_state = x;
}

unsigned char* shared_pointer(Warp& warp, const Instruction& instruction, uint32_t address, uint32_t bytes,
                              Access access) {
  Machine& machine = *warp.machine;
  const uint32_t offset = address - kSharedWindow;
  if (address < kSharedWindow || size_t(offset) + bytes > machine.shared_bytes)
    fail(warp, instruction,
         "shared-memory access at offset " + std::to_string(int64_t(address) - kSharedWindow) + " is out of bounds (" +
             std::to_string(machine.shared_bytes) + " bytes)");
  if (offset % bytes != 0) fail(warp, instruction, "misaligned shared-memory access");
  const char* race = !machine.async            ? machine.races.access(warp.id, offset, bytes, access)
                     : access == Access::kRead ? machine.async->race.read(warp.id, offset, bytes)
                                               : machine.async->race.write(warp.id, offset, bytes);
  if (race) fail(warp, instruction, race);
  return &machine.shared[offset];
}

char* global_pointer(Warp& warp, const Instruction& instruction, uint64_t address, size_t bytes, bool is_write) {
  if (address % bytes != 0) fail(warp, instruction, "misaligned global access");
  Machine& machine = *warp.machine;
  const bool inside = std::any_of(machine.regions.begin(), machine.regions.end(), [&](const Region& region) {
    const uint64_t begin = reinterpret_cast<uint64_t>(region.address);
    return address >= begin && address + bytes <= begin + region.bytes;
  });
  if (!inside) fail(warp, instruction, "global access out of bounds");
  if (const char* race = machine.global_races.access(machine.block, address, bytes, is_write))
    fail(warp, instruction, race);
  return reinterpret_cast<char*>(address);
}

void arrive_at_barrier(Warp& warp, const Instruction& instruction, int id, int num_threads, int result, bool vote) {
  Machine& machine = *warp.machine;
  if (id < 0 || id >= 16) fail(warp, instruction, "barrier id out of range");
  Barrier& barrier = machine.barriers[id];
  const int expected = num_threads / 32;
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.reduces = result >= 0;
    barrier.any = false;
  } else if (barrier.expected != expected) {
    fail(warp, instruction, "barrier with another thread count than an earlier arrival");
  } else if (barrier.reduces != (result >= 0)) {
    fail(warp, instruction, "bar.red and bar.sync meet at a barrier");
  }
  barrier.any |= vote;
  warp.barrier = id;
  warp.vote = result;
  if (machine.async) {
    if (const char* wrong = machine.async->race.meet(warp.id, barrier.completed)) fail(warp, instruction, wrong);
    machine.async->race.release(warp.id, barrier.arrivals);
  }
  if (++barrier.arrived < expected) return;
  barrier.arrived = 0;
  barrier.completed = barrier.arrivals;
  std::vector<int> released;
  for (Warp& other : machine.warps)
    if (other.barrier == id && other.alive != 0) {
      other.barrier = -1;
      if (barrier.reduces) other.predicates[size_t(other.vote)] = barrier.any ? other.alive : 0;
      if (machine.async) machine.async->race.acquire(other.id, barrier.arrivals);
      released.push_back(other.id);
    }
  machine.races.synchronize(released);
  statistics().barriers++;
}

void install(std::shared_ptr<const Module> module, std::vector<Region> regions) {
  set_launcher([module = std::move(module), regions = std::move(regions)](const LaunchRequest& request) {
    launch(*module, regions, request);
  });
}

}  // namespace simt::ptx
