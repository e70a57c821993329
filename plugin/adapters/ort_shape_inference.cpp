#include <atomic>
#include <memory>

#include "adapters/ort_common.h"

namespace intfa::ort {
namespace {

// Shape and type inference, best effort: what is not known becomes a symbol of its own, never a wrong number.
class ShapeInference {
 public:
  struct Dim {
    int64_t value = -1;
    std::string symbol;
  };
  using Dims = std::vector<Dim>;

  explicit ShapeInference(OrtShapeInferContext* context) : context_(context) {
    Ort::ThrowOnError(api_.ShapeInferContext_GetInputCount(context_, &num_inputs_));
  }

  void run() {
    const Dims q = dims(kQ), k = dims(kK), v = dims(kV), past = dims(kPastKey);
    const int64_t q_heads = attribute("q_num_heads"), kv_heads = attribute("kv_num_heads");
    const bool is_3d = q.size() == 3 || (q.empty() && q_heads > 0);
    const auto at = [&](const Dims& dims, size_t i) { return i < dims.size() ? dims[i] : unknown(); };
    const auto per_head = [&](const Dims& dims, int64_t heads) {
      if (dims.size() == 4) return dims[3];
      const bool known = dims.size() == 3 && dims[2].value > 0 && heads > 0;
      return known ? Dim{dims[2].value / heads, ""} : unknown();
    };
    const auto heads_of = [&](const Dims& dims, int64_t heads) {
      return heads > 0 ? Dim{heads, ""} : dims.size() == 4 ? dims[1] : unknown();
    };
    const auto tokens = [&](const Dims& dims) { return at(dims, dims.size() == 3 ? 1 : 2); };
    const Dim batch = at(q, 0), num_heads = heads_of(q, q_heads), kv_num_heads = heads_of(k, kv_heads);
    const Dim head_dim = per_head(q, q_heads), head_dim_v = per_head(v, kv_heads);
    Dim seqlen_kv = tokens(k);
    if (!past.empty())
      seqlen_kv = seqlen_kv.value >= 0 && at(past, 2).value >= 0 ? Dim{seqlen_kv.value + past[2].value, ""} : unknown();

    const ONNXTensorElementDataType type = element_type(kQ);
    const int64_t output_dtype = attribute("output_dtype");
    const auto y_type = output_dtype != 0 ? static_cast<ONNXTensorElementDataType>(output_dtype)
                        // not allowed, and refused in words when the kernel is made
                        : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                                                     : type;
    if (is_3d) {
      const bool known = num_heads.value > 0 && head_dim_v.value > 0;
      set(kY, y_type, {batch, tokens(q), known ? Dim{num_heads.value * head_dim_v.value, ""} : unknown()});
    } else {
      set(kY, y_type, {batch, num_heads, tokens(q), head_dim_v});
    }
    set(kPresentKey, type, {batch, kv_num_heads, seqlen_kv, head_dim});
    set(kPresentValue, type, {batch, kv_num_heads, seqlen_kv, head_dim_v});
    set(kLse, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {batch, num_heads, tokens(q)});
  }

 private:
  // ONNX Runtime plans memory by symbols, so two unknown sizes must not share one.
  static Dim unknown() {
    static std::atomic<int64_t> count{0};
    return {-1, "intfa_unknown_" + std::to_string(count++)};
  }

  const OrtTensorTypeAndShapeInfo* info(size_t index) const {
    OrtTensorTypeAndShapeInfo* found = nullptr;  // stays the context's
    if (index < num_inputs_) Ort::ThrowOnError(api_.ShapeInferContext_GetInputTypeShape(context_, index, &found));
    return found;
  }

  Dims dims(size_t index) const {
    const OrtTensorTypeAndShapeInfo* type_info = info(index);
    size_t rank = 0;
    if (type_info == nullptr) return {};
    Ort::ThrowOnError(api_.GetDimensionsCount(type_info, &rank));
    Shape values(rank);
    std::vector<const char*> symbols(rank, nullptr);
    Ort::ThrowOnError(api_.GetDimensions(type_info, values.data(), rank));
    Ort::ThrowOnError(api_.GetSymbolicDimensions(type_info, symbols.data(), rank));
    Dims result(rank);
    for (size_t i = 0; i < rank; ++i) {
      const bool symbolic = symbols[i] != nullptr && symbols[i][0] != '\0';
      result[i] = symbolic ? Dim{-1, symbols[i]} : values[i] >= 0 ? Dim{values[i], ""} : unknown();
    }
    return result;
  }

  ONNXTensorElementDataType element_type(size_t index) const {
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    if (const OrtTensorTypeAndShapeInfo* type_info = info(index))
      Ort::ThrowOnError(api_.GetTensorElementType(type_info, &type));
    return type;
  }

  int64_t attribute(const char* name) const {
    const OrtOpAttr* attr = nullptr;
    int64_t value = 0;
    size_t size = 0;
    const Ort::Status absent{api_.ShapeInferContext_GetAttribute(context_, name, &attr)};
    if (absent.IsOK() && attr != nullptr)
      Ort::ThrowOnError(api_.ReadOpAttr(attr, ORT_OP_ATTR_INT, &value, sizeof value, &size));
    return value;
  }

  // A node without this output refuses its shape: not an error.
  void set(size_t index, ONNXTensorElementDataType type, const Dims& dims) const {
    OrtTensorTypeAndShapeInfo* type_info = nullptr;
    Ort::ThrowOnError(api_.CreateTensorTypeAndShapeInfo(&type_info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
        type_info, [](OrtTensorTypeAndShapeInfo* p) { Ort::GetApi().ReleaseTensorTypeAndShapeInfo(p); });
    Shape values;
    std::vector<const char*> symbols;
    for (const Dim& dim : dims) {
      values.push_back(dim.value);
      symbols.push_back(dim.symbol.c_str());
    }
    Ort::ThrowOnError(api_.SetTensorElementType(type_info, type));
    Ort::ThrowOnError(api_.SetDimensions(type_info, values.data(), values.size()));
    Ort::ThrowOnError(api_.SetSymbolicDimensions(type_info, symbols.data(), symbols.size()));
    const Ort::Status status{api_.ShapeInferContext_SetOutputTypeShape(context_, index, type_info)};
    if (index == kY) Ort::ThrowOnError(status);
  }

  const OrtApi& api_ = Ort::GetApi();
  OrtShapeInferContext* context_;
  size_t num_inputs_ = 0;
};

}  // namespace

void infer_shapes(OrtShapeInferContext* context) { ShapeInference(context).run(); }

}  // namespace intfa::ort
