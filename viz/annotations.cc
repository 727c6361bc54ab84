#include "viz/annotations.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "graph/number_text.h"
#include "planner/regions.h"
#include "viz/class_words.h"

namespace cleave {
namespace {

Annotations sized(const Graph& graph) {
  Annotations a;
  a.region_of_node.resize(graph.nodes().size());
  a.fills_of_value.resize(graph.values().size());
  a.on_input.resize(graph.nodes().size());
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    a.on_input[n].resize(graph.nodes()[n].inputs.size());
  }
  a.inside.resize(graph.nodes().size());
  a.on_output.resize(graph.outputs().size());
  a.on_final.resize(graph.sources().size());
  return a;
}

bool carries(const Dimensions& dims, Value v, ClassId c) {
  const auto& atoms = dims.values[static_cast<size_t>(v)];
  return std::any_of(atoms.begin(), atoms.end(),
                     [c](const ValueAtom& a) { return a.dimension_class == c; });
}

// --- From a plan ---------------------------------------------------------------------------------

const char* colour_of(StepKind kind) {
  switch (kind) {
    case StepKind::kAllReduce: return colours::kAllReduce;
    case StepKind::kAllGather: return colours::kAllGather;
    case StepKind::kReduceScatter: return colours::kReduceScatter;
    case StepKind::kAllToAll: return colours::kAllToAll;
    case StepKind::kShift: return colours::kAllToAll;
    case StepKind::kSlice:
    case StepKind::kMask: break;
  }
  return colours::kPlain;
}

const char* colour_of(const Placement& p) {
  return p.is_shard()     ? colours::kSharded
         : p.is_partial() ? colours::kPartial
                          : colours::kReplicated;
}

class PlanAnnotator {
 public:
  PlanAnnotator(const Graph& graph, const Plan& plan)
      : graph_(graph),
        plan_(plan),
        words_(class_words(graph, *plan.dimensions)),
        a_(sized(graph)) {}

  Annotations result() {
    const size_t axis = main_axis();
    for (size_t n = 0; n < graph_.nodes().size(); ++n) add_node(n, axis);
    for (size_t v = 0; v < graph_.values().size(); ++v) {
      if (plan_.values[v].empty()) continue;
      for (const Placement& p : plan_.values[v][0].placements) {
        a_.fills_of_value[v].push_back(colour_of(p));
      }
    }
    for (size_t o = 0; o < graph_.outputs().size(); ++o) {
      a_.on_output[o] = way(graph_.outputs()[o].value, plan_.output_form[o]);
    }
    for (size_t i = 0; i < graph_.sources().size(); ++i) {
      const Source& s = graph_.sources()[i];
      if (s.final != kNoValue && s.final != s.value) {
        a_.on_final[i] = way(s.final, plan_.final_form[i]);
      }
    }
    add_legend();
    add_title();
    add_micro_batches();
    return std::move(a_);
  }

 private:
  ClassId split_class(size_t n, size_t axis) const {
    const auto& on = plan_.nodes[n].axes[axis];
    if (on.factor < 0) return -1;
    return plan_.dimensions
        ->factors[n][static_cast<size_t>(on.factor)][static_cast<size_t>(on.atom)]
        .dimension_class;
  }

  // The axis whose regions are drawn: the one that splits the most different classes.
  size_t main_axis() const {
    size_t best = 0, most = 0;
    for (size_t axis = 0; axis < plan_.mesh.axes.size(); ++axis) {
      std::set<ClassId> classes;
      for (size_t n = 0; n < graph_.nodes().size(); ++n) {
        if (graph_.nodes()[n].phase != Phase::kUpdate) classes.insert(split_class(n, axis));
      }
      if (plan_.mesh.axes[axis].size > 1 && classes.size() >= most) {
        best = axis, most = classes.size();
      }
    }
    return best;
  }

