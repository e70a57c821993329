#include "fake_ort.h"

#include <cstdlib>
#include <cstring>

namespace intfa::fake_ort {

Journal& journal() {
  static Journal j;
  return j;
}

namespace {

constexpr OrtMemoryInfo kMemoryInfo;

OrtStatus* ORT_API_CALL create_status(OrtErrorCode code, const char* message) noexcept {
  return new OrtStatus{code, message};
}

OrtStatus* copy_text(const std::string& text, char* out, size_t* size) {
  if (out != nullptr) memcpy(out, text.c_str(), text.size() + 1);
  *size = text.size() + 1;
  return nullptr;
}

OrtStatus* absent() { return create_status(ORT_FAIL, "no such attribute"); }

size_t element_size(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return 2;
    default:
      return 1;
  }
}

struct CountingAllocator : OrtAllocator {
  CountingAllocator() : OrtAllocator{} {
    version = 18;
    OrtAllocator::Alloc = [](OrtAllocator*, size_t size) -> void* {
      ++journal().plain_allocs;
      return malloc(size);
    };
    OrtAllocator::Free = [](OrtAllocator*, void* memory) {
      ++journal().frees;
      free(memory);
    };
    OrtAllocator::Info = [](const OrtAllocator*) { return &kMemoryInfo; };
  }
};

OrtStatus* ORT_API_CALL scratch_buffer(const OrtKernelContext* context, const OrtMemoryInfo* info, size_t bytes,
                                       void** out) noexcept {
  if (context->stream == nullptr) abort();  // as ONNX Runtime does, by a null pointer
  if (info != &kMemoryInfo) return create_status(ORT_INVALID_ARGUMENT, "No requested allocator available");
  switch (journal().scratch) {
    case Scratch::kRefused:
      return create_status(ORT_FAIL, "arena is exhausted");
    case Scratch::kNull:
      *out = nullptr;
      return nullptr;
    case Scratch::kGiven:
      ++journal().scratch_allocs;
      *out = malloc(bytes);
  }
  return nullptr;
}

OrtApi make_api() {
  OrtApi api{};
  api.CreateStatus = create_status;
  api.GetErrorCode = [](const OrtStatus* s) noexcept { return s->code; };
  api.GetErrorMessage = [](const OrtStatus* s) noexcept { return s->message.c_str(); };
  api.ReleaseStatus = [](OrtStatus* s) noexcept { delete s; };

  api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) noexcept -> OrtStatus* {
    *out = new OrtCustomOpDomain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) noexcept -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) noexcept { delete domain; };
  api.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
    options->domains.push_back(domain);
    return nullptr;
  };
  api.HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, int* out) noexcept -> OrtStatus* {
    *out = static_cast<int>(options->entries.count(key));
    return nullptr;
  };
  api.AddSessionConfigEntry = [](OrtSessionOptions* options, const char* key,
                                 const char* value) noexcept -> OrtStatus* {
    options->entries[key] = value;
    return nullptr;
  };

  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name,
                                        int64_t* out) noexcept -> OrtStatus* {
    const auto found = info->ints.find(name);
    if (found == info->ints.end()) return absent();
    *out = found->second;
    return nullptr;
  };
  api.KernelInfoGetAttribute_float = [](const OrtKernelInfo*, const char*, float*) noexcept -> OrtStatus* {
    return absent();
  };
  api.KernelInfoGetAttribute_string = [](const OrtKernelInfo* info, const char* name, char* out,
                                         size_t* size) noexcept -> OrtStatus* {
    const auto found = info->strings.find(name);
    return found == info->strings.end() ? absent() : copy_text(found->second, out, size);
  };
  api.KernelInfo_GetNodeName = [](const OrtKernelInfo* info, char* out, size_t* size) noexcept {
    return copy_text(info->node, out, size);
  };
  api.KernelInfo_GetInputTypeInfo = [](const OrtKernelInfo* info, size_t, OrtTypeInfo** out) noexcept -> OrtStatus* {
    *out = new OrtTypeInfo{{info->q_type, {}}};
    return nullptr;
  };
  api.ReleaseTypeInfo = [](OrtTypeInfo* info) noexcept { delete info; };
  api.CastTypeInfoToTensorInfo = [](const OrtTypeInfo* info,
                                    const OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
    *out = &info->tensor;
    return nullptr;
  };
  api.KernelInfoGetAllocator = [](const OrtKernelInfo*, OrtMemType, OrtAllocator** out) noexcept -> OrtStatus* {
    ++journal().live_allocators;
    *out = new CountingAllocator;
    return nullptr;
  };
  api.ReleaseAllocator = [](OrtAllocator* allocator) noexcept {
    --journal().live_allocators;
    delete static_cast<CountingAllocator*>(allocator);
  };

  api.KernelContext_GetInputCount = [](const OrtKernelContext* c, size_t* out) noexcept -> OrtStatus* {
    *out = c->inputs.size();
    return nullptr;
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* c, size_t i, const OrtValue** out) noexcept -> OrtStatus* {
    *out = c->inputs[i];
    return nullptr;
  };
  api.KernelContext_GetOutputCount = [](const OrtKernelContext* c, size_t* out) noexcept -> OrtStatus* {
    *out = c->num_outputs;
    return nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* c, size_t i, const int64_t* shape, size_t rank,
                                   OrtValue** out) noexcept -> OrtStatus* {
    const auto type = i == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : c->inputs[0]->info.type;
    *out = &(c->outputs[i] = tensor(type, {shape, shape + rank}));
    return nullptr;
  };
  api.KernelContext_GetGPUComputeStream = [](const OrtKernelContext* c, void** out) noexcept -> OrtStatus* {
    *out = c->stream;
    return nullptr;
  };
  api.KernelContext_GetScratchBuffer = scratch_buffer;

  api.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
    *out = new OrtTensorTypeAndShapeInfo(value->info);
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) noexcept { delete info; };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info,
                                ONNXTensorElementDataType* out) noexcept -> OrtStatus* {
    *out = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) noexcept -> OrtStatus* {
    *out = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t) noexcept -> OrtStatus* {
    memcpy(out, info->shape.data(), info->shape.size() * sizeof(int64_t));
    return nullptr;
  };
  api.CreateTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
    *out = new OrtTensorTypeAndShapeInfo;
    return nullptr;
  };
  api.SetTensorElementType = [](OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type) noexcept {
    info->type = type;
    return static_cast<OrtStatus*>(nullptr);
  };
  api.SetDimensions = [](OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t rank) noexcept {
    info->shape.assign(dims, dims + rank);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.GetSymbolicDimensions = [](const OrtTensorTypeAndShapeInfo*, const char* names[], size_t rank) noexcept {
    for (size_t i = 0; i < rank; ++i) names[i] = "";
    return static_cast<OrtStatus*>(nullptr);
  };
  api.SetSymbolicDimensions = [](OrtTensorTypeAndShapeInfo*, const char*[], size_t) noexcept {
    return static_cast<OrtStatus*>(nullptr);
  };

  api.ShapeInferContext_GetInputCount = [](const OrtShapeInferContext* c, size_t* out) noexcept {
    *out = c->inputs.size();
    return static_cast<OrtStatus*>(nullptr);
  };
  api.ShapeInferContext_GetInputTypeShape = [](const OrtShapeInferContext* c, size_t i,
                                               OrtTensorTypeAndShapeInfo** out) noexcept {
    *out = const_cast<OrtTensorTypeAndShapeInfo*>(&c->inputs[i]);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.ShapeInferContext_GetAttribute = [](const OrtShapeInferContext* c, const char* name,
                                          const OrtOpAttr** out) noexcept -> OrtStatus* {
    const auto found = c->attributes.find(name);
    if (found == c->attributes.end()) return absent();
    *out = &found->second;
    return nullptr;
  };
  api.ReadOpAttr = [](const OrtOpAttr* attribute, OrtOpAttrType, void* data, size_t length, size_t* out) noexcept {
    memcpy(data, &attribute->value, *out = length);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.ShapeInferContext_SetOutputTypeShape = [](const OrtShapeInferContext* c, size_t i,
                                                const OrtTensorTypeAndShapeInfo* info) noexcept {
    const_cast<OrtShapeInferContext*>(c)->outputs[i] = *info;
    return static_cast<OrtStatus*>(nullptr);
  };

  api.GetTensorMutableData = [](OrtValue* value, void** out) noexcept -> OrtStatus* {
    *out = value->bytes.data();
    return nullptr;
  };
  return api;
}

}  // namespace

OrtValue tensor(ONNXTensorElementDataType type, std::vector<int64_t> shape) {
  size_t bytes = element_size(type);
  for (int64_t size : shape) bytes *= static_cast<size_t>(size);
  return {{type, std::move(shape)}, std::vector<char>(bytes)};
}

const OrtApiBase* api_base(bool supports_api_18) {
  static const OrtApi api = make_api();
  static const OrtApiBase current = {[](uint32_t version) noexcept { return version <= 18 ? &api : nullptr; },
                                     []() noexcept { return "1.31.1"; }};
  static const OrtApiBase old = {[](uint32_t version) noexcept { return version <= 17 ? &api : nullptr; },
                                 []() noexcept { return "1.17.3"; }};
  return supports_api_18 ? &current : &old;
}

}  // namespace intfa::fake_ort
