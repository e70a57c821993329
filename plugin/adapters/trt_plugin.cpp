#include "adapters/trt_plugin.h"

#include <algorithm>
#include <array>

#include "adapters/trt_fields.h"
#include "adapters/trt_host.h"
#include "intfa/attention.h"

namespace intfa::trt {
namespace {

using node::ElementType;
using node::refuse;
using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using TrtType = nvinfer1::DataType;

constexpr Device kDevice = Device::kCuda;

// More than any device has: TensorRT drops the tactic and says so, instead of running it with too little.
constexpr size_t kRefusedWorkspace = size_t{1} << 60;

constexpr struct {
  ElementType element;
  TrtType trt;
} kTypes[] = {{ElementType::kFloat32, TrtType::kFLOAT}, {ElementType::kFloat16, TrtType::kHALF},
              {ElementType::kBFloat16, TrtType::kBF16}, {ElementType::kInt8, TrtType::kINT8},
              {ElementType::kInt32, TrtType::kINT32},   {ElementType::kInt64, TrtType::kINT64},
              {ElementType::kBool, TrtType::kBOOL}};

ElementType element_type(TrtType type) {
  for (const auto& pair : kTypes)
    if (pair.trt == type) return pair.element;
  return ElementType::kUndefined;
}

TrtType trt_type(ElementType type) {
  for (const auto& pair : kTypes)
    if (pair.element == type) return pair.trt;
  refuse("element type number ", static_cast<int32_t>(type), " is none of TensorRT's");
}

node::Tensor tensor_of(const Dims& dims, TrtType type) {
  return {true, element_type(type), node::Shape(dims.d, dims.d + std::clamp(dims.nbDims, 0, Dims::MAX_DIMS))};
}

std::vector<node::Tensor> tensors_of(const PluginTensorDesc* in, int32_t count) {
  std::vector<node::Tensor> tensors;
  for (int32_t i = 0; i < count; ++i) tensors.push_back(tensor_of(in[i].dims, in[i].type));
  return tensors;
}

std::vector<node::Tensor> tensors_of(const DynamicPluginTensorDesc* in, int32_t count,
                                     Dims DynamicPluginTensorDesc::* dims) {
  std::vector<node::Tensor> tensors;
  for (int32_t i = 0; i < count; ++i) tensors.push_back(tensor_of(in[i].*dims, in[i].desc.type));
  return tensors;
}

void check(const Status& status) {
  if (!status.ok()) throw node::Refusal(status.message());
}

// Tile sizes that the device has kernels for. They are the tactics: their results differ by rounding only.
std::vector<int32_t> supported_tiles(AttentionProblem problem) {
  std::vector<int32_t> tiles;
  for (int32_t tile_n = 16; tile_n <= 256; tile_n += 16) {
    problem.tile_n = tile_n;
    if (validate(problem, kDevice).ok()) tiles.push_back(tile_n);
  }
  return tiles;
}

// The attribute plugin_inputs: names in the operator's order, the required ones among them.
std::vector<node::Input> parse_inputs(const std::string& names) {
  std::vector<node::Input> inputs;
  std::istringstream stream(names);
  for (std::string name; std::getline(stream, name, ',');) {
    const auto found = std::find(node::kInputNames.begin(), node::kInputNames.end(), name);
    const auto input = static_cast<node::Input>(found - node::kInputNames.begin());
    if (input == node::kNumInputs || (!inputs.empty() && input <= inputs.back()))
      refuse("attribute plugin_inputs='", names, "' does not name inputs of the operator in their order: see '", name,
             "'");
    inputs.push_back(input);
  }
  if (!inputs.empty() && (inputs.size() < node::kRequiredInputs || inputs[node::kRequiredInputs - 1] != node::kV))
    refuse("attribute plugin_inputs='", names, "' must begin with Q,K,V");
  return inputs;
}

}  // namespace

Plugin::Plugin(std::string name, const node::Attributes& attributes)
    : name_(std::move(name)),
      attributes_(attributes),
      description_("intfa " INTFA_VERSION ";" + text(attributes)),
      given_(parse_inputs(attributes.plugin_inputs)) {
  (void)node::problem_of(attributes_);  // refuses unknown words now, not when an engine is built
  if (attributes_.plugin_outputs < 1 || attributes_.plugin_outputs > node::kNumOutputs)
    refuse("attribute plugin_outputs=", attributes_.plugin_outputs, " (supported: 1 to ", int{node::kNumOutputs}, ")");
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  Plugin* copy = nullptr;
  guarded(name_.c_str(), [&] {
    copy = new Plugin(name_, attributes_);
    copy->tactics_ = tactics_;
    copy->tactic_ = tactic_;
    copy->num_inputs_ = num_inputs_;
  });
  return copy;
}

int32_t Plugin::position_of(node::Input input, int32_t num_inputs) const {
  if (given_.empty()) return input < num_inputs ? input : -1;
  const auto found = std::find(given_.begin(), given_.end(), input);
  if (found == given_.end()) return -1;
  // TensorRT may keep the places of absent inputs, or close the gaps.
  const auto count = static_cast<int32_t>(given_.size());
  if (num_inputs == count) return static_cast<int32_t>(found - given_.begin());
  if (num_inputs == given_.back() + 1) return input;
  refuse("there are ", num_inputs, " inputs, but plugin_inputs='", attributes_.plugin_inputs, "' names ", count);
}

node::Input Plugin::input_at(int32_t position, int32_t num_inputs) const {
  for (int input = 0; input < node::kNumInputs; ++input)
    if (position_of(static_cast<node::Input>(input), num_inputs) == position) return static_cast<node::Input>(input);
  return node::kNumInputs;
}

node::Inputs Plugin::arrange(Tensors tensors) const {
  const auto count = static_cast<int32_t>(tensors.size());
  if (count < node::kRequiredInputs || count > node::kNumInputs)
    refuse("there are ", count, " inputs (supported: ", node::kRequiredInputs, " to ", int{node::kNumInputs}, ")");
  node::Inputs inputs;
  for (int i = 0; i < node::kNumInputs; ++i) {
    const int32_t position = position_of(static_cast<node::Input>(i), count);
    if (position < 0) continue;
    inputs[i] = std::move(tensors[position]);
    if (inputs[i].shape.empty() && i >= node::kRequiredInputs && i <= node::kNonpad)
      refuse("input ", node::kInputNames[i], " has no dimensions. If it is absent, name the inputs that are given in ",
             "the attribute plugin_inputs, as `intfa-onnx rewrite --target trt` does");
  }
  return inputs;
}

AttentionProblem Plugin::problem(Tensors tensors) const {
  AttentionProblem problem = node::problem_of(attributes_, arrange(std::move(tensors)));
  problem.tile_n = tactic_;
  return problem;
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t num_inputs, const DynamicPluginTensorDesc*,
                                int32_t) noexcept {
  return guarded(name_.c_str(), [&] {
    tactic_ = 0;
    const AttentionProblem opt = problem(tensors_of(in, num_inputs, &DynamicPluginTensorDesc::opt));
    check(validate(opt, kDevice));
    tactics_ = supported_tiles(opt);
    if (tactics_.size() == 1) tactics_.clear();
  });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  return guarded(name_.c_str(), [&] {
    if (count != getNbTactics()) refuse(count, " tactics are asked for, there are ", getNbTactics());
    std::copy(tactics_.begin(), tactics_.end(), tactics);
  });
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  return guarded(name_.c_str(), [&] {
    if (tactic < 0 || tactic % 16 != 0) refuse("tactic ", tactic, " is unknown; build the engine again");
    tactic_ = tactic;
  });
}

int32_t Plugin::getOutputDataTypes(TrtType* types, int32_t num_outputs, const TrtType* input_types,
                                   int32_t num_inputs) const noexcept {
  return guarded(name_.c_str(), [&] {
    if (num_inputs < node::kRequiredInputs) refuse("there are ", num_inputs, " inputs (supported: 3 to 10)");
    const TrtType all[] = {trt_type(node::output_type(attributes_, element_type(input_types[node::kQ]))),
                           input_types[node::kK], input_types[node::kV], TrtType::kFLOAT};
    std::copy_n(all, std::min<int32_t>(num_outputs, node::kNumOutputs), types);
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* in, int32_t num_inputs, const DimsExprs*, int32_t, DimsExprs* out,
                                int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(name_.c_str(), [&] {
    if (num_inputs < node::kRequiredInputs) refuse("there are ", num_inputs, " inputs (supported: 3 to 10)");
    const auto operation = [&](DimensionOperation op, const IDimensionExpr* a, const IDimensionExpr* b) {
      return builder.operation(op, *a, *b);
    };
    // Heads, tokens and channels of Q, K or V, from 4-D or 3-D.
    struct View {
      const IDimensionExpr *batch, *heads, *tokens, *channels;
    };
    const auto view = [&](node::Input input, int64_t heads, const char* attribute) -> View {
      const DimsExprs& dims = in[input];
      if (dims.nbDims == 4) return {dims.d[0], dims.d[1], dims.d[2], dims.d[3]};
      if (dims.nbDims != 3) refuse(node::kInputNames[input], " has ", dims.nbDims, " dimensions (supported: 3 or 4)");
      if (heads <= 0) refuse(node::kInputNames[input], " has 3 dimensions and ", attribute, "=", heads, "; set it");
      const IDimensionExpr* count = builder.constant(heads);
      return {dims.d[0], count, dims.d[1], operation(DimensionOperation::kFLOOR_DIV, dims.d[2], count)};
    };
    const View q = view(node::kQ, attributes_.q_num_heads, "q_num_heads");
    const View k = view(node::kK, attributes_.kv_num_heads, "kv_num_heads");
    const View v = view(node::kV, attributes_.kv_num_heads, "kv_num_heads");
    const IDimensionExpr* seqlen_kv = k.tokens;
    if (const int32_t past = position_of(node::kPastKey, num_inputs); past >= 0 && in[past].nbDims == 4)
      seqlen_kv = operation(DimensionOperation::kSUM, k.tokens, in[past].d[2]);

    const bool packed = in[node::kQ].nbDims == 3;
    const DimsExprs all[] = {
        packed ? DimsExprs{3, {q.batch, q.tokens, operation(DimensionOperation::kPROD, q.heads, v.channels)}}
               : DimsExprs{4, {q.batch, q.heads, q.tokens, v.channels}},
        {4, {q.batch, k.heads, seqlen_kv, k.channels}},
        {4, {q.batch, k.heads, seqlen_kv, v.channels}},
        {3, {q.batch, q.heads, q.tokens}}};
    std::copy_n(all, std::min<int32_t>(num_outputs, node::kNumOutputs), out);
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                       int32_t num_outputs) noexcept {
  bool supported = false;
  guarded(name_.c_str(), [&] {
    if (position < 0 || position >= num_inputs + num_outputs) return;
    const PluginTensorDesc& found = tensors[position].desc;
    const TrtType q = tensors[node::kQ].desc.type;
    const auto is = [&](std::initializer_list<TrtType> types) {
      return found.format == TensorFormat::kLINEAR && std::find(types.begin(), types.end(), found.type) != types.end();
    };
    if (position >= num_inputs) {
      const int32_t output = position - num_inputs;
      supported = output == node::kY     ? is({trt_type(node::output_type(attributes_, element_type(q)))})
                  : output == node::kLse ? is({TrtType::kFLOAT})
                                         : is({q});
      return;
    }
    switch (input_at(position, num_inputs)) {
      case node::kQ:
        supported = is({TrtType::kFLOAT, TrtType::kHALF, TrtType::kBF16}) ||
                    (attributes_.output_dtype != 0 && is({TrtType::kINT8}));
        break;
      case node::kK:
      case node::kV:
      case node::kPastKey:
      case node::kPastValue:
        supported = is({q});
        break;
      case node::kMask:
        supported = is({TrtType::kBOOL, TrtType::kFLOAT, TrtType::kHALF, TrtType::kBF16});
        break;
      case node::kNonpad:
        supported = is({TrtType::kINT64});
        break;
      case node::kQScale:
      case node::kKScale:
      case node::kVScale:
        supported = is({TrtType::kFLOAT});
        break;
      case node::kNumInputs:  // absent: nothing is read
        supported = true;
    }
  });
  return supported;
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t num_inputs, const DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
  size_t bytes = kRefusedWorkspace;
  guarded(name_.c_str(), [&] {
    Tensors tensors = tensors_of(in, num_inputs, &DynamicPluginTensorDesc::max);
    // The greatest sizes of different inputs need not fit together. These two take no workspace, however long they are.
    if (const int32_t mask = position_of(node::kMask, num_inputs); mask >= 0) tensors[mask].shape = {1};
    if (const int32_t nonpad = position_of(node::kNonpad, num_inputs); nonpad >= 0 && !tensors[node::kQ].shape.empty())
      tensors[nonpad].shape = {tensors[node::kQ].shape[0]};
    AttentionProblem max = problem(std::move(tensors));
    std::vector<int32_t> tiles = supported_tiles(max);
    tiles.push_back(0);
    size_t greatest = 0;
    for (int32_t tile_n : tiles) {
      max.tile_n = tile_n;
      size_t needed = 0;
      check(workspace_bytes(max, {.device = kDevice, .up_to = true}, &needed));
      greatest = std::max(greatest, needed);
    }
    bytes = greatest;
  });
  return bytes;
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t num_inputs, const PluginTensorDesc*,
                              int32_t) noexcept {
  return guarded(name_.c_str(), [&] {
    num_inputs_ = num_inputs;
    check(validate(problem(tensors_of(in, num_inputs)), kDevice));
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded(name_.c_str(), [&] {
    if (num_inputs_ == 0) refuse("enqueue was called before onShapeChange");
    const AttentionProblem now = problem(tensors_of(in, num_inputs_));
    std::array<const void*, node::kNumInputs> given{};
    for (int i = 0; i < node::kNumInputs; ++i) {
      const int32_t position = position_of(static_cast<node::Input>(i), num_inputs_);
      if (position >= 0) given[i] = inputs[position];
    }
    std::array<void*, node::kNumOutputs> wanted{};
    std::copy_n(outputs, attributes_.plugin_outputs, wanted.begin());
    AttentionTensors t = node::bind(given, wanted);
    t.workspace = workspace;
    check(run(now, t, {.device = kDevice, .stream = stream}));
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  const int32_t failed = guarded(name_.c_str(), [&] {
    fields_ = write_fields(attributes_);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  });
  return failed ? nullptr : &collection_;
}

}  // namespace intfa::trt
