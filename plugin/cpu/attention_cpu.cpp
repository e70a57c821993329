// The CPU backend: pack every KV head, then its blocks of query rows. Nothing depends on the number of threads: tasks
// are handed out through a counter, and each result is computed by one task in one order.
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>

#include "core/backend.h"
#include "core/numerics.h"
#include "cpu/amx.h"
#include "cpu/code_product.h"
#include "cpu/instruction_set.h"
#include "cpu/int8_product.h"
#include "cpu/pack.h"
#include "cpu/prefetch.h"
#include "cpu/softmax.h"
#include "hwy/base.h"

namespace intfa::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Everything that the tasks of one call share.
struct Call {
  const AttentionProblem& problem;
  const AttentionTensors& tensors;
  const Layout& layout;
  PForm form;
  bool amx = amx_usable();
  PrepareHeadFn prepare_head = cpu::prepare_head();
  PackTileFn pack_tile = cpu::pack_tile();
  CopyPresentFn copy_present = cpu::copy_present();
  PackQueriesFn pack_queries = cpu::pack_queries();
  MaskIsZeroFn mask_is_zero = cpu::mask_is_zero();
  LoadMaskFn load_mask = cpu::load_mask();
  StoreRowsFn store_rows = cpu::store_rows();
  SoftmaxFn softmax = softmax_tile(form);
  ScoreProductFn score_product = amx ? amx_scores : cpu::score_product();
  OutputProductFn output_product = amx ? amx_output : cpu::output_product();
  FloatOutputProductFn float_output_product = cpu::float_output_product();
  CodeScoreProductFn code_score_product = cpu::code_score_product();
  CodeOutputProductFn code_output_product = cpu::code_output_product();
  OrderChannelsFn order_channels = cpu::order_channels();
  std::atomic<int64_t> next_head{0};
  std::atomic<int64_t> next_block{0};
};

PForm p_form(const AttentionProblem& p) {
  if (p.precision == Precision::kInt8QK) return PForm::kHalf;
  return p.scheme == Scheme::kPaper ? PForm::kPaper : PForm::kTile;
}

// Which keys the rows of a group attend: none outside [begin, end), all of [all_begin, all_end).
struct GroupKeys {
  int64_t begin = std::numeric_limits<int64_t>::max(), end = 0;
  int64_t all_begin = 0, all_end = std::numeric_limits<int64_t>::max();

  void add(const KeyRange& keys) {
    all_begin = std::max(all_begin, keys.begin);
    all_end = std::min(all_end, keys.end);
    if (keys.begin >= keys.end) return;
    begin = std::min(begin, keys.begin);
    end = std::max(end, keys.end);
  }
};

// What of the mask a tile needs: nothing, one row for all queries, or one for each.
enum class Bias { kNone, kShared, kRows };

// One block of query rows of one KV head.
struct BlockTask {
  const Call& call;
  const AttentionProblem& p;
  const AttentionTensors& t;
  const Layout& layout;
  const PackedHead head;
  const Block block;
  int64_t batch, kv_head, first_row;
  int rows;
  bool one_mask_row;     // every row of the block has the same mask values
  int64_t num_keys = 0;  // that are not padding
  GroupKeys groups[kBlockRows / kRows] = {};
  RowPosition positions[kBlockRows] = {};

  int64_t mask_offset(int row) const {
    const RowPosition at = positions[row];
    return batch * p.mask.stride_batch + at.head * p.mask.stride_head + at.query * p.mask.stride_query;
  }

  void run();

 private:
  void start();
  HWY_INLINE void prefetch_share(int64_t tile) const;
  void tile(int64_t index) const;
  void tile_rows(int64_t index, int first, int count, Bias bias) const;
  bool mask_is_zero(int first, int count, int64_t first_key) const;
  void finish() const;
  void mark_non_finite(int row, float* lse) const;
};

