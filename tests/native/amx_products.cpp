// The AMX products on emulated tile instructions, against the portable unit: equal bit by bit, for every head size.
#include <random>
#include <vector>

#include "cpu/amx.cpp"  // built with the emulation
#include "cpu/int8_product.h"

namespace intfa::cpu {
namespace {

std::mt19937 generator(1);

// Every value that a code may have, the extremes more often than by chance.
template <typename Code>
std::vector<Code> codes(size_t count, int lowest, int highest) {
  std::uniform_int_distribution<int> any(lowest, highest), rare(0, 15);
  std::vector<Code> out(count);
  for (Code& code : out)
    code = static_cast<Code>(rare(generator) == 0 ? (any(generator) & 1 ? lowest : highest) : any(generator));
  return out;
}

// Memory as aligned as a workspace's.
template <typename T>
T* aligned(std::vector<T>& storage, const std::vector<T>& content) {
  storage.assign(content.size() + 64 / sizeof(T), T{});
  T* start = storage.data();
  while (reinterpret_cast<uintptr_t>(start) % 64 != 0) ++start;
  std::copy(content.begin(), content.end(), start);
  return start;
}

void require(bool condition, const char* what, int size, int rows) {
  if (condition) return;
  fprintf(stderr, "%s, size %d, %d rows: AMX differs from the portable unit\n", what, size, rows);
  exit(1);
}

void scores(int head_dim, int rows, int chunk_begin, int chunk_end) {
  const int64_t keys = chunk_end * kChunk, stride = keys + kGroup;
  std::vector<int8_t> q_storage;
  std::vector<uint8_t> k_storage;
  const int8_t* q = aligned(q_storage, codes<int8_t>(kRows * head_dim, -127, 127));
  const uint8_t* k = aligned(k_storage, codes<uint8_t>(keys * head_dim, 1, 255));
  std::vector<int32_t> q_sum(kRows, 0), storage[2];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < head_dim; ++c) q_sum[r] += q[r * head_dim + c];
  int32_t* found[2];
  for (int i = 0; i < 2; ++i) found[i] = aligned(storage[i], std::vector<int32_t>(kRows * stride, 7));
  const ScoreProduct product{q, q_sum.data(), k, found[0], stride, head_dim, rows, chunk_begin, chunk_end};
  score_product()(product);
  ScoreProduct other = product;
  other.scores = found[1];
  amx_scores(other);
  for (int r = 0; r < rows; ++r) {
    const size_t bytes = stride * sizeof(int32_t);  // the untouched keys before and after included
    require(memcmp(found[0] + r * stride, found[1] + r * stride, bytes) == 0, "scores", head_dim, rows);
  }
}

void output(int channel_groups, int rows, int chunk_begin, int chunk_end) {
  const int64_t keys = chunk_end * kChunk, stride = keys + kGroup, width = channel_groups * kGroup;
  std::vector<uint8_t> p_storage;
  std::vector<int8_t> v_storage;
  const uint8_t* p = aligned(p_storage, codes<uint8_t>(kRows * stride, 0, 255));
  const int8_t* v = aligned(v_storage, codes<int8_t>(keys * width, -127, 127));
  std::uniform_real_distribution<float> any(0.f, 1.f);
  std::vector<float> alpha(kRows), beta(kRows), before(kRows * width), storage[2];
  for (std::vector<float>* values : {&alpha, &beta, &before})
    for (float& value : *values) value = any(generator);
  float* found[2];
  for (int i = 0; i < 2; ++i) found[i] = aligned(storage[i], before);
  std::vector<uint8_t> scratch_storage;
  uint8_t* scratch = aligned(scratch_storage, std::vector<uint8_t>(2 * kRows * stride));
  const OutputProduct product{p,       stride,         v,    alpha.data(), beta.data(), found[0],
                              scratch, channel_groups, rows, chunk_begin,  chunk_end};
  output_product()(product);
  OutputProduct other = product;
  other.output = found[1];
  amx_output(other);
  require(memcmp(found[0], found[1], rows * width * sizeof(float)) == 0, "output", channel_groups * kGroup, rows);
}

}  // namespace
}  // namespace intfa::cpu

int main() {
  using namespace intfa::cpu;
  if (!amx_usable()) return printf("AMX left out\n") < 0;
  for (int head_dim = 8; head_dim <= kMaxHeadDim; head_dim += 8) {
    const AmxTiles tiles(head_dim);
    for (const int rows : {4, 12, 16}) {
      scores(head_dim, rows, 0, 2);
      scores(head_dim, rows, 1, 3);
      if (head_dim % kGroup == 0) {
        output(head_dim / kGroup, rows, 0, 2);
        output(head_dim / kGroup, rows, 1, 3);
      }
    }
  }
  printf("%ld tile products, all equal to the portable unit's\n", amx_emulation::multiplications);
  return amx_emulation::configured || amx_emulation::multiplications == 0;
}
