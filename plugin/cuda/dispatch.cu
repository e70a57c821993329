// Problem -> plan (kernels, workspace layout) -> launches. Plain host code: also compiled by a host compiler for the
// simulators.
#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string>

#include "core/numerics.h"
#include "cuda/architecture.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/kernels_sm90.h"
#include "cuda/launch.h"

namespace intfa::cuda {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 29;  // token indices and their sums are int
constexpr int kUnbounded = 1 << 30;
constexpr int64_t kMaxGridYZ = 65535;
// Split-KV aims at two CTAs for each of 128 SMs, with at least four tiles of keys each. A rule of the problem and the
// kernel, not of the GPU's size.
constexpr int64_t kTargetCtas = 256;
constexpr int64_t kMinTilesPerSplit = 4;

const KernelSet* const kKernelSets[] = {&kKernels32, &kKernels64, &kKernels96, &kKernels128, &kKernels256};

// The rows of a problem in tiles; see RowMap.
struct RowTiles {
  int heads, groups;
  int64_t tiles;   // of a group
  int64_t blocks;  // of all groups and batch entries
};

// Byte offsets of the workspace's parts, each a multiple of 256.
struct Workspace {
  size_t tiles, v_scale, k_mean, tile_flags, partial_sum, partial_count, partial_amax, split_y, split_lse, bytes;
};

struct Plan {
  const KernelSet* kernels;
  const AttentionKernel* attention;
  RowTiles rows;
  int64_t num_tiles;
  int num_chunks, chunk_tokens;
  int num_splits, tiles_per_split;
  bool k_statistics, v_statistics, smooth;
  Workspace workspace;
};

Status unsupported(std::string message) { return {StatusCode::kUnsupported, "CUDA: " + std::move(message)}; }

Arithmetic arithmetic_of(const AttentionProblem& problem) {
  if (problem.precision == Precision::kInt8QK) return Arithmetic::kHalfPV;
  return problem.scheme == Scheme::kPaper ? Arithmetic::kPaperInt8 : Arithmetic::kTileInt8;
}

bool is_scored(const AttentionProblem& problem) { return problem.softcap > 0.f || problem.mask.present; }

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Query heads that share a K/V head are packed where their rows fill fewer tiles together than each one's alone: with
// fewer queries than a tile has, or where the last tile is far from full.
RowTiles row_tiles_of(const AttentionProblem& problem, int64_t tile_m) {
  const int64_t heads = problem.num_heads / problem.kv_num_heads;
  const int64_t apart = divide_up(problem.seqlen_q, tile_m), together = divide_up(problem.seqlen_q * heads, tile_m);
  const bool fewer = together < heads * apart && RowMap::divides(together * tile_m, heads);
  const int64_t packed = fewer ? heads : 1;
  const int64_t groups = problem.num_heads / packed, tiles = packed == 1 ? apart : together;
  return {static_cast<int>(packed), static_cast<int>(groups), tiles, tiles * groups * problem.batch};
}

// Rounds of row tiles over the SMs of the current GPU, or of the part of it that MIG gives.
int64_t rounds(const AttentionProblem& problem, int64_t tile_m) {
  return divide_up(row_tiles_of(problem, tile_m).blocks, multiprocessors());
}

// Whether CTAs of three warpgroups are predicted to be faster than three times as many of one: they are as fast per
// query and tile, but need a third of the traffic from L2. At the bounds of their loops CTAs of one ask it for 7 (head
// size 64) to 11 TB/s (128), about twice what it has, so a quarter more of the work, for the ends of tiles and rounds,
// is taken to be worth it. Part of the L2 and part of the SMs, as by MIG, leave this as it is.
bool gains_by_sharing(const AttentionProblem& problem, int tile_m) {
  return 4 * 3 * rounds(problem, tile_m) <= 5 * rounds(problem, kWgmmaTileM);
}

// kGroup: the prologue's groups are of 64 keys, the operator's of a tile.
bool takes(const WgmmaKernel& entry, const AttentionProblem& problem, int head_dim) {
  const AttentionKernel& kernel = entry.attention;
  return entry.head_dim == head_dim && kernel.arithmetic == arithmetic_of(problem) &&
         kernel.scored == is_scored(problem) && problem.k_granularity != KGranularity::kGroup &&
         (problem.tile_n == 0 || problem.tile_n == kernel.tile_n) &&
         (!kernel.persistent || gains_by_sharing(problem, kernel.tile_m));
}

// The one table: smallest head size that holds both D and Dv, then the kernel of the arithmetic, by wgmma where the GPU
// and the table have it.
Status choose_kernels(const AttentionProblem& problem, Plan* plan) {
  const int64_t head_dim = std::max(problem.head_dim, problem.head_dim_v);
  for (const KernelSet* set : kKernelSets) {
    if (set->head_dim < head_dim) continue;
    plan->kernels = set;
    for (const AttentionKernel& kernel : set->attention) {
      if (kernel.arithmetic == arithmetic_of(problem) && kernel.scored == is_scored(problem)) plan->attention = &kernel;
    }
    if (!has_wgmma()) return {};
    for (const WgmmaKernel& kernel : kWgmmaKernels) {
      if (takes(kernel, problem, set->head_dim)) plan->attention = &kernel.attention;
    }
    return {};
  }
  return unsupported("head size " + std::to_string(head_dim) +
                     " has no kernel; sizes up to 256 have. Run it on the CPU.");
}

bool is_splittable(const Plan& plan) {
  // The paper's P depends on the running max, hence on the order of the keys: never split. Nor where there is enough
  // work for a list of it.
  return plan.attention->arithmetic != Arithmetic::kPaperInt8 && !plan.attention->persistent;
}

// split_rows: rows of partial results, over all splits.
Workspace layout_of(const AttentionProblem& problem, const Plan& plan, int64_t num_chunks, int64_t split_rows) {
  const size_t heads = problem.batch * problem.kv_num_heads, dim = plan.kernels->head_dim;
  const size_t tile_bytes =
      problem.precision == Precision::kInt8QK ? plan.kernels->tile_bytes_half : plan.kernels->tile_bytes;
  const size_t chunks = heads * num_chunks;
  Workspace w{};
  auto take = [&](size_t bytes) {
    const size_t at = w.bytes;
    w.bytes += (bytes + 255) / 256 * 256;
    return at;
  };
  w.tiles = take(heads * plan.num_tiles * tile_bytes);
  w.v_scale = take(heads * dim * 4);
  w.k_mean = take(heads * dim * 4);
  w.tile_flags = take(2 * heads * plan.num_tiles * 4);
  w.partial_sum = take(plan.k_statistics ? chunks * dim * 4 : 0);
  w.partial_count = take(plan.k_statistics ? chunks * 4 : 0);
  w.partial_amax = take(plan.v_statistics ? chunks * dim * 4 : 0);
  w.split_y = take(split_rows * problem.head_dim_v * 4);
  w.split_lse = take(split_rows * 4);
  return w;
}

Status make_plan(const AttentionProblem& problem, Plan* plan) {
  *plan = {};
  if (Status status = choose_kernels(problem, plan); !status.ok()) return status;
  const int64_t tile_n = plan->attention->tile_n;
  if (problem.tile_n != 0 && problem.tile_n != tile_n) {
    return unsupported("tile_n = " + std::to_string(problem.tile_n) + "; the kernel has " + std::to_string(tile_n) +
                       ". Leave it 0.");
  }
  if (std::max(problem.seqlen_q, problem.seqlen_kv()) >= kMaxTokens) {
    return unsupported("2^29 tokens and more in a sequence; split it.");
  }
  if (2 * problem.batch > kMaxGridYZ || problem.num_heads > kMaxGridYZ) {
    return unsupported("batch above 32767 or more than 65535 heads; split the batch.");
  }

  const bool float_input = problem.dtype != DataType::kInt8;
  plan->smooth =
      problem.smooth_k && problem.scheme == Scheme::kTile && float_input && problem.k_scale == ScaleGranularity::kNone;
  plan->k_statistics = plan->smooth;
  plan->v_statistics =
      float_input && problem.v_scale == ScaleGranularity::kNone && problem.precision == Precision::kInt8;

  const int64_t tiles = std::max<int64_t>(1, (problem.seqlen_kv() + tile_n - 1) / tile_n);  // of the attention kernel
  plan->num_tiles = tiles * (tile_n / kTileN);                                              // packed
  const int64_t tiles_per_chunk = (plan->num_tiles + kMaxChunks - 1) / kMaxChunks;
  plan->chunk_tokens = static_cast<int>(tiles_per_chunk * kTileN);
  plan->num_chunks = static_cast<int>((plan->num_tiles + tiles_per_chunk - 1) / tiles_per_chunk);

  plan->rows = row_tiles_of(problem, plan->attention->tile_m);
  const int64_t ctas = std::max<int64_t>(1, plan->rows.blocks);
  const int64_t wanted = is_splittable(*plan) ? std::min(kTargetCtas / ctas, tiles / kMinTilesPerSplit) : 1;
  plan->tiles_per_split = static_cast<int>((tiles + std::max<int64_t>(1, wanted) - 1) / std::max<int64_t>(1, wanted));
  plan->num_splits = static_cast<int>((tiles + plan->tiles_per_split - 1) / plan->tiles_per_split);

  const int64_t split_rows =
      plan->num_splits > 1 ? plan->num_splits * problem.batch * problem.num_heads * problem.seqlen_q : 0;
  plan->workspace = layout_of(problem, *plan, plan->num_chunks, split_rows);
  return {};
}

int64_t element_size(DataType dtype) {
  return dtype == DataType::kFloat32 ? 4 : dtype == DataType::kFloat16 || dtype == DataType::kBFloat16 ? 2 : 1;
}

// Whether `count` consecutive elements, from any multiple of `count`, are aligned to their joint size.
bool aligned(const void* data, std::initializer_list<int64_t> strides, DataType dtype, int count) {
  if (reinterpret_cast<uintptr_t>(data) % (count * element_size(dtype)) != 0) return false;
  return std::all_of(strides.begin(), strides.end(), [&](int64_t stride) { return stride % count == 0; });
}

View view_of(const void* data, const TensorStrides& s, DataType dtype) {
  return {data, s.batch, s.head, s.token, aligned(data, {s.batch, s.head, s.token}, dtype, 4)};
}

Packed packed_of(const Plan& plan, void* workspace) {
  char* base = static_cast<char*>(workspace);
  const Workspace& w = plan.workspace;
  return {base + w.tiles, plan.smooth ? reinterpret_cast<float*>(base + w.k_mean) : nullptr,
          reinterpret_cast<float*>(base + w.v_scale), reinterpret_cast<uint32_t*>(base + w.tile_flags)};
}

// Whether the attention kernel reads K's codes where the caller has them: rows of whole 16-byte chunks, without padding
// to the kernel's head size, less than 2^31 bytes apart. wgmma wants core matrices, which the prologue makes.
bool k_in_place(const AttentionProblem& problem, const AttentionTensors& tensors, const Plan& plan) {
  const TensorStrides& s = problem.k_strides;
  return problem.dtype == DataType::kInt8 && plan.attention->order == ChunkOrder::kRows &&
         problem.head_dim == plan.kernels->head_dim && s.token >= 0 && s.token <= std::numeric_limits<int>::max() &&
         aligned(tensors.k, {s.batch, s.head, s.token}, problem.dtype, 16) &&
         aligned(tensors.past_key, {}, problem.dtype, 16);  // contiguous
}

// past_key or past_value
View cache_view(const AttentionProblem& problem, const void* data, int64_t channels) {
  const int64_t head = problem.seqlen_past * channels;
  return view_of(data, {problem.kv_num_heads * head, head, channels}, problem.dtype);
}

CodeView code_view(const View& view) {
  return {static_cast<const char*>(view.data), view.batch, view.head, static_cast<uint32_t>(view.token)};
}

PrologueParams prologue_params(const AttentionProblem& problem, const AttentionTensors& tensors, const Plan& plan) {
  PrologueParams p{};
  p.batch = static_cast<int>(problem.batch);
  p.kv_num_heads = static_cast<int>(problem.kv_num_heads);
  p.seqlen_past = static_cast<int>(problem.seqlen_past);
  p.seqlen_kv = static_cast<int>(problem.seqlen_kv());
  p.num_tiles = static_cast<int>(plan.num_tiles);
  p.head_dim = static_cast<int>(problem.head_dim);
  p.head_dim_v = static_cast<int>(problem.head_dim_v);
  p.num_chunks = plan.num_chunks;
  p.chunk_tokens = plan.chunk_tokens;
  p.dtype = problem.dtype;
  p.k = view_of(tensors.k, problem.k_strides, problem.dtype);
  p.v = view_of(tensors.v, problem.v_strides, problem.dtype);
  p.past_key = cache_view(problem, tensors.past_key, problem.head_dim);
  p.past_value = cache_view(problem, tensors.past_value, problem.head_dim_v);
  p.nonpad_kv_seqlen = problem.has_nonpad_kv_seqlen ? tensors.nonpad_kv_seqlen : nullptr;
  p.k_scale = problem.k_scale != ScaleGranularity::kNone ? tensors.k_scale : nullptr;
  p.v_scale = problem.v_scale != ScaleGranularity::kNone ? tensors.v_scale : nullptr;
  p.k_scale_kind = problem.k_scale;
  p.v_scale_kind = problem.v_scale;
  p.smooth = plan.smooth;
  p.group_scale = problem.k_granularity == KGranularity::kGroup && problem.scheme == Scheme::kTile;
  p.head_v_scale = problem.scheme == Scheme::kPaper;
  p.half_v = problem.precision == Precision::kInt8QK;
  p.k_statistics = plan.k_statistics;
  p.v_statistics = plan.v_statistics;
  p.k_in_place = k_in_place(problem, tensors, plan);
  p.order = plan.attention->order;
  p.present_key = tensors.present_key;
  p.present_value = tensors.present_value;
  char* base = static_cast<char*>(tensors.workspace);
  p.partial_sum = reinterpret_cast<float*>(base + plan.workspace.partial_sum);
  p.partial_count = reinterpret_cast<float*>(base + plan.workspace.partial_count);
  p.partial_amax = reinterpret_cast<float*>(base + plan.workspace.partial_amax);
  p.packed = packed_of(plan, tensors.workspace);
  return p;
}

// A window of a whole sequence is no window; so the sums that limits are made of stay far inside of int.
int bounded(int64_t window) { return window < 0 || window >= kMaxTokens ? kUnbounded : static_cast<int>(window); }

AttentionParams attention_params(const AttentionProblem& problem, const AttentionTensors& tensors, const Plan& plan) {
  AttentionParams p{};
  p.batch = static_cast<int>(problem.batch);
  p.num_heads = static_cast<int>(problem.num_heads);
  p.heads_per_kv = static_cast<int>(problem.num_heads / problem.kv_num_heads);
  p.kv_num_heads = static_cast<int>(problem.kv_num_heads);
  p.seqlen_q = static_cast<int>(problem.seqlen_q);
  p.seqlen_kv = static_cast<int>(problem.seqlen_kv());
  p.num_tiles = static_cast<int>(plan.num_tiles);
  p.head_dim = static_cast<int>(problem.head_dim);
  p.head_dim_v = static_cast<int>(problem.head_dim_v);
  p.rows = RowMap::of(plan.rows.heads, p.num_heads, p.seqlen_q);
  p.q = view_of(tensors.q, problem.q_strides, problem.dtype);
  p.q_dtype = problem.dtype;
  p.q_scale = problem.q_scale != ScaleGranularity::kNone ? tensors.q_scale : nullptr;
  p.q_scale_kind = problem.q_scale;
  p.packed = packed_of(plan, tensors.workspace);
  p.k_in_place = k_in_place(problem, tensors, plan);
  p.seqlen_past = static_cast<int>(problem.seqlen_past);
  if (p.k_in_place) {
    p.k = code_view(view_of(tensors.k, problem.k_strides, problem.dtype));
    p.past_key = code_view(cache_view(problem, tensors.past_key, problem.head_dim));
  }
  p.y = tensors.y;
  p.y_batch = problem.y_strides.batch;
  p.y_head = problem.y_strides.head;
  p.y_token = problem.y_strides.token;
  p.y_pairs = aligned(tensors.y, {p.y_batch, p.y_head, p.y_token}, problem.output_dtype, 2);
  p.y_dtype = problem.output_dtype;
  p.lse = tensors.lse;
  p.softmax_scale = softmax_scale(problem);
  p.softcap = problem.softcap;
  p.num_splits = plan.num_splits;
  p.tiles_per_split = plan.tiles_per_split;

  p.nonpad_kv_seqlen = problem.has_nonpad_kv_seqlen ? tensors.nonpad_kv_seqlen : nullptr;
  p.offset_from_nonpad = problem.has_nonpad_kv_seqlen;
  p.offset = problem.causal_alignment == CausalAlignment::kLowerRight ? p.seqlen_kv - p.seqlen_q
                                                                      : static_cast<int>(problem.seqlen_past);
  p.window_left = bounded(problem.window_left);
  p.window_right = problem.causal ? 0 : bounded(problem.window_right);

  const MaskProblem& mask = problem.mask;
  p.mask_seqlen_kv = mask.present ? static_cast<int>(std::min(mask.seqlen_kv, problem.seqlen_kv())) : p.seqlen_kv;
  if (mask.present) {
    p.mask = {tensors.mask,
              mask.dtype,
              mask.stride_batch,
              mask.stride_head,
              mask.stride_query,
              mask.stride_key,
              mask.stride_key == 1 &&
                  aligned(tensors.mask, {mask.stride_batch, mask.stride_head, mask.stride_query}, mask.dtype, 4),
              mask.stride_query == 0 && (plan.rows.heads == 1 || mask.stride_head == 0)};
  }
  return p;
}

MergeParams merge_params(const AttentionParams& out, const AttentionTensors& tensors, const Plan& plan) {
  const char* base = static_cast<const char*>(tensors.workspace);
  return {out, plan.num_splits, reinterpret_cast<const float*>(base + plan.workspace.split_y),
          reinterpret_cast<const float*>(base + plan.workspace.split_lse)};
}

// The same attention, writing partial results: Y as contiguous float32 [num_splits, B, Hq, Sq, Dv].
AttentionParams split_params(AttentionParams p, const MergeParams& merge, int64_t batch) {
  p.y = const_cast<float*>(merge.y);
  p.lse = const_cast<float*>(merge.lse);
  p.y_dtype = DataType::kFloat32;
  p.y_token = p.head_dim_v;
  p.y_head = p.seqlen_q * p.y_token;
  p.y_batch = p.num_heads * p.y_head;
  p.y_pairs = p.head_dim_v % 2 == 0;
  p.split_y = batch * p.y_batch;
  p.split_lse = batch * p.num_heads * p.seqlen_q;
  return p;
}

}  // namespace

