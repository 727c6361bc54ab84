// Predicts the published runs of Megatron-LM, each at its own configuration, with one description
// of the hardware (the preset a100) for all of them and nothing fitted to a row. The model is
// traced, with attention as those runs had it (products, softmax and dropout apart; no fused
// kernel), recomputed and placed by the planner on the mesh of one pipeline stage; what a layer
// takes is the difference between two layers and one. Stages follow the schedule's simulation.
//
// What the papers and their code say of the software, the same for all rows of a table:
// - chains of pointwise ops are one kernel (bias + GeLU, bias + dropout + residual); scale, mask
// and
//   softmax too;
// - 2021: full recomputation runs whole layers again, no sequence parallelism; gradients of several
//   micro-batches are summed in fp16 by a pass of their own (6 bytes a parameter where the planner
//   counts 8);
// - 2022: selective recomputation and sequence parallelism; gradients are summed in the product;
// - weights are kept in 16 bits beside the fp32 ones, cast once a step;
// - sends between stages are not hidden behind computation, nor is the gradients' all-reduce.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/fusion.h"
#include "benchmarks/megatron_rows.h"
#include "graph/error.h"
#include "planner/cost.h"
#include "planner/made_once.h"
#include "planner/planner.h"
#include "planner/rewrite.h"
#include "planner/schedule.h"

namespace cleave {
namespace {

// Seconds of parts of a step, on one rank.
struct Parts {
  double forward = 0, backward = 0;  // of a micro-batch
  double embedding = 0, head = 0;    // of those, what lies before and after the layers
  double update = 0;                 // once a step: optimizer, casts, gradients' collectives
  double gradients = 0;              // of the update: collectives

  Parts operator-(const Parts& o) const {
    return {forward - o.forward, backward - o.backward, embedding - o.embedding,
            head - o.head,       update - o.update,     gradients - o.gradients};
  }
};

class Model {
 public:
  Model(const Row& row, int64_t layers) : row_(row) {
    dp_ = row.gpus / (row.tp * row.pp);
    micro_batches_ = row.batch / (dp_ * row.micro);
    TraceOptions options;
    options.dtype = DType::kBF16;
    options.optimizer.micro_batches = std::min<int64_t>(micro_batches_, 2);
    graph_ = trace("gpt", config_of(row, layers, row.micro * dp_), gpt, options);
    if (row.year == 2022) {
      Rewrite rewrite;
      for (size_t n = 0; n < graph_.nodes().size(); ++n) {
        const Node& node = graph_.nodes()[n];
        if (node.phase == Phase::kForward && scope(node).ends_with(".core") &&
            node.op->view == nullptr) {
          rewrite.remade.push_back(static_cast<NodeId>(n));
        }
      }
      graph_ = rewritten(graph_, rewrite).graph;
    }
    cluster_ = cluster_of(row);
    place();
  }

  int64_t micro_batches() const { return micro_batches_; }
  const Cluster& cluster() const { return cluster_; }
  const Mesh& mesh() const { return mesh_; }

  Parts parts() const {
    Parts p;
    const std::vector<FusedNode> fused = fused_nodes(graph_);
    const std::vector<Adding> adding = addings(graph_);
    std::vector<bool> from_data(graph_.values().size(), false);
    for (const Source& s : graph_.sources()) {
      from_data[static_cast<size_t>(s.value)] = s.kind == SourceKind::kData;
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      const bool reads_data = std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
        return from_data[static_cast<size_t>(v)];
      });
      for (Value v : node.outputs) from_data[static_cast<size_t>(v)] = reads_data;
      const double alone = adding[n] == Adding::kNone ? saved(n, fused[n]) : 0;
      const double seconds = share(adding[n]) * (plan_.nodes[n].seconds - alone);
      const bool cast_of_weight = node.phase == Phase::kForward && !reads_data;
      if (node.phase == Phase::kUpdate || cast_of_weight) {
        p.update += seconds;
      } else {
        (node.phase == Phase::kForward ? p.forward : p.backward) += seconds;
        if (!scope(node).starts_with("h.")) {
          (scope(node).starts_with("wte") || scope(node) == "dropout" ? p.embedding : p.head) +=
              seconds;
        }
      }
    }
    for (const PlannedCollectives& c : plan_.collectives) {
      if (c.phase == Phase::kUpdate || c.parameters) {
        // Those of accumulators are in fp32 here, and were in fp16 in 2021.
        const bool summed = row_.year == 2021 && graph_.micro_batches > 1;
        const double seconds = c.seconds * (summed ? 0.5 : 1);
        p.update += seconds;
        p.gradients += seconds;
      } else {
        (c.phase == Phase::kForward ? p.forward : p.backward) +=
            c.seconds / static_cast<double>(graph_.micro_batches);
      }
    }
    return p;
  }

 private:
  const std::string& scope(const Node& node) const {
    return graph_.scopes()[static_cast<size_t>(node.scope)];
  }

