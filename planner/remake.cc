#include "planner/remake.h"

#include <algorithm>

#include "graph/dependencies.h"
#include "graph/error.h"
#include "planner/made_once.h"

namespace cleave {
namespace {

bool made_by_forward(const Graph& graph, Value v) {
  const NodeId producer = graph.value(v).producer;
  return producer != kNoNode && graph.node(producer).phase == Phase::kForward;
}

bool writes_in_place(const Node& node) {
  return std::any_of(node.writes.begin(), node.writes.end(), [](Value v) { return v != kNoValue; });
}

// Builds the graph anew, node by node, with the copies in between.
class Remaker {
 public:
  Remaker(const RewrittenGraph& from, std::vector<bool> again)
      : from_(from),
        graph_(from.graph),
        again_(std::move(again)),
        moved_(graph_.values().size(), kNoValue),
        remade_(graph_.values().size(), kNoValue),
        moved_node_(graph_.nodes().size(), kNoNode),
        copied_(graph_.nodes().size(), false) {}

  RewrittenGraph run() {
    Graph& g = result_.graph;
    g.name = graph_.name;
    g.micro_batches = graph_.micro_batches;
    for (const std::string& f : graph_.files()) g.intern_file(f);
    for (const std::string& s : graph_.scopes()) g.intern_scope(s);
    for (const Source& s : graph_.sources()) moved(s.value) = g.add_source(s, graph_.type(s.value));
    for (size_t n = 0; n < graph_.nodes().size(); ++n) add_node(static_cast<NodeId>(n));
    for (const Source& s : graph_.sources()) {
      if (s.final != s.value) g.set_final(moved(s.value), moved(s.final));
    }
    for (const Output& o : graph_.outputs()) g.add_output(o.name, moved(o.value));
    g.cursor = {};
    return std::move(result_);
  }

 private:
  Value& moved(Value v) { return moved_[static_cast<size_t>(v)]; }

  bool is_remade(Value v) const {
    const NodeId producer = graph_.value(v).producer;
    return producer != kNoNode && again_[static_cast<size_t>(producer)];
  }

  // What the backward reads where the traced graph reads v.
  Value for_backward(Value v) { return is_remade(v) ? remade_[static_cast<size_t>(v)] : moved(v); }

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const bool backward = node.phase == Phase::kBackward;
    if (backward) copy_makers(node);
    std::vector<Value> inputs, writes;
    for (Value v : node.inputs) inputs.push_back(backward ? for_backward(v) : moved(v));
    for (Value v : node.writes) writes.push_back(v == kNoValue ? v : moved(v));
    const NodeId follows =
        node.follows == kNoNode ? kNoNode : moved_node_[static_cast<size_t>(node.follows)];
    const auto out = add(n, node.phase, follows, std::move(inputs), std::move(writes));
    for (size_t o = 0; o < out.size(); ++o) moved(node.outputs[o]) = out[o];
    moved_node_[static_cast<size_t>(n)] = static_cast<NodeId>(result_.graph.nodes().size() - 1);
  }

  // Copies all that must run again for what this node of the backward reads, in traced order.
  void copy_makers(const Node& reader) {
    std::vector<NodeId> found, open;
    const auto want = [&](const Node& node) {
      for (Value v : node.inputs) {
        const NodeId producer = graph_.value(v).producer;
        if (!is_remade(v) || copied_[static_cast<size_t>(producer)]) continue;
        copied_[static_cast<size_t>(producer)] = true;
        open.push_back(producer);
      }
    };
    want(reader);
    while (!open.empty()) {
      found.push_back(open.back());
      open.pop_back();
      want(graph_.node(found.back()));
    }
    std::sort(found.begin(), found.end());
    for (NodeId n : found) {
      const Node& node = graph_.node(n);
      std::vector<Value> inputs;
      for (Value v : node.inputs) inputs.push_back(for_backward(v));
      const auto out =
          add(n, Phase::kBackward, moved_node_[static_cast<size_t>(n)], std::move(inputs), {});
      for (size_t o = 0; o < out.size(); ++o) {
        remade_[static_cast<size_t>(node.outputs[o])] = out[o];
      }
    }
  }

