// A reverse walk over the nodes, then a look at what the new nodes read: it must still be there.
#include "tracer/autodiff.h"

#include <algorithm>
#include <map>
#include <set>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/overlap.h"
#include "tracer/state.h"

namespace cleave {

namespace {

// One reverse walk over a graph.
class Backward {
 public:
  Backward(Tracer& tracer, std::span<const Tensor> parameters)
      : tracer_(tracer), graph_(tracer.graph()), first_new_(num_nodes()), before_(graph_.cursor) {
    reached_.resize(graph_.values().size());
    contributions_.resize(graph_.values().size());
    for (const Tensor& p : parameters) reached_[static_cast<size_t>(p.stored())] = true;
    for (const Node& node : graph_.nodes()) {
      if (stops(node) || !any_reached(node.inputs)) continue;
      for (Value v : node.outputs)
        reached_[static_cast<size_t>(v)] = is_float(graph_.type(v).dtype);
    }
  }
  ~Backward() { graph_.cursor = before_; }
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;

  // `passed(n)`: nothing will be added any more to the gradients of values that only node n and
  // later ones read.
  void walk(Value loss, const std::function<void(NodeId)>& passed) {
    stand_at(graph_.value(loss).producer, kNoNode);
    const Attrs seed{{"value", 1.0}, {"dtype", std::string(name_of(graph_.type(loss).dtype))}};
    contributions_[static_cast<size_t>(loss)] = {graph_.add1(ops::fill, {}, "->", seed)};
    for (NodeId n = graph_.value(loss).producer; n >= 0; --n) {
      differentiate(n);
      passed(n);
    }
    passed(kNoNode);
  }

  // New nodes are of the backward, and of no node or scope.
  void stand_free() { stand_at(kNoNode, kNoNode); }

  // The sum of what reached a value; kNoValue when nothing did.
  Value gradient(Value v) {
    std::vector<Value>& terms = contributions_[static_cast<size_t>(v)];
    if (terms.empty()) return kNoValue;
    if (terms.size() > 1) {
      stand_at(graph_.value(v).producer, kNoNode);
      if (const int32_t s = graph_.value(v).source; s >= 0) {
        graph_.cursor.loc = tracer_.state().made[static_cast<size_t>(s)];
      }
      const std::string letters = letters_for(graph_.type(v).shape.size());
      std::string factors = letters;
      for (size_t i = 1; i < terms.size(); ++i) factors += "," + letters;
      terms = {graph_.add1(ops::add_n, terms, factors + "->" + letters)};
    }
    return terms[0];
  }

  // Refuses a backward that reads what a node has since overwritten. Only nodes that the gradients
  // need count.
  void check_reads(std::span<const Value> gradients) const;

 private:
  NodeId num_nodes() const { return static_cast<NodeId>(graph_.nodes().size()); }
  static bool stops(const Node& node) { return node.attrs.has("detach"); }

  bool any_reached(const std::vector<Value>& values) const {
    return std::any_of(values.begin(), values.end(),
                       [&](Value v) { return reached_[static_cast<size_t>(v)]; });
  }

  // New nodes carry the line and the scope of this forward node.
  void stand_at(NodeId n, NodeId follows) {
    graph_.cursor = before_;
    graph_.cursor.phase = Phase::kBackward;
    graph_.cursor.follows = follows;
    if (n == kNoNode) return;
    graph_.cursor.loc = graph_.node(n).loc;
    graph_.cursor.scope = graph_.node(n).scope;
  }

  void differentiate(NodeId n) {
    const std::vector<Value> inputs = graph_.node(n).inputs, outputs = graph_.node(n).outputs;
    const OpDef& op = *graph_.node(n).op;
    if (stops(graph_.node(n)) || !any_reached(inputs)) return;
    std::vector<Value> output_grads;
    for (Value v : outputs) output_grads.push_back(own_constant(gradient(v)));
    if (std::all_of(output_grads.begin(), output_grads.end(),
                    [](Value v) { return v == kNoValue; })) {
      return;
    }
    if (op.grad == nullptr) {
      fail("{}: {} has no gradient, and lies between a parameter and the loss: detach() its input",
           graph_.place(graph_.node(n).loc), op.name);
    }
    stand_at(n, n);
    const NodeId first = num_nodes();
    GradContext context(graph_, n, output_grads);
    const std::vector<Value> input_grads = op.grad(context);
    for (NodeId m = first; m < num_nodes(); ++m) {
      for (Value v : graph_.node(m).inputs) {
        if (is_constant(v)) read_constants_.insert(v);
      }
    }
    CLEAVE_ASSERT(input_grads.size() == inputs.size(), "the gradient of {} gives {} values",
                  op.name, input_grads.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (input_grads[i] == kNoValue || !reached_[static_cast<size_t>(inputs[i])]) continue;
      CLEAVE_ASSERT(graph_.type(input_grads[i]) == graph_.type(inputs[i]),
                    "the gradient of input {} of {} is {}, not {}", i, op.name,
                    to_string(graph_.type(input_grads[i])), to_string(graph_.type(inputs[i])));
      contributions_[static_cast<size_t>(inputs[i])].push_back(input_grads[i]);
    }
  }

  bool is_constant(Value v) const {
    const NodeId producer = v == kNoValue ? kNoNode : graph_.value(v).producer;
    return producer != kNoNode && graph_.node(producer).op == &ops::fill;
  }

