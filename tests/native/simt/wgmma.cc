// wgmma: asynchronous matrix products of a warpgroup. Each warp's share, 16 rows, is its own: a warp that has waited
// knows nothing of the other three's.
#include <cstring>

#include "async_engines.h"
#include "block.h"

namespace simt {

namespace {

constexpr int kRows = 16, kBytes = 32;  // a warp's share of A; operand bytes along k
constexpr int32_t kPoison = 0x5EADBEEF;

// A K-major operand without swizzle: core matrices of eight rows x 16 bytes.
struct Operand {
  uint32_t start, chunk_bytes, group_bytes;

  Operand(uint64_t descriptor, loc_t l)
      : start(uint32_t(descriptor & 0x3fff) << 4),
        chunk_bytes(uint32_t(descriptor >> 16 & 0x3fff) << 4),
        group_bytes(uint32_t(descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 46 != 0) fail("wgmma: the simulator knows operands without swizzle and base offset only", l);
  }
  uint32_t core_matrix(int group, int chunk) const {
    return start + uint32_t(group) * group_bytes + uint32_t(chunk) * chunk_bytes;
  }
  const int8_t* row(int row, int chunk, loc_t l) const {
    return reinterpret_cast<const int8_t*>(shared_pointer(core_matrix(row / 8, chunk) + 16 * uint32_t(row % 8), 16, l));
  }
  void check_race(int warp, int rows, uint32_t group, loc_t l) const {
    for (int g = 0; g < rows / 8; g++)
      for (int chunk = 0; chunk < 2; chunk++) {
        shared_pointer(core_matrix(g, chunk), 16, l);
        shared_pointer(core_matrix(g, chunk) + 112, 16, l);
        const size_t offset = core_matrix(g, chunk) - shared_window();
        if (const char* wrong = block->engines->race.product_read(warp, offset, 128, group))
          fail(std::string("wgmma: ") + wrong, l);
      }
  }
};

void compute(Product& p, int warp) {
  if (p.done) return;
  p.done = true;
  int16_t a[kRows][kBytes];
  if (p.a.registers != nullptr) {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 16; i++) {  // PTX ISA: as mma.m16n8k32
        const uint8_t byte = uint8_t(p.a_values[lane][i / 4] >> 8 * (i % 4));
        a[lane / 4 + (i / 4 % 2 ? 8 : 0)][4 * (lane % 4) + i % 4 + (i >= 8 ? 16 : 0)] =
            p.a.is_unsigned ? int16_t(byte) : int16_t(int8_t(byte));
      }
  } else {
    const Operand operand(p.a.descriptor, p.location);
    for (int r = 0; r < kRows; r++)
      for (int k = 0; k < kBytes; k++) a[r][k] = operand.row(16 * (warp % 4) + r, k / 16, p.location)[k % 16];
  }
  const Operand operand(p.b, p.location);
  for (int column = 0; column < p.n; column++) {
    int16_t b[kBytes];
    for (int k = 0; k < kBytes; k++) b[k] = operand.row(column, k / 16, p.location)[k % 16];
    for (int r = 0; r < kRows; r++) {
      int32_t sum = 0;
      for (int k = 0; k < kBytes; k++) sum += int32_t(a[r][k]) * b[k];
      // d_i of lane 4g + t: row g + 8 * (i / 2 % 2), column 8 * (i / 4) + 2t + i % 2
      const int lane = 4 * (r % 8) + column % 8 / 2, i = column / 8 * 4 + r / 8 * 2 + column % 2;
      int32_t& d = p.accumulator->values[lane][size_t(i)];
      d = p.accumulate ? int32_t(uint32_t(d) + uint32_t(sum)) : sum;
    }
  }
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
    Operand(m.b, l).check_race(warp, n, group, l);
    if (m.a[0].registers == nullptr) Operand(m.a[0].descriptor, l).check_race(warp, 64, group, l);

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
}

}  // namespace simt