Status supports(const AttentionProblem& problem) {
  Plan plan;
  return make_plan(problem, &plan);
}

std::string describe(const AttentionProblem& problem, const AttentionTensors& tensors) {
  Plan plan;
  if (Status status = make_plan(problem, &plan); !status.ok()) return status.message();
  static const char* const kNames[] = {"tile", "paper", "half"};
  const AttentionKernel& attention = *plan.attention;
  const bool wgmma = attention.order == ChunkOrder::kCoreMatrices;
  return std::string("attention_") + (wgmma ? "wgmma" : kNames[static_cast<int>(attention.arithmetic)]) +
         (attention.scored ? "_scored" : "") + "_d" + std::to_string(plan.kernels->head_dim) + " tile " +
         std::to_string(attention.tile_m) + "x" + std::to_string(attention.tile_n) +
         (attention.persistent ? ", one block per SM" : "") +
         (plan.rows.heads > 1 ? ", " + std::to_string(plan.rows.heads) + " heads packed" : "") +
         (k_in_place(problem, tensors, plan) ? ", K in place" : "") + (plan.k_statistics ? ", mean of K" : "") +
         (plan.v_statistics ? ", amax of V" : "") +
         (plan.num_splits > 1 ? ", keys split in " + std::to_string(plan.num_splits) : "") + ", workspace " +
         std::to_string(plan.workspace.bytes) + " bytes";
}

