// intfa::IntFlashAttention as an ONNX Runtime custom op, for the CPU and the CUDA execution provider: tensors in,
// problem out, status back. Built against API 18, so that one binary serves ONNX Runtime 1.18 and everything newer.
#include <algorithm>
#include <array>
#include <cstdio>
#include <deque>
#include <optional>
#include <thread>
#include <type_traits>
#include <variant>

#include "adapters/ort_common.h"
#include "intfa/attention.h"

namespace intfa::ort {
namespace {

// The value of an attribute; nothing if the node has none of this name and type.
template <typename T>
std::optional<T> find_attribute(const Ort::ConstKernelInfo& info, const char* name) {
  try {
    return info.GetAttribute<T>(name);
  } catch (const Ort::Exception&) {
    return std::nullopt;
  }
}

// The node's attributes, the defaults where it has none. ONNX Runtime has one error for an attribute that is absent and
// for one of another type, which must not be taken for absent: `scale=2` for `scale=2.0` would be ignored.
Attributes read_attributes(const OrtKernelInfo* kernel_info) {
  const Ort::ConstKernelInfo info{kernel_info};
  Attributes attributes;
  for (const AttributeField& field : kAttributeFields) {
    const auto read = [&]<typename T>(T Attributes::* member) {
      const char* wanted = std::is_same_v<T, float> ? "float" : std::is_same_v<T, int64_t> ? "int" : "string";
      if (const auto found = find_attribute<T>(info, field.name))
        attributes.*member = *found;
      else if (find_attribute<int64_t>(info, field.name) || find_attribute<float>(info, field.name) ||
               find_attribute<std::string>(info, field.name))
        refuse("attribute ", field.name, " is of another type (supported: ", wanted, ")");
    };
    std::visit(read, field.member);
  }
  return attributes;
}

// The inputs of one run: what they are, and where.
struct RunInputs {
  Inputs described;
  std::array<const void*, kNumInputs> data{};
};

RunInputs read_inputs(const Ort::KernelContext& context) {
  RunInputs in;
  for (size_t i = 0; i < std::min<size_t>(kNumInputs, context.GetInputCount()); ++i) {
    const Ort::ConstValue value = context.GetInput(i);
    if (!value) continue;
    const auto info = value.GetTensorTypeAndShapeInfo();
    in.described[i] = {true, static_cast<ElementType>(info.GetElementType()), info.GetShape()};
    in.data[i] = value.GetTensorRawData();
  }
  return in;
}

void check(const Status& status) {
  if (status.ok()) return;
  const bool invalid = status.code() == StatusCode::kInvalidArgument;
  const bool unsupported = status.code() == StatusCode::kUnsupported;
  throw Failure(invalid ? ORT_INVALID_ARGUMENT : unsupported ? ORT_NOT_IMPLEMENTED : ORT_FAIL, status.message());
}

void parallel_for(void* pool, void (*fn)(void*, size_t), size_t tasks, void* context) {
  static_cast<const Ort::KernelContext*>(pool)->ParallelFor(fn, tasks, 0, context);
}

// Where the node runs: its threads or its stream.
Execution execution_of(const Ort::KernelContext& context, Device device) {
  Execution execution;
  execution.device = device;
  if (device == Device::kCuda) {
    execution.stream = context.GetGPUComputeStream();
    return execution;
  }
  execution.parallel_for = parallel_for;
  execution.pool = const_cast<Ort::KernelContext*>(&context);
  // asked once: the C++ library reads a file for it, which took a fifth of a short call
  static const unsigned processors = std::thread::hardware_concurrency();
  execution.num_threads = static_cast<int>(std::clamp(processors, 1u, 256u));
  return execution;
}

// ONNX Runtime's allocator of the device that the node runs on.
class Allocator {
 public:
  explicit Allocator(const OrtKernelInfo* info) {
    Ort::ThrowOnError(Ort::GetApi().KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
  }
  ~Allocator() { Ort::GetApi().ReleaseAllocator(allocator_); }
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;
  OrtAllocator* operator->() const { return allocator_; }
  OrtAllocator* get() const { return allocator_; }

 private:
  OrtAllocator* allocator_ = nullptr;
};

// Scratch memory of one run.
//
// Hazards: on CUDA it is given back while the kernels that use it are still queued. The arena may then hand it to a
// later node of the same stream, which is in order, but never to another stream: GetScratchBuffer ties it to this one,
// a plain Alloc would not. GetScratchBuffer crashes without a stream, and the CPU has none. Where the GPU is out of
// memory it ends the process (it is noexcept, and ONNX Runtime's arena throws); API 18 has no call that is safe in both
// respects.
class Workspace {
 public:
  Workspace(const Allocator& allocator, const OrtKernelContext* context, const Execution& execution, size_t bytes)
      : allocator_(allocator), alignment_(execution.device == Device::kCuda ? 256 : 64) {
    bytes += alignment_;
    if (execution.stream != nullptr)
      Ort::ThrowOnError(
          Ort::GetApi().KernelContext_GetScratchBuffer(context, allocator->Info(allocator.get()), bytes, &memory_));
    else
      memory_ = allocator->Alloc(allocator.get(), bytes);
    if (memory_ == nullptr)
      throw Failure(ORT_FAIL, "no memory for a workspace of " + std::to_string(bytes) + " bytes; use a smaller batch");
  }
  ~Workspace() { allocator_->Free(allocator_.get(), memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<void*>((address + alignment_ - 1) / alignment_ * alignment_);
  }

 private:
  const Allocator& allocator_;
  const size_t alignment_;
  void* memory_ = nullptr;
};

// One node of a session.
class Kernel {
 public:
  Kernel(const OrtKernelInfo* info, std::string name, Device device)
      : name_(std::move(name)), attributes_(read_attributes(info)), allocator_(info), device_(device) {
    const auto q_type = Ort::ConstKernelInfo{info}.GetInputTypeInfo(kQ).GetTensorTypeAndShapeInfo().GetElementType();
    (void)problem_of(attributes_);  // what is wrong with the attributes is said when the session is made
    (void)output_type(attributes_, static_cast<ElementType>(q_type));
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return guarded(name_, [&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* raw_context) const;

  const std::string name_;
  const Attributes attributes_;
  const Allocator allocator_;
  const Device device_;
};

void Kernel::compute(OrtKernelContext* raw_context) const {
  const Ort::KernelContext context(raw_context);
  const RunInputs in = read_inputs(context);
  const AttentionProblem p = problem_of(attributes_, in.described);
  const Execution execution = execution_of(context, device_);
  size_t bytes = 0;
  check(workspace_bytes(p, execution, &bytes));  // before any output exists: a refusal leaves nothing behind

  const auto output = [&](size_t index, const Shape& shape) -> void* {
    if (index >= context.GetOutputCount()) return nullptr;
    Ort::UnownedValue value = context.GetOutput(index, shape);
    return value ? value.GetTensorMutableRawData() : nullptr;
  };
  const bool packed = in.described[kQ].shape.size() == 3;
  AttentionTensors t = bind(in.data, {output(kY, packed ? Shape{p.batch, p.seqlen_q, p.num_heads * p.head_dim_v}
                                                        : Shape{p.batch, p.num_heads, p.seqlen_q, p.head_dim_v}),
                                      output(kPresentKey, {p.batch, p.kv_num_heads, p.seqlen_kv(), p.head_dim}),
                                      output(kPresentValue, {p.batch, p.kv_num_heads, p.seqlen_kv(), p.head_dim_v}),
                                      output(kLse, {p.batch, p.num_heads, p.seqlen_q})});

  const Workspace workspace(allocator_, raw_context, execution, bytes);
  t.workspace = workspace.data();
  check(run(p, t, execution));
}

// One overload of the op. ONNX Runtime 1.18 wants the types of required outputs declared, so there is one for each pair
// of Q's and Y's type, on each device; what else goes with Q, the kernel checks itself, to say it in its own words.
struct Op : Ort::CustomOpBase<Op, Kernel, true> {
  Op(Device device, ONNXTensorElementDataType q_type, ONNXTensorElementDataType y_type, bool has_shapes)
      : device_(device), q_type_(q_type), y_type_(y_type) {
    version = kApiVersion;
    if (!has_shapes) return;
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatusPtr {
      return guarded("", [&] { infer_shapes(context); });
    };
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    std::string name;
    return guarded(name, [&] {
      name = Ort::ConstKernelInfo{info}.GetNodeName();
      *kernel = new Kernel(info, name, device_);
    });
  }
  const char* GetName() const { return "IntFlashAttention"; }
  const char* GetExecutionProviderType() const {
    return device_ == Device::kCuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  }
  // Small inputs too (nonpad_kv_seqlen, scales) are read by the kernels, not by the launcher: they lie on the device.
  OrtMemType GetInputMemoryType(size_t) const { return OrtMemTypeDefault; }
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
  Device device_;
  ONNXTensorElementDataType q_type_, y_type_;
};

// ONNX Runtime before 1.28 aborts in its side of shape inference: before 1.24 where an optional input in the middle is
// absent, from there on where an output is. There the types come from the overloads alone, and output_dtype can only be
// Q's type (float32 for int8).
bool can_infer_shapes(const char* version) {
  int major = 0, minor = 0;
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2) return false;
  return major > 1 || minor >= 28;
}

constexpr Device kDevices[] = {
    Device::kCpu,
#ifdef INTFA_HAVE_CUDA
    Device::kCuda,
#endif
};

const Ort::CustomOpDomain& domain(const char* version) {
  constexpr ONNXTensorElementDataType kFloats[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
  static std::deque<Op> ops;  // the domain and every session keep their addresses
  static const Ort::CustomOpDomain instance = [&] {
    Ort::CustomOpDomain d{"intfa"};
    const bool infer_shapes = can_infer_shapes(version);
    for (Device device : kDevices)
      for (auto q_type : {kFloats[0], kFloats[1], kFloats[2], ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8})
        for (auto y_type : kFloats) {
          const bool is_default = y_type == (q_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 ? kFloats[0] : q_type);
          if (is_default || infer_shapes) d.Add(&ops.emplace_back(device, q_type, y_type, infer_shapes));
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
  return intfa::ort::guarded("", [&] { intfa::ort::add_to(options, base->GetVersionString()); });
}
