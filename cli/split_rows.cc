#include "cli/split_rows.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "cli/plan_parts.h"
#include "planner/meetings.h"
#include "planner/of_weights.h"
#include "viz/class_words.h"
#include "viz/weights.h"

namespace cleave {
namespace {

constexpr double kSmallestShare = 5e-4, kSmallestWhole = 5e-3;  // of the flops
constexpr double kPartOfARow = 0.08;                            // of a row's flops: worth naming
constexpr size_t kMostParts = 3;

size_t at(int32_t i) { return static_cast<size_t>(i); }

class RowMaker {
 public:
  RowMaker(const Graph& graph, const Plan& plan)
      : graph_(graph),
        plan_(plan),
        words_(class_words(graph, *plan.dimensions)),
        of_weights_(values_of_weights(graph)),
        parts_(part_names(graph)),
        stage_(busiest_stage(graph, plan).stage) {}

  std::vector<SplitRow> rows() {
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) add_node(n);
    for (const Meeting& m : meetings(graph_, plan_)) add_meeting(m);
    for (size_t r = 0; r < rows_.size(); ++r) {
      SplitRow& row = rows_[r];
      row.where = where(work_[r], row.flops_share);
      row.flops_share = total_ > 0 ? row.flops_share / total_ : 0;
      if (row.kind == SplitRow::Kind::kWeights) add_cuts(row);
      std::stable_sort(row.after.begin(), row.after.end(),
                       [](const After& a, const After& b) { return a.bytes > b.bytes; });
    }
    std::erase_if(rows_, [&](const SplitRow& r) {
      const double least = r.kind == SplitRow::Kind::kWhole ? kSmallestWhole : kSmallestShare;
      const bool idle = r.kind != SplitRow::Kind::kWeights && r.flops_share < least;
      return plan_.mesh.axes[at(r.axis)].size == 1 ||
             (idle && r.after.empty() && !r.meets_elsewhere);
    });
    std::stable_sort(rows_.begin(), rows_.end(), [](const SplitRow& a, const SplitRow& b) {
      return std::tuple(a.axis, a.kind != SplitRow::Kind::kSplit, a.kind, -a.flops_share) <
             std::tuple(b.axis, b.kind != SplitRow::Kind::kSplit, b.kind, -b.flops_share);
    });
    return std::move(rows_);
  }

 private:
  // The class that splits node n on an axis; -1: none.
  ClassId split_class(NodeId n, int32_t axis) const {
    const auto& on = plan_.nodes[at(n)].axes[at(axis)];
    if (on.factor < 0) return -1;
    return plan_.dimensions
        ->factors[at(n)][static_cast<size_t>(on.factor)][static_cast<size_t>(on.atom)]
        .dimension_class;
  }

  size_t row_of(SplitRow::Kind kind, int32_t axis, ClassId c = -1) {
    const std::string what = c >= 0 ? words_[at(c)] : "";
    const int64_t size = c >= 0 ? plan_.dimensions->classes[at(c)].size : 0;
    const auto [entry, added] = known_.emplace(std::tuple(kind, axis, what, size), rows_.size());
    if (added) {
      rows_.push_back({.kind = kind,
                       .axis = axis,
                       .what = what,
                       .size = size,
                       .local = size / plan_.mesh.axes[at(axis)].size,
                       .where = {},
                       .after = {}});
      work_.emplace_back();
    }
    return entry->second;
  }

  // Partial sums that an op only passes on belong to the op that made them.
  size_t row_of(NodeId n, int32_t axis) {
    if (works_on_weights(graph_, of_weights_, n)) return row_of(SplitRow::Kind::kWeights, axis);
    while (plan_.nodes[at(n)].axes[at(axis)].partial) {
      const auto& inputs = graph_.node(n).inputs;
      const auto made = std::find_if(inputs.begin(), inputs.end(), [&](Value v) {
        const NodeId producer = graph_.value(v).producer;
        return producer != kNoNode && !works_on_weights(graph_, of_weights_, producer);
      });
      if (made == inputs.end()) break;
      n = graph_.value(*made).producer;
    }
    const ClassId c = split_class(n, axis);
    return row_of(c >= 0 ? SplitRow::Kind::kSplit : SplitRow::Kind::kWhole, axis, c);
  }

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const double flops = node.op->flops(Graph::call(node, graph_.input_types(node)));
    total_ += flops;
    const LayerName in = layer_name(graph_.scopes()[at(node.scope)]);
    const std::string layer = in.number < 0 ? "" : fmt::format("{}.{}", in.layers, in.number);
    const bool of_layer = in.number >= 0 && !in.inside.empty() && node.phase != Phase::kUpdate;
    const std::string& name = of_layer ? in.inside : parts_[at(n)];
    for (int32_t axis = 0; axis < static_cast<int32_t>(plan_.mesh.axes.size()); ++axis) {
      const size_t r = row_of(n, axis);
      rows_[r].flops_share += flops;
      Part& part = work_[r][name];
      part.flops += flops;
      part.layers.insert(layer);
    }
  }