  // A constant that another node reads already is made anew: parts of a loss that are added up (one
  // of each layer, say) have the same gradient, and should not hang together by it.
  Value own_constant(Value v) {
    if (!is_constant(v) || !read_constants_.contains(v)) return v;
    const Node& made = graph_.node(graph_.value(v).producer);
    stand_at(graph_.value(v).producer, kNoNode);
    const std::string factors = made.signature->text();
    const Attrs attrs = made.attrs;
    return graph_.add1(ops::fill, {}, factors, attrs);
  }

  Tracer& tracer_;
  Graph& graph_;
  NodeId first_new_;
  Cursor before_;
  std::vector<bool> reached_;                      // whether a parameter reaches the value
  std::vector<std::vector<Value>> contributions_;  // to the gradient of each forward value
  std::set<Value> read_constants_;                 // gradients that are filled in, and read
};

void Backward::check_reads(std::span<const Value> gradients) const {
  struct Write {
    NodeId node;
    int32_t version;
    Geometry part;
  };
  std::vector<std::vector<Write>> writes(static_cast<size_t>(graph_.num_storages()));
  for (NodeId n = 0; n < first_new_; ++n) {
    const Node& node = graph_.node(n);
    for (size_t o = 0; o < node.writes.size(); ++o) {
      if (node.writes[o] == kNoValue) continue;
      const ValueInfo& info = graph_.value(node.outputs[o]);
      writes[static_cast<size_t>(info.storage)].push_back(
          {n, info.version, written_part(graph_, node, o)});
    }
  }
  std::vector<bool> wanted(graph_.values().size());
  for (Value v : gradients) wanted[static_cast<size_t>(v)] = true;
  for (NodeId n = num_nodes(); n-- > first_new_;) {
    const Node& node = graph_.node(n);
    if (std::none_of(node.outputs.begin(), node.outputs.end(),
                     [&](Value v) { return wanted[static_cast<size_t>(v)]; })) {
      continue;
    }
    for (Value v : node.inputs) {
      wanted[static_cast<size_t>(v)] = true;
      const ValueInfo& read = graph_.value(v);
      // A view reads nothing; who reads the view is looked at by itself.
      if (graph_.value(node.outputs[0]).storage == read.storage) continue;
      for (const Write& w : writes[static_cast<size_t>(read.storage)]) {
        if (w.version <= read.version || !overlap(w.part, read.geometry)) continue;
        const Node& forward = graph_.node(node.follows == kNoNode ? w.node : node.follows);
        const Node& writer = graph_.node(w.node);
        fail(
            "{}: the gradient of {} needs a value {} that {} at {} has overwritten in place: "
            "write out of place there, or clone() the value first",
            graph_.place(forward.loc), forward.op->name, to_string(read.type), writer.op->name,
            graph_.place(writer.loc));
      }
    }
  }
}

[[noreturn]] void refuse_unreached(Tracer& tracer, std::span<const Tensor> parameters, size_t i,
                                   Value value, Loc loc) {
  Tracer::State& s = tracer.state();
  if (const Source* source = s.graph.source_of(value); source != nullptr) {
    fail("{} '{}' ({}) does not reach the loss: it has no gradient", name_of(source->kind),
         source->name, s.graph.place(tracer.made_at(parameters[i])));
  }
  s.refuse(loc, "gradients", parameters, fmt::format("number {} does not reach the loss", i));
}

}  // namespace

void gradients(const Tensor& loss, std::span<const Tensor> parameters, const GradientReady& ready,
               Loc loc) {
  Tracer& tracer = common_tracer({&loss, 1}, "gradients", loc);
  common_tracer(parameters, "gradients", loc);
  Tracer::State& s = tracer.state();
  if (loss.rank() != 0 || !is_float(loss.dtype())) {
    s.refuse(loc, "gradients", {&loss, 1}, "the loss is a scalar of a float type");
  }
  const Value from = loss.value();
  std::vector<Value> values;
  for (const Tensor& p : parameters) values.push_back(p.stored());
  // The parameters by the first node that reads them; those that none reads come last.
  std::map<NodeId, std::vector<size_t>> first_read;
  std::vector<NodeId> reader(s.graph.values().size(), kNoNode);
  for (NodeId n = static_cast<NodeId>(s.graph.nodes().size()); n-- > 0;) {
    for (Value v : s.graph.node(n).inputs) reader[static_cast<size_t>(v)] = n;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    first_read[reader[static_cast<size_t>(values[i])]].push_back(i);
  }
  Backward backward(tracer, parameters);
  std::vector<Value> grads(values.size(), kNoValue);
  backward.walk(from, [&](NodeId n) {
    const auto complete = first_read.find(n);
    if (complete == first_read.end()) return;
    for (size_t i : complete->second) {
      grads[i] = backward.gradient(values[i]);
      if (grads[i] == kNoValue) refuse_unreached(tracer, parameters, i, values[i], loc);
      backward.stand_free();
      ready(i, tracer.wrap(grads[i]));
    }
    first_read.erase(complete);
  });
  for (const auto& [n, rest] : first_read) {
    refuse_unreached(tracer, parameters, rest[0], values[rest[0]], loc);
  }
  backward.check_reads(grads);
}

std::vector<Tensor> gradients(const Tensor& loss, std::span<const Tensor> parameters, Loc loc) {
  std::vector<Tensor> result(parameters.size());
  gradients(
      loss, parameters, [&](size_t i, const Tensor& gradient) { result[i] = gradient; }, loc);
  return result;
}

}  // namespace cleave
