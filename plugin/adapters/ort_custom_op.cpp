// intfa::IntFlashAttention as an ONNX Runtime custom op: tensors in, problem out, status back. Built against API 18, so
// that one binary serves ONNX Runtime 1.18 and everything newer.
#include <algorithm>
#include <array>
#include <cstdio>
#include <deque>
#include <new>
#include <optional>
#include <thread>

#include "adapters/ort_common.h"
#include "intfa/attention.h"

namespace intfa::ort {
namespace {

constexpr size_t kWorkspaceAlignment = 64;
constexpr std::array<const char*, kNumInputs> kInputNames = {
    "Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen", "q_scale", "k_scale", "v_scale"};

std::optional<DataType> data_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return DataType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return DataType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return DataType::kBFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return DataType::kInt8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return DataType::kBool;
    default:
      return std::nullopt;
  }
}

// The node's attributes; see operator.md. ONNX's numbers of data types are those of ONNXTensorElementDataType.
struct Attributes {
  int64_t q_num_heads = 0, kv_num_heads = 0, is_causal = 0, window_left = -1, window_right = -1, smooth_k = 1;
  int64_t output_dtype = 0;
  float scale = 0.f, softcap = 0.f;
  std::string causal_alignment = "standard", precision = "int8", scheme = "tile", k_granularity = "auto";
};

template <typename T>
void read(const Ort::ConstKernelInfo& info, const char* name, T& value) {
  try {
    value = info.GetAttribute<T>(name);
  } catch (const Ort::Exception&) {  // absent: the default stays
  }
}

Attributes read_attributes(const OrtKernelInfo* kernel_info) {
  const Ort::ConstKernelInfo info{kernel_info};
  Attributes a;
  read(info, "q_num_heads", a.q_num_heads);
  read(info, "kv_num_heads", a.kv_num_heads);
  read(info, "is_causal", a.is_causal);
  read(info, "window_left", a.window_left);
  read(info, "window_right", a.window_right);
  read(info, "smooth_k", a.smooth_k);
  read(info, "output_dtype", a.output_dtype);
  read(info, "scale", a.scale);
  read(info, "softcap", a.softcap);
  read(info, "causal_alignment", a.causal_alignment);
  read(info, "precision", a.precision);
  read(info, "scheme", a.scheme);
  read(info, "k_granularity", a.k_granularity);
  return a;
}

// The value that stands for a string attribute.
template <typename Enum>
Enum choose(const char* name, const std::string& value, std::initializer_list<std::pair<const char*, Enum>> choices) {
  std::string supported;
  for (const auto& [choice, result] : choices) {
    if (value == choice) return result;
    supported += supported.empty() ? choice : std::string(", ") + choice;
  }
  refuse("attribute ", name, "='", value, "' is unknown (supported: ", supported, ")");
}

// The attributes' part of every problem of this node.
AttentionProblem to_problem(const Attributes& a) {
  AttentionProblem p;
  p.causal = a.is_causal != 0;
  p.window_left = a.window_left;
  p.window_right = a.window_right;
  p.smooth_k = a.smooth_k != 0;
  p.softmax_scale = a.scale;
  p.softcap = a.softcap;
  p.causal_alignment = choose<CausalAlignment>(
      "causal_alignment", a.causal_alignment,
      {{"standard", CausalAlignment::kStandard}, {"lower_right", CausalAlignment::kLowerRight}});
  p.precision =
      choose<Precision>("precision", a.precision, {{"int8", Precision::kInt8}, {"int8_qk", Precision::kInt8QK}});
  p.scheme = choose<Scheme>("scheme", a.scheme, {{"tile", Scheme::kTile}, {"paper", Scheme::kPaper}});
  p.k_granularity = choose<KGranularity>(
      "k_granularity", a.k_granularity,
      {{"auto", KGranularity::kAuto}, {"token", KGranularity::kToken}, {"group", KGranularity::kGroup}});
  return p;
}

// One input or none, with its shape.
struct Tensor {
  const void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
  bool present = false;
};

Tensor input(const Ort::KernelContext& context, size_t index) {
  if (index >= context.GetInputCount()) return {};
  const Ort::ConstValue value = context.GetInput(index);
  if (!value) return {};
  const auto info = value.GetTensorTypeAndShapeInfo();
  return {value.GetTensorRawData(), info.GetElementType(), info.GetShape(), true};
}

// Q, K or V as [batch, heads, tokens, channels] with strides, from 4-D or 3-D.
struct HeadsView {
  int64_t batch, heads, tokens, channels;
  TensorStrides strides;
};