// Quantizes the queries and clears the running state.
void BlockTask::start() {
  find_positions(p, kv_head, first_row, rows, positions);
  call.pack_queries(p, t, head, {batch, positions, rows, nullptr}, block);
  const int64_t offset = causal_offset(p, t.nonpad_kv_seqlen, batch);
  num_keys = valid_keys(p, t.nonpad_kv_seqlen, batch);
  const int64_t covered = p.mask.present ? std::min(num_keys, p.mask.seqlen_kv) : num_keys;
  const bool same = !p.causal && p.window_left < 0 && p.window_right < 0;  // keys for all rows
  KeyRange keys = attended_keys(p, positions[0].query, offset, covered);
  for (int r = 0; r < rows; ++r) {
    if (!same) keys = attended_keys(p, positions[r].query, offset, covered);
    if (!same || r % kRows == 0) groups[r / kRows].add(keys);
    block.key_begin[r] = static_cast<int32_t>(keys.begin);
    block.key_end[r] = static_cast<int32_t>(keys.end);
  }
  const int64_t padded_rows = round_up(rows, kRows);
  std::fill_n(block.row_max, padded_rows, -INFINITY);
  std::fill_n(block.row_sum, padded_rows, 0.f);
  std::fill_n(block.output, padded_rows * layout.output_width, 0.f);
}

// Asks, a share with each tile, for what would be waited for after the last one: Y's rows, and the queries of the block
// that comes next.
HWY_INLINE void BlockTask::prefetch_share(int64_t tile) const {
  const int begin = static_cast<int>(tile * rows / layout.num_tiles);
  const int end = static_cast<int>((tile + 1) * rows / layout.num_tiles);
  for (int r = begin; r < end; ++r) prefetch_row(t.y, p.y_strides, p.output_dtype, batch, positions[r], p.head_dim_v);
  if (first_row == 0) return;
  RowPosition next[kBlockRows];
  find_positions(p, kv_head, first_row - kBlockRows + begin, end - begin, next);
  for (int r = 0; r < end - begin; ++r) prefetch_row(t.q, p.q_strides, p.dtype, batch, next[r], p.head_dim);
}

void BlockTask::run() {
  start();
  GroupKeys all;
  for (const GroupKeys& group : groups) {
    all.begin = std::min(all.begin, group.begin);
    all.end = std::max(all.end, group.end);
  }
  for (int64_t i = 0; i < layout.num_tiles; ++i) {
    const int64_t first = i * layout.tile_n, last = first + layout.tile_n;
    if (!layout.whole_heads) call.copy_present(p, t, batch, kv_head, first, std::min(last, p.seqlen_kv()));
    if (layout.num_tiles >= kManyTiles) prefetch_share(i);
    if (first < all.end && last > all.begin) tile(i);
  }
  finish();
}

void BlockTask::tile(int64_t index) const {
  const int64_t first_key = index * layout.tile_n;
  Bias bias = p.mask.present ? Bias::kRows : Bias::kNone;
  if (p.mask.present && one_mask_row) {
    bias = mask_is_zero(0, 1, first_key) ? Bias::kNone : Bias::kShared;
    if (bias == Bias::kShared && !call.load_mask(p.mask, t.mask, mask_offset(0), first_key, layout.tile_n, block.bias))
      return;
  }
  if (!layout.whole_heads && !layout.in_place) call.pack_tile(p, t, layout, batch, kv_head, head, index);
  for (int r = 0; r < rows; r += kRows) tile_rows(index, r, std::min(kRows, rows - r), bias);
}

bool BlockTask::mask_is_zero(int first, int count, int64_t first_key) const {
  const int64_t keys = std::min(layout.tile_n, num_keys - first_key);
  for (int r = first; r < first + count; ++r)
    if (!call.mask_is_zero(p.mask, t.mask, mask_offset(r), first_key, keys)) return false;
  return true;
}

