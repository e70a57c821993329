// wgmma: asynchronous matrix products of a warpgroup. Each warp's share, 16 rows, is its own: a warp that has waited
// knows nothing of the other three's.
#include <cstring>

#include "async_engines.h"
#include "block.h"
#include "wgmma_math.h"

namespace simt {

namespace {

constexpr int32_t kPoison = 0x5EADBEEF;

MatrixOperand operand_of(uint64_t descriptor, loc_t l) {
  if (const std::string wrong = unsupported_descriptor(descriptor); !wrong.empty()) fail("wgmma: " + wrong, l);
  return MatrixOperand(descriptor);
}

void check_race(const MatrixOperand& operand, int warp, int rows, uint32_t group, loc_t l) {
  each_core_matrix(operand, rows, [&](uint32_t address) {
    shared_pointer(address, 16, l);
    shared_pointer(address + 112, 16, l);
    if (const char* wrong = block->engines->race.product_read(warp, address - shared_window(), 128, group))
      fail(std::string("wgmma: ") + wrong, l);
  });
}

void compute(Product& p, int warp) {
  if (p.done) return;
  p.done = true;
  const unsigned char* memory = block->shared - shared_window();
  const WarpShare share =
      p.a.registers != nullptr
          ? WarpShare::from_registers([&](int lane, int i) { return p.a_values[lane][i]; }, p.a.is_unsigned)
          : WarpShare::from_memory(MatrixOperand(p.a.descriptor), warp, memory);
  share.multiply(MatrixOperand(p.b), p.n, p.accumulate, memory, p.accumulator->values);
}

void compute_all(WarpProducts& queue, int warp) {
  for (Product& p : queue.products) compute(p, warp);
}

// The products of a group that has been waited for: their accumulators become registers again.
void retire(WarpProducts& queue, int warp) {
  const int count = queue.groups.front();
  queue.groups.erase(queue.groups.begin());
  for (int i = 0; i < count; i++) {
    Product& p = queue.products[size_t(i)];
    compute(p, warp);
    if (p.a.registers != nullptr)
      for (int lane = 0; lane < 32; lane++)
        if (std::memcmp(p.a_registers[lane], p.a_values[lane], sizeof p.a_values[lane]) != 0)
          fail("wgmma: registers of operand A changed while the product was in flight", p.location);
    Accumulator& accumulator = *p.accumulator;
    if (--accumulator.in_flight > 0) continue;
    for (int lane = 0; lane < 32; lane++)
      std::memcpy(accumulator.registers[lane], accumulator.values[lane].data(), size_t(p.n) / 2 * sizeof(int32_t));
  }
  queue.products.erase(queue.products.begin(), queue.products.begin() + count);
}

void issue(WarpgroupMeeting& m, int warpgroup, int n, bool accumulate, loc_t l) {
  AsyncEngines& e = *block->engines;
  for (int w = 0; w < 4; w++) {
    const int warp = 4 * warpgroup + w;
    WarpProducts& queue = e.products[size_t(warp)];
    if (!queue.fenced) fail("wgmma: no wgmma.fence since registers were last accessed", l);
    const uint32_t group = queue.committed_groups + 1;
    check_race(operand_of(m.b, l), warp, n, group, l);
    if (m.a[0].registers == nullptr) check_race(operand_of(m.a[0].descriptor, l), warp, 64, group, l);

    Product p{nullptr, n, m.a[0], m.b, accumulate, {}, {}, false, l};
    for (Product& other : queue.products)
      if (other.accumulator->registers[0] == m.d[32 * w]) p.accumulator = other.accumulator;
    if (!p.accumulator) {
      p.accumulator = std::make_shared<Accumulator>();
      for (int lane = 0; lane < 32; lane++) {
        int32_t* d = p.accumulator->registers[lane] = m.d[32 * w + lane];
        p.accumulator->values[lane].assign(d, d + n / 2);
        for (int i = 0; i < n / 2; i++) d[i] = kPoison;
      }
    }
    p.accumulator->in_flight++;
    if (m.a[0].registers != nullptr)
      for (int lane = 0; lane < 32; lane++) {
        p.a_registers[lane] = m.a[32 * w + lane].registers;
        std::memcpy(p.a_values[lane], p.a_registers[lane], sizeof p.a_values[lane]);
      }
    queue.products.push_back(std::move(p));
    queue.uncommitted++;
    const Visibility mode = block->config.copies;
    if (mode == Visibility::kEarly || (mode == Visibility::kRandom && next_random() % 2 == 0)) compute_all(queue, warp);
  }
  statistics().mma++;
}

}  // namespace

void wgmma(int32_t* d, int n, const WgmmaA& a, uint64_t b, bool accumulate, loc_t l) {
  AsyncEngines& e = engines("wgmma", l);
  const int warpgroup = current->warp / 4, thread = current->warp % 4 * 32 + current->lane;
  WarpgroupMeeting& m = e.meetings[size_t(warpgroup)];
  if (m.arrived == 0) {
    m.location = l;
    m.b = b;
  } else if (m.location.line() != l.line()) {
    fail("divergence: threads of a warpgroup are in wgmma of lines " + std::to_string(m.location.line()) + " and " +
             std::to_string(l.line()),
         l);
  } else if (m.b != b) {
    fail("wgmma: threads of the warpgroup have different descriptors", l);
  }
  m.d[thread] = d;
  m.a[thread] = a;
  if (++m.arrived < 128) {
    block_on("wgmma", l);
    return;
  }
  m.arrived = 0;
  issue(m, warpgroup, n, accumulate, l);
  for (int i = 0; i < 128; i++) make_runnable(128 * warpgroup + i);
  maybe_yield();
}

void wgmma_fence(loc_t l) { engines("wgmma.fence", l).products[size_t(current->warp)].fenced = true; }

void wgmma_commit(loc_t l) {
  meet_warp("wgmma.commit_group", l, [&] {
    WarpProducts& queue = engines("wgmma.commit_group", l).products[size_t(current->warp)];
    queue.groups.push_back(queue.uncommitted);
    queue.uncommitted = 0;
    queue.committed_groups++;
  });
}

void wgmma_wait(int groups_in_flight, loc_t l) {
  meet_warp("wgmma.wait_group", l, [&] {
    AsyncEngines& e = engines("wgmma.wait_group", l);
    WarpProducts& queue = e.products[size_t(current->warp)];
    while (int(queue.groups.size()) > groups_in_flight) retire(queue, current->warp);
    e.race.products_complete(current->warp, queue.committed_groups - uint32_t(queue.groups.size()));
    queue.fenced = false;
  });
}

void check_products_complete() {
  if (block->engines && !block->engines->products[size_t(current->warp)].products.empty())
    fail("a thread exits with wgmma in flight", loc_t::current());
  if (block->engines && block->alive == 1 && !block->engines->registers.uniform())
    fail("setmaxnreg by a part of a warpgroup", loc_t::current());
}

}  // namespace simt
