#include "graph/verify.h"

#include <cctype>
#include <cmath>
#include <unordered_set>

#include "graph/error.h"
#include "graph/text.h"

namespace cleave {
namespace {

template <class T>
bool in_range(int32_t i, const std::vector<T>& list) {
  return i >= 0 && static_cast<size_t>(i) < list.size();
}

// Walks the nodes in order and keeps what is defined so far.
class Verifier {
 public:
  explicit Verifier(const Graph& graph)
      : graph_(graph),
        defined_(graph.values().size(), false),
        newest_(static_cast<size_t>(graph.num_storages()), -1) {}

  void run() {
    for (size_t s = 0; s < graph_.sources().size(); ++s) {
      what_ = fmt::format("source {} '{}'", s, graph_.sources()[s].name);
      source(static_cast<int32_t>(s));
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      what_ = fmt::format("node {}", n);
      node(static_cast<NodeId>(n));
    }
    what_ = "graph";
    const std::string mistake = accumulation_mistake(graph_);
    check(mistake.empty(), "{}", mistake);
    for (size_t v = 0; v < defined_.size(); ++v) check(defined_[v], "nothing makes %{}", v);
    for (size_t s = 0; s < newest_.size(); ++s) {
      check(newest_[s] == graph_.newest_version(static_cast<int32_t>(s)),
            "storage {} reaches version {}, not {}", s, newest_[s],
            graph_.newest_version(static_cast<int32_t>(s)));
    }
    for (const Source& s : graph_.sources()) {
      what_ = fmt::format("source '{}'", s.name);
      check(in_range(s.final, graph_.values()), "no value %{}", s.final);
      check(s.kind != SourceKind::kData || s.final == s.value, "data has a next value");
      check(graph_.type(s.final) == graph_.type(s.value), "the next value is {}",
            to_string(graph_.type(s.final)));
    }
    for (const Output& o : graph_.outputs()) {
      what_ = fmt::format("output '{}'", o.name);
      check(in_range(o.value, graph_.values()), "no value %{}", o.value);
    }
  }

 private:
  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> format, Args&&... args) const {
    if (condition) return;
    std::string place = what_;
    if (printable_ != kNoNode) place += ", " + to_text(graph_, printable_);
    throw InternalError(
        fmt::format("{}: {}", place, fmt::format(format, std::forward<Args>(args)...)));
  }

  void source(int32_t index) {
    const Source& s = graph_.sources()[static_cast<size_t>(index)];
    check(in_range(s.value, graph_.values()), "no value %{}", s.value);
    check(names_.insert(s.name).second, "a second source of this name");
    const ValueInfo& v = graph_.value(s.value);
    check(v.source == index && v.producer == kNoNode, "%{} is not its value", s.value);
    for (int64_t size : v.type.shape) check(size > 0, "shape {}", to_string(v.type.shape));
    check(s.roles.empty() || s.roles.size() == v.type.shape.size(), "{} roles for {}",
          s.roles.size(), to_string(v.type));
    check(std::isfinite(s.init.a), "starts at {}", s.init.a);
    new_storage(s.value);
    defined_[static_cast<size_t>(s.value)] = true;
  }

  void node(NodeId id) {
    const Node& n = graph_.node(id);
    check(n.op != nullptr && n.signature != nullptr, "without an op or factors");
    for (Value v : n.inputs) operand(v, id, "reads");
    for (Value v : n.writes) {
      if (v != kNoValue) operand(v, id, "writes");
    }
    check(n.outputs.size() == n.signature->outputs().size(), "{} outputs for '{}'",
          n.outputs.size(), n.signature->text());
    check(n.writes.empty() || n.writes.size() == n.outputs.size(), "{} targets for {} outputs",
          n.writes.size(), n.outputs.size());
    for (Value v : n.outputs) {
      check(in_range(v, graph_.values()), "no value %{}", v);
      check(!defined_[static_cast<size_t>(v)], "makes %{} again", v);
    }
    check(in_range(n.scope, graph_.scopes()), "no scope {}", n.scope);
    check(n.loc.file == -1 || in_range(n.loc.file, graph_.files()), "no file {}", n.loc.file);
    check(n.follows >= kNoNode && n.follows < id, "follows node {}", n.follows);
    printable_ = id;
    types(n);
    if (n.follows != kNoNode) {
      const std::string mistake = follower_mistake(n, graph_.node(n.follows));
      check(mistake.empty(), "{}", mistake);
    }
    storages(n, id);
    printable_ = kNoNode;
  }

  void operand(Value v, NodeId id, std::string_view verb) const {
    check(in_range(v, graph_.values()), "no value %{}", v);
    check(defined_[static_cast<size_t>(v)], "{} %{} before it is made", verb, v);
    check(graph_.value(v).producer < id, "{} %{}, made by node {}", verb, v,
          graph_.value(v).producer);
  }

