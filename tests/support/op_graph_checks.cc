// The checks that build graphs: gradients, and ops written in splittable ops.
#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <optional>
#include <random>

#include "tests/support/op_checks.h"
#include "tests/support/op_compare.h"

namespace cleave::testing {
namespace {

// A graph whose sources are the application's inputs, with their values.
std::vector<Value> add_sources(Graph& graph, const std::vector<HostTensor>& tensors,
                               const std::string& prefix) {
  std::vector<Value> values;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Source source;
    source.name = prefix + std::to_string(i);
    values.push_back(graph.add_source(std::move(source), tensors[i].type));
  }
  return values;
}

void check_node_splits(const Graph& graph, const Node& node, const std::vector<HostTensor>& values,
                       const std::string& what, Mistakes& mistakes) {
  for (const std::string& m : check_splits(application_of(graph, node, values))) {
    mistakes.push_back(fmt::format("{}: {} {}", what, node.op->name, m));
  }
}

// --- Following a split dimension through a graph -------------------------------------------------

// The part of one dimension of a value that is split: `size` indices, with so many before it and
// after it in that dimension.
struct Atom {
  size_t dim = 0;
  int64_t before = 1, size = 1;
};

// The factor of an operand in which splitting the atom is a split of that factor: the atom's
// outermost one.
int factor_at(const Node& node, const OperandDims& dims, const Atom& atom, int64_t shards) {
  int64_t before = 1;
  for (const int8_t f : dims[atom.dim]) {
    const int64_t size = node.extents[static_cast<size_t>(f)];
    if (before == atom.before && size > 1) return size % shards == 0 ? f : -1;
    before *= size;
  }
  return -1;
}

std::optional<Atom> atom_of(const Node& node, const OperandDims& dims, int factor) {
  for (size_t d = 0; d < dims.size(); ++d) {
    int64_t before = 1;
    for (const int8_t f : dims[d]) {
      const int64_t size = node.extents[static_cast<size_t>(f)];
      if (f == factor) return Atom{d, before, size};
      before *= size;
    }
  }
  return std::nullopt;
}

// Follows a split of `letter` from the operands of `a` through the graph, and says where it cannot
// go on. `outputs` are the op's outputs there.
Mistakes follow_split(const Application& a, char letter, int64_t shards, const Graph& graph,
                      const std::vector<Value>& inputs, const std::vector<Value>& outputs) {
  Mistakes mistakes;
  Node whole;
  whole.signature = a.signature;
  whole.extents = a.sizes();
  const int split = a.signature->factor(letter);
  std::vector<std::optional<Atom>> atoms(graph.values().size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    atoms[static_cast<size_t>(inputs[i])] = atom_of(whole, a.signature->inputs()[i], split);
  }
  for (const Node& node : graph.nodes()) {
    const std::string where = fmt::format("split of {} into {}: {} '{}'", letter, shards,
                                          node.op->name, node.signature->text());
    int factor = -1;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const auto& atom = atoms[static_cast<size_t>(node.inputs[i])];
      if (!atom) continue;
      const int f = factor_at(node, node.signature->inputs()[i], *atom, shards);
      if (f < 0) {
        mistakes.push_back(fmt::format("{}: operand {} cannot stay split", where, i));
      } else if (factor >= 0 && f != factor) {
        mistakes.push_back(where + ": two of its factors would be split");
      } else {
        factor = f;
      }
    }
    if (factor < 0) continue;
    if (node.signature->factors()[static_cast<size_t>(factor)].whole) {
      mistakes.push_back(where + ": the factor is whole");
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      atoms[static_cast<size_t>(node.outputs[o])] =
          atom_of(node, node.signature->outputs()[o], factor);
    }
  }
  for (size_t o = 0; o < outputs.size(); ++o) {
    const bool carries = Signature::carries(a.signature->outputs()[o], split);
    if (carries != atoms[static_cast<size_t>(outputs[o])].has_value()) {
      mistakes.push_back(fmt::format("split of {} into {}: output {} should {}be split", letter,
                                     shards, o, carries ? "" : "not "));
    }
  }
  return mistakes;
}

// --- Gradients -----------------------------------------------------------------------------------

// sum over outputs of weights * output; outputs without weights do not count.
double weighted_sum(const std::vector<HostTensor>& out, const std::vector<HostTensor>& weights) {
  double total = 0;
  for (size_t o = 0; o < out.size(); ++o) {
    for (size_t i = 0; i < weights[o].numbers.size(); ++i) {
      total += weights[o].numbers[i] * out[o].numbers[i];
    }
  }
  return total;
}

// Letters of the backward that the forward has too, as a small or a capital, mean the same factor.
void check_letters(const Node& forward, const Node& backward, Mistakes& mistakes) {
  const auto small = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  for (size_t b = 0; b < backward.extents.size(); ++b) {
    for (size_t f = 0; f < forward.extents.size(); ++f) {
      const char x = backward.signature->factors()[b].letter;
      const char y = forward.signature->factors()[f].letter;
      if (small(x) == small(y) && backward.extents[b] != forward.extents[f]) {
        mistakes.push_back(fmt::format("letter {} of {} '{}' has another size in the forward", x,
                                       backward.op->name, backward.signature->text()));
      }
    }
  }
}

