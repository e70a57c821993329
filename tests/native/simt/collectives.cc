// Warp collectives and block barriers.
#include <cstring>

#include "block.h"

namespace simt {

namespace {

// All 32 lanes meet here: each publishes `count` operands, the last one runs compute(meeting). Returns the meeting,
// whose results stay valid until this lane's next but one collective. Lanes that come from different calls have
// diverged, which .sync forbids.
template <class Compute>
Meeting& meet(const char* instruction, loc_t l, const uint32_t* operands, int count, Compute compute) {
  Warp& warp = this_warp();
  const int lane = current->lane;
  Meeting& meeting = warp.meetings[warp.generation];
  for (int i = 0; i < count; i++) meeting.operands[i][lane] = operands[i];
  if (warp.arrived == 0) {
    warp.instruction = instruction;
    warp.location = l;
  } else if (std::strcmp(warp.instruction, instruction) != 0 || warp.location.line() != l.line()) {
    fail(std::string("divergence: a lane arrives in ") + instruction + " while others of its warp are in " +
             warp.instruction + " at line " + std::to_string(warp.location.line()),
         l);
  }
  warp.arrived |= uint32_t(1) << lane;
  if (warp.arrived == ~uint32_t(0)) {
    compute(meeting);
    warp.arrived = 0;
    warp.generation ^= 1;
    for (int i = 0; i < 32; i++) make_runnable(current->warp * 32 + i);
    maybe_yield();
  } else {
    block_on(instruction, l);
  }
  return meeting;
}

void arrive(int id, int expected, const char* instruction, loc_t l, bool predicate = false) {
  if (id < 0 || id >= Block::kBarriers) fail("barrier id " + std::to_string(id) + "; there are 16", l);
  Barrier& barrier = block->barriers[id];
  Thread& self = this_thread();
  tsan_release(&barrier.tsan_token);
  if (block->engines) {
    if (const char* wrong = block->engines->race.meet(self.warp, barrier.completed)) fail(wrong, l);
    block->engines->race.release(self.warp, barrier.arrivals);
  }
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.instruction = instruction;
    barrier.any = false;
    for (unsigned& line : barrier.line_of_warp) line = 0;
  } else if (barrier.expected != expected) {
    fail("barrier: " + std::to_string(expected) + " threads expected here, " + std::to_string(barrier.expected) +
             " by an earlier arrival",
         l);
  } else if (std::strcmp(barrier.instruction, instruction) != 0) {
    fail(std::string("barrier: ") + instruction + " here, " + barrier.instruction + " by an earlier arrival", l);
  }
  barrier.any |= predicate;
  unsigned& line = barrier.line_of_warp[self.warp];
  if (line != 0 && line != l.line())
    fail("divergence: lanes of one warp arrive at the barrier from lines " + std::to_string(line) + " and " +
             std::to_string(l.line()),
         l);
  line = l.line();
  barrier.waiting.push_back(self.id());
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    barrier.completed = barrier.arrivals;
    barrier.result = barrier.any;
    for (int id : barrier.waiting) make_runnable(id);
    barrier.waiting.clear();
    statistics().barriers++;
    maybe_yield();
  } else {
    block_on(instruction, l);
  }
  tsan_acquire(&barrier.tsan_token);
  if (block->engines) block->engines->race.acquire(self.warp, barrier.completed);
}

uint32_t shuffle(uint32_t value, int source, loc_t l) {
  const Meeting& meeting = meet("shfl.sync", l, &value, 1, [](Meeting&) { statistics().shuffles++; });
  return meeting.operands[0][source];
}

uint32_t votes(const char* instruction, bool predicate, loc_t l) {
  const uint32_t value = predicate;
  return meet(instruction, l, &value, 1,
              [](Meeting& meeting) {
                uint32_t ballot = 0;
                for (int i = 0; i < 32; i++) ballot |= meeting.operands[0][i] << i;
                meeting.results[0][0] = ballot;
              })
      .results[0][0];
}

void load_matrices(uint32_t* r, int count, uint32_t address, bool transposed, loc_t l) {
  // operands 0-3: the row this lane addresses; 4: its address. Lanes beyond 8 * count do not take part.
  uint32_t operands[5] = {};
  operands[4] = address;
  if (current->lane < 8 * count) {
    const unsigned char* row = shared_pointer(address, 16, l);
    check_race(address, 16, /*is_write=*/false, l);
    tsan_read16(row);
    std::memcpy(operands, row, 16);
  }
  const Meeting& meeting = meet("ldmatrix", l, operands, 5, [&](Meeting& m) {
    uint8_t rows[32][16];
    for (int i = 0; i < 8 * count; i++)
      for (int word = 0; word < 4; word++) std::memcpy(rows[i] + 4 * word, &m.operands[word][i], 4);
    distribute_matrices(m.results, count, rows, transposed);
    statistics().ldmatrix++;
    const uint32_t lanes = count == 4 ? ~uint32_t(0) : (uint32_t(1) << (8 * count)) - 1;
    statistics().bank_conflicts += uint64_t(extra_passes(m.operands[4], lanes, 16));
  });
  for (int i = 0; i < count; i++) r[i] = meeting.results[i][current->lane];
}

