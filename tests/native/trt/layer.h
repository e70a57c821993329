// A layer as TensorRT drives it: fields, tensors, and one plugin object through build and run.
#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "adapters/trt_api.h"

namespace trt_test {

// Plugin fields with their values.
class Fields {
 public:
  Fields& add(const char* name, nvinfer1::PluginFieldType type, const void* data, size_t bytes, int32_t length) {
    const auto* first = static_cast<const char*>(data);
    values_.emplace_back(first, first + bytes);
    fields_.push_back({name, values_.back().data(), type, length});
    return *this;
  }
  Fields& add(const char* name, int32_t value) {
    return add(name, nvinfer1::PluginFieldType::kINT32, &value, sizeof value, 1);
  }
  Fields& add(const char* name, float value) {
    return add(name, nvinfer1::PluginFieldType::kFLOAT32, &value, sizeof value, 1);
  }
  Fields& add(const char* name, const char* value) {  // without a final 0, as the ONNX parser gives them
    return add(name, nvinfer1::PluginFieldType::kCHAR, value, strlen(value), static_cast<int32_t>(strlen(value)));
  }
  const nvinfer1::PluginFieldCollection* collection() {
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
    return &collection_;
  }

 private:
  std::deque<std::vector<char>> values_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

// Expressions that are numbers; what is not constant says so and computes all the same.
class Expressions {
 public:
  const nvinfer1::IDimensionExpr* number(int64_t value, bool constant = false) {
    values_.push_back(std::make_unique<Value>(value, constant));
    return values_.back().get();
  }
  nvinfer1::DimsExprs dims(const std::vector<int64_t>& shape) {
    nvinfer1::DimsExprs result{};
    result.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) result.d[i] = number(shape[i]);
    return result;
  }
  static std::vector<int64_t> shape(const nvinfer1::DimsExprs& dims) {
    std::vector<int64_t> result;
    for (int32_t i = 0; i < dims.nbDims; ++i) result.push_back(dims.d[i]->getConstantValue());
    return result;
  }
  nvinfer1::IExprBuilder& builder() { return builder_; }

 private:
  struct Number : nvinfer1::apiv::VDimensionExpr {
    Number(int64_t value, bool constant) : value(value), constant(constant) {}
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
    bool constant;
  };
  struct Value : nvinfer1::IDimensionExpr {
    Value(int64_t value, bool constant) : number(value, constant) { mImpl = &number; }
    Number number;
  };
  struct Operations : nvinfer1::apiv::VExprBuilder {
    explicit Operations(Expressions& owner) : owner(owner) {}
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return owner.number(value, true); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op, const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      const int64_t a = first.getConstantValue(), b = second.getConstantValue();
      using Op = nvinfer1::DimensionOperation;
      const int64_t value = op == Op::kSUM         ? a + b
                            : op == Op::kPROD      ? a * b
                            : op == Op::kFLOOR_DIV ? a / b
                                                   : -1;  // the plugin has no other
      return owner.number(value, first.isConstant() && second.isConstant());
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
    Expressions& owner;
  };
  struct Builder : nvinfer1::IExprBuilder {
    explicit Builder(Expressions& owner) : operations(owner) { mImpl = &operations; }
    Operations operations;
  };

  std::vector<std::unique_ptr<Value>> values_;
  Builder builder_{*this};
};

inline nvinfer1::PluginTensorDesc describe(const std::vector<int64_t>& shape, nvinfer1::DataType type,
                                           int32_t format = 0) {
  nvinfer1::PluginTensorDesc desc{};
  desc.dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) desc.dims.d[i] = shape[i];
  desc.type = type;
  desc.format = static_cast<nvinfer1::TensorFormat>(format);
  desc.scale = 1.f;
  return desc;
}

inline nvinfer1::DynamicPluginTensorDesc dynamic(const nvinfer1::PluginTensorDesc& desc) {
  return {desc, desc.dims, desc.dims, desc.dims};
}

// A plugin object, owned, and its three faces.
class Layer {
 public:
  explicit Layer(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {}
  explicit operator bool() const { return plugin_ != nullptr; }
  nvinfer1::IPluginV3* operator->() const { return plugin_.get(); }
  nvinfer1::IPluginV3OneCore& core() const {
    return *static_cast<nvinfer1::IPluginV3OneCore*>(face(nvinfer1::PluginCapabilityType::kCORE));
  }
  nvinfer1::IPluginV3OneBuild& build() const {
    return *static_cast<nvinfer1::IPluginV3OneBuild*>(face(nvinfer1::PluginCapabilityType::kBUILD));
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return *static_cast<nvinfer1::IPluginV3OneRuntime*>(face(nvinfer1::PluginCapabilityType::kRUNTIME));
  }

 private:
  nvinfer1::IPluginCapability* face(nvinfer1::PluginCapabilityType type) const {
    return plugin_->getCapabilityInterface(type);
  }
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

}  // namespace trt_test
