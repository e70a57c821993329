// TensorRT's side of the plugin's contract: every method, on good and on bad arguments, under AddressSanitizer. Each
// refusal has to return an error and to be logged with what was found and what to do; nothing may throw, leak or abort.
//   trt_contract <libtrt_plugin_on_fakes.so> <major version of TensorRT to play>
//   trt_contract <libintfa_trt.so of a build without CUDA> <major version>: that it says what it lacks
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>

#include "adapters/node.h"
#include "check.h"
#include "fake_backends.h"
#include "fake_host.h"
#include "layer.h"

namespace {

using namespace nvinfer1;
using trt_test::describe;
using trt_test::dynamic;
using trt_test::Expressions;
using trt_test::Fields;
using trt_test::Layer;
using Shape = std::vector<int64_t>;

IPluginCreatorV3One* creator = nullptr;
intfa::fake::Call* last_call = nullptr;
intfa::Status* answer = nullptr;

bool silent() { return fake_host::take_log().empty(); }

// Whether exactly one error was logged, of the layer, with all of these words.
bool logged(std::initializer_list<const char*> words, const char* layer = "layer") {
  const std::vector<fake_host::Line> lines = fake_host::take_log();
  for (const fake_host::Line& line : lines) std::fprintf(stderr, "  log %d %s\n", line.severity, line.text.c_str());
  if (lines.size() != 1 || lines[0].severity != 1) return false;
  const std::string start = std::string("intfa: IntFlashAttention '") + layer + "': ";
  return lines[0].text.rfind(start, 0) == 0 && std::all_of(words.begin(), words.end(), [&](const char* word) {
           return lines[0].text.find(word) != std::string::npos;
         });
}

Layer create(Fields fields = {}, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  return Layer(creator->createPlugin("layer", fields.collection(), phase));
}

bool refused(Fields fields, std::initializer_list<const char*> words) { return !create(fields) && logged(words); }

// Inputs and outputs of one call, described for every method.
struct Tensors {
  void input(const Shape& shape, DataType type = DataType::kHALF, void* data = nullptr) {
    all.push_back(describe(shape, type));
    pointers.push_back(data);
    ++inputs;
  }
  void output(const Shape& shape, DataType type = DataType::kHALF, void* data = nullptr) {
    all.push_back(describe(shape, type));
    pointers.push_back(data);
  }
  int32_t outputs() const { return static_cast<int32_t>(all.size()) - inputs; }
  std::vector<DynamicPluginTensorDesc> ranges() const {
    std::vector<DynamicPluginTensorDesc> result;
    for (const PluginTensorDesc& desc : all) result.push_back(dynamic(desc));
    return result;
  }
  int32_t configure(const Layer& layer) const {
    const auto dynamics = ranges();
    return layer.build().configurePlugin(dynamics.data(), inputs, dynamics.data() + inputs, outputs());
  }
  size_t workspace(const Layer& layer) const {
    const auto dynamics = ranges();
    return layer.build().getWorkspaceSize(dynamics.data(), inputs, dynamics.data() + inputs, outputs());
  }
  int32_t change_shape(const Layer& layer) const {
    return layer.runtime().onShapeChange(all.data(), inputs, all.data() + inputs, outputs());
  }
  int32_t enqueue(const Layer& layer, void* workspace, cudaStream_t stream) {
    return layer.runtime().enqueue(all.data(), all.data() + inputs, pointers.data(), pointers.data() + inputs,
                                   workspace, stream);
  }

