#include "tests/support/interpreter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {

namespace {

// Calls fn(element's address) for each element in row-major order.
template <class Fn>
void for_each_element(const TensorView& view, Fn fn) {
  const int64_t count = view.numel();
  Shape index(view.shape.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    int64_t at = 0;
    for (size_t d = 0; d < index.size(); ++d) at += index[d] * view.strides[d];
    fn(static_cast<char*>(view.data) + at * size_of(view.dtype));
    for (size_t d = index.size(); d-- > 0 && ++index[d] == view.shape[d];) index[d] = 0;
  }
}

double read_element(const char* at, DType dtype) {
  switch (dtype) {
    case DType::kF64: return *reinterpret_cast<const double*>(at);
    case DType::kF32: return *reinterpret_cast<const float*>(at);
    case DType::kI32: return *reinterpret_cast<const int32_t*>(at);
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16: break;
  }
  fail("the interpreter has no {}", name_of(dtype));
}

void write_element(char* at, DType dtype, double x) {
  switch (dtype) {
    case DType::kF64: *reinterpret_cast<double*>(at) = x; return;
    case DType::kF32: *reinterpret_cast<float*>(at) = static_cast<float>(x); return;
    case DType::kI32: *reinterpret_cast<int32_t*>(at) = static_cast<int32_t>(x); return;
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16: break;
  }
  fail("the interpreter has no {}", name_of(dtype));
}

}  // namespace

Interpreter::Interpreter(const Graph& graph, uint64_t seed) : graph_(graph), seed_(seed) {
  for (const Source& s : graph.sources()) {
    std::vector<double> numbers(static_cast<size_t>(numel(graph.type(s.value).shape)));
    const uint64_t stream = stream_of(s.name);
    for (size_t i = 0; i < numbers.size(); ++i) {
      switch (s.init.kind) {
        case Init::Kind::kConstant: numbers[i] = s.init.a; break;
        case Init::Kind::kNormal: numbers[i] = s.init.a * normal_at(seed, stream, i); break;
        case Init::Kind::kUniform:
          numbers[i] = s.init.a * (2 * uniform_at(seed, stream, i) - 1);
          break;
      }
    }
    initial_[s.name] = std::move(numbers);
  }
}

void Interpreter::set(const std::string& source, std::vector<double> numbers) {
  CLEAVE_ASSERT(initial_.at(source).size() == numbers.size(), "'{}' has another size", source);
  initial_[source] = std::move(numbers);
}

TensorView Interpreter::view(Value value) {
  const ValueInfo& info = graph_.value(value);
  char* data = reinterpret_cast<char*>(buffers_[static_cast<size_t>(info.storage)].data());
  return {data + info.geometry.offset * size_of(info.type.dtype), info.type.dtype,
          info.geometry.shape, info.geometry.strides};
}

std::vector<double> Interpreter::numbers(Value value) const {
  std::vector<double> result;
  const DType dtype = graph_.type(value).dtype;
  for_each_element(const_cast<Interpreter*>(this)->view(value),
                   [&](const char* at) { result.push_back(read_element(at, dtype)); });
  return result;
}

void Interpreter::run(std::span<const NodeId> order) {
  buffers_.assign(static_cast<size_t>(graph_.num_storages()), {});
  for (const ValueInfo& info : graph_.values()) {
    int64_t last = info.geometry.offset;
    for (size_t d = 0; d < info.geometry.shape.size(); ++d) {
      last += (info.geometry.shape[d] - 1) * info.geometry.strides[d];
    }
    auto& buffer = buffers_[static_cast<size_t>(info.storage)];
    buffer.resize(std::max(buffer.size(), static_cast<size_t>(last + 1)));
  }
  for (const ValueInfo& info : graph_.values()) {
    auto& buffer = buffers_[static_cast<size_t>(info.storage)];
    if (is_float(info.type.dtype)) {
      for (size_t i = 0; i < buffer.size(); ++i) {
        write_element(reinterpret_cast<char*>(buffer.data()) +
                          static_cast<int64_t>(i) * size_of(info.type.dtype),
                      info.type.dtype, std::numeric_limits<double>::quiet_NaN());
      }
    }
  }
  for (const Source& s : graph_.sources()) {
    const double* from = initial_.at(s.name).data();
    for_each_element(view(s.value),
                     [&](char* at) { write_element(at, graph_.type(s.value).dtype, *from++); });
  }
  for (NodeId n : order) {
    const Node& node = graph_.node(n);
    if (is_view(graph_, node)) continue;
    CLEAVE_ASSERT(node.op->cpu != nullptr, "{} has no CPU kernel", node.op->name);
    std::vector<TensorView> in, out;
    for (Value v : node.inputs) in.push_back(view(v));
    for (Value v : node.outputs) out.push_back(view(v));
    std::vector<Extent> extents;
    for (int64_t size : node.extents) extents.push_back({size, size, {}});
    const std::vector<TensorType> types = graph_.input_types(node);
    const int64_t bytes =
        node.op->workspace == nullptr ? 0 : node.op->workspace(Graph::call(node, types));
    std::vector<char> workspace(static_cast<size_t>(bytes) + 64);
    char* aligned = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64);
    node.op->cpu({*node.signature, node.attrs, in, out, extents, aligned, seed_, nullptr});
  }
}

void Interpreter::run() { run(working_nodes(graph_)); }

std::map<std::string, std::vector<double>> Interpreter::results() const {
  std::map<std::string, std::vector<double>> result;
  for (const Output& o : graph_.outputs()) result[o.name] = numbers(o.value);
  for (const Source& s : graph_.sources()) {
    if (s.kind != SourceKind::kData) result[s.name] = numbers(s.final);
  }
  return result;
}

std::vector<NodeId> working_nodes(const Graph& graph) {
  const std::vector<bool> live = live_nodes(graph);
  std::vector<NodeId> nodes;
  for (size_t n = 0; n < live.size(); ++n) {
    if (live[n] && !is_view(graph, graph.nodes()[n])) nodes.push_back(static_cast<NodeId>(n));
  }
  return nodes;
}

std::vector<NodeId> random_order(std::span<const NodeId> nodes, std::span<const Dependency> all,
                                 std::mt19937& random) {
  std::vector<NodeId> left(nodes.begin(), nodes.end()), order;
  while (!left.empty()) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < left.size(); ++i) {
      const bool waits = std::any_of(all.begin(), all.end(), [&](const Dependency& d) {
        return d.after == left[i] && std::find(left.begin(), left.end(), d.before) != left.end();
      });
      if (!waits) ready.push_back(i);
    }
    CLEAVE_ASSERT(!ready.empty(), "the dependencies have a cycle");
    const size_t pick = ready[random() % ready.size()];
    order.push_back(left[pick]);
    left.erase(left.begin() + static_cast<int64_t>(pick));
  }
  return order;
}

}  // namespace cleave
