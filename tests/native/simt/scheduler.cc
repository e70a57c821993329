// Launching a grid and choosing which thread runs.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "block.h"

namespace simt {

ThreadIndex* current = nullptr;
Block* block = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedAlignment = 1024;

Config active_config;
int active_device = 80;
int active_multiprocessors = 132;
Statistics total;
Launcher active_launcher;

// First runnable thread at or after `from`, wrapping around; -1 if there is none.
int runnable_from(int from) {
  const int words = int(block->runnable.size());
  int word = from / 64;
  uint64_t bits = block->runnable[word] & (~uint64_t(0) << (from % 64));
  for (int i = 0; i <= words; i++) {
    if (bits) return word * 64 + __builtin_ctzll(bits);
    word = (word + 1) % words;
    bits = block->runnable[word];
  }
  return -1;
}

int last_runnable() {
  for (int word = int(block->runnable.size()) - 1; word >= 0; word--)
    if (block->runnable[word]) return word * 64 + 63 - __builtin_clzll(block->runnable[word]);
  return -1;
}

int choose(int self) {
  const int n = int(block->threads.size());
  switch (block->config.schedule) {
    case Schedule::kGreedyFirst:
      return runnable_from(0);
    case Schedule::kGreedyLast:
      return last_runnable();
    case Schedule::kRandom:
      return runnable_from(int(next_random() % uint64_t(n)));
    case Schedule::kRoundRobin:
      break;
  }
  return runnable_from((self + 1) % n);
}

void resume(Fiber& from, int thread) {
  total.switches++;
  current = &block->threads[thread];
  switch_fiber(from, *block->threads[thread].fiber);
}

[[noreturn]] void back_to_launcher(Fiber& from) {
  current = nullptr;
  switch_fiber(from, block->launcher);
  __builtin_unreachable();
}

[[noreturn]] void fail_deadlock() {
  std::string report = "deadlock (a collective or barrier that not every thread reaches):";
  for (const Thread& thread : block->threads)
    if (!thread.exited && (thread.lane < 2 || thread.lane == 31))
      report += "\n  thread " + std::to_string(thread.id()) + " waits in " + thread.waits_in + " at line " +
                std::to_string(thread.waits_at.line());
  const auto waiting =
      std::find_if(block->threads.begin(), block->threads.end(), [](const Thread& t) { return !t.exited; });
  fail(report + "\n ", waiting->waits_at);
}

// A copy lands when nothing else can go on, or earlier.
int choose_or_fail(int self) {
  int next;
  while ((next = choose(self)) < 0)
    if (!advance_copies()) fail_deadlock();
  return next;
}

void clear_runnable(int thread) { block->runnable[thread / 64] &= ~(uint64_t(1) << (thread % 64)); }

void thread_main() {
  fiber_entered(block->launcher);
  Thread& self = this_thread();
  tsan_acquire(&block->started);
  (*block->body)();
  for (const PendingCopy& copy : self.copies)
    if (!copy.landed) fail("a thread exits with cp.async in flight", loc_t::current());
  check_products_complete();
  tsan_release(&block->finished);
  self.exited = true;
  clear_runnable(self.id());
  if (--block->alive == 0) back_to_launcher(*self.fiber);
  resume(*self.fiber, choose_or_fail(self.id()));
  __builtin_unreachable();
}

// Fresh memory for every block, so that TSan does not see one block's shared memory as the next one's. Filled with a
// pattern that no kernel expects; the bytes after the end are poisoned for ASan.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), capacity_((bytes / kSharedAlignment + 2) * kSharedAlignment) {
    data_ = static_cast<unsigned char*>(std::aligned_alloc(kSharedAlignment, capacity_));
    for (size_t i = 0; i < bytes; i++) data_[i] = static_cast<unsigned char>(0xC5 ^ (i * 7));
    asan_poison(data_ + bytes_, capacity_ - bytes_);
  }
  ~SharedMemory() {
    asan_unpoison(data_, capacity_);
    std::free(data_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  unsigned char* data() { return data_; }

 private:
  size_t bytes_, capacity_;
  unsigned char* data_;
};

// One fiber per thread of a block, used by block after block: making them is the expensive part, for TSan above all.
class Fibers {
 public:
  explicit Fibers(size_t count) : bytes_(count * kStackBytes), fibers_(count) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error("cannot map " + std::to_string(bytes_) + " bytes of stacks; use smaller blocks");
    data_ = static_cast<char*>(p);
    for (size_t i = 0; i < count; i++) create_fiber(fibers_[i], data_ + i * kStackBytes, kStackBytes);
  }
  ~Fibers() {
    for (Fiber& fiber : fibers_) release_fiber(fiber);
    munmap(data_, bytes_);
  }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;
  Fiber& operator[](size_t i) { return fibers_[i]; }

 private:
  size_t bytes_;
  char* data_;
  std::vector<Fiber> fibers_;
};

