// Memory for operands in any layout, and the call of one kernel.
#include "tests/support/op_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "graph/f8.h"
#include "graph/half.h"

namespace cleave::testing {
namespace {

// A tensor's memory. Everything starts poisoned: NaN, or a number that no test uses.
class Memory {
 public:
  Memory(const TensorType& type, MemoryLayout layout) : type_(type) {
    geometry_ = {0, type.shape, Shape(type.shape.size(), 1)};
    int64_t stride = layout == MemoryLayout::kSpaced ? 2 : 1;
    const size_t rank = type.shape.size();
    for (size_t i = 0; i < rank; ++i) {
      const size_t d = layout == MemoryLayout::kTransposed ? i : rank - 1 - i;
      geometry_.strides[d] = stride;
      stride *= type.shape[d];
      if (layout == MemoryLayout::kPadded && i == 0) stride += 3;
    }
    if (layout != MemoryLayout::kRowMajor) geometry_.offset = 5;
    elements_ = stride + 8;
    bytes_.resize(static_cast<size_t>(elements_ * size_of(type.dtype)));
    for (int64_t i = 0; i < elements_; ++i) store(i, poison());
  }

  const Geometry& geometry() const { return geometry_; }
  HostBlock block() { return {bytes_.data(), bytes_.size()}; }

  TensorView view(const Geometry& geometry) {
    char* const data = bytes_.data() + geometry.offset * size_of(type_.dtype);
    return {data, type_.dtype, geometry.shape, geometry.strides};
  }

  void write(const std::vector<double>& numbers) {
    size_t next = 0;
    each_place(geometry_, [&](int64_t at) { store(at, numbers[next++]); });
  }
  std::vector<double> read(const Geometry& geometry) const {
    std::vector<double> numbers;
    each_place(geometry, [&](int64_t at) { numbers.push_back(load(at)); });
    return numbers;
  }

  // Whether everything but the tensor itself still is poison.
  bool rest_untouched() const {
    std::vector<bool> inside(static_cast<size_t>(elements_), false);
    each_place(geometry_, [&](int64_t at) { inside[static_cast<size_t>(at)] = true; });
    for (int64_t i = 0; i < elements_; ++i) {
      const double x = load(i);
      const bool poisoned = std::isnan(poison()) ? std::isnan(x) : x == poison();
      if (!inside[static_cast<size_t>(i)] && !poisoned) return false;
    }
    return true;
  }

 private:
  double poison() const {
    if (type_.dtype == DType::kI32) return 1234567.0;
    if (type_.dtype == DType::kI16) return 12345.0;
    return std::numeric_limits<double>::quiet_NaN();
  }

  template <class Fn>
  static void each_place(const Geometry& geometry, Fn fn) {
    const int64_t count = numel(geometry.shape);
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, at = geometry.offset;
      for (size_t d = geometry.shape.size(); d-- > 0;) {
        at += rest % geometry.shape[d] * geometry.strides[d];
        rest /= geometry.shape[d];
      }
      fn(at);
    }
  }

  template <class T>
  void store_as(int64_t at, double x) {
    const T value = static_cast<T>(x);
    std::memcpy(bytes_.data() + static_cast<size_t>(at) * sizeof(T), &value, sizeof(T));
  }
  template <class T>
  double load_as(int64_t at) const {
    T value;
    std::memcpy(&value, bytes_.data() + static_cast<size_t>(at) * sizeof(T), sizeof(T));
    return static_cast<double>(value);
  }
  void store(int64_t at, double x) {
    switch (type_.dtype) {
      case DType::kF64: return store_as<double>(at, x);
      case DType::kF32: return store_as<float>(at, x);
      case DType::kI32: return store_as<int32_t>(at, x);
      case DType::kI16: return store_as<int16_t>(at, x);
      case DType::kBF16: return store_bits(at, bf16_bits(x));
      case DType::kF16: return store_bits(at, f16_bits(x));
      case DType::kF8E4M3:
      case DType::kF8E5M2:
        bytes_[static_cast<size_t>(at)] =
            static_cast<char>(f8_code(static_cast<float>(x), type_.dtype));
        return;
    }
  }
  double load(int64_t at) const {
    switch (type_.dtype) {
      case DType::kF64: return load_as<double>(at);
      case DType::kF32: return load_as<float>(at);
      case DType::kI32: return load_as<int32_t>(at);
      case DType::kI16: return load_as<int16_t>(at);
      case DType::kBF16: return bf16_number(load_bits(at));
      case DType::kF16: return f16_number(load_bits(at));
      case DType::kF8E4M3:
      case DType::kF8E5M2:
        return static_cast<double>(
            f8_number(static_cast<uint8_t>(bytes_[static_cast<size_t>(at)]), type_.dtype));
    }
    throw std::runtime_error("an element type without numbers");
  }
  void store_bits(int64_t at, uint16_t bits) {
    std::memcpy(bytes_.data() + static_cast<size_t>(at) * 2, &bits, 2);
  }
  uint16_t load_bits(int64_t at) const {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes_.data() + static_cast<size_t>(at) * 2, 2);
    return bits;
  }

  TensorType type_;
  Geometry geometry_;
  int64_t elements_ = 0;
  std::vector<char> bytes_;
};

// 64-byte aligned scratch memory.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : memory_(static_cast<size_t>(bytes) + 64, char{-1}) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (64 - address % 64) % 64;
  }

 private:
  std::vector<char> memory_;  // starts as bytes that make NaN
};

