// Runs the CPU core over every combination of a list of edge shapes, with each tensor in a block of its own size, so
// that a sanitizer sees any access outside; and compares with a plain float64 softmax. Exit code 1 names the first
// failure.
//   cmake --preset asan && cmake --build --preset asan && build/asan/tests/native/cpu_edge_shapes
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "intfa/attention.h"

namespace {

using intfa::AttentionProblem;
using intfa::AttentionTensors;
using intfa::DataType;

struct Shape {
  int64_t batch, num_heads, kv_num_heads, seqlen_q, seqlen_new, seqlen_past, head_dim, head_dim_v;
};

constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 1, 0, 8, 8},        {1, 2, 2, 3, 5, 0, 16, 24},    {2, 4, 2, 17, 63, 0, 24, 40},
    {1, 6, 1, 11, 65, 0, 40, 8},     {1, 2, 1, 65, 129, 0, 72, 72}, {2, 2, 2, 1, 1, 130, 64, 64},
    {1, 3, 3, 130, 40, 90, 32, 256}, {1, 1, 1, 33, 300, 0, 256, 8}, {1, 2, 2, 70, 0, 20, 64, 32},
    {1, 2, 2, 5, 0, 0, 64, 64},
};

// A tensor in exactly as many bytes as it has, of any float type or int8 codes.
std::vector<uint8_t> make_tensor(int64_t count, DataType dtype, std::mt19937& random, std::vector<float>* values) {
  std::normal_distribution<float> normal;
  const size_t size = dtype == DataType::kFloat32 ? 4 : dtype == DataType::kInt8 ? 1 : 2;
  std::vector<uint8_t> bytes(count * size);
  values->resize(count);
  for (int64_t i = 0; i < count; ++i) {
    float x = normal(random);
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (dtype == DataType::kBFloat16) {
      bits &= 0xffff0000u;
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      memcpy(&bytes[2 * i], &half, 2);
    } else if (dtype == DataType::kFloat16) {  // cut to 10 bits; too small for a normal number: 0
      bits &= 0xffffe000u;
      const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 15;
      if (exponent <= 0) bits = 0;
      const uint16_t half =
          bits == 0 ? 0 : static_cast<uint16_t>(bits >> 16 & 0x8000 | exponent << 10 | bits >> 13 & 0x3ff);
      memcpy(&bytes[2 * i], &half, 2);
    } else if (dtype == DataType::kInt8) {
      const int8_t code = static_cast<int8_t>(std::lrint(std::fmax(-128.f, std::fmin(127.f, x * 40))));
      bytes[i] = static_cast<uint8_t>(code);
      (*values)[i] = std::fmax(code, -127.f) / 40.f;
      continue;
    } else {
      memcpy(&bytes[4 * i], &x, 4);
    }
    memcpy(&(*values)[i], &bits, 4);
  }
  return bytes;
}

struct Pool {
  static void run(void*, void (*fn)(void*, size_t), size_t tasks, void* context) {
    for (size_t task = tasks; task-- > 0;) fn(context, task);
  }
};

enum class Masking { kNone, kCausal, kWindow, kMask, kShortMask, kNonpad };
constexpr const char* kMaskingNames[] = {"none", "causal", "window", "mask", "short mask", "nonpad"};

bool attends(const AttentionProblem& p, const std::vector<uint8_t>& mask, int64_t valid, int64_t i, int64_t j) {
  const int64_t position = i + (p.has_nonpad_kv_seqlen ? valid - p.seqlen_q : p.seqlen_past);
  if (j >= valid || (p.causal && j > position)) return false;
  if (p.window_left >= 0 && j < position - p.window_left) return false;
  if (p.window_right >= 0 && j > position + p.window_right) return false;
  return !p.mask.present || (j < p.mask.seqlen_kv && mask[i * p.mask.seqlen_kv + j] != 0);
}