HeadsView heads_view(const char* name, const Shape& shape, int64_t heads, const char* attribute) {
  if (shape.size() == 4) {
    if (heads > 0 && heads != shape[1])
      refuse(name, " has shape ", text(shape), ", but ", attribute, "=", heads, "; they must agree");
    return {shape[0], shape[1], shape[2], shape[3], {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3]}};
  }
  if (shape.size() != 3)
    refuse(name, " has shape ", text(shape),
           " (supported: [batch, heads, seqlen, head_dim] or [batch, seqlen, heads * head_dim])");
  if (heads <= 0 || shape[2] % heads != 0)
    refuse(name, " has shape ", text(shape), " and ", attribute, "=", heads,
           "; a 3-D input needs a number of heads that divides its last dimension");
  const int64_t channels = shape[2] / heads;
  return {shape[0], heads, shape[1], channels, {shape[1] * shape[2], channels, shape[2]}};
}

void expect_shape(const char* name, const Shape& found, const Shape& expected) {
  if (found != expected) refuse(name, " has shape ", text(found), ", expected ", text(expected));
}

void expect_type(const char* name, const Tensor& tensor, ONNXTensorElementDataType expected,
                 const char* expected_name) {
  if (tensor.type != expected) refuse(name, " has element type ", tensor.type, ", expected ", expected_name);
}

void describe_mask(const Tensor& mask, AttentionProblem& p) {
  if (!mask.present) return;
  const auto dtype = data_type(mask.type);
  if (!dtype || *dtype == DataType::kInt8)
    refuse("attn_mask has element type ", mask.type, " (supported: bool, float32, float16, bfloat16)");
  if (mask.shape.empty() || mask.shape.size() > 4)
    refuse("attn_mask has shape ", text(mask.shape), " (supported: 1 to 4 dimensions)");
  const Shape full = {p.batch, p.num_heads, p.seqlen_q, p.seqlen_kv()};
  Shape shape(4 - mask.shape.size(), 1);
  shape.insert(shape.end(), mask.shape.begin(), mask.shape.end());
  Shape strides(4, 0);
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    const bool fits = shape[i] == full[i] || shape[i] == 1 || (i == 3 && shape[i] < full[i]);
    if (!fits) refuse("attn_mask has shape ", text(mask.shape), ", which does not broadcast to ", text(full));
    if (shape[i] != 1) strides[i] = stride;
    stride *= shape[i];
  }
  // a single column is broadcast; a mask of fewer keys than there are excludes the others
  p.mask = {true, *dtype, strides[0], strides[1], strides[2], strides[3], shape[3] == 1 ? full[3] : shape[3]};
}