void run_block(const LaunchRequest& request, Fibers& fibers, dim3 index, uint64_t seed) {
  const unsigned count = request.block.x * request.block.y * request.block.z;
  SharedMemory shared(request.shared_bytes);
  const auto state = std::make_unique<Block>();
  block = state.get();
  block->config = active_config;
  block->random_state = seed * 0x9E3779B97F4A7C15ull + 1;
  block->threads.resize(count);
  block->warps.resize(count / 32);
  block->runnable.assign((count + 63) / 64, 0);
  block->alive = int(count);
  block->shared = shared.data();
  block->shared_bytes = request.shared_bytes;
  if (active_device == 90) block->engines = std::make_unique<AsyncEngines>(int(count / 32), request.shared_bytes);
  block->body = &request.body;
  for (Barrier& barrier : block->barriers) {  // now, so that no thread allocates what another one frees
    barrier.waiting.reserve(count);
    barrier.line_of_warp.assign(count / 32, 0);
  }
  adopt_this_stack(block->launcher);
  for (unsigned i = 0; i < count; i++) {
    Thread& thread = block->threads[i];
    thread.thread = {i % request.block.x, i / request.block.x % request.block.y,
                     i / (request.block.x * request.block.y)};
    thread.block = index;
    thread.block_dim = request.block;
    thread.grid_dim = request.grid;
    thread.lane = int(i % 32);
    thread.warp = int(i / 32);
    thread.fiber = &fibers[i];
    start_fiber(*thread.fiber, thread_main);
    make_runnable(int(i));
  }
  tsan_release(&block->started);
  resume(block->launcher, choose(int(count) - 1));
  tsan_acquire(&block->finished);
  block = nullptr;
  if (!state->error.empty()) throw Error(state->error);
}

void launch_on_host(const LaunchRequest& request) {
  const dim3 grid = request.grid;
  const unsigned count = request.block.x * request.block.y * request.block.z;
  if (count == 0 || count % 32 != 0)
    throw Error("block of " + std::to_string(count) + " threads; the simulator needs a multiple of 32");
  Fibers fibers(count);
  uint64_t seed = active_config.seed;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) run_block(request, fibers, {x, y, z}, seed += 77);
}

}  // namespace

void fail(const std::string& what, loc_t l) {
  Thread& self = this_thread();
  const std::string file = l.file_name();
  block->error = what + " at " + file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(l.line()) +
                 ", block (" + std::to_string(self.block.x) + ", " + std::to_string(self.block.y) + ", " +
                 std::to_string(self.block.z) + ") thread " + std::to_string(self.id());
  back_to_launcher(*self.fiber);
}

uint64_t next_random() {  // xorshift64
  uint64_t x = block->random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return block->random_state = x;
}

void block_on(const char* instruction, loc_t l) {
  Thread& self = this_thread();
  self.waits_in = instruction;
  self.waits_at = l;
  clear_runnable(self.id());
  const int next = choose_or_fail(self.id());
  if (next != self.id()) resume(*self.fiber, next);
}

void maybe_yield() {
  if (block->config.schedule != Schedule::kRandom || next_random() % 4 != 0) return;
  Thread& self = this_thread();
  const int next = choose(self.id());
  if (next != self.id()) resume(*self.fiber, next);
}

void launch(const LaunchRequest& request) { active_launcher ? active_launcher(request) : launch_on_host(request); }
void set_launcher(Launcher launcher) { active_launcher = std::move(launcher); }
void set_launch_config(const Config& config) { active_config = config; }
void set_device(int architecture) { active_device = architecture; }
int device() { return active_device; }
void set_multiprocessors(int count) { active_multiprocessors = count; }
int multiprocessors() { return active_multiprocessors; }
const Config& launch_config() { return active_config; }
Statistics& statistics() { return total; }

}  // namespace simt
