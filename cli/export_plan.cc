#include "cli/export_plan.h"

#include <algorithm>

#include "cli/export_advice.h"
#include "cli/export_layouts.h"
#include "cli/plan_parts.h"
#include "graph/error.h"
#include "planner/made_once.h"
#include "planner/roles.h"

namespace cleave {
namespace {

// What only Megatron has words for, and what a tp_plan leaves to others.
void expect_axes(const Exported& e, const std::string& target) {
  const auto none = [&](int64_t size, const char* what) {
    if (size == 1) return;
    const int64_t devices = e.data * e.tensor * e.context * e.expert;
    fail("--to {}: it has no words for {} parallelism over {} ranks; plan again with {}", target,
         what, size, target == "hf-tp" ? fmt::format("--mesh tp={}", devices) : only_data(e));
  };
  if (target == "megatron") return;
  none(e.context, "context");
  none(e.expert, "expert");
  if (target != "hf-tp") return;
  if (e.tensor == 1) {
    fail(
        "--to hf-tp: the plan splits no weights over a tp axis; plan again with --mesh tp={} "
        "--pin zero=0",
        e.data);
  }
  if (e.data > 1) {
    fail(
        "--to hf-tp: a tp_plan says nothing of the dp {} of the plan; plan again with a --cluster "
        "of {} devices, --mesh tp={} and --pin zero=0",
        e.data, e.tensor, e.tensor);
  }
}

}  // namespace

namespace {

// Shares of the bytes of parameters and of states that are in parts over ranks with data of their
// own. What experts are split into is no such part.
KeptInParts kept_by_zero(const LoadedPlan& loaded, const Exported& e) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  if (e.expert == 1) return kept_in_parts(graph, plan);
  const auto in_parts = [&](const Placements& p, bool experts) {
    bool parts = false;
    for (size_t a = 0; a < p.size(); ++a) {
      const std::string role = role_of(plan.mesh.axes[a].name);
      const bool counts = role == "dp" || (role == "ep" && !experts);
      parts |= counts && plan.mesh.axes[a].size > 1 && p[a].is_shard();
    }
    return parts;
  };
  const auto copies = copies_made_once(graph);
  double parameters = 0, states = 0;
  KeptInParts split;
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
    const TensorType& type = graph.type(s.value);
    const bool experts = type.shape.size() > 2;
    if (experts && e.data == 1) continue;  // nothing is left to split
    bool parts = in_parts(plan.values[static_cast<size_t>(s.value)][0].placements, experts);
    for (Value copy : copies[static_cast<size_t>(graph.value(s.value).source)]) {
      const auto held = plan.held.find(copy);
      parts = parts && (held == plan.held.end() || in_parts(held->second, experts));
    }
    const auto bytes = static_cast<double>(numel(type.shape) * size_of(type.dtype));
    const bool parameter = s.kind == SourceKind::kParameter;
    (parameter ? parameters : states) += bytes;
    if (parts) (parameter ? split.parameters : split.states) += bytes;
  }
  if (parameters > 0) split.parameters /= parameters;
  if (states > 0) split.states /= states;
  return split;
}

}  // namespace

std::vector<std::string> expect_whole_zero(const LoadedPlan& loaded, const Exported& e,
                                           const std::string& target) {
  const Plan& plan = loaded.plan;
  const KeptInParts parts = kept_by_zero(loaded, e);
  const double share = e.zero == 3 ? parts.parameters : parts.states;
  // What cannot be split at all is little.
  constexpr double kLittle = 0.02;
  if (e.zero == 0 ? share <= kLittle : share >= 1 - kLittle) return {};
  // As far as can be.
  const bool pinned = std::any_of(plan.pins.begin(), plan.pins.end(),
                                  [](const std::string& pin) { return pin.starts_with("zero="); });
  const char* what = e.zero == 3 ? "weights" : "optimizer states";
  if (pinned && e.zero > 0) {
    return {
        fmt::format("all {} are in parts over dp there, {:.0f} % in the plan", what, 100 * share)};
  }
  fail(
      "--to {}: {:.0f} % of the {} are in parts over the ranks with data of their own, and there "
      "it "
      "is all or none; plan again with {}",
      target, 100 * share, what,
      e.data == 1 && e.expert > 1 ? only_data(e)
      : e.roles                   ? zero_for_all(e, target)
                                  : with_roles(e, target));
}

Exported exported(const LoadedPlan& loaded, const std::string& target) {
  const Plan& plan = loaded.plan;
  if (!loaded.model.spec.training) fail("--to {}: a plan of the forward alone", target);
  Exported e;
  int tensor_axis = -1;
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    const MeshAxis& axis = plan.mesh.axes[a];
    if (axis.size == 1) continue;
    const std::string role = role_of(axis.name);
    if (role == "dp") {
      e.data *= axis.size;
    } else if (role == "tp") {
      if (tensor_axis >= 0) {
        fail(
            "--to {}: the plan splits layers over two axes, {} and {}; plan again with --mesh "
            "tp={}",
            target, plan.mesh.axes[static_cast<size_t>(tensor_axis)].name, axis.name,
            plan.mesh.size());
      }
      tensor_axis = static_cast<int>(a);
      e.tensor = axis.size;
    } else if (role == "cp") {
      e.context *= axis.size;
    } else if (role == "ep") {
      e.expert *= axis.size;
    } else {
      fail("--to {}: axis {} only repeats work on {} devices; plan again for {} of them", target,
           axis.name, axis.size, plan.mesh.size() / axis.size);
    }
  }
  e.stages = plan.pipeline.stages;
  e.zero = plan.zero;
  if (e.expert > 1) {
    const KeptInParts parts = kept_by_zero(loaded, e);
    e.zero = parts.parameters > 0.5 ? 3 : parts.states > 0.5 ? 1 : 0;
  }
  e.batch = loaded.model.config.batch;
  e.pins = plan.pins;
  e.roles = std::none_of(plan.roles.begin(), plan.roles.end(),
                         [](AxisRole role) { return role == AxisRole::kAny; });
  if (plan.pipeline.stages == 1) expect_axes(e, target);
  e.micro_batches = loaded.model.graph.micro_batches;
  // Ranks among which experts are split have sequences of their own, too.
  const int64_t ranks = e.data * e.expert;
  if (e.batch % ranks != 0) {
    fail(
        "--to {}: {} sequences are not the same number on {} data-parallel ranks; plan again with "
        "--batch {}",
        target, e.batch, ranks, (e.batch + ranks - 1) / ranks * ranks);
  }
  e.sequences = e.batch / ranks;
  read_layouts(loaded, tensor_axis, e);
  for (const Misfit& m : e.misfits) {
    if (!m.of_batch_axes) continue;
    fail("--to {}: {}; plan again {}", target, m.what,
         m.repeated
             ? "for fewer devices, or with a larger --batch"
             : "with " + (e.roles ? ends_by_batch(e, m.axis, target) : with_roles(e, target)));
  }
  return e;
}

}  // namespace cleave