// Rows [first, first + count) against one tile.
void BlockTask::tile_rows(int64_t index, int first, int count, Bias bias) const {
  const int64_t first_key = index * layout.tile_n;
  const int64_t keys = std::min(layout.tile_n, num_keys - first_key);
  const GroupKeys& group = groups[first / kRows];
  if (first_key >= group.end || first_key + keys <= group.begin) return;
  int32_t begin[kRows], end[kRows];
  int64_t any_begin = 0, any_end = keys, all_begin = 0, all_end = keys;
  const bool whole = group.all_begin <= first_key && first_key + keys <= group.all_end && keys % kChunk == 0;
  if (!whole) {
    any_begin = keys;
    any_end = 0;
    for (int r = 0; r < count; ++r) {
      begin[r] = static_cast<int32_t>(std::clamp<int64_t>(block.key_begin[first + r] - first_key, 0, keys));
      end[r] = static_cast<int32_t>(std::clamp<int64_t>(block.key_end[first + r] - first_key, begin[r], keys));
      all_begin = std::max<int64_t>(all_begin, begin[r]);
      all_end = std::min<int64_t>(all_end, end[r]);
      if (begin[r] >= end[r]) continue;
      any_begin = std::min<int64_t>(any_begin, begin[r]);
      any_end = std::max<int64_t>(any_end, end[r]);
    }
    if (any_begin >= any_end) return;
  }

  const int chunk_begin = static_cast<int>(any_begin / kChunk);
  const int chunk_end = static_cast<int>((any_end + kChunk - 1) / kChunk);
  if (bias == Bias::kRows && mask_is_zero(first, count, first_key)) bias = Bias::kNone;
  if (bias == Bias::kRows) {
    bool any = false;
    for (int r = 0; r < count; ++r)
      any |= call.load_mask(p.mask, t.mask, mask_offset(first + r), first_key, layout.tile_n,
                            block.bias + r * layout.tile_stride);
    if (!any) return;
  }

  const int64_t tile_key = layout.packed_start(index);
  const int padded_rows = count == 1 ? 1 : static_cast<int>(round_up(count, 4));
  const int8_t* q_codes = block.q_codes + first * p.head_dim;
  int32_t* scores = reinterpret_cast<int32_t*>(block.scores);
  if (layout.in_place) {
    const CodeTile k = {key_rows<int8_t>(p, t, batch, kv_head), first_key, num_keys};
    call.code_score_product(
        {q_codes, block.q_sum + first, k, scores, layout.tile_stride, count, chunk_begin, chunk_end});
  } else {
    call.score_product({q_codes, block.q_sum + first, head.k_codes + tile_key * p.head_dim, scores, layout.tile_stride,
                        static_cast<int>(p.head_dim), padded_rows, chunk_begin, chunk_end});
  }
  call.softmax({.scores = block.scores,
                .p = block.p,
                .stride = layout.tile_stride,
                .rows = count,
                .chunk_begin = chunk_begin,
                .chunk_end = chunk_end,
                .k_scale = head.k_scale + tile_key,
                .factor = block.row_factor + first,
                .key_begin = begin,
                .key_end = end,
                .all_begin = all_begin,
                .all_end = all_end,
                .bias = bias == Bias::kNone ? nullptr : block.bias,
                .bias_stride = bias == Bias::kShared ? 0 : layout.tile_stride,
                .softcap = p.softcap * kLog2E,
                .offset = block.row_offset + first,
                .row_max = block.row_max + first,
                .row_sum = block.row_sum + first,
                .alpha = block.alpha,
                .beta = block.beta});
  float* output = block.output + first * layout.output_width;
  const int groups = static_cast<int>(layout.channel_groups);
  const int64_t width = layout.padded_channels();
  if (layout.in_place) {
    const CodeTile v = {value_rows<int8_t>(p, t, batch, kv_head), first_key, num_keys};
    call.code_output_product(
        {block.p, layout.tile_stride, v, block.alpha, block.beta, output, count, chunk_begin, chunk_end});
  } else if (call.form == PForm::kHalf) {
    call.float_output_product({block.scores, layout.tile_stride, head.v_float + tile_key * width, block.alpha, output,
                               groups, padded_rows, chunk_begin, chunk_end});
  } else {
    uint8_t* scratch = reinterpret_cast<uint8_t*>(block.scores);  // P has taken their place
    call.output_product({block.p, layout.tile_stride, head.v_codes + tile_key * width, block.alpha, block.beta, output,
                         scratch, groups, padded_rows, chunk_begin, chunk_end});
  }
}

