#include "cli/split_rows.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

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
        parts_(part_names(graph)) {}

  std::vector<SplitRow> rows() {
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) add_node(n);
    for (Value v = 0; v < static_cast<Value>(plan_.values.size()); ++v) add_value(v);
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
      return plan_.mesh.axes[at(r.axis)].size == 1 || (idle && r.after.empty());
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

  bool works_on_weights(NodeId n) const {
    const Node& node = graph_.node(n);
    if (node.phase == Phase::kUpdate) return true;
    return node.phase == Phase::kForward && !node.inputs.empty() &&
           of_weights_[at(node.outputs[0])];
  }

  // Partial sums that an op only passes on belong to the op that made them.
  size_t row_of(NodeId n, int32_t axis) {
    if (works_on_weights(n)) return row_of(SplitRow::Kind::kWeights, axis);
    while (plan_.nodes[at(n)].axes[at(axis)].partial) {
      const auto& inputs = graph_.node(n).inputs;
      const auto made = std::find_if(inputs.begin(), inputs.end(), [&](Value v) {
        return graph_.value(v).producer != kNoNode && !works_on_weights(graph_.value(v).producer);
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
    for (int32_t axis = 0; axis < static_cast<int32_t>(plan_.mesh.axes.size()); ++axis) {
      const size_t r = row_of(n, axis);
      rows_[r].flops_share += flops;
      work_[r][{parts_.of_node[at(n)], parts_.copies[at(n)]}] += flops;
    }
    for (const Step& step : plan_.nodes[at(n)].inner) {
      add_step(rows_[row_of(n, step.axis)], step, node.phase, false);
    }
  }

  void add_value(Value v) {
    const NodeId producer = graph_.value(v).producer;
    for (const Form& form : plan_.values[at(v)]) {
      for (const Step& step : form.steps) {
        if (!is_collective(step.kind)) continue;
        const bool weights = of_weights_[at(v)] || form.bundled || producer == kNoNode;
        const size_t r =
            weights ? row_of(SplitRow::Kind::kWeights, step.axis) : row_of(producer, step.axis);
        add_step(rows_[r], step, form.phase, form.bundled);
      }
    }
  }

  void add_step(SplitRow& row, const Step& step, Phase phase, bool bundled) const {
    if (!is_collective(step.kind)) return;
    // What the forward and the backward move, they move in every micro-batch.
    const int64_t times = phase == Phase::kUpdate || bundled ? 1 : graph_.micro_batches;
    const double bytes = step.bytes * static_cast<double>(times);
    for (After& a : row.after) {
      if (a.kind != step.kind || a.phase != phase || a.bundled != bundled) continue;
      a.equal &= std::abs(step.bytes - a.bytes / static_cast<double>(a.count)) < 1;
      a.bytes += bytes;
      a.count += times;
      return;
    }
    row.after.push_back({step.kind, phase, bundled, true, bytes, times});
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

  using Work = std::map<std::pair<std::string, int32_t>, double>;  // by part, copies of its layer

  static std::string where(const Work& work, double total) {
    std::vector<std::pair<double, std::pair<std::string, int32_t>>> parts;
    for (const auto& [part, flops] : work) {
      if (!part.first.empty() && flops >= kPartOfARow * total && flops > 0)
        parts.emplace_back(-flops, part);
    }
    std::sort(parts.begin(), parts.end());
    // Layers together, then what stands alone.
    std::map<int32_t, std::vector<std::string>> by_copies;
    for (size_t i = 0; i < std::min(parts.size(), kMostParts); ++i) {
      by_copies[-parts[i].second.second].push_back(parts[i].second.first);
    }
    std::vector<std::string> texts;
    for (const auto& [copies, names] : by_copies) {
      texts.push_back(fmt::format("{}{}", fmt::join(names, ", "),
                                  copies < -1 ? fmt::format(" ×{}", -copies) : ""));
    }
    return fmt::format("{}", fmt::join(texts, "; "));
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::vector<std::string> words_;  // by class
  const std::vector<bool> of_weights_;    // by value
  const PartNames parts_;
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