  std::vector<Value> add(NodeId n, Phase phase, NodeId follows, std::vector<Value> inputs,
                         std::vector<Value> writes) {
    const Node& node = graph_.node(n);
    result_.graph.cursor = {
        .phase = phase, .follows = follows, .loc = node.loc, .scope = node.scope};
    if (!from_.chunk_of.empty()) {
      result_.chunk_of.push_back(from_.chunk_of[static_cast<size_t>(n)]);
    }
    result_.origin.push_back(from_.origin[static_cast<size_t>(n)]);
    return result_.graph.add(*node.op, std::move(inputs), node.signature->text(), node.attrs,
                             std::move(writes));
  }

  const RewrittenGraph& from_;
  const Graph& graph_;
  std::vector<bool> again_;         // by node of graph_
  std::vector<Value> moved_;        // by value of graph_: what it is now
  std::vector<Value> remade_;       // by value of graph_: its copy's, once there is one
  std::vector<NodeId> moved_node_;  // by node of graph_
  std::vector<bool> copied_;        // by node of graph_: or about to be
  RewrittenGraph result_;
};

}  // namespace

std::vector<bool> can_be_remade(const Graph& graph) {
  const NodeId size = static_cast<NodeId>(graph.nodes().size());
  NodeId last_reader = kNoNode;
  for (NodeId n = size; n-- > 0 && last_reader == kNoNode;) {
    const Node& node = graph.node(n);
    const bool reads = std::any_of(node.inputs.begin(), node.inputs.end(),
                                   [&](Value v) { return made_by_forward(graph, v); });
    if (node.phase == Phase::kBackward && reads) last_reader = n;
  }
  // By storage: the newest version it has when the backward last reads what the forward made.
  std::vector<int32_t> version(static_cast<size_t>(graph.num_storages()), 0);
  for (NodeId n = 0; n < last_reader; ++n) {
    for (Value v : graph.node(n).outputs) {
      const ValueInfo& info = graph.value(v);
      int32_t& newest = version[static_cast<size_t>(info.storage)];
      newest = std::max(newest, info.version);
    }
  }
  // What lasts for the whole step need not be made again.
  const std::vector<bool> once = made_once(graph);
  std::vector<bool> result;
  for (const Node& node : graph.nodes()) {
    const bool overwritten = std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
      const ValueInfo& info = graph.value(v);
      return info.version < version[static_cast<size_t>(info.storage)];
    });
    result.push_back(node.phase == Phase::kForward && !node.op->transfer && !overwritten &&
                     !writes_in_place(node) && !once[result.size()]);
  }
  return result;
}

RewrittenGraph remade(const RewrittenGraph& from, const std::vector<NodeId>& nodes) {
  const Graph& graph = from.graph;
  const std::vector<bool> possible = can_be_remade(graph);
  std::vector<bool> again(graph.nodes().size(), false);
  for (NodeId n : nodes) {
    CLEAVE_ASSERT(n >= 0 && static_cast<size_t>(n) < again.size(), "there is no node {} to remake",
                  n);
    CLEAVE_ASSERT(possible[static_cast<size_t>(n)], "node {}, {} of the {}, cannot be remade", n,
                  graph.node(n).op->name, name_of(graph.node(n).phase));
    again[static_cast<size_t>(n)] = true;
  }
  for (size_t n = 0; n < again.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (again[n] || !possible[n] || !is_view(graph, node)) continue;
    const NodeId base = graph.value(node.inputs[0]).producer;
    again[n] = base != kNoNode && again[static_cast<size_t>(base)];
  }
  return Remaker(from, std::move(again)).run();
}

std::vector<NodeId> repeated_nodes(const Graph& graph) {
  std::vector<NodeId> result(graph.nodes().size(), kNoNode);
  for (size_t n = 0; n < result.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kBackward || node.follows == kNoNode) continue;
    const Node& leader = graph.node(node.follows);
    if (leader.phase != Phase::kForward || node.op != leader.op ||
        node.signature != leader.signature || node.inputs.size() != leader.inputs.size() ||
        node.attrs != leader.attrs) {
      continue;
    }
    bool same = true;
    for (size_t i = 0; i < node.inputs.size() && same; ++i) {
      const ValueInfo &a = graph.value(node.inputs[i]), &b = graph.value(leader.inputs[i]);
      same = node.inputs[i] == leader.inputs[i] ||
             (a.producer != kNoNode && b.producer != kNoNode && a.output == b.output &&
              result[static_cast<size_t>(a.producer)] == b.producer);
    }
    if (same) result[n] = node.follows;
  }
  return result;
}

}  // namespace cleave