ScaleGranularity scale_granularity(const char* name, const Tensor& scale, int64_t heads, int64_t channels) {
  if (!scale.present) return ScaleGranularity::kNone;
  expect_type(name, scale, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32");
  const Shape& shape = scale.shape;
  if (shape.empty() || shape == Shape{1}) return ScaleGranularity::kPerTensor;
  if (shape == Shape{heads}) return ScaleGranularity::kPerHead;
  if (channels > 0 && shape == Shape{heads, channels}) return ScaleGranularity::kPerChannel;
  refuse(name, " has shape ", text(shape), " (supported: [1], [", heads, "]",
         channels > 0 ? " or " + text({heads, channels}) : "", ")");
}

void parallel_for(void* pool, void (*fn)(void*, size_t), size_t tasks, void* context) {
  static_cast<const Ort::KernelContext*>(pool)->ParallelFor(fn, tasks, 0, context);
}

class Kernel {
 public:
  explicit Kernel(const OrtKernelInfo* info)
      : attributes_(read_attributes(info)),
        base_(to_problem(attributes_)),
        name_(Ort::ConstKernelInfo{info}.GetNodeName()) {
    const auto q_type = Ort::ConstKernelInfo{info}.GetInputTypeInfo(kQ).GetTensorTypeAndShapeInfo().GetElementType();
    if (q_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 && attributes_.output_dtype == 0)
      refuse("node '", name_,
             "': Q is int8 and output_dtype is not set; set it to 1 (float32), 10 (float16) or 16 (bfloat16)");
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return guarded([&] {
      try {
        compute(Ort::KernelContext(context));
      } catch (const Refusal& refusal) {
        refuse("node '", name_, "': ", refusal.what());
      }
    });
  }

 private:
  void compute(const Ort::KernelContext& context) const;
  AttentionProblem problem(const std::array<Tensor, kNumInputs>& in) const;

  const Attributes attributes_;
  const AttentionProblem base_;
  const std::string name_;
};

AttentionProblem Kernel::problem(const std::array<Tensor, kNumInputs>& in) const {
  AttentionProblem p = base_;
  const HeadsView q = heads_view("Q", in[kQ].shape, attributes_.q_num_heads, "q_num_heads");
  const HeadsView k = heads_view("K", in[kK].shape, attributes_.kv_num_heads, "kv_num_heads");
  const HeadsView v = heads_view("V", in[kV].shape, attributes_.kv_num_heads, "kv_num_heads");
  if (k.batch != q.batch || v.batch != q.batch || k.heads != v.heads || k.tokens != v.tokens ||
      k.channels != q.channels)
    refuse("Q ", text(in[kQ].shape), ", K ", text(in[kK].shape), " and V ", text(in[kV].shape),
           " do not fit together: batch must agree in all, heads and tokens in K and V, head_dim in Q and K");
  p.batch = q.batch;
  p.num_heads = q.heads;
  p.kv_num_heads = k.heads;
  p.seqlen_q = q.tokens;
  p.seqlen_new = k.tokens;
  p.head_dim = q.channels;
  p.head_dim_v = v.channels;
  p.q_strides = q.strides;
  p.k_strides = k.strides;
  p.v_strides = v.strides;

  const auto dtype = data_type(in[kQ].type);
  if (!dtype || *dtype == DataType::kBool)
    refuse("Q has element type ", in[kQ].type, " (supported: float32, float16, bfloat16, int8)");
  p.dtype = *dtype;
  for (Input other : {kK, kV, kPastKey, kPastValue})
    if (in[other].present && in[other].type != in[kQ].type)
      refuse(kInputNames[other], " has element type ", in[other].type, ", Q has ", in[kQ].type, "; they must agree");
  const auto output = data_type(
      attributes_.output_dtype != 0 ? static_cast<ONNXTensorElementDataType>(attributes_.output_dtype) : in[kQ].type);
  if (!output) refuse("output_dtype=", attributes_.output_dtype, " (supported: 1 float32, 10 float16, 16 bfloat16)");
  p.output_dtype = *output;

  if (in[kPastKey].present != in[kPastValue].present) refuse("past_key and past_value must be given together");
  if (in[kPastKey].present) {
    if (in[kPastKey].shape.size() != 4)
      refuse("past_key has shape ", text(in[kPastKey].shape), " (supported: [batch, kv_heads, past, head_dim])");
    p.seqlen_past = in[kPastKey].shape[2];
    expect_shape("past_key", in[kPastKey].shape, {p.batch, p.kv_num_heads, p.seqlen_past, p.head_dim});
    expect_shape("past_value", in[kPastValue].shape, {p.batch, p.kv_num_heads, p.seqlen_past, p.head_dim_v});
  }
  if (in[kNonpad].present) {
    expect_type("nonpad_kv_seqlen", in[kNonpad], ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64");
    expect_shape("nonpad_kv_seqlen", in[kNonpad].shape, {p.batch});
    p.has_nonpad_kv_seqlen = true;
  }
  describe_mask(in[kMask], p);
  p.q_scale = scale_granularity("q_scale", in[kQScale], p.num_heads, 0);
  p.k_scale = scale_granularity("k_scale", in[kKScale], p.kv_num_heads, 0);
  p.v_scale = scale_granularity("v_scale", in[kVScale], p.kv_num_heads, p.head_dim_v);
  return p;
}

// Scratch memory from ONNX Runtime's CPU arena.
class Workspace {
 public:
  Workspace(const Ort::KernelContext& context, size_t bytes)
      : allocator_(cpu_allocator(context)), memory_(allocator_->Alloc(allocator_, bytes + kWorkspaceAlignment)) {
    if (memory_ == nullptr) {
      Ort::GetApi().ReleaseAllocator(allocator_);
      throw std::bad_alloc();
    }
  }
  ~Workspace() {
    allocator_->Free(allocator_, memory_);
    Ort::GetApi().ReleaseAllocator(allocator_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<void*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment);
  }

 private:
  static OrtAllocator* cpu_allocator(const Ort::KernelContext& context) {
    const Ort::MemoryInfo memory("Cpu", OrtDeviceAllocator, 0, OrtMemTypeDefault);
    return context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
  }

  OrtAllocator* allocator_;
  void* memory_;
};

void check(const Status& status) {
  if (!status.ok()) throw Refusal(status.message());
}

void Kernel::compute(const Ort::KernelContext& context) const {
  std::array<Tensor, kNumInputs> in;
  for (size_t i = 0; i < kNumInputs; ++i) in[i] = input(context, i);
  AttentionProblem p = problem(in);
  Shape y_shape = {p.batch, p.num_heads, p.seqlen_q, p.head_dim_v};
  p.y_strides = {p.num_heads * p.seqlen_q * p.head_dim_v, p.seqlen_q * p.head_dim_v, p.head_dim_v};
  if (in[kQ].shape.size() == 3) {
    y_shape = {p.batch, p.seqlen_q, p.num_heads * p.head_dim_v};
    p.y_strides = {p.seqlen_q * p.num_heads * p.head_dim_v, p.head_dim_v, p.num_heads * p.head_dim_v};
  }
  Execution execution;
  execution.parallel_for = parallel_for;
  execution.pool = const_cast<Ort::KernelContext*>(&context);
  execution.num_threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 256u));
  size_t bytes = 0;
  check(workspace_bytes(p, execution, &bytes));  // before any output exists: a refusal leaves nothing behind

  const auto output = [&](size_t index, const Shape& shape) -> void* {
    if (index >= context.GetOutputCount()) return nullptr;
    Ort::UnownedValue value = context.GetOutput(index, shape);
    return value ? value.GetTensorMutableRawData() : nullptr;
  };
  AttentionTensors t;
  t.q = in[kQ].data;
  t.k = in[kK].data;
  t.v = in[kV].data;
  t.past_key = in[kPastKey].data;
  t.past_value = in[kPastValue].data;
  t.mask = in[kMask].data;
  t.nonpad_kv_seqlen = static_cast<const int64_t*>(in[kNonpad].data);
  t.q_scale = static_cast<const float*>(in[kQScale].data);
  t.k_scale = static_cast<const float*>(in[kKScale].data);
  t.v_scale = static_cast<const float*>(in[kVScale].data);
  t.y = output(kY, y_shape);
  t.present_key = output(kPresentKey, {p.batch, p.kv_num_heads, p.seqlen_kv(), p.head_dim});
  t.present_value = output(kPresentValue, {p.batch, p.kv_num_heads, p.seqlen_kv(), p.head_dim_v});
  t.lse = static_cast<float*>(output(kLse, {p.batch, p.num_heads, p.seqlen_q}));

  const Workspace workspace(context, bytes);
  t.workspace = workspace.data();
  check(run(p, t, execution));
}