  // Data and tensor parallelism as they were run: no ZeRO, in 2021 no split of the sequence.
  void place() {
    std::vector<AxisRole> roles;
    if (dp_ > 1) mesh_.axes.push_back({"dp", dp_}), roles.push_back(AxisRole::kData);
    if (row_.tp > 1) mesh_.axes.push_back({"tp", row_.tp}), roles.push_back(AxisRole::kInner);
    const bool has_dp = dp_ > 1;
    const Dimensions dims = find_dimensions(graph_);
    const ClassId sequence = dims.class_with_role("sequence");
    const std::vector<Adding> adding = addings(graph_);
    PlannerOptions options;
    constexpr double kNever = std::numeric_limits<double>::infinity();
    options.preferences.choice = [&, has_dp](NodeId leader, const std::vector<AxisOption>& choice) {
      const Node& node = graph_.node(leader);
      for (size_t a = 0; a < choice.size(); ++a) {
        if (choice[a].kind != AxisOption::Kind::kFactor) continue;
        ClassId split = -1;
        for (size_t f = 0; f < node.extents.size(); ++f) {
          const char letter = node.signature->factors()[f].letter;
          if (std::tolower(letter) == choice[a].letter) {
            split = dims.factors[static_cast<size_t>(leader)][f][size_t(choice[a].atom)]
                        .dimension_class;
          }
        }
        if (row_.year == 2021 && split == sequence) return kNever;
        const bool of_update =
            node.phase == Phase::kUpdate || adding[size_t(leader)] != Adding::kNone;
        if (a == 0 && has_dp && of_update) return kNever;
      }
      return 0.0;
    };
    options.preferences.held = [&, has_dp](Value v, const Placements& p) {
      const Source* s = graph_.source_of(v);
      const bool kept =
          s != nullptr && s->kind != SourceKind::kData && s->kind != SourceKind::kAccumulator;
      return kept && has_dp && p[0].is_shard() ? kNever : 0.0;
    };
    auto plan = plan_with(graph_, cluster_, mesh_, roles, MemoryPrice{}, options);
    if (!plan) fail("{}: no plan", row_.name);
    plan_ = std::move(*plan);
  }

  double bytes_of(Value v, int32_t form) const {
    return static_cast<double>(numel(plan_.layout(v, form).local_shape(plan_.mesh)) *
                               size_of(graph_.type(v).dtype));
  }

  double saved(size_t n, const FusedNode& f) const {
    const Node& node = graph_.nodes()[n];
    double bytes = 0;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      if (f.inputs[i]) bytes += bytes_of(node.inputs[i], plan_.nodes[n].input_forms[i]);
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      if (f.outputs[o]) bytes += bytes_of(node.outputs[o], 0);
    }
    const Device& d = cluster_.device;
    return std::min(plan_.nodes[n].seconds, bytes / d.bandwidth + (f.starts ? 0 : d.op_latency));
  }

  // The share of a node's seconds that counts. What adds to an accumulator was done by the product
  // itself in 2022, and in 2021 by a pass over 16-bit numbers: 6 bytes a parameter of the 8.
  double share(Adding adding) const {
    return adding == Adding::kNone ? 1 : row_.year == 2022 ? 0 : 0.75;
  }

  const Row row_;
  int64_t dp_ = 1, micro_batches_ = 1;
  Graph graph_;
  Cluster cluster_;
  Mesh mesh_;
  Plan plan_;
};

struct Prediction {
  double seconds = 0, layer_forward = 0, layer_backward = 0, update = 0, gradients = 0, bubble = 0;
};

Prediction predict(const Row& row) {
  const Model one(row, 1), two(row, 2);
  const Parts first = one.parts(), layer = two.parts() - first, ends = first - layer;
  Prediction p;
  p.layer_forward = layer.forward;
  p.layer_backward = layer.backward + (row.year == 2021 ? layer.forward : 0);
  const int64_t chunks = row.pp * row.chunks;
  const double layers = static_cast<double>(row.layers) / static_cast<double>(chunks);
  const int64_t m = one.micro_batches();
  // Between stages goes what a rank holds of the residual stream: its part of the sequence (2022),
  // or of the width, sent in parts and gathered within the node (2021).
  const double bytes = 2.0 * static_cast<double>(row.micro * kSequence * row.hidden / row.tp);
  const double send = row.pp > 1 ? transfer_seconds(one.cluster(), one.mesh(), 0, 1, bytes) : 0;
  std::vector<ChunkSeconds> seconds(static_cast<size_t>(chunks));
  for (ChunkSeconds& c : seconds) {
    c.forward = layers * p.layer_forward + send;
    c.backward = layers * p.layer_backward + send;
  }
  // A third of the ends' computing is forward; their collectives are halved between them.
  const double rest = ends.forward + ends.backward - ends.embedding - ends.head;
  seconds.front().forward += (ends.embedding + rest / 2) / 3;
  seconds.front().backward += (ends.embedding + rest / 2) * 2 / 3;
  seconds.back().forward += (ends.head + rest / 2) / 3;
  seconds.back().backward += (ends.head + rest / 2) * 2 / 3;
  const Schedule schedule = make_schedule(
      row.chunks > 1 ? ScheduleKind::kInterleaved : ScheduleKind::kOneForwardOneBackward,
      static_cast<int32_t>(row.pp), static_cast<int32_t>(row.chunks), static_cast<int32_t>(m));
  const double passes = simulated_seconds(schedule, seconds);
  double busy = 0;
  for (const ChunkSeconds& c : seconds) busy += static_cast<double>(m) * (c.forward + c.backward);
  p.bubble = passes - busy / static_cast<double>(row.pp);
  const double on_stage = static_cast<double>(row.layers) / static_cast<double>(row.pp);
  const double share_of_ends = row.pp > 1 ? 0.5 : 1;  // the embedding, or the head
  p.update = on_stage * layer.update + share_of_ends * ends.update;
  p.gradients = on_stage * layer.gradients + share_of_ends * ends.gradients;
  p.seconds = passes + p.update;
  return p;
}