  int32_t inputs = 0;
  std::vector<PluginTensorDesc> all;  // inputs, then outputs
  std::vector<void*> pointers;
};

constexpr int64_t kB = 2, kHq = 4, kHkv = 2, kSq = 3, kSkv = 5, kPast = 7, kD = 16, kDv = 8;

Tensors qkv(DataType type = DataType::kHALF) {
  Tensors tensors;
  tensors.input({kB, kHq, kSq, kD}, type);
  tensors.input({kB, kHkv, kSkv, kD}, type);
  tensors.input({kB, kHkv, kSkv, kDv}, type);
  return tensors;
}

void check_creator() {
  CHECK(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
  CHECK(std::string(creator->getPluginName()) == "IntFlashAttention");
  CHECK(std::string(creator->getPluginVersion()) == "1" && std::string(creator->getPluginNamespace()) == "intfa");
  const PluginFieldCollection* names = creator->getFieldNames();
  for (int32_t i = 0; i < names->nbFields; ++i) {
    const PluginField& field = names->fields[i];
    CHECK(field.data == nullptr);
    std::printf("field %s %d\n", field.name, static_cast<int>(field.type));  // the Python test compares op_schema.py
  }
  const Layer layer = create();
  CHECK(layer && std::string(layer->getInterfaceInfo().kind) == "PLUGIN");
  CHECK(std::string(layer.core().getPluginName()) == "IntFlashAttention");
  CHECK(std::string(layer.core().getPluginVersion()) == "1");
  CHECK(std::string(layer.core().getPluginNamespace()) == "intfa");
  CHECK(std::string(layer.core().getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE");
  CHECK(std::string(layer.build().getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD");
  CHECK(std::string(layer.runtime().getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
  CHECK(layer->getCapabilityInterface(static_cast<PluginCapabilityType>(7)) == nullptr);
  CHECK(layer.build().getFormatCombinationLimit() > 0);
  delete creator->createPlugin(nullptr, nullptr, TensorRTPhase::kRUNTIME);
  CHECK(silent());
}

void check_fields() {
  const char* metadata = nullptr;
  const Layer layer = create(Fields().add("scale", 0.125f).add("is_causal", 1).add("precision", "int8_qk"));
  metadata = layer.build().getMetadataString();
  CHECK(strstr(metadata, "scale=0.125;") && strstr(metadata, "is_causal=1;") && strstr(metadata, "precision=int8_qk;"));
  const double wide = 0.125;
  const int64_t one = 1;
  const Layer same = create(Fields()
                                .add("scale", PluginFieldType::kFLOAT64, &wide, sizeof wide, 1)
                                .add("is_causal", PluginFieldType::kINT64, &one, sizeof one, 1)
                                .add("precision", PluginFieldType::kCHAR, "int8_qk", 8, 8));  // with its final 0
  CHECK(std::string(same.build().getMetadataString()) == metadata);
  CHECK(silent());

  CHECK(refused(Fields().add("is_casual", 1), {"'is_casual' is unknown", "supported: q_num_heads", "is_causal"}));
  CHECK(refused(Fields().add(nullptr, 1), {"'' is unknown"}));
  CHECK(refused(Fields().add("is_causal", 1.f), {"is_causal is float32", "supported: int32, int64"}));
  CHECK(refused(Fields().add("scale", 1), {"scale is int32", "supported: float32, float64"}));
  CHECK(refused(Fields().add("scheme", 1), {"scheme is int32", "supported: char"}));
  CHECK(refused(Fields().add("scale", PluginFieldType::kFLOAT32, "12345678", 8, 2), {"scale has 2 values"}));
  CHECK(refused(Fields().add("scheme", PluginFieldType::kCHAR, "x", 1, -1), {"scheme has no value"}));
  for (const char* name : {"scale", "scheme"}) {
    const PluginField field{name, nullptr, name[2] == 'a' ? PluginFieldType::kFLOAT32 : PluginFieldType::kCHAR, 1};
    PluginFieldCollection fields;
    fields.nbFields = 1;
    fields.fields = &field;
    CHECK(creator->createPlugin("layer", &fields, TensorRTPhase::kBUILD) == nullptr && logged({name}));
  }
  CHECK(refused(Fields().add("precision", "int4"), {"precision='int4'", "supported: int8, int8_qk"}));
  CHECK(refused(Fields().add("scheme", ""), {"scheme=''", "supported: tile, paper"}));
  CHECK(refused(Fields().add("k_granularity", "row"), {"k_granularity='row'", "supported: auto, token, group"}));
  CHECK(refused(Fields().add("causal_alignment", "left"), {"causal_alignment='left'", "standard, lower_right"}));
  CHECK(refused(Fields().add("plugin_outputs", 0), {"plugin_outputs=0", "supported: 1 to 4"}));
  CHECK(refused(Fields().add("plugin_outputs", 5), {"plugin_outputs=5", "supported: 1 to 4"}));
  CHECK(refused(Fields().add("plugin_inputs", "Q,K,V,bias"), {"plugin_inputs='Q,K,V,bias'", "'bias'"}));
  CHECK(refused(Fields().add("plugin_inputs", "Q,V,K"), {"plugin_inputs='Q,V,K'", "'K'"}));
  CHECK(refused(Fields().add("plugin_inputs", "Q,K"), {"plugin_inputs='Q,K'", "must begin with Q,K,V"}));
  CHECK(refused(Fields().add("plugin_inputs", "Q,K,attn_mask"), {"must begin with Q,K,V"}));
}

void check_copies() {
  const std::vector<std::function<void(Fields&)>> changes = {
      [](Fields& f) { f.add("q_num_heads", 3); },
      [](Fields& f) { f.add("kv_num_heads", 3); },
      [](Fields& f) { f.add("scale", 1.f / 3); },
      [](Fields& f) { f.add("is_causal", 1); },
      [](Fields& f) { f.add("causal_alignment", "lower_right"); },
      [](Fields& f) { f.add("softcap", 30.f); },
      [](Fields& f) { f.add("window_left", 9); },
      [](Fields& f) { f.add("window_right", 9); },
      [](Fields& f) { f.add("precision", "int8_qk"); },
      [](Fields& f) { f.add("scheme", "paper"); },
      [](Fields& f) { f.add("k_granularity", "group"); },
      [](Fields& f) { f.add("smooth_k", 0); },
      [](Fields& f) { f.add("output_dtype", 10); },
      [](Fields& f) { f.add("plugin_inputs", "Q,K,V,k_scale"); },
      [](Fields& f) { f.add("plugin_outputs", 2); },
  };
  CHECK(changes.size() == static_cast<size_t>(creator->getFieldNames()->nbFields));
  std::vector<std::string> ids = {create().build().getTimingCacheID()};
  for (const auto& change : changes) {
    Fields fields;
    change(fields);
    std::unique_ptr<Layer> original = std::make_unique<Layer>(create(fields));
    ids.push_back(original->build().getTimingCacheID());
    CHECK(original->build().getNbOutputs() == (ids.back().find("plugin_outputs=2") != std::string::npos ? 2 : 1));

    // as an engine keeps the fields: packed, hence without alignment
    const PluginFieldCollection* kept = original->runtime().getFieldsToSerialize();
    std::vector<char> plan(1);
    std::vector<size_t> places;
    for (int32_t i = 0; i < kept->nbFields; ++i) {
      const PluginField& field = kept->fields[i];
      const size_t size = field.type == PluginFieldType::kCHAR ? 1 : field.type == PluginFieldType::kFLOAT32 ? 4 : 8;
      places.push_back(plan.size());
      const auto* data = static_cast<const char*>(field.data);
      plan.insert(plan.end(), data, data + size * field.length);
      plan.push_back('x');
    }
    std::vector<PluginField> loaded_fields;
    for (int32_t i = 0; i < kept->nbFields; ++i)
      loaded_fields.push_back(
          {kept->fields[i].name, plan.data() + places[i], kept->fields[i].type, kept->fields[i].length});
    PluginFieldCollection collection;
    collection.nbFields = kept->nbFields;
    collection.fields = loaded_fields.data();
    const Layer loaded(creator->createPlugin("layer", &collection, TensorRTPhase::kRUNTIME));
    CHECK(loaded && ids.back() == loaded.build().getTimingCacheID());

    const Layer copy((*original)->clone());
    const Layer attached(original->runtime().attachToContext(nullptr));
    original.reset();
    CHECK(ids.back() == copy.build().getTimingCacheID() && ids.back() == attached.build().getMetadataString());
    CHECK(copy.runtime().getFieldsToSerialize()->nbFields == collection.nbFields);
  }
  std::sort(ids.begin(), ids.end());
  CHECK(std::adjacent_find(ids.begin(), ids.end()) == ids.end());
  CHECK(silent());
}

void check_output_types() {
  const auto types = [](const Layer& layer, DataType q) {
    const DataType in[] = {q, q, q};
    std::vector<DataType> out(4, DataType::kINT32);
    if (layer.build().getOutputDataTypes(out.data(), 4, in, 3) != 0) out.clear();
    return out;
  };
  using T = DataType;
  for (T q : {T::kFLOAT, T::kHALF, T::kBF16}) CHECK(types(create(), q) == std::vector<T>({q, q, q, T::kFLOAT}));
  CHECK(types(create(Fields().add("output_dtype", 16)), T::kINT8) ==
        std::vector<T>({T::kBF16, T::kINT8, T::kINT8, T::kFLOAT}));
  CHECK(types(create(Fields().add("output_dtype", 1)), T::kHALF) ==
        std::vector<T>({T::kFLOAT, T::kHALF, T::kHALF, T::kFLOAT}));
  CHECK(silent());
  CHECK(types(create(), T::kINT8).empty() && logged({"Q is int8 and output_dtype is not set", "10 (float16)"}));
  CHECK(types(create(), T::kFP8).empty() && logged({"supported: float32, float16, bfloat16, int8"}));
  CHECK(types(create(Fields().add("output_dtype", 7)), T::kHALF).empty() && logged({"output_dtype=7"}));
  DataType two[2];
  CHECK(create().build().getOutputDataTypes(two, 1, two, 2) != 0 && logged({"there are 2 inputs"}));
}

void check_shapes() {
  const auto shapes = [](const Layer& layer, const std::vector<Shape>& inputs, int32_t outputs = 4) {
    Expressions expressions;
    std::vector<DimsExprs> in, out(outputs);
    for (const Shape& shape : inputs) in.push_back(expressions.dims(shape));
    std::vector<Shape> result;
    if (layer.build().getOutputShapes(in.data(), static_cast<int32_t>(in.size()), nullptr, 0, out.data(), outputs,
                                      expressions.builder()) == 0)
      for (const DimsExprs& dims : out) result.push_back(Expressions::shape(dims));
    return result;
  };
  const Shape q = {kB, kHq, kSq, kD}, k = {kB, kHkv, kSkv, kD}, v = {kB, kHkv, kSkv, kDv};
  const Shape past_k = {kB, kHkv, kPast, kD}, past_v = {kB, kHkv, kPast, kDv}, mask = {kSq, kSkv};
  const Shape lse = {kB, kHq, kSq};
  CHECK(shapes(create(), {q, k, v}) == std::vector<Shape>({{kB, kHq, kSq, kDv}, k, v, lse}));
  const std::vector<Shape> with_past = {
      {kB, kHq, kSq, kDv}, {kB, kHkv, kPast + kSkv, kD}, {kB, kHkv, kPast + kSkv, kDv}, lse};
  CHECK(shapes(create(), {q, k, v, mask, past_k, past_v}) == with_past);
  const auto gap = [&] { return create(Fields().add("plugin_inputs", "Q,K,V,past_key,past_value")); };
  CHECK(shapes(gap(), {q, k, v, past_k, past_v}) == with_past);
  CHECK(shapes(gap(), {q, k, v, {}, past_k, past_v}) == with_past);
  const auto packed = [&] {
    return create(Fields().add("q_num_heads", int32_t{kHq}).add("kv_num_heads", int32_t{kHkv}));
  };
  const Shape q3 = {kB, kSq, kHq * kD}, k3 = {kB, kSkv, kHkv * kD}, v3 = {kB, kSkv, kHkv * kDv};
  CHECK(shapes(packed(), {q3, k3, v3}) == std::vector<Shape>({{kB, kSq, kHq * kDv}, k, v, lse}));
  CHECK(shapes(packed(), {q3, k3, v3}, 1) == std::vector<Shape>({{kB, kSq, kHq * kDv}}));
  CHECK(silent());
  CHECK(shapes(create(), {q3, k3, v3}).empty() && logged({"Q has 3 dimensions", "q_num_heads=0"}));
  CHECK(shapes(create(), {{kB, kD}, k, v}).empty() && logged({"Q has 2 dimensions", "supported: 3 or 4"}));
  CHECK(shapes(create(), {q, k}).empty() && logged({"there are 2 inputs", "supported: 3 to 10"}));
  CHECK(shapes(gap(), {q, k, v, past_k}).empty() && logged({"there are 4 inputs", "names 5"}));
}

// All formats and types at every position, against the contract's table written out.
void check_formats() {
  using T = DataType;
  const std::vector<T> floats = {T::kFLOAT, T::kHALF, T::kBF16};
  for (int output_dtype : {0, 10})
    for (T q : output_dtype != 0 ? std::vector<T>{T::kFLOAT, T::kHALF, T::kBF16, T::kINT8} : floats) {
      const Layer layer = create(Fields().add("output_dtype", output_dtype).add("plugin_outputs", 4));
      std::vector<T> q_types = floats, masks = floats;
      if (output_dtype != 0) q_types.push_back(T::kINT8);
      masks.push_back(T::kBOOL);
      const T y = output_dtype != 0 ? T::kHALF : q;
      const std::vector<std::vector<T>> allowed = {q_types,     {q},         {q},         masks, {q}, {q}, {T::kINT64},
                                                   {T::kFLOAT}, {T::kFLOAT}, {T::kFLOAT}, {y},   {q}, {q}, {T::kFLOAT}};
      std::vector<DynamicPluginTensorDesc> tensors(14, dynamic(describe({1}, q)));
      for (int32_t position = 0; position < 14; ++position)
        for (int32_t number = 0; number < 12; ++number)
          for (int32_t format = 0; format < 13; ++format) {
            const T type = static_cast<T>(number);
            tensors[position].desc = describe({1}, type, format);
            const bool expected = format == 0 && std::find(allowed[position].begin(), allowed[position].end(), type) !=
                                                     allowed[position].end();
            CHECK(layer.build().supportsFormatCombination(position, tensors.data(), 10, 4) == expected);
            tensors[position].desc = describe({1}, q);
          }
      CHECK(!layer.build().supportsFormatCombination(14, tensors.data(), 10, 4));
      CHECK(!layer.build().supportsFormatCombination(-1, tensors.data(), 10, 4));
    }
  CHECK(silent());
  // int8 without output_dtype is refused at Q; at an absent input everything goes
  auto int8 = qkv(T::kINT8).ranges();
  CHECK(!create().build().supportsFormatCombination(0, int8.data(), 3, 1));
  auto gap = qkv().ranges();
  gap.resize(7, dynamic(describe({}, T::kUINT8, 5)));
  const Layer layer = create(Fields().add("plugin_inputs", "Q,K,V,past_key,past_value"));
  CHECK(layer.build().supportsFormatCombination(3, gap.data(), 6, 1));
  CHECK(!layer.build().supportsFormatCombination(4, gap.data(), 6, 1));
  CHECK(silent());
}

void check_configure() {
  const Layer layer = create();
  CHECK(qkv().configure(layer) == 0);
  const int32_t count = layer.build().getNbTactics();
  std::vector<int32_t> tactics(count);
  CHECK(count > 1 && layer.build().getValidTactics(tactics.data(), count) == 0);  // the fake takes every tile size
  CHECK(std::find(tactics.begin(), tactics.end(), 0) == tactics.end());
  CHECK(std::adjacent_find(tactics.begin(), tactics.end()) == tactics.end());
  CHECK(qkv().workspace(layer) == intfa::fake::kWorkspaceBytes);
  CHECK(silent());
  CHECK(layer.build().getValidTactics(tactics.data(), 1) != 0 && logged({"1 tactics", "there are"}));
  CHECK(layer.runtime().setTactic(-16) != 0 && logged({"tactic -16", "build the engine again"}));
  CHECK(layer.runtime().setTactic(3) != 0 && logged({"tactic 3"}));

  const auto wrong = [&](Tensors tensors, std::initializer_list<const char*> words) {
    CHECK(tensors.configure(layer) != 0 && logged(words));
    CHECK(tensors.change_shape(layer) != 0 && logged(words));
    CHECK(tensors.workspace(layer) > (size_t{1} << 50) && logged(words));  // more than any device has
  };
  Tensors tensors = qkv();
  tensors.all[0].dims.d[3] = tensors.all[1].dims.d[3] = 12;
  wrong(tensors, {"head_dim=12", "supported: multiples of 8"});
  tensors = qkv();
  tensors.all[1].dims.d[1] = tensors.all[2].dims.d[1] = 3;
  wrong(tensors, {"num_heads=4", "kv_num_heads=3"});
  tensors = qkv();
  tensors.all[2].dims.d[2] = kSkv + 1;
  wrong(tensors, {"do not fit together", "[2,2,5,16]", "[2,2,6,8]"});
  tensors = qkv();
  tensors.all[0].dims.nbDims = 2;
  wrong(tensors, {"Q has shape [2,4]"});
  tensors.all[0].dims.nbDims = -1;  // a rank that is not known
  wrong(tensors, {"Q has shape []"});
  tensors.all[0].dims.nbDims = 100;
  wrong(tensors, {"Q has shape"});
  tensors = qkv();
  tensors.all[1].type = DataType::kBF16;
  wrong(tensors, {"K is bfloat16, Q is float16"});
  tensors = qkv(DataType::kINT32);
  wrong(tensors, {"Q is int32", "supported: float32, float16, bfloat16, int8"});
  tensors = qkv();
  tensors.inputs = 2;
  wrong(tensors, {"there are 2 inputs"});
  tensors = qkv();
  tensors.input({});
  CHECK(tensors.configure(layer) != 0 && logged({"attn_mask has no dimensions", "plugin_inputs"}));
  tensors = qkv();
  tensors.input({kB, kHq, kSq, kSkv + 1}, DataType::kBOOL);
  CHECK(tensors.configure(layer) != 0 && logged({"attn_mask has shape [2,4,3,6]", "[2,4,3,5]"}));
  // the greatest sizes of a range need not fit together
  CHECK(tensors.workspace(layer) == intfa::fake::kWorkspaceBytes && silent());
}

void check_run() {
  char data[16];  // addresses only: the fake backends look at no input
  std::vector<char> memory(4096);
  const auto stream = reinterpret_cast<cudaStream_t>(&data);
  using T = DataType;
  const Shape past_k = {kB, kHkv, kPast, kD}, past_v = {kB, kHkv, kPast, kDv};
  const int64_t skv = kSkv + kPast;

  // every input and output
  Tensors tensors = qkv(T::kFLOAT);
  tensors.input({kSq, skv}, T::kBOOL);
  tensors.input(past_k, T::kFLOAT);
  tensors.input(past_v, T::kFLOAT);
  tensors.input({kB}, T::kINT64);
  tensors.input({1}, T::kFLOAT);
  tensors.input({kHkv}, T::kFLOAT);
  tensors.input({kHkv, kDv}, T::kFLOAT);
  for (int i = 0; i < 10; ++i) tensors.pointers[i] = data + i;
  std::vector<std::vector<char>> outputs;
  for (int64_t elements : {kB * kHq * kSq * kDv, kB * kHkv * skv * kD, kB * kHkv * skv * kDv, kB * kHq * kSq})
    outputs.emplace_back(4 * elements);
  tensors.output({kB, kHq, kSq, kDv}, T::kFLOAT, outputs[0].data());
  tensors.output({kB, kHkv, skv, kD}, T::kFLOAT, outputs[1].data());
  tensors.output({kB, kHkv, skv, kDv}, T::kFLOAT, outputs[2].data());
  tensors.output({kB, kHq, kSq}, T::kFLOAT, outputs[3].data());
  const Layer full = create(Fields().add("plugin_outputs", 4).add("softcap", 5.f), TensorRTPhase::kRUNTIME);
  CHECK(tensors.enqueue(full, memory.data(), stream) != 0 && logged({"before onShapeChange"}));
  CHECK(full.runtime().setTactic(64) == 0);
  CHECK(tensors.change_shape(full) == 0 && tensors.enqueue(full, memory.data(), stream) == 0 && silent());
  const intfa::AttentionTensors& t = last_call->tensors;
  const void* const got[] = {t.q,       t.k,       t.v,      t.mask, t.past_key, t.past_value, t.nonpad_kv_seqlen,
                             t.q_scale, t.k_scale, t.v_scale};
  for (int i = 0; i < 10; ++i) CHECK(got[i] == data + i);
  CHECK(t.y == outputs[0].data() && t.present_key == outputs[1].data() && t.present_value == outputs[2].data());
  CHECK(static_cast<void*>(t.lse) == outputs[3].data() && t.workspace == memory.data());
  CHECK(last_call->execution.device == intfa::Device::kCuda && last_call->execution.stream == stream);
  const intfa::AttentionProblem& p = last_call->problem;
  CHECK(p.batch == kB && p.num_heads == kHq && p.kv_num_heads == kHkv && p.seqlen_q == kSq && p.seqlen_new == kSkv);
  CHECK(p.seqlen_past == kPast && p.head_dim == kD && p.head_dim_v == kDv && p.softcap == 5.f && p.tile_n == 64);
  CHECK(p.mask.present && p.mask.stride_query == skv && p.mask.stride_batch == 0 && p.has_nonpad_kv_seqlen);
  CHECK(p.v_scale == intfa::ScaleGranularity::kPerChannel && p.k_scale == intfa::ScaleGranularity::kPerHead);

  // gaps, kept by TensorRT or closed
  for (bool closed : {false, true}) {
    Tensors some = qkv();
    if (!closed) some.input({}, T::kFLOAT, nullptr);
    some.input(past_k, T::kHALF, data + 4);
    some.input(past_v, T::kHALF, data + 5);
    for (int i = 0; i < 3; ++i) some.pointers[i] = data + i;
    some.output({kB, kHq, kSq, kDv}, T::kHALF, outputs[0].data());
    const Layer layer = create(Fields().add("plugin_inputs", "Q,K,V,past_key,past_value"));
    const Layer attached(layer.runtime().attachToContext(nullptr));
    CHECK(some.change_shape(attached) == 0 && some.enqueue(attached, memory.data(), stream) == 0 && silent());
    CHECK(t.past_key == data + 4 && t.past_value == data + 5 && t.mask == nullptr && t.present_key == nullptr);
    CHECK(p.seqlen_past == kPast && !p.mask.present && t.lse == nullptr);
  }

  // what the core refuses, and what the device does
  Tensors plain = qkv();
  plain.output({kB, kHq, kSq, kDv}, T::kHALF, outputs[0].data());
  const Layer layer = create();
  CHECK(plain.change_shape(layer) == 0);
  CHECK(plain.enqueue(layer, memory.data(), stream) != 0 && logged({"needs q, which is null"}));
  for (int i = 0; i < 3; ++i) plain.pointers[i] = data + i;
  CHECK(plain.enqueue(layer, nullptr, stream) != 0 && logged({"needs workspace, which is null"}));
  *answer = intfa::Status(intfa::StatusCode::kRuntimeError, "cudaLaunchKernel: no device");
  CHECK(plain.enqueue(layer, memory.data(), stream) != 0 && logged({"cudaLaunchKernel: no device"}));
  *answer = intfa::Status();
  CHECK(plain.enqueue(layer, memory.data(), stream) == 0 && silent());
  plain.all[1].dims.d[2] = kSkv + 1;  // a shape that onShapeChange has not seen
  CHECK(plain.enqueue(layer, memory.data(), stream) != 0 && logged({"do not fit together"}));

  // nothing to do
  Tensors empty;
  empty.input({0, kHq, kSq, kD});
  empty.input({0, kHkv, kSkv, kD});
  empty.input({0, kHkv, kSkv, kDv});
  empty.output({0, kHq, kSq, kDv}, T::kHALF, memory.data());
  CHECK(empty.change_shape(layer) == 0 && empty.enqueue(layer, memory.data(), stream) == 0 && silent());
}

// The n-th allocation from now on fails; 0: none does.
long failing_allocation = 0;

// Every method with every one of its allocations failing in turn: an error, no exception, no leak, no crash.
void check_out_of_memory() {
  Fields fields;
  fields.add("precision", "int8_qk").add("plugin_inputs", "Q,K,V,past_key,past_value").add("plugin_outputs", 4);
  const PluginFieldCollection* collection = fields.collection();
  char data[16];
  std::vector<char> memory(4096), out(65536);
  Tensors tensors = qkv();
  tensors.input({kB, kHkv, kPast, kD});
  tensors.input({kB, kHkv, kPast, kDv});
  tensors.output({kB, kHq, kSq, kDv});
  for (int i = 0; i < 3; ++i) tensors.output({1});
  for (int i = 0; i < 9; ++i) tensors.pointers[i] = i < 5 ? data + i : out.data();
  const auto dynamics = tensors.ranges();
  const Layer layer(creator->createPlugin("layer", collection, TensorRTPhase::kBUILD));
  CHECK(tensors.change_shape(layer) == 0 && tensors.configure(layer) == 0);
  const std::vector<std::function<bool()>> calls = {
      [&] {
        const std::unique_ptr<IPluginV3> made(creator->createPlugin("layer", collection, TensorRTPhase::kBUILD));
        return made != nullptr;
      },
      [&] { return std::unique_ptr<IPluginV3>(layer->clone()) != nullptr; },
      [&] { return layer.build().configurePlugin(dynamics.data(), 5, dynamics.data() + 5, 4) == 0; },
      [&] {
        return layer.build().getWorkspaceSize(dynamics.data(), 5, dynamics.data() + 5, 4) ==
               intfa::fake::kWorkspaceBytes;
      },
      [&] { return layer.build().supportsFormatCombination(5, dynamics.data(), 5, 4); },
      [&] { return layer.runtime().getFieldsToSerialize() != nullptr; },
      [&] { return tensors.change_shape(layer) == 0; },
      [&] { return tensors.enqueue(layer, memory.data(), nullptr) == 0; },
  };
  int failures = 0;
  for (const auto& call : calls) {
    bool worked = false;
    for (long n = 1; !worked; ++n) {
      failing_allocation = n;
      worked = call();
      failing_allocation = 0;
      failures += !worked;
      CHECK(n < 1000);
    }
  }
  CHECK(failures > 20);
  fake_host::take_log();
}

void check_registration(void* library) {
  auto& registered = fake_host::creators();
  CHECK(registered.size() == 1);  // the library's constructor
  IPluginCreatorInterface* const own = registered[0];
  const auto set_logger_finder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  const auto get_creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  CHECK(set_logger_finder != nullptr && get_creators != nullptr);
  set_logger_finder(fake_host::logger_finder());
  for (int load = 0; load < 2; ++load) {  // loadLibrary, twice
    int32_t count = 0;
    IPluginCreatorInterface* const* list = get_creators(count);
    CHECK(count == 1 && list[0] != own && registered.empty());
    creator = static_cast<IPluginCreatorV3One*>(list[0]);
  }
  // A registry of its own took the creator; once it is used, the process-wide one has its own again.
  CHECK(create() && registered.size() == 1 && registered[0] == own);
  CHECK(create() && registered.size() == 1);
  // The process-wide registry itself took it: there must not be two.
  int32_t count = 0;
  get_creators(count);
  CHECK(registered.empty());
  registered.push_back(creator);
  CHECK(create() && registered.size() == 1);
  CHECK(refused(Fields().add("scheme", "new"), {"scheme='new'"}));
  set_logger_finder(nullptr);  // then it is getLogger()
  CHECK(refused(Fields().add("scheme", "new"), {"scheme='new'"}));
}

void check_without_kernels() {
  const Layer layer = create();
  Tensors tensors = qkv();
  tensors.output({kB, kHq, kSq, kDv});
  const std::initializer_list<const char*> words = {"CPU kernels only", "INTFA_CUDA=ON"};
  CHECK(tensors.configure(layer) != 0 && logged(words));
  CHECK(tensors.workspace(layer) > (size_t{1} << 50) && logged(words));
  CHECK(tensors.change_shape(layer) != 0 && logged(words));
  CHECK(tensors.enqueue(layer, nullptr, nullptr) != 0 && logged(words));
}

}  // namespace

void* operator new(size_t size) {
  if (failing_allocation > 0 && --failing_allocation == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main(int, char** arguments) {
  fake_host::set_version(std::atoi(arguments[2]));
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  check_registration(library);
  check_creator();
  if (dlsym(library, "fake_last_call") == nullptr) {
    check_without_kernels();
    std::printf("%d checks\n", checks);
    return 0;
  }
  last_call = reinterpret_cast<intfa::fake::Call* (*)()>(dlsym(library, "fake_last_call"))();
  answer = reinterpret_cast<intfa::Status* (*)()>(dlsym(library, "fake_answer"))();
  check_fields();
  check_copies();
  check_output_types();
  check_shapes();
  check_formats();
  check_configure();
  check_run();
  check_out_of_memory();
  std::printf("%d checks\n", checks);
  return 0;
}
