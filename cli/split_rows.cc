#include "cli/split_rows.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "viz/names.h"

namespace cleave {
namespace {

constexpr const char* kPartial = "(partial sums passed on)";

// Identifies a row: axis, weights or not, name and size of the class.
using RowKey = std::tuple<int32_t, bool, std::string, int64_t>;

class RowMaker {
 public:
  RowMaker(const Graph& graph, const Plan& plan) : graph_(graph), plan_(plan) { find_weights(); }

  std::vector<SplitRow> rows() {
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) add_node(n);
    for (Value v = 0; v < static_cast<Value>(plan_.values.size()); ++v) add_value(v);
    for (SplitRow& row : rows_) {
      row.flops_share = total_ > 0 ? row.flops_share / total_ : 0;
      std::stable_sort(row.after.begin(), row.after.end(),
                       [](const After& a, const After& b) { return a.bytes > b.bytes; });
    }
    std::stable_sort(rows_.begin(), rows_.end(), [](const SplitRow& a, const SplitRow& b) {
      const auto rank = [](const SplitRow& r) { return r.weights ? 2 : r.what.empty() ? 1 : 0; };
      return std::tuple(a.axis, rank(a), -a.flops_share) <
             std::tuple(b.axis, rank(b), -b.flops_share);
    });
    return std::move(rows_);
  }

 private:
  // The class that splits node n on an axis; -1: none.
  ClassId split_class(NodeId n, int32_t axis) const {
    const auto& on = plan_.nodes[static_cast<size_t>(n)].axes[static_cast<size_t>(axis)];
    if (on.factor < 0) return -1;
    return plan_.dimensions
        ->factors[static_cast<size_t>(n)][static_cast<size_t>(on.factor)]
                 [static_cast<size_t>(on.atom)]
        .dimension_class;
  }

  SplitRow& row_of(int32_t axis, bool weights, ClassId c, bool partial = false) {
    // These ops are split in as many ways as there are parameters: one row for all.
    const std::string what = weights  ? ""
                             : c >= 0 ? class_name(*plan_.dimensions, c)
                                      : std::string(partial ? kPartial : "");
    const int64_t size =
        weights || c < 0 ? 0 : plan_.dimensions->classes[static_cast<size_t>(c)].size;
    const auto [at, added] = known_.emplace(RowKey{axis, weights, what, size}, rows_.size());
    if (added) {
      rows_.push_back({.axis = axis,
                       .what = what,
                       .size = size,
                       .local = size / plan_.mesh.axes[static_cast<size_t>(axis)].size,
                       .weights = weights,
                       .after = {}});
    }
    return rows_[at->second];
  }

  SplitRow& row_of(int32_t axis, NodeId n) {
    const bool partial =
        plan_.nodes[static_cast<size_t>(n)].axes[static_cast<size_t>(axis)].partial;
    return row_of(axis, of_weights_[static_cast<size_t>(n)], split_class(n, axis), partial);
  }

  // The update, and what the forward does with weights alone (casts).
  void find_weights() {
    for (const Node& node : graph_.nodes()) {
      const bool weights = std::all_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
        const ValueInfo& info = graph_.value(v);
        return info.producer == kNoNode
                   ? graph_.source_of(v)->kind != SourceKind::kData
                   : static_cast<bool>(of_weights_[static_cast<size_t>(info.producer)]);
      });
      of_weights_.push_back(node.phase == Phase::kUpdate ||
                            (node.phase == Phase::kForward && weights && !node.inputs.empty()));
    }
  }

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const NodePlan& planned = plan_.nodes[static_cast<size_t>(n)];
    const double flops = node.op->flops(Graph::call(node, graph_.input_types(node)));
    total_ += flops;
    for (int32_t axis = 0; axis < static_cast<int32_t>(plan_.mesh.axes.size()); ++axis) {
      SplitRow& row = row_of(axis, n);
      row.ops += node.op->view == nullptr;
      row.flops_share += flops;
    }
    for (const Step& step : planned.inner) add_step(row_of(step.axis, n), step, node.phase, false);
  }

  void add_value(Value v) {
    const NodeId producer = graph_.value(v).producer;
    for (const Form& form : plan_.values[static_cast<size_t>(v)]) {
      for (const Step& step : form.steps) {
        if (!is_collective(step.kind)) continue;
        // Sources are moved for the sake of the update's savings: they are its row's.
        SplitRow& row =
            producer == kNoNode ? row_of(step.axis, true, -1) : row_of(step.axis, producer);
        add_step(row, step, form.phase, form.bundled);
      }
    }
  }

  static void add_step(SplitRow& row, const Step& step, Phase phase, bool bundled) {
    if (!is_collective(step.kind)) return;
    for (After& a : row.after) {
      if (a.kind != step.kind || a.phase != phase || a.bundled != bundled) continue;
      a.bytes += step.bytes;
      ++a.count;
      return;
    }
    row.after.push_back({step.kind, phase, bundled, step.bytes, 1});
  }

  const Graph& graph_;
  const Plan& plan_;
  std::vector<bool> of_weights_;  // by node
  std::map<RowKey, size_t> known_;
  std::vector<SplitRow> rows_;
  double total_ = 0;
};

}  // namespace

std::vector<SplitRow> split_rows(const Graph& graph, const Plan& plan) {
  return RowMaker(graph, plan).rows();
}

}  // namespace cleave
