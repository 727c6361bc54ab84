#include "cli/syncs.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "cli/plan_parts.h"
#include "graph/error.h"
#include "planner/meetings.h"
#include "planner/pins.h"
#include "viz/names.h"

namespace cleave {
namespace {

class Collector {
 public:
  Collector(const Graph& graph, const Plan& plan, const std::vector<NodeId>& only)
      : graph_(graph), plan_(plan), only_(only.begin(), only.end()) {
    readers_.resize(graph.values().size());
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      for (Value v : graph.nodes()[n].inputs) {
        readers_[static_cast<size_t>(v)].push_back(static_cast<NodeId>(n));
      }
    }
  }

  std::vector<Sync> all() {
    std::vector<std::pair<Meeting, NodeId>> near;  // and the node where it lies
    std::map<int32_t, double> seconds;             // by stage
    for (const Meeting& m : meetings(graph_, plan_)) {
      if (!wanted(m)) continue;
      near.emplace_back(m, place_of(m));
      seconds[m.stage] += m.seconds;
    }
    if (seconds.empty()) return {};
    int32_t stage = busiest_stage(graph_, plan_).stage;
    if (!seconds.contains(stage)) {
      const auto less = [](const auto& x, const auto& y) { return x.second < y.second; };
      stage = std::max_element(seconds.begin(), seconds.end(), less)->first;
    }
    for (const auto& [meeting, node] : near) {
      if (meeting.stage == stage) add(meeting, node);
    }
    std::vector<Sync> result;
    for (auto& [key, sync] : found_) {
      sync.places = static_cast<int64_t>(names_[key].size());
      result.push_back(std::move(sync));
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const Sync& a, const Sync& b) { return a.seconds > b.seconds; });
    return result;
  }

 private:
  using Key = std::tuple<StepKind, int32_t, Phase, bool, bool, std::string, std::string>;

  bool wanted(NodeId n) const { return only_.empty() || only_.contains(n); }

  bool wanted(const Meeting& m) const {
    if (m.node != kNoNode) return wanted(m.node);
    const NodeId producer = graph_.value(m.value).producer;
    const auto& readers = readers_[static_cast<size_t>(m.value)];
    return (producer != kNoNode && wanted(producer)) ||
           std::any_of(readers.begin(), readers.end(), [&](NodeId n) { return wanted(n); });
  }

  // A parameter's way is named by the parameter, and lies where it is first read.
  NodeId place_of(const Meeting& m) const {
    if (m.node != kNoNode) return m.node;
    if (graph_.source_of(m.value) == nullptr) return graph_.value(m.value).producer;
    const auto& readers = readers_[static_cast<size_t>(m.value)];
    const auto first = std::find_if(readers.begin(), readers.end(),
                                    [&](NodeId n) { return graph_.node(n).phase == m.phase; });
    return first != readers.end() ? *first : readers.empty() ? kNoNode : readers[0];
  }

  void add(const Meeting& m, NodeId at) {
    const Source* source = m.node == kNoNode ? graph_.source_of(m.value) : nullptr;
    const bool before = source != nullptr;
    const std::string name = before ? source->name : pin_name(graph_, at);
    const std::string place = m.bundled       ? ""
                              : at == kNoNode ? "?"
                                              : graph_.place(graph_.node(at).loc);
    const std::string folded = m.bundled ? "" : folded_name(name);
    const Key key{m.step->kind, m.step->axis, m.phase, before, m.bundled, folded, place};
    Sync& s = found_[key];
    s.kind = m.step->kind, s.axis = m.step->axis, s.phase = m.phase, s.before = before;
    s.bundled = m.bundled, s.name = folded, s.place = place, s.example = at, s.stage = m.stage;
    s.count += m.times;
    s.bytes += m.bytes;
    s.seconds += m.seconds;
    names_[key].insert(name);
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::set<NodeId> only_;
  std::vector<std::vector<NodeId>> readers_;  // by value
  std::map<Key, Sync> found_;
  std::map<Key, std::set<std::string>> names_;  // in how many places
};

}  // namespace

std::vector<Sync> syncs_of(const Graph& graph, const Plan& plan, const std::vector<NodeId>& only) {
  return Collector(graph, plan, only).all();
}

std::string text_of(const Sync& s, const Plan& plan) {
  const std::string& axis = plan.mesh.axes[static_cast<size_t>(s.axis)].name;
  if (s.bundled) {
    return fmt::format("{} over {} of {}", name_of(s.kind), axis,
                       s.kind == StepKind::kAllGather ? "new weights" : "gradients and states");
  }
  return fmt::format("{} over {} {} {}", name_of(s.kind), axis, s.before ? "of" : "after", s.name);
}

}  // namespace cleave
