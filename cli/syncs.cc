#include "cli/syncs.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "graph/error.h"
#include "planner/bundles.h"
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
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      for (const Step& s : plan_.nodes[n].inner) {
        const auto node = static_cast<NodeId>(n);
        if (wanted(node)) add(s, graph_.nodes()[n].phase, false, false, node, op_name(node));
      }
    }
    for (bool made_by_update : {false, true}) {
      for (const Bundle& bundle : bundles(graph_, plan_, made_by_update)) starts(bundle);
    }
    for (Value v = 0; v < static_cast<Value>(graph_.values().size()); ++v) value(v);
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

  std::string op_name(NodeId n) const { return pin_name(graph_, n); }

  // A bundle starts once for all its steps: each is given its share, by bytes.
  void starts(const Bundle& bundle) {
    const double seconds = start_seconds(plan_, bundle);
    double bytes = 0;
    for (const BundledStep& b : bundle) bytes += step_of(plan_, {b}).bytes;
    for (const BundledStep& b : bundle) {
      const Step& step = step_of(plan_, {b});
      if (bytes > 0) start_of_[&step] = seconds * step.bytes / bytes;
    }
  }

  void value(Value v) {
    const NodeId producer = graph_.value(v).producer;
    const Source* source = graph_.source_of(v);
    const auto& readers = readers_[static_cast<size_t>(v)];
    const bool near = producer != kNoNode && wanted(producer);
    for (const Form& form : plan_.values[static_cast<size_t>(v)]) {
      for (const Step& step : form.steps) {
        if (!is_collective(step.kind)) continue;
        // A parameter's way is named by the parameter, and lies where it is first read.
        NodeId at = producer;
        if (source != nullptr) {
          const auto first = std::find_if(readers.begin(), readers.end(), [&](NodeId n) {
            return graph_.node(n).phase == form.phase;
          });
          at = first != readers.end() ? *first : readers.empty() ? kNoNode : readers[0];
        }
        const bool read_near =
            std::any_of(readers.begin(), readers.end(), [&](NodeId n) { return wanted(n); });
        if (!near && !read_near) continue;
        add(step, form.phase, source != nullptr, form.bundled, at,
            source != nullptr ? source->name : op_name(producer));
      }
    }
  }

  void add(const Step& step, Phase phase, bool before, bool bundled, NodeId at,
           const std::string& name) {
    const std::string place = at == kNoNode ? "?" : graph_.place(graph_.node(at).loc);
    const std::string folded = bundled ? std::string() : folded_name(name);
    const Key key{step.kind, step.axis, phase, before, bundled, folded, bundled ? "" : place};
    Sync& s = found_[key];
    s.kind = step.kind, s.axis = step.axis, s.phase = phase, s.before = before;
    s.bundled = bundled, s.name = folded, s.place = bundled ? "" : place, s.example = at;
    const int64_t times = phase == Phase::kUpdate || bundled ? 1 : graph_.micro_batches;
    s.count += times;
    s.bytes += static_cast<double>(times) * step.bytes;
    s.seconds += static_cast<double>(times) * step.seconds;
    if (const auto start = start_of_.find(&step); start != start_of_.end()) {
      s.seconds += start->second;
    }
    names_[key].insert(name);
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::set<NodeId> only_;
  std::vector<std::vector<NodeId>> readers_;  // by value
  std::map<const Step*, double> start_of_;    // seconds; of bundled steps
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