Status workspace_bytes(const AttentionProblem& problem, size_t* bytes) {
  Plan plan;
  Status status = make_plan(problem, &plan);
  if (status.ok()) *bytes = plan.workspace.bytes;
  return status;
}

Status max_workspace_bytes(const AttentionProblem& problem, size_t* bytes) {
  Plan plan;
  if (Status status = make_plan(problem, &plan); !status.ok()) return status;
  // A smaller problem has no more tiles, but it may have more chunks, and more splits: at most kTargetCtas row tiles of
  // partial results, whatever its batch and queries. One too small for a list of work splits its keys.
  const int64_t num_chunks = std::min<int64_t>(plan.num_tiles, kMaxChunks);
  const int64_t tiles = plan.num_tiles / (plan.attention->tile_n / kTileN);
  const bool listed = plan.attention->persistent;
  const bool splittable = is_splittable(plan) || listed;
  const int64_t splits = splittable ? tiles / kMinTilesPerSplit : 1;
  const int64_t rows = problem.batch * problem.num_heads * problem.seqlen_q;
  const int64_t tile_m = listed ? kWgmmaTileM : plan.attention->tile_m;
  const int64_t split_rows = splits > 1 ? std::min(kTargetCtas * tile_m, splits * rows) : 0;
  *bytes = layout_of(problem, plan, num_chunks, split_rows).bytes;
  return {};
}

