// intfa::IntFlashAttention as a TensorRT plugin (IPluginV3). One object is all three capabilities; TensorRT calls it
// through noexcept functions, so everything that can throw is in guarded().
#pragma once

#include <string>
#include <vector>

#include "adapters/node.h"
#include "adapters/trt_api.h"

namespace intfa::trt {

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  // name: the layer's, for messages. Throws node::Refusal for attributes that make no sense.
  Plugin(std::string name, const node::Attributes& attributes);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // core
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // build
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t num_outputs, const nvinfer1::DataType* input_types,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t num_inputs, const nvinfer1::DimsExprs* shape_inputs,
                          int32_t num_shape_inputs, nvinfer1::DimsExprs* out, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(attributes_.plugin_outputs); }
  int32_t getNbTactics() noexcept override { return static_cast<int32_t>(tactics_.size()); }
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) const noexcept override;
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  // runtime
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_inputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t num_outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  using Tensors = std::vector<node::Tensor>;

  AttentionProblem problem(Tensors tensors) const;
  // TensorRT's inputs in the operator's order.
  node::Inputs arrange(Tensors tensors) const;
  // Which of the operator's inputs stands at `position` of `num_inputs`; kNumInputs: an absent one.
  node::Input input_at(int32_t position, int32_t num_inputs) const;
  // The position of an input; -1: not given.
  int32_t position_of(node::Input input, int32_t num_inputs) const;

  const std::string name_;
  const node::Attributes attributes_;
  const std::string description_;
  const std::vector<node::Input> given_;  // what plugin_inputs names; empty: the first ones
  std::vector<int32_t> tactics_;          // the values of tile_n to choose from; empty: there is no choice
  int32_t tactic_ = 0;                    // 0: the backend's choice
  int32_t num_inputs_ = 0;                // as of the last onShapeChange: enqueue is not told
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace intfa::trt