// The gradients when only the outputs with weights have one.
Mistakes check_gradients_for(const Application& a, const std::vector<HostTensor>& weights) {
  Mistakes mistakes;
  Graph graph;
  const std::vector<Value> in = add_sources(graph, a.in, "in");
  std::vector<HostTensor> numbers = a.in;
  graph.add(*a.op, in, a.signature->text(), a.attrs);
  std::vector<Value> output_grads;
  for (size_t o = 0; o < weights.size(); ++o) {
    output_grads.push_back(kNoValue);
    if (weights[o].numbers.empty()) continue;
    output_grads[o] = add_sources(graph, {weights[o]}, fmt::format("grad{}_", o))[0];
    numbers.push_back(weights[o]);
  }
  graph.cursor.phase = Phase::kBackward;
  graph.cursor.follows = 0;
  GradContext context(graph, 0, output_grads);
  const std::vector<Value> grads = a.op->grad(context);
  if (grads.size() != a.in.size()) return {"not one gradient for each input"};
  const std::vector<HostTensor> values = run_graph(graph, numbers);
  for (size_t n = 1; n < graph.nodes().size(); ++n) {
    check_letters(graph.nodes()[0], graph.nodes()[n], mistakes);
    check_node_splits(graph, graph.nodes()[n], values, "backward", mistakes);
  }
  std::mt19937_64 random(1);
  for (size_t i = 0; i < a.in.size(); ++i) {
    const bool none = grads[i] == kNoValue;
    if (!is_float(a.in[i].type.dtype)) {
      if (!none) mistakes.push_back(fmt::format("integer input {} has a gradient", i));
      continue;
    }
    if (!none && graph.type(grads[i]) != a.in[i].type) {
      mistakes.push_back(
          fmt::format("the gradient of input {} is {}", i, to_string(graph.type(grads[i]))));
      continue;
    }
    for (int trial = 0; trial < 6; ++trial) {
      const size_t at = random() % a.in[i].numbers.size();
      constexpr double kStep = 1e-5;
      Application moved = a;
      moved.in[i].numbers[at] += kStep;
      const double up = weighted_sum(run_op(moved), weights);
      moved.in[i].numbers[at] -= 2 * kStep;
      const double down = weighted_sum(run_op(moved), weights);
      const double want = (up - down) / (2 * kStep);
      const double got = none ? 0 : values[static_cast<size_t>(grads[i])].numbers[at];
      if (!(std::abs(got - want) <= 2e-6 * (1 + std::abs(want)))) {
        mistakes.push_back(
            fmt::format("gradient of input {}, element {}: {} instead of {}", i, at, got, want));
      }
    }
  }
  return mistakes;
}

}  // namespace

Mistakes check_gradients(const Application& a, size_t grad_outputs) {
  bool differentiable = false;
  for (const HostTensor& t : a.in) differentiable |= is_float(t.type.dtype);
  if (!differentiable) return {};
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<HostTensor> weights = run_op(a);
  for (size_t o = 0; o < weights.size(); ++o) {
    if (o >= grad_outputs) weights[o].numbers.clear();
    for (double& w : weights[o].numbers) w = uniform(random);
  }
  Mistakes mistakes = check_gradients_for(a, weights);
  if (std::min(weights.size(), grad_outputs) < 2) return mistakes;
  for (size_t o = 0; o < weights.size() && o < grad_outputs; ++o) {
    std::vector<HostTensor> one(weights.size());
    one[o] = weights[o];
    for (const std::string& m : check_gradients_for(a, one)) {
      mistakes.push_back(fmt::format("with a gradient of output {} only: {}", o, m));
    }
  }
  return mistakes;
}

Mistakes check_decompositions(const Application& a) {
  Mistakes mistakes;
  if (a.op->split == nullptr) return mistakes;
  const std::vector<HostTensor> want = run_op(a);
  const std::vector<int64_t> sizes = a.sizes();
  const std::vector<TensorType> types = a.in_types();
  bool any_whole = false, any_split = false;
  for (const Factor& factor : a.signature->factors()) {
    if (!factor.whole) continue;
    any_whole = true;
    for (const int64_t shards : {2, 4}) {
      Graph graph;
      const std::vector<Value> in = add_sources(graph, a.in, "in");
      const OpCall call{*a.signature, sizes, a.attrs, types};
      const std::vector<Value> out = a.op->split({graph, call, factor.letter, shards, in});
      if (out.empty()) continue;
      any_split = true;
      const std::string what = fmt::format("split of {} into {}", factor.letter, shards);
      const std::vector<HostTensor> values = run_graph(graph, a.in);
      std::vector<HostTensor> got;
      for (const Value v : out) got.push_back(values[static_cast<size_t>(v)]);
      compare(got, want, what, mistakes);
      for (const std::string& m : follow_split(a, factor.letter, shards, graph, in, out)) {
        mistakes.push_back(m);
      }
      for (const Node& node : graph.nodes()) {
        check_node_splits(graph, node, values, what, mistakes);
      }
    }
  }
  if (any_whole && !any_split) mistakes.push_back("has a `split`, but splits no factor");
  return mistakes;
}

}  // namespace cleave::testing
