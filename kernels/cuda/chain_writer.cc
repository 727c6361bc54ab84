// What the kernels of chains are written with: indices, loads, expressions, stores.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "graph/error.h"
#include "kernels/cuda/chain_text.h"

namespace cleave {

int64_t ChainWriter::Nest::count() const {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return n;
}

ChainWriter::Nest ChainWriter::nest_over(const ChainLoops& loops, const std::vector<int8_t>& axes) {
  // The steps of every item along an axis.
  const auto steps_along = [&](int8_t axis) {
    std::vector<int64_t> steps;
    for (const auto* list : {&loops.in, &loops.out}) {
      for (const LoopOperand& o : *list) steps.push_back(o.steps[static_cast<size_t>(axis)]);
    }
    for (const ChainMask& mask : loops.nodes.masks) {
      int64_t step = 0, next = 1;
      for (size_t d = mask.axes.size(); d-- > 0;) {
        if (mask.axes[d] == axis) step = next;
        next *= loops.sizes[static_cast<size_t>(mask.axes[d])];
      }
      steps.push_back(step);
    }
    return steps;
  };
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> by_loop;
  for (const int8_t axis : axes) {
    const int64_t size = loops.sizes[static_cast<size_t>(axis)];
    const std::vector<int64_t> steps = steps_along(axis);
    bool joins = !sizes.empty();
    for (size_t i = 0; i < steps.size() && joins; ++i) joins = by_loop.back()[i] == steps[i] * size;
    if (joins) {
      sizes.back() *= size;
      by_loop.back() = steps;
    } else {
      sizes.push_back(size);
      by_loop.push_back(steps);
    }
  }
  Nest nest{sizes, {}};
  const size_t items = loops.in.size() + loops.out.size() + loops.nodes.masks.size();
  nest.steps.resize(items);
  for (const auto& steps : by_loop) {
    for (size_t i = 0; i < items; ++i) nest.steps[i].push_back(steps[i]);
  }
  return nest;
}

int ChainWriter::vector_length(const ChainLoops& loops, const Nest& along, const Nest& others) {
  if (along.sizes.empty()) return 1;
  int64_t narrowest = 8;
  const size_t items = loops.in.size() + loops.out.size();
  const auto operand = [&](size_t i) -> const LoopOperand& {
    return i < loops.in.size() ? loops.in[i] : loops.out[i - loops.in.size()];
  };
  for (size_t i = 0; i < items; ++i) {
    if (along.steps[i].back() != 0) narrowest = std::min(narrowest, size_of(operand(i).dtype));
  }
  for (size_t m = items; m < along.steps.size(); ++m) {
    if (along.steps[m].back() > 1) return 1;  // a mask that counts along another axis
  }
  int64_t length = 16 / narrowest;
  while (along.sizes.back() % length != 0) length /= 2;
  for (size_t i = 0; i < items; ++i) {
    const LoopOperand& o = operand(i);
    if (along.steps[i].back() == 0) continue;
    if (along.steps[i].back() != 1) return 1;
    const auto fits = [&](int64_t n) {
      const int64_t bytes = std::min<int64_t>(16, n * size_of(o.dtype));
      bool fit = reinterpret_cast<uintptr_t>(o.data) % static_cast<size_t>(bytes) == 0;
      for (size_t d = 0; d + 1 < along.sizes.size(); ++d) fit &= along.steps[i][d] % n == 0;
      for (const int64_t step : others.steps[i]) fit &= step % n == 0;
      return fit;
    };
    while (!fits(length)) length /= 2;
  }
  return static_cast<int>(length);
}

ChainWriter::ChainWriter(const ChainLoops& loops, AxisSet scope, int vector, const Nest& along)
    : loops_(loops), scope_(scope), vector_(vector) {
  for (const auto& steps : along.steps) last_step_.push_back(steps.empty() ? 0 : steps.back());
  const size_t n = nodes().nodes.size();
  live_.assign(n, false);
  for (const int r : nodes().results) live_[static_cast<size_t>(r)] = true;
  for (size_t i = n; i-- > 0;) {
    if (!live_[i]) continue;
    for (const int in : nodes().nodes[i].in) live_[static_cast<size_t>(in)] = true;
  }
  defined_.assign(n, false);
  kept_.assign(n, false);
  filled_.assign(n, false);
  hoisted_.assign(n, false);
}

void ChainWriter::begin(int block, int resident) {
  line("#include \"prelude.cuh\"\nusing namespace cleave;");
  // With a second number, even 1, twice as many registers may be taken (NVRTC 13.0).
  text_ += fmt::format("extern \"C\" __global__ void __launch_bounds__({}{}) cleave_kernel(", block,
                       resident == 1 ? "" : fmt::format(", {}", resident));
  for (size_t i = 0; i < loops_.in.size(); ++i) {
    text_ += fmt::format("const {}* p{}, ", type_name(loops_.in[i].dtype), i);
  }
  for (size_t r = 0; r < loops_.out.size(); ++r) {
    text_ += fmt::format("{}* q{}, ", type_name(loops_.out[r].dtype), r);
  }
  text_ += fmt::format("{}* w", number());
  if (!nodes().masks.empty()) text_ += ", unsigned long long seed";
  for (size_t m = 0; m < nodes().masks.size(); ++m) {
    text_ += fmt::format(", unsigned long long stream{}", m);
  }
  line(") {");
  for (size_t m = 0; m < nodes().masks.size(); ++m) {
    const ChainMask& mask = nodes().masks[m];
    line(fmt::format("  const Mask<{0}> mask{1}(seed, stream{1}, p{2}[0], {3}u, {4:.17g});",
                     number(), m, mask.step, static_cast<uint32_t>(std::ceil(mask.rate * 0x1p24)),
                     1 / (1 - mask.rate)));
  }
}

void ChainWriter::indices(const Nest& nest, const std::string& prefix, const std::string& number,
                          int vector, bool large) {
  const char* type = large ? "long long" : "int";
  std::string rest = number;
  for (size_t d = nest.sizes.size(); d-- > 0;) {
    const bool last = d + 1 == nest.sizes.size();
    const int64_t size = last ? nest.sizes[d] / vector : nest.sizes[d];
    const std::string scale = last && vector > 1 ? fmt::format(" * {}", vector) : "";
    if (d == 0) {
      line(fmt::format("  const {} {}0 = ({}){};", type, prefix, rest, scale));
    } else {
      line(fmt::format("  const {0} {1}{2}r = ({3}) / {4};", type, prefix, d, rest, size));
      line(fmt::format("  const {0} {1}{2} = (({3}) - {1}{2}r * {4}){5};", type, prefix, d, rest,
                       size, scale));
      rest = fmt::format("{}{}r", prefix, d);
    }
  }
}

std::string ChainWriter::offset(const Nest& nest, size_t item, const std::string& prefix) const {
  std::string text;
  for (size_t d = 0; d < nest.sizes.size(); ++d) {
    const int64_t step = nest.steps[item][d];
    if (step == 0) continue;
    text += fmt::format("{}{}{} * {}LL", text.empty() ? "" : " + ", prefix, d, step);
  }
  return text.empty() ? "0" : text;
}

void ChainWriter::bases(const Nest& nest, const std::string& prefix) {
  const size_t in = loops_.in.size(), out = loops_.out.size();
  for (size_t i = 0; i < in; ++i) {
    line(fmt::format("  const {0}* const b{1} = p{1} + ({2});", type_name(loops_.in[i].dtype), i,
                     offset(nest, i, prefix)));
  }
  for (size_t r = 0; r < out; ++r) {
    line(fmt::format("  {0}* const c{1} = q{1} + ({2});", type_name(loops_.out[r].dtype), r,
                     offset(nest, in + r, prefix)));
  }
  for (size_t m = 0; m < nodes().masks.size(); ++m) {
    line(fmt::format("  const long long d{} = {};", m, offset(nest, in + out + m, prefix)));
  }
}

// --- Values --------------------------------------------------------------------------------------

std::string ChainWriter::operand_type(int n) const {
  const DType type = loops_.in[static_cast<size_t>(nodes().at(n).index)].dtype;
  return type == DType::kI32 ? "int" : number();
}

std::string ChainWriter::call(const ChainNode& node, const std::string& at) const {
  std::string parameters, arguments;
  for (size_t i = 0; i < node.in.size(); ++i) {
    const std::string comma = i == 0 ? "" : ", ";
    parameters += comma + "auto " + operand_name(i);
    arguments += comma + name(node.in[i], at);
  }
  return fmt::format("[]({}) {{ return {}; }}({})", parameters, node.text, arguments);
}

void ChainWriter::scope_values(int stage) {
  for (size_t i = 0; i < nodes().nodes.size(); ++i) {
    const int n = static_cast<int>(i);
    const ChainNode& node = nodes().nodes[i];
    if (!live(n) || !in_scope(n) || defined_[i] || node.stage != stage) continue;
    defined_[i] = true;
    if (node.kind == ChainNode::Kind::kOperand) {
      line(fmt::format("  const {0} r{1} = static_cast<{0}>(cleave::number(b{2}[0]));",
                       operand_type(n), n, node.index));
    } else if (node.kind == ChainNode::Kind::kMask) {
      line(fmt::format("  const {} r{} = mask{}.at(d{});", number(), n, node.index, node.index));
    } else {
      CLEAVE_ASSERT(node.kind == ChainNode::Kind::kElement, "a reduction is not there yet");
      line(fmt::format("  const {} r{} = {};", number(), n, call(node, "")));
    }
  }
}

void ChainWriter::need(int n, std::vector<bool>& found) const {
  const auto i = static_cast<size_t>(n);
  if (found[i] || in_scope(n) || filled_[i]) return;
  found[i] = true;
  for (const int in : nodes().at(n).in) need(in, found);
}

bool ChainWriter::needs(const std::vector<int>& roots, int n) const {
  std::vector<bool> found(nodes().nodes.size(), false);
  for (const int root : roots) need(root, found);
  return found[static_cast<size_t>(n)];
}

void ChainWriter::hoist(const std::vector<int>& loads) {
  for (const int n : loads) hoisted_[static_cast<size_t>(n)] = true;
}

std::vector<int> ChainWriter::loads_for(const std::vector<int>& roots) const {
  std::vector<bool> found(nodes().nodes.size(), false);
  for (const int root : roots) need(root, found);
  std::vector<int> loads;
  for (size_t i = 0; i < found.size(); ++i) {
    const ChainNode::Kind kind = nodes().nodes[i].kind;
    if (found[i] && (kind == ChainNode::Kind::kOperand || kind == ChainNode::Kind::kMask)) {
      loads.push_back(static_cast<int>(i));
    }
  }
  return loads;
}

void ChainWriter::declare_loads(const std::vector<int>& loads, const std::string& count) {
  for (const int n : loads) {
    const ChainNode& node = nodes().at(n);
    if (node.kind == ChainNode::Kind::kMask) {
      line(fmt::format("  {} x{}{}[{}];", number(), n, count, vector_));
    } else {
      line(fmt::format("  Vec<{}, {}> x{}{};",
                       type_name(loops_.in[static_cast<size_t>(node.index)].dtype), vector_, n,
                       count));
    }
  }
}

void ChainWriter::load(const std::vector<int>& loads, const Nest& nest, const std::string& prefix,
                       const std::string& at) {
  for (const int n : loads) {
    const ChainNode& node = nodes().at(n);
    const auto i = static_cast<size_t>(node.index);
    if (node.kind == ChainNode::Kind::kMask) {
      const size_t item = loops_.in.size() + loops_.out.size() + i;
      line(fmt::format("    mask{0}.{1}<{2}>(d{0} + ({3}), x{4}{5});", i,
                       last_step_[item] == 0 ? "spread" : "fill", vector_,
                       offset(nest, item, prefix), n, at));
      continue;
    }
    if (vector_ > 1 && last_step_[i] == 0) {
      line(fmt::format("    x{0}{1} = spread<{2}>(b{3}[{4}]);", n, at, vector_, i,
                       offset(nest, i, prefix)));
    } else {
      line(fmt::format("    x{0}{1} = cleave::load<{2}>(b{3} + ({4}));", n, at, vector_, i,
                       offset(nest, i, prefix)));
    }
  }
}

std::string ChainWriter::name(int n, const std::string& at) const {
  if (in_scope(n)) return fmt::format("r{}", n);
  if (filled_[static_cast<size_t>(n)]) return fmt::format("k{}{}[lane]", n, at);
  return fmt::format("n{}", n);
}

void ChainWriter::values(const std::vector<int>& roots, const std::string& at) {
  std::vector<bool> found(nodes().nodes.size(), false);
  for (const int root : roots) need(root, found);
  for (size_t i = 0; i < found.size(); ++i) {
    if (!found[i]) continue;
    const int n = static_cast<int>(i);
    const ChainNode& node = nodes().nodes[i];
    const std::string from = hoisted_[i] ? "" : at;
    if (node.kind == ChainNode::Kind::kMask) {
      line(fmt::format("      const {} n{} = x{}{}[lane];", number(), n, n, from));
    } else if (node.kind == ChainNode::Kind::kOperand) {
      line(fmt::format("      const {0} n{1} = static_cast<{0}>(cleave::number(x{1}{2}.x[lane]));",
                       operand_type(n), n, from));
    } else {
      line(fmt::format("      const {} n{} = {};", number(), n, call(node, at)));
    }
    if (kept_[i]) line(fmt::format("      k{0}{1}[lane] = n{0};", n, at));
  }
}

// --- Results -------------------------------------------------------------------------------------

std::string ChainWriter::stored(size_t r, const std::string& value) const {
  const DType type = loops_.out[r].dtype;
  return is_half(type) ? fmt::format("To<{}>::of(static_cast<float>({}))", type_name(type), value)
                       : fmt::format("To<{}>::of({})", type_name(type), value);
}

void ChainWriter::declare_result(size_t r) {
  line(fmt::format("    Vec<{}, {}> y{};", type_name(loops_.out[r].dtype), vector_, r));
}

void ChainWriter::put(size_t r, const std::string& at) {
  line(fmt::format("      y{}.x[lane] = {};", r, stored(r, name(nodes().results[r], at))));
}

void ChainWriter::store(size_t r, const Nest& nest, const std::string& prefix) {
  line(fmt::format("    cleave::store<{}>(c{} + ({}), y{});", vector_, r,
                   offset(nest, loops_.in.size() + r, prefix), r));
}

void ChainWriter::store_in_scope(size_t r) {
  line(fmt::format("  c{}[0] = {};", r, stored(r, name(nodes().results[r], ""))));
}

std::string ChainWriter::fold(int n, const std::string& a, const std::string& b) const {
  return nodes().at(n).max ? fmt::format("{0} < {1} ? {1} : {0}", a, b)
                           : fmt::format("{} + {}", a, b);
}

std::string ChainWriter::identity(int n) const {
  return nodes().at(n).max ? fmt::format("below_all<{}>()", number()) : "0";
}

}  // namespace cleave