Status run(const AttentionProblem& problem, const AttentionTensors& tensors, void* stream) {
  Plan plan;
  if (Status status = make_plan(problem, &plan); !status.ok()) return status;
  if (problem.batch == 0 || problem.num_heads == 0) return {};

  const KernelSet& kernels = *plan.kernels;
  const PrologueParams prologue = prologue_params(problem, tensors, plan);
  const int64_t planes = 2 * problem.batch;  // K and V
  if (plan.k_statistics || plan.v_statistics) {
    Status status = launch(kernels.statistics, {plan.num_chunks, problem.kv_num_heads, planes}, kPrologueThreads,
                           kernels.statistics_smem, stream, prologue);
    if (!status.ok()) return status;
  }
  Status status = launch(kernels.quantize_kv, {plan.num_tiles, problem.kv_num_heads, planes}, kPrologueThreads,
                         kernels.quantize_smem, stream, prologue);
  if (!status.ok() || problem.seqlen_q == 0) return status;

  const AttentionKernel& attention = *plan.attention;
  Grid grid = {plan.rows.tiles, plan.rows.groups, problem.batch * plan.num_splits};
  if (attention.persistent) grid = {std::min<int64_t>(plan.rows.blocks, multiprocessors())};
  const AttentionParams params = attention_params(problem, tensors, plan);
  if (plan.num_splits == 1) {
    return launch(attention.kernel, grid, attention.threads, attention.smem_bytes, stream, params);
  }
  const MergeParams merge = merge_params(params, tensors, plan);
  const AttentionParams parts = split_params(params, merge, problem.batch);
  const Status launched = launch(attention.kernel, grid, attention.threads, attention.smem_bytes, stream, parts);
  if (!launched.ok()) return launched;
  constexpr int kRowsPerCta = kMergeThreads / 32;
  return launch(kernels.merge, {(problem.seqlen_q + kRowsPerCta - 1) / kRowsPerCta, problem.num_heads, problem.batch},
                kMergeThreads, 0, stream, merge);
}

}  // namespace intfa::cuda