  void add_node(size_t n, size_t axis) {
    const Node& node = graph_.nodes()[n];
    const MeshAxis& mesh_axis = plan_.mesh.axes[axis];
    if (const ClassId c = split_class(n, axis); c >= 0 && mesh_axis.size > 1) {
      const int64_t size = plan_.dimensions->classes[static_cast<size_t>(c)].size;
      a_.region_of_node[n] =
          fmt::format("{} {} → {} ({})", words_[static_cast<size_t>(c)], with_commas(size),
                      with_commas(size / mesh_axis.size), mesh_axis.name);
    }
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      a_.on_input[n][i] = way(node.inputs[i], plan_.nodes[n].input_forms[i]);
    }
    const auto& inner = plan_.nodes[n].inner;
    for (size_t i = 0; i < inner.size(); ++i) {
      if (is_collective(inner[i].kind)) {
        a_.inside[n].push_back(mark(inner[i], fmt::format("node {} {}", n, i), node.phase, false));
      }
    }
  }

  Mark mark(const Step& step, std::string identity, Phase phase, bool bundled) const {
    return {std::move(identity),
            fmt::format("{} {}", name_of(step.kind),
                        plan_.mesh.axes[static_cast<size_t>(step.axis)].name),
            colour_of(step.kind),
            step.bytes,
            phase,
            bundled};
  }

  // The collectives between a value as made and one of its forms.
  std::vector<Mark> way(Value v, int32_t form) const {
    std::vector<Mark> marks;
    for (const auto& forms = plan_.values[static_cast<size_t>(v)]; form >= 0;) {
      const Form& f = forms[static_cast<size_t>(form)];
      for (size_t i = f.steps.size(); i-- > 0;) {
        if (!is_collective(f.steps[i].kind)) continue;
        marks.push_back(
            mark(f.steps[i], fmt::format("value {} {} {}", v, form, i), f.phase, f.bundled));
      }
      form = f.from;
    }
    std::reverse(marks.begin(), marks.end());
    return marks;
  }

  void add_title() {
    const Cluster& c = plan_.cluster;
    a_.title = fmt::format("{} on {} × {}", graph_.name, c.size(), c.device.name);
    if (plan_.mesh.size() > 1) {
      std::vector<std::string> axes;
      for (const MeshAxis& m : plan_.mesh.axes) {
        if (m.size > 1) axes.push_back(fmt::format("{} {}", m.name, m.size));
      }
      a_.title += ", mesh " + fmt::format("{}", fmt::join(axes, " × "));
    }
    if (plan_.zero > 0) a_.title += fmt::format(", ZeRO {}", plan_.zero);
    const Prediction& p = plan_.predicted;
    a_.subtitle = {fmt::format(
        "one step: {} predicted ({} computing, {} communicating) · memory: {} of {} a device",
        seconds_text(p.step_seconds), seconds_text(p.compute_seconds),
        seconds_text(p.communication_seconds), bytes_text(static_cast<double>(p.peak_bytes)),
        bytes_text(c.device.memory))};
  }

  void add_micro_batches() {
    if (graph_.micro_batches == 1) return;
    a_.subtitle.push_back(fmt::format(
        "forward and backward run {} times a step, once a micro-batch", graph_.micro_batches));
  }