// Y = O / l * v_scale and the lse.
void BlockTask::finish() const {
  // O and l of a form are in units of its codes; only kPaper's l is not
  const float sum_unit = call.form == PForm::kPaper ? kMaxCode : 1.f;
  const float code_unit = call.form == PForm::kTile ? std::log(kMaxPCode) : 0.f;
  float divisor[kBlockRows];
  if (layout.in_place) call.order_channels(block.output, rows, p.head_dim_v);
  for (int r = 0; r < rows; ++r) {
    const float sum = block.row_sum[r];
    const bool empty = block.row_max[r] == -INFINITY;
    divisor[r] = empty ? 1.f : sum * sum_unit;  // an empty row's output is 0
    float lse = -INFINITY;
    if (t.lse != nullptr && !empty) {
      const float shift = p.softcap == 0.f ? block.row_offset[r] : 0.f;  // under a softcap it went back before the cap
      lse = (block.row_max[r] + shift) * kLn2 + (std::log(sum) - code_unit);
    }
    if (*head.any_bad != 0 || block.bad_row[r]) mark_non_finite(r, &lse);
    if (t.lse != nullptr) t.lse[(batch * p.num_heads + positions[r].head) * p.seqlen_q + positions[r].query] = lse;
  }
  call.store_rows(p, {batch, positions, rows, block.output, divisor, head.v_scale}, t.y);
}

float element(const void* data, DataType dtype, int64_t index) {
  switch (dtype) {
    case DataType::kFloat16:
      return hwy::F32FromF16(static_cast<const hwy::float16_t*>(data)[index]);
    case DataType::kBFloat16:
      return hwy::F32FromBF16(static_cast<const hwy::bfloat16_t*>(data)[index]);
    case DataType::kFloat32:
      return static_cast<const float*>(data)[index];
    default:
      return 0.f;  // int8 is finite
  }
}

// Non-finite inputs were quantized as zeros; here they come back in exactly the outputs that they belong to.
void BlockTask::mark_non_finite(int row, float* lse) const {
  float* output = block.output + row * layout.padded_channels();
  bool row_is_nan = block.bad_row[row] != 0 && block.row_max[row] != -INFINITY;
  for (int64_t j = block.key_begin[row]; j < block.key_end[row] && !row_is_nan; ++j) {
    const uint8_t bad = head.bad[layout.bad_index(j)];
    if (bad == 0) continue;
    if (p.mask.present) {
      alignas(kAlignment) float value[kChunk];
      if (!call.load_mask(p.mask, t.mask, mask_offset(row), j, 1, value)) continue;
    }
    row_is_nan |= (bad & kBadK) != 0;
    if ((bad & kBadV) == 0) continue;
    const bool in_past = j < p.seqlen_past;
    const void* v = in_past ? t.past_value : t.v;
    const int64_t start =
        in_past ? ((batch * p.kv_num_heads + kv_head) * p.seqlen_past + j) * p.head_dim_v
                : batch * p.v_strides.batch + kv_head * p.v_strides.head + (j - p.seqlen_past) * p.v_strides.token;
    const float limit = call.form == PForm::kHalf ? kHalfOverflow : INFINITY;
    for (int64_t c = 0; c < p.head_dim_v; ++c)
      if (!(std::fabs(element(v, p.dtype, start + c)) < limit)) output[c] = kNaN;
  }
  if (!row_is_nan) return;
  std::fill_n(output, p.head_dim_v, kNaN);
  *lse = kNaN;
}

void pack_head(Call& call, int64_t index, const PackedHead& head) {
  const AttentionProblem& p = call.problem;
  const int64_t batch = index / p.kv_num_heads, kv_head = index % p.kv_num_heads;
  call.prepare_head(p, call.tensors, call.layout, batch, kv_head, head);
  // otherwise its one block of queries takes the tokens with it
  if (call.layout.whole_heads || call.layout.blocks_per_head == 0)
    call.copy_present(p, call.tensors, batch, kv_head, 0, p.seqlen_kv());
  for (int64_t i = 0; call.layout.whole_heads && i < call.layout.num_tiles; ++i)
    call.pack_tile(p, call.tensors, call.layout, batch, kv_head, head, i);
}

// Block `index` of a KV head, the last rows first: under a causal mask they are the longest.
void run_block(Call& call, const PackedHead& packed, const Block& block, int64_t head, int64_t index) {
  const AttentionProblem& p = call.problem;
  const Layout& layout = call.layout;
  const int64_t first_row = (layout.blocks_per_head - 1 - index) * kBlockRows;
  const int64_t all_rows = p.num_heads / p.kv_num_heads * p.seqlen_q;
  const int rows = static_cast<int>(std::min<int64_t>(kBlockRows, all_rows - first_row));
  const bool one_head = first_row / p.seqlen_q == (first_row + rows - 1) / p.seqlen_q;
  const bool one_mask_row = p.mask.stride_query == 0 && (p.mask.stride_head == 0 || one_head);
  BlockTask{call,      p,    call.tensors, layout, packed, block, head / p.kv_num_heads, head % p.kv_num_heads,
            first_row, rows, one_mask_row}
      .run();
}

