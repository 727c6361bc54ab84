// Two passes: the scores of one position; then the picking of that position is moved as far up as
// it goes.
#include "models/next_token.h"

#include <algorithm>
#include <string>
#include <vector>

#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// --- Copying -------------------------------------------------------------------------------------

// Copies nodes of a graph into another, in the same order. Sources come along when they are read.
class Copier {
 public:
  Copier(const Graph& from, Graph& to) : from_(from), to_(to) {
    to.name = from.name;
    for (const std::string& f : from.files()) to.intern_file(f);
    for (const std::string& s : from.scopes()) to.intern_scope(s);
    moved_.assign(from.values().size(), kNoValue);
  }

  // The copy of a value whose node has been copied, or of a source.
  Value value(Value v) {
    Value& m = moved_[static_cast<size_t>(v)];
    if (m != kNoValue) return m;
    const Source* s = from_.source_of(v);
    CLEAVE_ASSERT(s != nullptr, "%{} is read before it is made", v);
    m = to_.add_source({.kind = s->kind, .name = s->name, .init = s->init, .roles = s->roles},
                       from_.type(v));
    return m;
  }

  // The node with other inputs, factors and attributes.
  void add(const Node& node, std::vector<Value> inputs, std::string_view factors, Attrs attrs) {
    std::vector<Value> writes;
    for (const Value old : node.writes) writes.push_back(old == kNoValue ? old : value(old));
    place_at(node);
    set(node.outputs, to_.add(*node.op, std::move(inputs), factors, std::move(attrs), writes));
  }
  void add(const Node& node) {
    std::vector<Value> inputs;
    for (const Value v : node.inputs) inputs.push_back(value(v));
    add(node, std::move(inputs), node.signature->text(), node.attrs);
  }

  // From now on `v` is read as `copy`.
  void set(Value v, Value copy) { moved_[static_cast<size_t>(v)] = copy; }
  // Nodes added to the copy are of the node's line and scope.
  void place_at(const Node& node) {
    to_.cursor = {.phase = Phase::kForward, .loc = node.loc, .scope = node.scope};
  }

 private:
  void set(const std::vector<Value>& values, const std::vector<Value>& copies) {
    for (size_t o = 0; o < values.size(); ++o) set(values[o], copies[o]);
  }

  const Graph& from_;
  Graph& to_;
  std::vector<Value> moved_;
};

// --- Scores instead of the loss ------------------------------------------------------------------

// What the value is a reshape of.
Value before_reshapes(const Graph& g, Value v) {
  while (g.value(v).producer != kNoNode && g.node(g.value(v).producer).op == &ops::reshape) {
    v = g.node(g.value(v).producer).inputs[0];
  }
  return v;
}

// The cross-entropy whose classes are the tokens to be learnt.
const Node& loss_of_targets(const Graph& g) {
  const Source* targets = g.source_named("targets");
  const Node* found = nullptr;
  for (const Node& node : g.nodes()) {
    if (node.op != &ops::cross_entropy) continue;
    if (targets == nullptr || before_reshapes(g, node.inputs[1]) != targets->value) continue;
    if (found != nullptr) {
      fail(
          "{}: the loss has two cross-entropies with the targets, here and at {}: which one's "
          "scores are the next token's is not known; text cannot be generated",
          g.place(node.loc), g.place(found->loc));
    }
    found = &node;
  }
  if (found == nullptr) {
    fail(
        "{}: the loss has no cross_entropy(scores, targets), so nothing says what the next "
        "token's scores are; text cannot be generated",
        g.name);
  }
  return *found;
}

// The scores as [batch, sequence, vocab], whatever dimensions they were flattened to.
Value unflattened(Graph& g, Value scores, const Shape& tokens) {
  const Shape& shape = g.type(scores).shape;
  if (shape.size() == 3 && shape[0] == tokens[0] && shape[1] == tokens[1]) return scores;
  if (shape.size() != 2 || shape[0] != numel(tokens)) {
    fail(
        "{}: the cross-entropy reads scores {}, not [batch, sequence, vocab] with batch {} and "
        "sequence {}; text cannot be generated",
        g.place(g.cursor.loc), to_string(shape), tokens[0], tokens[1]);
  }
  return g.add1(ops::reshape, {scores}, "(bs)v->bsv", {{"b", tokens[0]}, {"s", tokens[1]}});
}

Graph scores_of_position(const Graph& from) {
  const Node& loss = loss_of_targets(from);
  const Source* tokens = from.source_named("tokens");
  if (tokens == nullptr || from.type(tokens->value).shape.size() != 2) {
    fail("{}: the loss does not read tokens [batch, sequence]; text cannot be generated",
         from.name);
  }
  Graph to;
  Copier copier(from, to);
  copier.value(tokens->value);
  for (const Node& node : from.nodes()) {
    if (node.phase != Phase::kForward) continue;
    if (&node == &loss) break;
    CLEAVE_ASSERT(node.op != &ops::dropout && node.attrs.real_or("dropout", 0) == 0,
                  "{}: dropout is on", from.place(node.loc));
    copier.add(node);
  }
  copier.place_at(loss);
  const Value scores =
      unflattened(to, copier.value(loss.inputs[0]), from.type(tokens->value).shape);
  Source position;
  position.name = "position";
  const Value row = to.add_source(std::move(position), {DType::kI32, {}});
  to.add_output("scores", to.add1(ops::pick, {scores, row}, "bsv,->bv|s:indexed"));
  to = without_dead_nodes(to);
  if (to.source_named("targets") != nullptr) {
    fail(
        "{}: the scores depend on the targets, which are not known before the text is there; text "
        "cannot be generated",
        from.name);
  }
  return to;
}