// Runs compute(operand registers, results as a 16x8 matrix) once per warp, then hands every lane its four elements.
template <class Number, class Compute>
void matrix_product(const char* instruction, Number* d, const uint32_t (&operands)[10], loc_t l, Compute compute) {
  const Meeting& meeting = meet(instruction, l, operands, 10, [&](Meeting& m) {
    Number matrix[16][8];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        matrix[accumulator_row(lane, i)][accumulator_column(lane, i)] = bit_copy<Number>(m.operands[6 + i][lane]);
    compute(matrix, &m.operands[0], &m.operands[4]);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        m.results[i][lane] = bit_copy<uint32_t>(matrix[accumulator_row(lane, i)][accumulator_column(lane, i)]);
    statistics().mma++;
  });
  for (int i = 0; i < 4; i++) d[i] = bit_copy<Number>(meeting.results[i][current->lane]);
}

template <class Number>
void gather_operands(uint32_t (&operands)[10], const Number* d, const uint32_t* a, const uint32_t* b) {
  for (int i = 0; i < 4; i++) operands[i] = a[i];
  for (int i = 0; i < 2; i++) operands[4 + i] = b[i];
  for (int i = 0; i < 4; i++) operands[6 + i] = bit_copy<uint32_t>(d[i]);
}

void multiply_half(const char* instruction, float* d, const uint32_t* a, const uint32_t* b, Half type, loc_t l) {
  uint32_t operands[10];
  gather_operands(operands, d, a, b);
  matrix_product(instruction, d, operands, l, [type](float (&m)[16][8], const LaneRegister* x, const LaneRegister* y) {
    multiply_16816(m, x, y, type);
  });
}

}  // namespace

void syncthreads(loc_t l) { arrive(0, int(block->threads.size()), "bar.sync", l); }
void bar_sync(int id, int num_threads, loc_t l) { arrive(id, num_threads, "bar.sync", l); }
bool bar_red_or(int id, int num_threads, bool predicate, loc_t l) {
  arrive(id, num_threads, "bar.red.or", l, predicate);
  return block->barriers[id].result;  // the next phase ends after this thread has come to it
}
void syncwarp(loc_t l) {
  char* token = &this_warp().tsan_token;
  tsan_release(token);
  meet("bar.warp.sync", l, nullptr, 0, [](Meeting&) {});
  tsan_acquire(token);
}

uint32_t shfl_xor(uint32_t value, int lane_mask, loc_t l) {
  return shuffle(value, current->lane ^ (lane_mask & 31), l);
}
uint32_t shfl_idx(uint32_t value, int lane, loc_t l) { return shuffle(value, lane & 31, l); }
uint32_t shfl_down(uint32_t value, int delta, loc_t l) {
  return shuffle(value, current->lane + delta < 32 ? current->lane + delta : current->lane, l);
}

void meet_warp(const char* instruction, loc_t l, const std::function<void()>& act) {
  meet(instruction, l, nullptr, 0, [&](Meeting&) { act(); });
}

bool warp_any(bool predicate, loc_t l) { return votes("vote.any", predicate, l) != 0; }
bool warp_all(bool predicate, loc_t l) { return votes("vote.all", predicate, l) == ~uint32_t(0); }
uint32_t warp_ballot(bool predicate, loc_t l) { return votes("vote.ballot", predicate, l); }

void ldmatrix(uint32_t* r, int count, uint32_t address, loc_t l) { load_matrices(r, count, address, false, l); }
void ldmatrix_trans(uint32_t* r, int count, uint32_t address, loc_t l) { load_matrices(r, count, address, true, l); }

void mma_16832(int32_t* d, const uint32_t* a, const uint32_t* b, bool a_unsigned, loc_t l) {
  uint32_t operands[10];
  gather_operands(operands, d, a, b);
  matrix_product(a_unsigned ? "mma.m16n8k32.u8.s8" : "mma.m16n8k32.s8.s8", d, operands, l,
                 [a_unsigned](int32_t (&m)[16][8], const LaneRegister* x, const LaneRegister* y) {
                   multiply_16832(m, x, y, a_unsigned, false);
                 });
}
void mma_16816_f16(float* d, const uint32_t* a, const uint32_t* b, loc_t l) {
  multiply_half("mma.m16n8k16.f16", d, a, b, Half::kF16, l);
}
void mma_16816_bf16(float* d, const uint32_t* a, const uint32_t* b, loc_t l) {
  multiply_half("mma.m16n8k16.bf16", d, a, b, Half::kBF16, l);
}

}  // namespace simt
