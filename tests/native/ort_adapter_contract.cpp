// The ONNX Runtime adapter against a fake runtime and fake backends: what the CUDA op does with ONNX Runtime's stream
// and allocator, on every path, under AddressSanitizer. A leaked status, workspace or allocator fails the run.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "check.h"
#include "fake_backends.h"
#include "fake_ort.h"

extern "C" OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

using intfa::Device;
using intfa::Status;
using intfa::StatusCode;
using intfa::fake_ort::journal;
using intfa::fake_ort::Scratch;
using intfa::fake_ort::tensor;

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
const OrtApi* const kApi = intfa::fake_ort::api_base()->GetApi(18);

// An answer of the adapter, freed.
struct Answer {
  explicit Answer(OrtStatus* status) : ok(status == nullptr) {
    if (ok) return;
    code = status->code;
    message = status->message;
    delete status;
  }
  bool says(OrtErrorCode expected, const char* text) const {
    if (!ok && code == expected && message.find(text) != std::string::npos) return true;
    std::fprintf(stderr, "answer %d '%s', expected %d with '%s'\n", code, message.c_str(), expected, text);
    return false;
  }
  bool ok;
  OrtErrorCode code = ORT_OK;
  std::string message;
};

const OrtCustomOp* find_op(const OrtSessionOptions& options, const std::string& provider) {
  for (const OrtCustomOp* op : options.domains.at(0)->ops)
    if (op->GetExecutionProviderType(op) == provider && op->GetInputType(op, 0) == kFloat &&
        op->GetOutputType(op, 0) == kFloat)
      return op;
  return nullptr;
}

// One node with Q [1, 4, 3, 16], K and V [1, 2, 5, 16], and a kernel of it.
struct Node {
  explicit Node(const OrtCustomOp* op) : op(op), creation(op->CreateKernelV2(op, kApi, &info, &kernel)) {}
  ~Node() {
    if (kernel != nullptr) op->KernelDestroy(kernel);
  }
  Answer run() { return Answer(op->KernelComputeV2(kernel, &context)); }

  const OrtCustomOp* op;
  OrtKernelInfo info;
  void* kernel = nullptr;
  Answer creation;
  OrtValue q = tensor(kFloat, {1, 4, 3, 16}), k = tensor(kFloat, {1, 2, 5, 16}), v = tensor(kFloat, {1, 2, 5, 16});
  int stream = 0;
  OrtKernelContext context = {{&q, &k, &v}, 4, {}, &stream};
};

void registration(OrtSessionOptions& options) {
  CHECK(Answer(RegisterCustomOps(&options, intfa::fake_ort::api_base())).ok);
  CHECK(Answer(RegisterCustomOps(&options, intfa::fake_ort::api_base())).ok);
  CHECK(options.domains.size() == 1);
  int cpu = 0, cuda = 0;
  for (const OrtCustomOp* op : options.domains[0]->ops) {
    const std::string provider = op->GetExecutionProviderType(op);
    (provider == "CUDAExecutionProvider" ? cuda : cpu) += 1;
    CHECK(provider == "CUDAExecutionProvider" || provider == "CPUExecutionProvider");
    CHECK(op->version == 18);
    // The kernels read every input on the device, the small ones too.
    for (size_t i = 0; i < op->GetInputTypeCount(op); ++i) CHECK(op->GetInputMemoryType(op, i) == OrtMemTypeDefault);
  }
  CHECK(cpu == 12 && cuda == 12);

  OrtSessionOptions refused;
  CHECK(Answer(RegisterCustomOps(&refused, intfa::fake_ort::api_base(false)))
            .says(ORT_NOT_IMPLEMENTED, "onnxruntime 1.17.3 is too old (supported: 1.18 or newer)"));
  CHECK(refused.domains.empty());
}