// Runs one combination; returns what went wrong, or nothing.
std::string check(const Shape& s, DataType dtype, intfa::Precision precision, intfa::Scheme scheme, Masking masking,
                  int64_t tile_n) {
  std::mt19937 random(1);
  AttentionProblem p;
  p.batch = s.batch;
  p.num_heads = s.num_heads;
  p.kv_num_heads = s.kv_num_heads;
  p.seqlen_q = s.seqlen_q;
  p.seqlen_new = s.seqlen_new;
  p.seqlen_past = s.seqlen_past;
  p.head_dim = s.head_dim;
  p.head_dim_v = s.head_dim_v;
  p.dtype = dtype;
  p.precision = precision;
  p.scheme = scheme;
  p.tile_n = tile_n;
  const int64_t keys = p.seqlen_kv();
  const auto strides = [](int64_t heads, int64_t tokens, int64_t channels) {
    return intfa::TensorStrides{heads * tokens * channels, tokens * channels, channels};
  };
  p.q_strides = strides(s.num_heads, s.seqlen_q, s.head_dim);
  p.k_strides = strides(s.kv_num_heads, s.seqlen_new, s.head_dim);
  p.v_strides = strides(s.kv_num_heads, s.seqlen_new, s.head_dim_v);
  p.y_strides = strides(s.num_heads, s.seqlen_q, s.head_dim_v);
  if (dtype == DataType::kInt8) p.q_scale = p.k_scale = p.v_scale = intfa::ScaleGranularity::kPerTensor;
  p.causal = masking == Masking::kCausal;
  if (masking == Masking::kWindow) p.window_left = 7, p.window_right = 3;
  std::vector<uint8_t> mask;
  if (masking == Masking::kMask || masking == Masking::kShortMask) {
    const int64_t covered = masking == Masking::kMask ? keys : keys / 2;
    p.mask = {true, DataType::kBool, 0, 0, covered, 1, covered};
    for (int64_t i = 0; i < s.seqlen_q * covered; ++i) mask.push_back(random() % 3 != 0);
  }
  std::vector<int64_t> nonpad;
  if (masking == Masking::kNonpad) {
    p.has_nonpad_kv_seqlen = true;
    for (int64_t b = 0; b < s.batch; ++b) nonpad.push_back(b % 2 ? 0 : keys * 2 / 3);
  }

  std::vector<float> q, k, v, past_k, past_v;
  const int64_t q_rows = s.batch * s.num_heads * s.seqlen_q, kv_rows = s.batch * s.kv_num_heads;
  const auto q_bytes = make_tensor(q_rows * s.head_dim, dtype, random, &q);
  const auto k_bytes = make_tensor(kv_rows * s.seqlen_new * s.head_dim, dtype, random, &k);
  const auto v_bytes = make_tensor(kv_rows * s.seqlen_new * s.head_dim_v, dtype, random, &v);
  const auto past_k_bytes = make_tensor(kv_rows * s.seqlen_past * s.head_dim, dtype, random, &past_k);
  const auto past_v_bytes = make_tensor(kv_rows * s.seqlen_past * s.head_dim_v, dtype, random, &past_v);
  const size_t element = q_bytes.size() / q.size();
  std::vector<uint8_t> present_k(kv_rows * keys * s.head_dim * element),
      present_v(kv_rows * keys * s.head_dim_v * element);
  std::vector<float> y(q_rows * s.head_dim_v), lse(q_rows);
  const std::vector<float> scale = {1.f / 40.f};

  AttentionTensors t;
  t.q = q_bytes.data();
  t.k = k_bytes.data();
  t.v = v_bytes.data();
  t.past_key = past_k_bytes.data();
  t.past_value = past_v_bytes.data();
  t.mask = mask.data();
  t.nonpad_kv_seqlen = p.has_nonpad_kv_seqlen ? nonpad.data() : nullptr;
  t.q_scale = t.k_scale = t.v_scale = scale.data();
  t.y = y.data();
  t.present_key = present_k.data();
  t.present_value = present_v.data();
  t.lse = lse.data();
  intfa::Execution execution;
  execution.num_threads = 3;
  execution.parallel_for = Pool::run;
  size_t bytes = 0;
  if (const auto status = intfa::workspace_bytes(p, execution, &bytes); !status.ok()) return status.message();
  const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                              &std::free);
  t.workspace = workspace.get();
  if (const auto status = intfa::run(p, t, execution); !status.ok()) return status.message();

  for (int64_t row = 0; row < q_rows; ++row) {
    const int64_t b = row / (s.num_heads * s.seqlen_q), i = row % s.seqlen_q;
    const int64_t kv = b * s.kv_num_heads + row / s.seqlen_q % s.num_heads / (s.num_heads / s.kv_num_heads);
    const int64_t valid = p.has_nonpad_kv_seqlen ? nonpad[b] : keys;
    const auto key_row = [&](const std::vector<float>& past, const std::vector<float>& fresh, int64_t j, int64_t n) {
      return j < s.seqlen_past ? &past[(kv * s.seqlen_past + j) * n]
                               : &fresh[(kv * s.seqlen_new + j - s.seqlen_past) * n];
    };
    std::vector<double> weight(keys, 0.), exact(s.head_dim_v, 0.);
    double sum = 0.;
    for (int64_t j = 0; j < keys; ++j) {
      if (!attends(p, mask, valid, i, j)) continue;
      double dot = 0.;
      const float* key = key_row(past_k, k, j, s.head_dim);
      for (int64_t c = 0; c < s.head_dim; ++c) dot += static_cast<double>(q[row * s.head_dim + c]) * key[c];
      sum += weight[j] = std::exp(dot / std::sqrt(static_cast<double>(s.head_dim)));
      const float* value = key_row(past_v, v, j, s.head_dim_v);
      for (int64_t c = 0; c < s.head_dim_v; ++c) exact[c] += weight[j] * value[c];
    }
    for (int64_t c = 0; c < s.head_dim_v; ++c) {
      const double expected = sum > 0. ? exact[c] / sum : 0.;
      // accuracy is measured elsewhere; here any wrong index shows, since values are N(0, 1) and INT8 keeps 1 %
      if (!(std::fabs(y[row * s.head_dim_v + c] - expected) < 0.15))
        return "row " + std::to_string(row) + " channel " + std::to_string(c) + ": " +
               std::to_string(y[row * s.head_dim_v + c]) + ", exact " + std::to_string(expected);
    }
    if (sum > 0. ? !(std::fabs(lse[row] - std::log(sum)) < 0.15) : lse[row] != -INFINITY)
      return "lse of row " + std::to_string(row) + ": " + std::to_string(lse[row]);
  }
  return "";
}

}  // namespace

int main() {
  int runs = 0;
  for (const Shape& shape : kShapes)
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kInt8})
      for (auto precision : {intfa::Precision::kInt8, intfa::Precision::kInt8QK})
        for (auto scheme : {intfa::Scheme::kTile, intfa::Scheme::kPaper})
          for (int masking = 0; masking <= static_cast<int>(Masking::kNonpad); ++masking)
            for (int64_t tile_n : {0, 48}) {
              ++runs;
              const std::string wrong = check(shape, dtype, precision, scheme, static_cast<Masking>(masking), tile_n);
              if (wrong.empty()) continue;
              std::fprintf(
                  stderr,
                  "Sq=%ld Snew=%ld past=%ld D=%ld Dv=%ld dtype=%d precision=%d scheme=%d mask=%s tile_n=%ld: %s\n",
                  shape.seqlen_q, shape.seqlen_new, shape.seqlen_past, shape.head_dim, shape.head_dim_v,
                  static_cast<int>(dtype), static_cast<int>(precision), static_cast<int>(scheme),
                  kMaskingNames[masking], tile_n, wrong.c_str());
              return 1;
            }
  std::printf("%d runs\n", runs);
  return 0;
}