std::vector<HostTensor> as_views(const std::vector<Geometry>& views,
                                 const std::vector<TensorType>& types, const Memory& base) {
  std::vector<HostTensor> result;
  for (size_t o = 0; o < views.size(); ++o) {
    if (views[o].shape != types[o].shape) throw std::runtime_error("a view has another shape");
    result.push_back({types[o], base.read(views[o])});
  }
  return result;
}

}  // namespace

std::vector<int64_t> Application::sizes() const {
  std::vector<int64_t> result;
  for (const Extent& e : extents) result.push_back(e.local);
  return result;
}

std::vector<TensorType> Application::in_types() const {
  std::vector<TensorType> types;
  for (const HostTensor& t : in) types.push_back(t.type);
  return types;
}

std::vector<HostTensor> run_op(const Application& a, const RunOptions& options) {
  const std::vector<int64_t> sizes = a.sizes();
  const std::vector<TensorType> in_types = a.in_types();
  const OpCall call{*a.signature, sizes, a.attrs, in_types};
  const std::vector<TensorType> types = a.op->infer(call);
  for (size_t o = 0; o < types.size(); ++o) {
    const Shape shape = shape_of(a.signature->outputs()[o], sizes);
    if (types[o].shape != shape) {
      throw std::runtime_error(fmt::format("output {} is inferred as {}, its factors say {}", o,
                                           to_string(types[o]), to_string(shape)));
    }
  }
  std::vector<Memory> in, out;
  for (const HostTensor& t : a.in) {
    in.emplace_back(t.type, options.layout);
    in.back().write(t.numbers);
  }
  const bool view = options.view && !options.kernel;
  if (a.op->view != nullptr && (view || a.op->cpu == nullptr)) {
    const auto views = a.op->view(call, in[0].geometry());
    if (views) return as_views(*views, types, in[0]);
  }
  if (a.op->cpu == nullptr) throw std::runtime_error("neither a view nor a kernel");

  std::vector<Memory*> targets;
  out.reserve(types.size());
  for (size_t o = 0; o < types.size(); ++o) {
    Memory* target = nullptr;
    for (const auto& [output, input] : options.in_place) {
      if (output == o) target = &in[input];
    }
    if (target == nullptr) target = &out.emplace_back(types[o], options.layout);
    targets.push_back(target);
  }
  std::vector<TensorView> in_views, out_views;
  for (Memory& m : in) in_views.push_back(m.view(m.geometry()));
  for (Memory* m : targets) out_views.push_back(m->view(m->geometry()));
  Workspace workspace(a.op->workspace == nullptr ? 0 : a.op->workspace(call));
  const KernelArgs args = {.signature = *a.signature,
                           .attrs = a.attrs,
                           .in = in_views,
                           .out = out_views,
                           .extents = a.extents,
                           .workspace = workspace.data(),
                           .seed = kRunSeed};
  if (options.kernel) {
    std::vector<HostBlock> blocks;
    for (Memory& m : in) blocks.push_back(m.block());
    for (Memory& m : out) blocks.push_back(m.block());
    options.kernel(*a.op, call, args, blocks);
  } else {
    a.op->cpu(args);
  }
  std::vector<HostTensor> result;
  for (size_t o = 0; o < types.size(); ++o) {
    if (!targets[o]->rest_untouched()) {
      throw std::runtime_error(fmt::format("writes outside output {}", o));
    }
    result.push_back({types[o], targets[o]->read(targets[o]->geometry())});
  }
  return result;
}

Application application_of(const Graph& graph, const Node& node,
                           const std::vector<HostTensor>& values) {
  Application a{node.op, node.signature, node.attrs, whole_extents(node.extents), {}};
  for (const Value v : node.inputs) {
    if (graph.type(v) != values[static_cast<size_t>(v)].type) {
      throw std::runtime_error(fmt::format("%{} has another type than the graph says", v));
    }
    a.in.push_back(values[static_cast<size_t>(v)]);
  }
  return a;
}

std::vector<HostTensor> run_graph(const Graph& graph, const std::vector<HostTensor>& sources) {
  std::vector<HostTensor> values(graph.values().size());
  for (size_t s = 0; s < graph.sources().size(); ++s) {
    values[static_cast<size_t>(graph.sources()[s].value)] = sources[s];
  }
  for (const Node& node : graph.nodes()) {
    std::vector<HostTensor> out = run_op(application_of(graph, node, values));
    for (size_t o = 0; o < out.size(); ++o) {
      values[static_cast<size_t>(node.outputs[o])] = std::move(out[o]);
    }
  }
  return values;
}

double rounded(double x, DType dtype) {
  switch (dtype) {
    case DType::kF64: return x;
    case DType::kF32: return static_cast<double>(static_cast<float>(x));
    case DType::kBF16: return bf16_number(bf16_bits(x));
    case DType::kF16: return f16_number(f16_bits(x));
    case DType::kI32:
    case DType::kI16: return std::floor(x);
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return static_cast<double>(f8_number(f8_code(static_cast<float>(x), dtype), dtype));
  }
  return x;
}

std::vector<Extent> whole_extents(std::span<const int64_t> sizes) {
  std::vector<Extent> extents;
  for (const int64_t size : sizes) extents.push_back({size, size, {}});
  return extents;
}

}  // namespace cleave::testing