// --- One position only ---------------------------------------------------------------------------

// How a value is read: not at all, whole, or at one index of one dimension.
constexpr int kUnread = -1, kWhole = -2;

// The dimension of an operand that is this one factor; kUnread when it does not carry the factor,
// kWhole when it carries it otherwise.
int dimension_of(const OperandDims& dims, int factor) {
  int found = kUnread;
  for (size_t d = 0; d < dims.size(); ++d) {
    if (std::find(dims[d].begin(), dims[d].end(), factor) == dims[d].end()) continue;
    if (found != kUnread || dims[d].size() != 1) return kWhole;
    found = static_cast<int>(d);
  }
  return found;
}

// The factor that the node can be left with one index of, when its outputs are read so; -1: none.
int row_factor(const Graph& g, const Node& node, const std::vector<int>& reads) {
  if (!node.writes.empty()) return -1;
  int factor = -1;
  for (size_t o = 0; o < node.outputs.size(); ++o) {
    const int read = reads[static_cast<size_t>(node.outputs[o])];
    if (read == kUnread) continue;
    if (read == kWhole) return -1;
    const DimFactors& dim = node.signature->outputs()[o][static_cast<size_t>(read)];
    if (dim.size() != 1 || (factor >= 0 && dim[0] != factor)) return -1;
    factor = dim[0];
  }
  if (factor < 0) return -1;
  const Factor& f = node.signature->factors()[static_cast<size_t>(factor)];
  if (f.whole || f.indexed || !node.signature->in_inputs(factor)) return -1;
  for (const OperandDims& dims : node.signature->outputs()) {
    if (dimension_of(dims, factor) < 0) return -1;
  }
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const int dim = dimension_of(node.signature->inputs()[i], factor);
    if (dim == kWhole || (dim >= 0 && !is_float(g.type(node.inputs[i]).dtype))) return -1;
  }
  return factor;
}

// Picks the position of values that others read whole.
class RowPicker {
 public:
  RowPicker(const Graph& from, Graph& to, Copier& copier)
      : to_(to), copier_(copier), rows_(from.values().size(), kNoValue) {}

  void set(Value v, Value row) { rows_[static_cast<size_t>(v)] = row; }
  // The row of `v` along dimension `dim`.
  Value row(Value v, int dim, Value position) {
    Value& row = rows_[static_cast<size_t>(v)];
    if (row != kNoValue) return row;
    const Value whole = copier_.value(v);
    std::string in;
    for (size_t d = 0; d < to_.type(whole).shape.size(); ++d) in += static_cast<char>('a' + d);
    std::string out = in;
    out.erase(static_cast<size_t>(dim), 1);
    const char letter = in[static_cast<size_t>(dim)];
    row =
        to_.add1(ops::pick, {whole, position}, fmt::format("{},->{}|{}:indexed", in, out, letter));
    return row;
  }

 private:
  Graph& to_;
  Copier& copier_;
  std::vector<Value> rows_;
};

// The graph's last node picks a row; the nodes before it that pass the rows through, and whose
// results nobody reads whole, are given one row.
Graph with_early_pick(const Graph& from) {
  const size_t last = from.nodes().size() - 1;
  const Node& pick = from.nodes()[last];
  CLEAVE_ASSERT(pick.op == &ops::pick, "the last node is {}", pick.op->name);
  std::vector<int> reads(from.values().size(), kUnread);
  std::vector<int> factors(from.nodes().size(), -1);
  const auto read = [&](Value v, int how) {
    int& r = reads[static_cast<size_t>(v)];
    r = r == kUnread || r == how ? how : kWhole;
  };
  read(pick.inputs[0], 1);
  for (size_t n = last; n-- > 0;) {
    const Node& node = from.nodes()[n];
    factors[n] = row_factor(from, node, reads);
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const int dim =
          factors[n] < 0 ? kUnread : dimension_of(node.signature->inputs()[i], factors[n]);
      read(node.inputs[i], dim == kUnread ? kWhole : dim);
    }
    for (const Value target : node.writes) {
      if (target != kNoValue) read(target, kWhole);
    }
  }

  Graph to;
  Copier copier(from, to);
  RowPicker rows(from, to, copier);
  for (size_t n = 0; n < last; ++n) {
    const Node& node = from.nodes()[n];
    if (factors[n] < 0) {
      copier.add(node);
      continue;
    }
    copier.place_at(node);
    const char letter = node.signature->factors()[static_cast<size_t>(factors[n])].letter;
    std::vector<Value> inputs;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const int dim = dimension_of(node.signature->inputs()[i], factors[n]);
      inputs.push_back(dim < 0 ? copier.value(node.inputs[i])
                               : rows.row(node.inputs[i], dim, copier.value(pick.inputs[1])));
    }
    std::string text = node.signature->text();
    std::erase(text, letter);
    Attrs attrs;
    for (const auto& [name, value] : node.attrs.items()) {
      if (name != std::string_view(&letter, 1)) attrs.set(name, value);
    }
    copier.add(node, std::move(inputs), text, std::move(attrs));
    for (const Value v : node.outputs) rows.set(v, copier.value(v));
  }
  copier.place_at(pick);
  to.add_output("scores", rows.row(pick.inputs[0], 1, copier.value(pick.inputs[1])));
  to.cursor = {};
  return to;
}

}  // namespace

Graph next_token_graph(const Graph& loss_graph) {
  return with_early_pick(scores_of_position(loss_graph));
}

}  // namespace cleave