// One overload of the op. ONNX Runtime 1.18 wants the types of required outputs declared, so there is one for each pair
// of Q's and Y's type; what else goes with Q, the kernel checks itself, to say it in its own words.
struct Op : Ort::CustomOpBase<Op, Kernel, true> {
  Op(ONNXTensorElementDataType q_type, ONNXTensorElementDataType y_type, bool has_shapes)
      : q_type_(q_type), y_type_(y_type) {
    version = kApiVersion;
    if (!has_shapes) return;
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatusPtr {
      return guarded([&] { infer_shapes(context); });
    };
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return guarded([&] { *kernel = new Kernel(info); });
  }
  const char* GetName() const { return "IntFlashAttention"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return kNumInputs; }
  size_t GetOutputTypeCount() const { return kNumOutputs; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return index == kQ ? q_type_ : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return index == kY ? y_type_ : index == kLse ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : q_type_;
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index <= kV ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return index == kY ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }

 private:
  ONNXTensorElementDataType q_type_, y_type_;
};

// ONNX Runtime before 1.24 crashes in shape inference, before it calls us, where an optional input in the middle is
// absent. There the types come from the overloads alone, and output_dtype can only be Q's type (float32 for int8).
bool can_infer_shapes(const char* version) {
  int major = 0, minor = 0;
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2) return false;
  return major > 1 || minor >= 24;
}

const Ort::CustomOpDomain& domain(const char* version) {
  constexpr ONNXTensorElementDataType kFloats[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
  static std::deque<Op> ops;  // the domain and every session keep their addresses
  static const Ort::CustomOpDomain instance = [&] {
    Ort::CustomOpDomain d{"intfa"};
    const bool infer_shapes = can_infer_shapes(version);
    for (auto q_type : {kFloats[0], kFloats[1], kFloats[2], ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8})
      for (auto y_type : kFloats) {
        const bool is_default = y_type == (q_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 ? kFloats[0] : q_type);
        if (is_default || infer_shapes) d.Add(&ops.emplace_back(q_type, y_type, infer_shapes));
      }
    return d;
  }();
  return instance;
}

constexpr const char* kRegisteredKey = "intfa.registered";

// Registering twice in the same options would make the session fail; the second time does nothing.
void add_to(OrtSessionOptions* options, const char* version) {
  int registered = 0;
  Ort::ThrowOnError(Ort::GetApi().HasSessionConfigEntry(options, kRegisteredKey, &registered));
  if (registered != 0) return;
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain(version)));
  Ort::ThrowOnError(Ort::GetApi().AddSessionConfigEntry(options, kRegisteredKey, "1"));
}

}  // namespace
}  // namespace intfa::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(intfa::ort::kApiVersion);
  if (api == nullptr) {
    const std::string message = std::string("intfa: onnxruntime ") + base->GetVersionString() +
                                " is too old (supported: 1.18 or newer); update it";
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  Ort::InitApi(api);
  return intfa::ort::guarded([&] { intfa::ort::add_to(options, base->GetVersionString()); });
}