// What a thread needs for blocks of queries.
struct Worker {
  Worker(Call& shared, size_t index)
      : call(shared), block(call.layout.block(call.tensors.workspace, static_cast<int>(index))) {
    if (call.amx) tiles.emplace(static_cast<int>(call.problem.head_dim));
  }
  void run(const PackedHead& packed, int64_t head, int64_t index) { run_block(call, packed, block, head, index); }

  Call& call;
  const Block block;
  std::optional<AmxTiles> tiles;
};

void pack_worker(void* context, size_t) {
  Call& call = *static_cast<Call*>(context);
  for (int64_t i; (i = call.next_head.fetch_add(1)) < call.layout.num_kv_heads;)
    pack_head(call, i, call.layout.packed(call.tensors.workspace, i));
}

void block_worker(void* context, size_t index) {
  Call& call = *static_cast<Call*>(context);
  const int64_t blocks = call.layout.blocks_per_head;
  Worker worker(call, index);
  for (int64_t i; (i = call.next_block.fetch_add(1)) < call.layout.num_kv_heads * blocks;)
    worker.run(call.layout.packed(call.tensors.workspace, i / blocks), i / blocks, i % blocks);
}

// Both for whole heads: a head is used while it is in this core's cache, and the threads meet once.
void head_worker(void* context, size_t index) {
  Call& call = *static_cast<Call*>(context);
  Worker worker(call, index);
  const PackedHead packed = call.layout.packed(call.tensors.workspace, index);
  for (int64_t i; (i = call.next_head.fetch_add(1)) < call.layout.num_kv_heads;) {
    pack_head(call, i, packed);
    for (int64_t j = 0; j < call.layout.blocks_per_head; ++j) worker.run(packed, i, j);
  }
}

void run_workers(const Execution& execution, int workers, void (*fn)(void*, size_t), void* context) {
  if (execution.parallel_for != nullptr && workers > 1) {
    execution.parallel_for(execution.pool, fn, workers, context);
  } else {
    for (int worker = 0; worker < workers; ++worker) fn(context, worker);
  }
}

Status validate(const AttentionProblem& p) {
  if (Status s = check_instruction_set(); !s.ok()) return s;
  if (p.tile_n <= kMaxTileN) return {};
  std::ostringstream message;
  message << "tile_n=" << p.tile_n << " is unsupported on the CPU (supported: multiples of 16 up to " << kMaxTileN
          << ")";
  return {StatusCode::kUnsupported, message.str()};
}

Status workspace_bytes(const AttentionProblem& problem, const Execution& execution, size_t* bytes) {
  *bytes = Layout(problem, execution.num_threads).bytes();
  return {};
}

Status run(const AttentionProblem& problem, const AttentionTensors& tensors, const Execution& execution) {
  const Layout layout(problem, execution.num_threads);
  if (reinterpret_cast<uintptr_t>(tensors.workspace) % kAlignment != 0)
    return {StatusCode::kInvalidArgument,
            "the CPU workspace is not aligned to 64 bytes; allocate it with aligned_alloc"};
  choose_instruction_set();
  Call call{problem, tensors, layout, p_form(problem)};
  if (log_enabled()) {
    std::ostringstream line;
    line << describe(problem) << ": cpu " << instruction_set() << " tile_n=" << layout.tile_n
         << " workers=" << layout.num_workers << " workspace=" << layout.bytes();
    log_line(line.str());
  }
  if (layout.head_by_head) {
    run_workers(execution, layout.num_workers, head_worker, &call);
  } else {
    run_workers(execution, layout.num_workers, pack_worker, &call);
    run_workers(execution, layout.num_workers, block_worker, &call);
  }
  return {};
}

}  // namespace
}  // namespace intfa::cpu

namespace intfa {

const Backend& cpu_backend() {
  static constexpr Backend backend{cpu::validate, cpu::workspace_bytes, cpu::run};
  return backend;
}

}  // namespace intfa
