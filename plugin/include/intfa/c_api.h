/* The core as a C interface, for ctypes, tests and benchmarks. Same meaning as intfa/attention.h; enumerations are its
 * values, and any other number is refused. Functions return an intfa::StatusCode (0 done, 1 invalid argument, 2
 * unsupported, 3 out of memory, 4 runtime error); what is wrong is written to `message`, unless that is null, cut to
 * `message_size` bytes, zero-terminated. The structures may change with intfa_version(): build against the header of
 * the library that is loaded. */
#ifndef INTFA_C_API_H_
#define INTFA_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct intfa_problem {
  int64_t batch, num_heads, kv_num_heads;
  int64_t seqlen_q, seqlen_new, seqlen_past;
  int64_t head_dim, head_dim_v;
  int64_t dtype, output_dtype;
  int64_t q_strides[3], k_strides[3], v_strides[3], y_strides[3]; /* batch, head, token */
  int64_t causal, causal_alignment, window_left, window_right;
  int64_t mask_present, mask_dtype, mask_strides[4], mask_seqlen_kv; /* batch, head, query, key */
  int64_t has_nonpad_kv_seqlen;
  int64_t precision, scheme, k_granularity, smooth_k, tile_n;
  int64_t q_scale, k_scale, v_scale; /* granularities */
  double softmax_scale, softcap;
} intfa_problem;

typedef struct intfa_tensors {
  const void *q, *k, *v, *past_key, *past_value, *mask;
  const int64_t* nonpad_kv_seqlen;
  const float *q_scale, *k_scale, *v_scale;
  void *y, *present_key, *present_value;
  float* lse;
} intfa_tensors;

/* What the CPU backend makes of one KV head and its query heads, in natural order. Null members are left out. */
typedef struct intfa_codes {
  int8_t* q;      /* [group * Sq, D] */
  float* q_scale; /* [group * Sq] */
  int8_t* k;      /* [valid keys, D] */
  float* k_scale; /* [valid keys] */
  float* k_mean;  /* [D] */
  int8_t* v;      /* [valid keys, Dv] */
  float* v_scale; /* [Dv] */
} intfa_codes;

const char* intfa_version(void);

/* The GPUs that this build has code for, e.g. "sm 80, 86, 90a; PTX 90a"; empty without CUDA kernels. */
const char* intfa_cuda_architectures(void);

/* What the CPU backend uses in this process: "sse2", "avx2", "avx512", "avx512vnni", "amx" or "neon". */
const char* intfa_cpu_instruction_set(void);

/* device: an intfa::Device. */
int intfa_validate(const intfa_problem* problem, int device, char* message, size_t message_size);

/* Runs on the CPU with up to num_threads threads of its own; allocates the workspace. */
int intfa_run_cpu(const intfa_problem* problem, const intfa_tensors* tensors, int num_threads, char* message,
                  size_t message_size);

/* Device memory that intfa_run_cuda needs, at a multiple of 256 bytes. */
int intfa_workspace_bytes_cuda(const intfa_problem* problem, size_t* bytes, char* message, size_t message_size);

/* Enqueues on `stream`, a cudaStream_t; all pointers of `tensors` are device pointers. */
int intfa_run_cuda(const intfa_problem* problem, const intfa_tensors* tensors, void* workspace, void* stream,
                   char* message, size_t message_size);

/* Quantizes as intfa_run_cpu does, for tests. precision must be int8. */
int intfa_quantize_cpu(const intfa_problem* problem, const intfa_tensors* tensors, int64_t batch, int64_t kv_head,
                       const intfa_codes* codes, char* message, size_t message_size);

/* out[i] = 2^x[i] for x[i] <= 0, as the CPU backend computes it. */
void intfa_exp2_cpu(const float* x, float* out, int64_t count);

/* out[i] = the code of P = 2^x[i] for x[i] <= 0 under scheme tile, as the CPU backend makes it. */
void intfa_tile_codes_cpu(const float* x, uint8_t* out, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