  void add_legend() {
    std::vector<std::string> axes;
    for (const MeshAxis& m : plan_.mesh.axes) axes.push_back(m.name);
    using Sign = LegendEntry::Sign;
    a_.legend = {{Sign::kFill, "sharded: each device holds a part", colours::kSharded},
                 {Sign::kFill, "partial: still to be summed", colours::kPartial},
                 {Sign::kFill, "replicated: the same on all", colours::kReplicated}};
    if (axes.size() > 1) {
      a_.legend.push_back({Sign::kText, fmt::format("left half of a line: on {}, right half: on {}",
                                                    axes[0], axes[1])});
    }
    a_.legend.push_back({Sign::kText, "[whole] → [part on one device]"});
    if (plan_.mesh.size() == 1) return;
    a_.legend.push_back({Sign::kRegion, "split so, no activations sent inside"});
    a_.legend.push_back(
        {Sign::kHexagon, "devices communicate: bytes one device sends, × times", "#666666"});
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::vector<std::string> words_;  // by class
  Annotations a_;
};

// --- From regions alone --------------------------------------------------------------------------

// Regions that do not overlap, those with the most work for each byte of synchronization first. The
// classes of the data are left out: they pass through nearly everything.
std::vector<Region> worth_splitting(const Graph& graph, const Dimensions& dims) {
  std::vector<Region> all = find_regions(graph, dims);
  std::erase_if(all, [&](const Region& r) {
    return !dims.classes[static_cast<size_t>(r.dimension_class)].role.empty() ||
           r.flops_share < 1e-4;
  });
  const auto work_per_byte = [](const Region& r) {
    double bytes = 1;
    for (const SyncPoint& s : r.syncs) bytes += s.bytes;
    return r.flops / bytes;
  };
  std::stable_sort(all.begin(), all.end(), [&](const Region& a, const Region& b) {
    return work_per_byte(a) > work_per_byte(b);
  });
  std::vector<bool> taken(graph.nodes().size());
  std::vector<Region> chosen;
  for (Region& r : all) {
    const auto is_taken = [&](NodeId n) { return taken[static_cast<size_t>(n)]; };
    if (std::any_of(r.nodes.begin(), r.nodes.end(), is_taken)) continue;
    for (NodeId n : r.nodes) taken[static_cast<size_t>(n)] = true;
    chosen.push_back(std::move(r));
  }
  return chosen;
}

Mark mark_of(const SyncPoint& s, const std::string& what, std::string identity) {
  switch (s.kind) {
    case SyncKind::kReduction:
      return {std::move(identity),
              fmt::format("{} over {}", name_of(s.reduction), what),
              colours::kAllReduce,
              s.bytes,
              s.phase,
              false};
    case SyncKind::kWhole:
      return {std::move(identity), what + " whole", colours::kAllGather, s.bytes, s.phase, false};
    case SyncKind::kConflict:
      return {
          std::move(identity), what + " twice", colours::kReduceScatter, s.bytes, s.phase, false};
  }
  return {};
}

}  // namespace

Annotations annotate(const Graph& graph, const Plan& plan) {
  return PlanAnnotator(graph, plan).result();
}

Annotations annotate(const Graph& graph) {
  const Dimensions dims = find_dimensions(graph);
  const std::vector<std::string> words = class_words(graph, dims);
  Annotations a = sized(graph);
  for (const Region& r : worth_splitting(graph, dims)) {
    const ClassId c = r.dimension_class;
    const std::string& what = words[static_cast<size_t>(c)];
    for (NodeId n : r.nodes) {
      a.region_of_node[static_cast<size_t>(n)] =
          fmt::format("{} {}", what, with_commas(dims.classes[static_cast<size_t>(c)].size));
    }
    for (const SyncPoint& s : r.syncs) {
      if (s.phase == Phase::kUpdate) continue;  // the gradient's norm: a number
      const Mark mark = mark_of(s, what, fmt::format("sync {} {}", s.node, c));
      if (s.kind == SyncKind::kReduction) {
        for (size_t n = 0; n < graph.nodes().size(); ++n) {
          const Node& reader = graph.nodes()[n];
          for (size_t i = 0; i < reader.inputs.size(); ++i) {
            const ValueInfo& v = graph.value(reader.inputs[i]);
            if (v.producer == s.node && !carries(dims, reader.inputs[i], c)) {
              a.on_input[n][i].push_back(mark);
            }
          }
        }
      } else {
        const Node& node = graph.node(s.node);
        for (size_t i = 0; i < node.inputs.size(); ++i) {
          if (carries(dims, node.inputs[i], c)) {
            a.on_input[static_cast<size_t>(s.node)][i].push_back(mark);
          }
        }
      }
    }
  }
  using Sign = LegendEntry::Sign;
  a.legend = {{Sign::kRegion, "can be split so without communication inside"},
              {Sign::kHexagon, "where that ends: summed over the devices", colours::kAllReduce},
              {Sign::kHexagon, "needed whole", colours::kAllGather},
              {Sign::kHexagon, "met twice by one op", colours::kReduceScatter}};
  a.title = graph.name;
  a.subtitle = {"what can be split, and the bytes that devices would have to exchange there"};
  return a;
}

}  // namespace cleave