  void add_meeting(const Meeting& m) {
    const NodeId maker = m.node != kNoNode ? m.node : graph_.value(m.value).producer;
    SplitRow& row = rows_[m.weights ? row_of(SplitRow::Kind::kWeights, m.step->axis)
                                    : row_of(maker, m.step->axis)];
    if (m.stage != stage_) {
      row.meets_elsewhere = true;
      return;
    }
    for (After& a : row.after) {
      if (a.kind != m.step->kind || a.phase != m.phase || a.bundled != m.bundled) continue;
      a.equal &= std::abs(m.step->bytes - a.bytes / static_cast<double>(a.count)) < 1;
      a.bytes += m.bytes;
      a.count += m.times;
      return;
    }
    row.after.push_back({m.step->kind, m.phase, m.bundled, true, m.bytes, m.times});
  }

  // Shares of the bytes of weights and states that lie in parts along the axis.
  void add_cuts(SplitRow& row) const {
    double weights = 0, states = 0;
    for (const Source& s : graph_.sources()) {
      const bool kept = s.kind == SourceKind::kParameter || s.kind == SourceKind::kState;
      if (!kept || plan_.values[at(s.value)].empty()) continue;
      const TensorType& type = graph_.type(s.value);
      const double bytes = static_cast<double>(numel(type.shape) * size_of(type.dtype));
      const bool cut = plan_.values[at(s.value)][0].placements[at(row.axis)].is_shard();
      const bool weight = s.kind == SourceKind::kParameter;
      (weight ? weights : states) += bytes;
      if (cut) (weight ? row.weights_cut : row.states_cut) += bytes;
    }
    row.weights_cut /= std::max(weights, 1.0);
    row.states_cut /= std::max(states, 1.0);
  }

  // What a row does in a part of the model, "attn", of all layers that have one.
  struct Part {
    double flops = 0;
    std::set<std::string> layers;
  };
  using Work = std::map<std::string, Part>;

  static std::string where(const Work& work, double total) {
    struct Named {
      double flops;
      std::string name;
      int64_t layers;
    };
    std::vector<Named> parts;
    for (const auto& [name, part] : work) {
      if (!name.empty() && part.flops >= kPartOfARow * total && part.flops > 0)
        parts.push_back({part.flops, name, static_cast<int64_t>(part.layers.size())});
    }
    std::sort(parts.begin(), parts.end(), [](const Named& a, const Named& b) {
      return std::tuple(-a.flops, a.name) < std::tuple(-b.flops, b.name);
    });
    // Those of as many layers together, of most layers first.
    std::map<int64_t, std::vector<std::string>> by_layers;
    for (size_t i = 0; i < std::min(parts.size(), kMostParts); ++i) {
      by_layers[-parts[i].layers].push_back(parts[i].name);
    }
    std::vector<std::string> texts;
    for (const auto& [layers, names] : by_layers) {
      texts.push_back(fmt::format("{}{}", fmt::join(names, ", "),
                                  layers < -1 ? fmt::format(" ×{}", -layers) : ""));
    }
    return fmt::format("{}", fmt::join(texts, "; "));
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::vector<std::string> words_;  // by class
  const std::vector<bool> of_weights_;    // by value
  const std::vector<std::string> parts_;  // by node
  const int32_t stage_;                   // whose collectives are shown
  std::map<std::tuple<SplitRow::Kind, int32_t, std::string, int64_t>, size_t> known_;
  std::vector<SplitRow> rows_;
  std::vector<Work> work_;  // by row
  double total_ = 0;
};

}  // namespace

std::vector<SplitRow> split_rows(const Graph& graph, const Plan& plan) {
  return RowMaker(graph, plan).rows();
}

}  // namespace cleave