void runs_on_the_stream(const OrtCustomOp* op) {
  journal() = {};
  Node node(op);
  CHECK(node.creation.ok);
  CHECK(node.run().ok);
  const intfa::fake::Call& call = intfa::fake::last_call();
  CHECK(call.execution.device == Device::kCuda);
  CHECK(call.execution.stream == &node.stream);
  CHECK(call.execution.parallel_for == nullptr);
  CHECK(call.tensors.q == node.q.bytes.data() && call.tensors.v == node.v.bytes.data());
  CHECK(call.tensors.y == node.context.outputs.at(0).bytes.data() && node.context.outputs.at(0).bytes[0] == 2);
  CHECK((node.context.outputs.at(1).info.shape == std::vector<int64_t>{1, 2, 5, 16}));
  CHECK((node.context.outputs.at(3).info.shape == std::vector<int64_t>{1, 4, 3}));
  CHECK(reinterpret_cast<uintptr_t>(call.tensors.workspace) % 256 == 0);
  CHECK(journal().scratch_allocs == 1 && journal().plain_allocs == 0 && journal().frees == 1);
}

void optional_inputs_and_outputs(const OrtCustomOp* op) {
  OrtValue mask = tensor(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, {1, 1, 3, 5});
  OrtValue nonpad = tensor(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {1});
  OrtValue v_scale = tensor(kFloat, {2, 16});
  Node node(op);
  node.context.inputs = {&node.q, &node.k, &node.v, &mask, nullptr, nullptr, &nonpad, nullptr, nullptr, &v_scale};
  node.context.num_outputs = 1;
  CHECK(node.run().ok);
  const intfa::fake::Call& call = intfa::fake::last_call();
  CHECK(call.tensors.mask == mask.bytes.data() && call.problem.mask.stride_query == 5);
  CHECK(call.tensors.nonpad_kv_seqlen == reinterpret_cast<int64_t*>(nonpad.bytes.data()));
  CHECK(call.tensors.past_key == nullptr && call.tensors.q_scale == nullptr);
  CHECK(call.problem.v_scale == intfa::ScaleGranularity::kPerChannel);
  CHECK(call.tensors.lse == nullptr && call.tensors.present_key == nullptr);
}

// The default stream is a null handle, and GetScratchBuffer cannot be asked then.
void runs_on_the_default_stream(const OrtCustomOp* op) {
  Node node(op);
  node.context.stream = nullptr;
  journal() = {.live_allocators = journal().live_allocators};
  CHECK(node.run().ok);
  CHECK(intfa::fake::last_call().execution.device == Device::kCuda);
  CHECK(journal().scratch_allocs == 0 && journal().plain_allocs == 1 && journal().frees == 1);
}

void runs_on_the_cpu(const OrtCustomOp* op) {
  Node node(op);
  node.context.stream = nullptr;
  journal() = {.live_allocators = journal().live_allocators};
  CHECK(node.run().ok);
  const intfa::fake::Call& call = intfa::fake::last_call();
  CHECK(call.execution.device == Device::kCpu && call.execution.parallel_for != nullptr);
  CHECK(node.context.outputs.at(0).bytes[0] == 1);
  CHECK(journal().plain_allocs == 1 && journal().frees == 1);
}

void a_device_that_refuses(const OrtCustomOp* op) {
  Node node(op);
  journal() = {.live_allocators = journal().live_allocators};
  intfa::fake::answer() = Status(StatusCode::kUnsupported, "No code for this GPU: it is X, sm_70.");
  CHECK(node.run().says(ORT_NOT_IMPLEMENTED, "intfa: node 'attention': No code for this GPU: it is X, sm_70."));
  intfa::fake::answer() = Status(StatusCode::kRuntimeError, "cudaLaunchKernel: out of luck");
  CHECK(node.run().says(ORT_FAIL, "cudaLaunchKernel: out of luck"));
  intfa::fake::answer() = {};
  CHECK(journal().frees == 2);
  CHECK(node.run().ok);
}

void an_allocator_that_refuses(const OrtCustomOp* op) {
  const int runs = intfa::fake::last_call().runs;
  Node node(op);
  journal().scratch = Scratch::kRefused;
  CHECK(node.run().says(ORT_FAIL, "arena is exhausted"));
  journal().scratch = Scratch::kNull;
  CHECK(node.run().says(ORT_FAIL, "no memory for a workspace of 1256 bytes"));
  journal().scratch = Scratch::kGiven;
  CHECK(intfa::fake::last_call().runs == runs);
  CHECK(node.run().ok);
}