// What `cleave plan` predicts for the whole model at the row's configuration, pinned: with what
// Cleave does and those runs did not (gradients summed in fp32, 8 bytes a parameter for each
// micro-batch, pointwise ops one by one) and the other way round (the sequence split where it pays,
// sends hidden).
double planned_seconds(const Row& row) {
  const int64_t dp = row.gpus / (row.tp * row.pp), m = row.batch / (dp * row.micro);
  PlannerOptions options;
  options.memory_limit = std::numeric_limits<double>::infinity();
  options.space.stages = options.space.recompute = true;
  options.trace = [&](int64_t micro_batches) {
    TraceOptions how;
    how.dtype = DType::kBF16;
    how.optimizer.micro_batches = micro_batches;
    const ModelConfig c = config_of(row, row.layers, row.batch / micro_batches);
    return std::make_shared<const Graph>(trace("gpt", c, gpt, how));
  };
  const std::vector<std::string> pins = {
      fmt::format("tp={}", row.tp),
      fmt::format("dp={}", dp),
      fmt::format("pp={}", row.pp),
      fmt::format("chunks={}", row.chunks),
      fmt::format("micro={}", m),
      row.year == 2021 ? "recompute=full" : "recompute=selective",
      "zero=0"};
  options.pins = parse_pins(pins, "megatron_tables");
  const auto graph = options.trace(m);
  const PlanResult result = find_plan(*graph, cluster_of(row), options);
  if (!result.plan) fail("{}: no plan", row.name);
  return result.plan->predicted.step_seconds;
}

// Pairs of one table that predicted and published put in the other order, though they are not
// within 1 % of each other.
int wrong_order(const std::vector<double>& predicted, size_t begin, size_t end) {
  int wrong = 0;
  const auto rate = [](size_t i, double seconds) {
    return paper_flops(kRows[i]) / (seconds * static_cast<double>(kRows[i].gpus));
  };
  for (size_t i = begin; i < end; ++i) {
    for (size_t j = begin; j < i; ++j) {
      const double a = rate(i, published_seconds(kRows[i])) / rate(j, published_seconds(kRows[j]));
      const double b = rate(i, predicted[i]) / rate(j, predicted[j]);
      if (std::abs(a - 1) > 0.01 && (a > 1) != (b > 1)) ++wrong;
    }
  }
  return wrong;
}

int run(int, char**) {
  fmt::print("{:<8}{:>6}{:>10}{:>11}{:>8}   {:>18}{:>9}{:>11}{:>8}{:>9}{:>9}\n", "model", "table",
             "published", "predicted", "error", "layer fwd / bwd ms", "update", "gradients",
             "bubble", "TFLOP/s", "planned");
  double sum = 0, worst = 0;
  std::vector<double> predicted;
  for (const Row& row : kRows) {
    const Prediction p = predict(row);
    const double published = published_seconds(row), error = p.seconds / published - 1;
    predicted.push_back(p.seconds);
    sum += std::abs(error);
    worst = std::max(worst, std::abs(error));
    fmt::print(
        "{:<8}{:>6}{:>8.2f} s{:>9.2f} s{:>+7.1f}%   {:>9.2f} / {:>6.2f}{:>7.3f} s{:>9.3f} s"
        "{:>7.2f}{:>9.0f}{:>7.2f} s\n",
        row.name, row.year, published, p.seconds, 100 * error, 1e3 * p.layer_forward,
        1e3 * p.layer_backward, p.update, p.gradients, p.bubble,
        paper_flops(row) / (p.seconds * static_cast<double>(row.gpus)) / 1e12,
        planned_seconds(row));
    std::fflush(stdout);
  }
  fmt::print(
      "mean error {:.1f} %, worst {:.1f} %; pairs in the wrong order: {} of 10 (2021), {} of "
      "6 (2022)\n",
      100 * sum / static_cast<double>(std::size(kRows)), 100 * worst, wrong_order(predicted, 0, 5),
      wrong_order(predicted, 5, 9));
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
