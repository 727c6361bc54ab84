#include "cli/export_plan.h"

#include <algorithm>

#include "cli/export_advice.h"
#include "cli/export_layouts.h"
#include "cli/plan_parts.h"
#include "graph/error.h"
#include "planner/roles.h"

namespace cleave {
namespace {

// What only Megatron has words for, and what a tp_plan leaves to others.
void expect_axes(const Exported& e, const std::string& target) {
  if (target == "megatron" || e.stages > 1) return;
  const int64_t devices = e.data * e.tensor * e.context * e.expert;
  const auto none = [&](int64_t size, const char* what) {
    if (size == 1) return;
    fail("--to {}: it has no words for {} parallelism over {} ranks; plan again {}", target, what,
         size, text_of(e, target == "hf-tp" ? only_tensor(e, devices) : only_data(e)));
  };
  none(e.context, "context");
  none(e.expert, "expert");
  if (target != "hf-tp") return;
  if (e.tensor == 1) {
    fail("--to hf-tp: the plan splits no weights over a tp axis; plan again {}",
         text_of(e, only_tensor(e, std::max<int64_t>(devices, 2))));
  }
  if (e.data > 1) {
    fail("--to hf-tp: a tp_plan says nothing of the dp {} of the plan; plan again {}", e.data,
         text_of(e, only_tensor(e, e.tensor)));
  }
}

// Weights that are several products in one: each of them is an expert's.
bool of_experts(const Graph& graph, const Source& s) {
  return graph.type(s.value).shape.size() > 2;
}

// Shares of the bytes of parameters and of states that are in parts over ranks with data of their
// own. What experts are split into is no such part.
KeptInParts kept_by_zero(const LoadedPlan& loaded, const Exported& e) {
  const Graph& graph = loaded.model.graph;
  if (e.expert == 1) return kept_in_parts(graph, loaded.plan);
  return kept_in_parts(
      graph, loaded.plan,
      [&](const Source& s) { return e.data > 1 || !of_experts(graph, s); },  // else whole anyway
      [&](const Source& s, const MeshAxis& axis) {
        const std::string role = role_of(axis.name);
        return role == "dp" || (role == "ep" && !of_experts(graph, s));
      });
}

// The sizes of the axes by role, and which one of them splits tensors; -1: none.
int read_axes(const Plan& plan, const std::string& target, Exported& e) {
  int tensor_axis = -1, second = -1, idle = -1;
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    const MeshAxis& axis = plan.mesh.axes[a];
    if (axis.size == 1) continue;
    const std::string role = role_of(axis.name);
    if (role == "dp") {
      e.data *= axis.size;
    } else if (role == "tp") {
      if (tensor_axis >= 0) second = static_cast<int>(a);
      if (tensor_axis < 0) tensor_axis = static_cast<int>(a);
      e.tensor *= axis.size;
    } else if (role == "cp") {
      e.context *= axis.size;
    } else if (role == "ep") {
      e.expert *= axis.size;
    } else {
      idle = static_cast<int>(a);
    }
  }
  const auto axis = [&](int a) -> const MeshAxis& {
    return plan.mesh.axes[static_cast<size_t>(a)];
  };
  if (idle >= 0) {
    Advice fewer = with_roles(e, "");
    fewer.devices = e.stages * e.data * e.tensor * e.context * e.expert;
    fail("--to {}: axis {} only repeats work on {} devices; plan again {}", target, axis(idle).name,
         axis(idle).size, text_of(e, fewer));
  }
  if (second >= 0) {
    fail("--to {}: the plan splits layers over two axes, {} and {}; plan again {}", target,
         axis(tensor_axis).name, axis(second).name, text_of(e, with_roles(e, target)));
  }
  return tensor_axis;
}

}  // namespace

std::vector<std::string> expect_whole_zero(const LoadedPlan& loaded, const Exported& e,
                                           const std::string& target) {
  const KeptInParts parts = kept_by_zero(loaded, e);
  // What cannot be split at all is little.
  constexpr double kLittle = 0.02;
  const bool experts = e.data == 1 && e.expert > 1;
  const auto refuse = [&](double share, const char* what, const Advice& again) {
    fail(
        "--to {}: {:.0f} % of the {} are in parts over the ranks with data of their own, and there "
        "it is all or none; plan again {}",
        target, 100 * share, what, text_of(e, again));
  };
  if (e.zero < 3 && parts.parameters > kLittle) {
    refuse(parts.parameters, "weights", experts ? whole_over_experts(e) : zero_for_all(e, target));
  }
  const double share = e.zero == 3 ? parts.parameters : parts.states;
  if (e.zero == 0 ? share <= kLittle : share >= 1 - kLittle) return {};
  const char* what = e.zero == 3 ? "weights" : "optimizer states";
  // As far as can be.
  const bool pinned = std::any_of(e.pins.begin(), e.pins.end(),
                                  [](const std::string& pin) { return pin.starts_with("zero="); });
  if (!pinned || e.zero == 0) {
    refuse(share, what, experts ? only_data(e) : zero_for_all(e, target));
  }
  return {
      fmt::format("all {} are in parts over dp there, {:.0f} % in the plan", what, 100 * share)};
}

Exported exported(const LoadedPlan& loaded, const std::string& target) {
  const Plan& plan = loaded.plan;
  if (!loaded.model.spec.training) fail("--to {}: a plan of the forward alone", target);
  Exported e;
  e.cluster = plan.cluster;
  e.stages = plan.pipeline.stages;
  e.batch = loaded.model.config.batch;
  e.micro_batches = loaded.model.graph.micro_batches;
  e.fixed_micro_batches = plan.asked.micro_batches;
  e.pins = plan.pins;
  e.roles = std::none_of(plan.roles.begin(), plan.roles.end(),
                         [](AxisRole role) { return role == AxisRole::kAny; });
  const int tensor_axis = read_axes(plan, target, e);
  e.zero = plan.zero;
  if (e.expert > 1) {
    const KeptInParts parts = kept_by_zero(loaded, e);
    e.zero = parts.parameters > 0.5 ? 3 : parts.states > 0.5 ? 1 : 0;
  }
  expect_axes(e, target);
  // Ranks among which experts are split have sequences of their own, too.
  const int64_t ranks = e.data * e.expert;
  if (e.batch % ranks != 0) {
    fail("--to {}: {} sequences are not the same number on {} data-parallel ranks; plan again {}",
         target, e.batch, ranks, text_of(e, with_roles(e, target)));
  }
  e.sequences = e.batch / ranks;
  read_layouts(loaded, tensor_axis, e);
  for (const Misfit& m : e.misfits) {
    if (!m.of_other_axes()) continue;
    fail("--to {}: {}; plan again {}", target, m.what,
         m.kind == Misfit::Kind::kRepeated
             ? "for fewer devices, or with a larger --batch"
             : text_of(e, e.roles ? split_by_role(e, m, target) : with_roles(e, target)));
  }
  return e;
}

}  // namespace cleave