void inputs_that_do_not_fit(const OrtCustomOp* op) {
  Node node(op);
  node.k = tensor(kFloat, {1, 2, 5, 24});
  CHECK(node.run().says(ORT_INVALID_ARGUMENT,
                        "node 'attention': Q [1,4,3,16], K [1,2,5,24] and V [1,2,5,16] do not fit"));
  node.k = tensor(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, {1, 2, 5, 16});
  CHECK(node.run().says(ORT_INVALID_ARGUMENT, "K is float16, Q is float32; they must agree"));
  node.q = tensor(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, {1, 4, 3, 16});
  CHECK(node.run().says(ORT_INVALID_ARGUMENT, "Q is of another type (supported: float32, float16, bfloat16, int8)"));
  node.q = tensor(kFloat, {1, 4, 3, 12});
  node.k = tensor(kFloat, {1, 2, 5, 12});
  CHECK(node.run().says(ORT_NOT_IMPLEMENTED, "head_dim=12 is unsupported"));
  CHECK(node.context.outputs.empty());
}

void attributes_that_are_unknown(const OrtCustomOp* op) {
  OrtKernelInfo info;
  info.strings["precision"] = "int4";
  void* kernel = nullptr;
  CHECK(Answer(op->CreateKernelV2(op, kApi, &info, &kernel))
            .says(ORT_INVALID_ARGUMENT, "intfa: node 'attention': attribute precision='int4' is unknown"));
  info.strings.clear();
  info.q_type = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  CHECK(Answer(op->CreateKernelV2(op, kApi, &info, &kernel)).says(ORT_INVALID_ARGUMENT, "output_dtype is not set"));
  CHECK(kernel == nullptr);
}

// Whatever ranks a model declares: a shape that is not known, or is wrong, reads nothing beyond its end.
void infers_shapes(const OrtCustomOp* op) {
  const auto infer = [&](std::vector<std::vector<int64_t>> shapes, int64_t heads) {
    OrtShapeInferContext context;
    for (auto& shape : shapes) context.inputs.push_back({kFloat, std::move(shape)});
    if (heads > 0) context.attributes = {{"q_num_heads", {heads}}, {"kv_num_heads", {heads}}};
    CHECK(Answer(op->InferOutputShapeFn(op, &context)).ok);
    return context.outputs;
  };
  using Shape = std::vector<int64_t>;
  auto outputs = infer({{1, 4, 3, 16}, {1, 2, 5, 16}, {1, 2, 5, 24}, {}, {1, 2, 7, 16}}, 0);
  CHECK((outputs[0].shape == Shape{1, 4, 3, 24}) && (outputs[1].shape == Shape{1, 2, 12, 16}));
  CHECK((outputs[2].shape == Shape{1, 2, 12, 24}) && (outputs[3].shape == Shape{1, 4, 3}));
  outputs = infer({{-1, 3, 64}, {-1, 5, 64}, {-1, 5, 64}}, 4);
  CHECK((outputs[0].shape == Shape{-1, 3, 64}) && (outputs[1].shape == Shape{-1, 4, 5, 16}));
  for (size_t rank = 1; rank <= 5; ++rank)
    for (int64_t heads : {0, 4}) {
      const Shape q(rank, 8), full{8, 8, 8, 8};
      (void)infer({q, q, q}, heads);
      outputs = infer({full, full, full, {}, q}, heads);
      CHECK(outputs[1].shape[2] == (rank >= 3 ? 16 : -1));
    }
}

}  // namespace

int main() {
  OrtSessionOptions options;
  registration(options);
  const OrtCustomOp* cuda = find_op(options, "CUDAExecutionProvider");
  CHECK(cuda != nullptr);
  for (auto test : {runs_on_the_stream, optional_inputs_and_outputs, runs_on_the_default_stream, a_device_that_refuses,
                    an_allocator_that_refuses, inputs_that_do_not_fit, attributes_that_are_unknown, infers_shapes})
    test(cuda);
  runs_on_the_cpu(find_op(options, "CPUExecutionProvider"));
  CHECK(journal().live_allocators == 0);
  std::printf("%d checks\n", checks);
}