  void types(const Node& n) const {
    const std::vector<TensorType> in = graph_.input_types(n);
    std::vector<TensorType> out;
    try {
      check(n.extents == solve_extents(*n.signature, n.attrs, in), "factor sizes {}",
            to_string(n.extents));
      out = n.op->infer(Graph::call(n, in));
    } catch (const Error& e) {
      check(false, "{}", e.what());
    }
    check(out.size() == n.outputs.size(), "{} types are inferred", out.size());
    for (size_t o = 0; o < out.size(); ++o) {
      check(graph_.type(n.outputs[o]) == out[o], "%{} is inferred to be {}", n.outputs[o],
            to_string(out[o]));
    }
  }

  void storages(const Node& n, NodeId id) {
    std::optional<std::vector<Geometry>> views;
    if (n.op->view != nullptr) {
      const std::vector<TensorType> in = graph_.input_types(n);
      views = n.op->view(Graph::call(n, in), graph_.value(n.inputs[0]).geometry);
    }
    for (size_t o = 0; o < n.outputs.size(); ++o) {
      const Value out = n.outputs[o];
      const ValueInfo& v = graph_.value(out);
      check(v.producer == id && v.output == static_cast<int32_t>(o) && v.source == -1,
            "%{} does not name it as its maker", out);
      if (const Value target = n.overwrites(o); target != kNoValue) {
        const ValueInfo& old = graph_.value(target);
        int32_t& newest = newest_[static_cast<size_t>(old.storage)];
        check(old.version == newest, "writes %{} at version {}, but version {} is newest", target,
              old.version, newest);
        check(v.storage == old.storage && v.version == newest + 1 && v.geometry == old.geometry,
              "%{} is not the next version of %{}", out, target);
        check(v.type == old.type, "writes %{}, of another type", target);
        ++newest;
      } else if (views) {
        const ValueInfo& base = graph_.value(n.inputs[0]);
        check(v.storage == base.storage && v.version == base.version && v.geometry == (*views)[o],
              "%{} is not a view of %{}", out, n.inputs[0]);
      } else {
        new_storage(out);
      }
      defined_[static_cast<size_t>(out)] = true;
    }
  }

  void new_storage(Value value) {
    const ValueInfo& v = graph_.value(value);
    check(v.storage >= 0 && static_cast<size_t>(v.storage) < newest_.size(), "no storage {}",
          v.storage);
    int32_t& newest = newest_[static_cast<size_t>(v.storage)];
    check(newest == -1 && v.version == 0, "%{} is not the beginning of its storage", value);
    const Geometry whole{0, v.type.shape, contiguous_strides(v.type.shape)};
    check(v.geometry == whole, "%{} does not fill its storage", value);
    newest = 0;
  }

  const Graph& graph_;
  std::vector<bool> defined_;    // by value
  std::vector<int32_t> newest_;  // version so far, by storage; -1: not begun
  std::unordered_set<std::string> names_;
  std::string what_;            // is checked now
  NodeId printable_ = kNoNode;  // the node that is, once its indices are known to be sound
};

}  // namespace

std::string follower_mistake(const Node& node, const Node& leader) {
  for (size_t f = 0; f < node.extents.size(); ++f) {
    const char letter = node.signature->factors()[f].letter;
    const char other =
        static_cast<char>(std::islower(letter) ? std::toupper(letter) : std::tolower(letter));
    int at = leader.signature->factor(letter);
    if (at < 0 && node.signature->factor(other) < 0) at = leader.signature->factor(other);
    if (at < 0) continue;
    const int64_t size = leader.extents[static_cast<size_t>(at)];
    if (size != node.extents[f]) {
      return fmt::format("factor '{}' is {}, but {} in node '{}' that it follows", letter,
                         node.extents[f], size, leader.signature->text());
    }
  }
  return {};
}

void verify(const Graph& graph) { Verifier(graph).run(); }

std::string accumulation_mistake(const Graph& graph) {
  if (graph.micro_batches < 1)
    return fmt::format("{} micro-batches in a step", graph.micro_batches);
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kAccumulator) continue;
    if (s.init != Init{}) return fmt::format("accumulator '{}' does not start at zero", s.name);
    const NodeId producer = graph.value(s.final).producer;
    if (producer == kNoNode || graph.node(producer).phase == Phase::kUpdate) {
      return fmt::format("accumulator '{}' is not written before the update", s.name);
    }
  }
  if (graph.micro_batches == 1) return "";
  bool updating = false;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const bool update = graph.nodes()[n].phase == Phase::kUpdate;
    if (updating && !update) {
      return fmt::format("node {} of the {} stands behind the update of {} micro-batches", n,
                         name_of(graph.nodes()[n].phase), graph.micro_batches);
    }
    updating |= update;
  }
  return "";
}

}  // namespace cleave
