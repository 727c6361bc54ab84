#include "cli/export_checks.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "graph/error.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;

// Along the sequence or whole: the same for targets that do not say it for each module.
bool alike(const ModuleSplit::Edges& a, const ModuleSplit::Edges& b, const std::string& target) {
  const auto seen = [&](Held held) {
    return held == Held::kSequence && target != "dtensor" ? Held::kWhole : held;
  };
  return seen(a.in) == seen(b.in) && seen(a.out) == seen(b.out);
}
bool alike(const ModuleSplit::Use& a, const ModuleSplit::Use& b, const std::string& target) {
  return a.cut_like(b) && alike(a.edges, b.edges, target);
}
bool alike(const ModuleSplit& a, const ModuleSplit& b, const std::string& target) {
  return alike(a.use, b.use, target) && a.again.has_value() == b.again.has_value() &&
         (!a.again || alike(*a.again, *b.again, target));
}

// A weight that is several products in one has no style but to be whole.
void expect_one_product(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (m.experts == 0 || m.use.kind == Kind::kWhole) return;
  refuse(e, target, m, "and has several products in one weight, which it has no words for",
         target == "hf-tp" ? part_whole(e, m.name) : only_data(e));
}

// Whether norms and what is between products is split along the sequence.
bool sequence_in_parts(const Exported& e) {
  return std::any_of(e.modules.begin(), e.modules.end(), [](const ModuleSplit& m) {
    return m.use.edges.in == Held::kSequence || m.use.edges.out == Held::kSequence;
  });
}

}  // namespace

void refuse(const Exported& e, const std::string& target, const std::string& what,
            const Advice& again) {
  fail("--to {}: {}; plan again {}", target, what, text_of(e, again));
}

void refuse(const Exported& e, const std::string& target, const ModuleSplit& m,
            const std::string& why, const Advice& again) {
  const char* between = why.starts_with("and ") ? "," : ";";
  refuse(e, target, fmt::format("{} is {}{} {}", m.name, words(m.use.kind), between, why), again);
}

std::string_view words(Kind kind) {
  switch (kind) {
    case Kind::kWhole: return "whole on each rank";
    case Kind::kColumns: return "split by columns";
    case Kind::kRows: return "split by rows";
    case Kind::kTableRows: return "split by the rows that are looked up";
    case Kind::kTableWidth: return "split by what a row holds";
    case Kind::kPositions: return "read in parts along the sequence";
    case Kind::kExperts: return "split by whole products of those that it has in one weight";
    case Kind::kBias: return "split like what it is added to";
    case Kind::kOther: return "split in some other way";
  }
  return "?";
}

std::map<std::string, ModuleSplit> folded(const Exported& e, const std::string& target,
                                          const Advice& again) {
  std::map<std::string, ModuleSplit> result;
  for (const ModuleSplit& m : e.modules) {
    const auto [entry, added] = result.emplace(folded_name(m.name), m);
    entry->second.stored_in_parts |= m.stored_in_parts;
    if (added || alike(entry->second, m, target)) continue;
    refuse(e, target,
           fmt::format("{} and {} are split in different ways, and it says one for all layers",
                       entry->second.name, m.name),
           again);
  }
  return result;
}

void expect_nothing_else(const LoadedPlan& loaded, const Exported& e, const std::string& target) {
  const Plan& plan = loaded.plan;
  const auto host = std::count(plan.on_host.begin(), plan.on_host.end(), true);
  if (host > 0) {
    fail(
        "--to {}: {} optimizer states lie in the host's memory, one by one; plan again for more "
        "devices, or a smaller --batch",
        target, host);
  }
  if (target == "deepspeed" && loaded.model.spec.optimizer.moments) {
    fail(
        "--to {}: the optimizer's moments are in bf16 beside weights in fp32, and there only "
        "beside weights in bf16 (bf16_optimizer_states); plan again without --moments bf16",
        target);
  }
  if (target == "megatron" || plan.rewrite.remade.empty()) return;
  Advice none = pinned("recompute", "none");
  leave_out(e, "=recompute", none);
  refuse(
      e, target,
      fmt::format("the plan computes {} ops again in the backward, which is written in the model "
                  "there",
                  plan.rewrite.remade.size()),
      none);
}

void expect_one_stage(const Exported& e, const std::string& target, const std::string& why) {
  if (e.stages == 1) return;
  refuse(e, target, fmt::format("the plan has {} pipeline stages; {}", e.stages, why),
         one_stage(e, target));
}

void expect_tied(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (!m.again || (m.use.kind == Kind::kTableRows && m.again->kind == Kind::kColumns) ||
      (m.use.kind == Kind::kWhole && m.again->kind == Kind::kWhole)) {
    return;
  }
  refuse(e, target, m, fmt::format("and {} where it is a product's weight", words(m.again->kind)),
         target == "hf-tp" ? whole_ends(e) : only_data(e));
}

void expect_heads(const Exported& e, const std::string& target) {
  for (const Misfit& m : e.misfits) {
    if (!m.of_attention() || m.heads % e.tensor == 0) continue;
    // Elsewhere what is whole has no words.
    if (m.kind == Misfit::Kind::kWholeAttention && target != "megatron") continue;
    refuse(e, target, m.what, fewer_tensor(e, m, target));
  }
}

void expect_usual_edges(const Exported& e, const std::string& target, const Advice& again,
                        bool whole_too) {
  if (target != "megatron") {
    for (const ModuleSplit& m : e.modules) expect_one_product(e, m, target);
  }
  expect_heads(e, target);
  for (const Misfit& m : e.misfits) {
    const bool sequence = m.kind == Misfit::Kind::kSequence || m.kind == Misfit::Kind::kEnters;
    const bool whole = m.kind == Misfit::Kind::kWholeAttention && target != "megatron";
    if (m.of_other_axes() || whole || (sequence && whole_too)) continue;
    if (m.kind == Misfit::Kind::kEnters && target == "megatron") continue;
    refuse(e, target, m.what, again);
  }
}

void expect_parts(const Exported& e, const std::string& target) {
  const bool parts = std::any_of(e.modules.begin(), e.modules.end(), [](const ModuleSplit& m) {
    return m.multiplies && m.use.kind != Kind::kWhole;
  });
  if (e.tensor == 1 || parts) return;
  refuse(
      e, target,
      fmt::format("no weight is in parts over tp, so that its {} ranks repeat all work", e.tensor),
      target == "hf-tp" ? usual_split(e, target, Ends::kSplit) : without_tensor(e, target));
}

void expect_kept_as_used(const Exported& e, const ModuleSplit& m, const std::string& target) {
  if (!m.multiplies || m.use.kind != Kind::kWhole || !m.stored_in_parts) return;
  refuse(e, target, fmt::format("{} is used whole on each rank of tp, and kept in parts", m.name),
         kept_whole(e));
}

std::vector<std::string> notes_on_moments(const LoadedPlan& loaded) {
  if (!loaded.model.spec.optimizer.moments) return {};
  return {
      "the optimizer is made elsewhere there, and its moments are as that has them; in the plan "
      "they are in bf16, rounded stochastically"};
}

std::vector<std::string> notes_on_tensor(const Exported& e, bool sequence, bool logits) {
  std::vector<std::string> notes;
  if (e.tensor == 1) return notes;
  if (sequence && sequence_in_parts(e)) {
    notes.push_back(
        "norms and activations between products are whole on each rank there; in the plan each has "
        "a part of the sequence");
  }
  const auto ends_in_parts = [](const ModuleSplit::Use& use) {
    return use.kind == Kind::kColumns && use.edges.out == Held::kInner;
  };
  const bool in_parts = std::any_of(e.modules.begin(), e.modules.end(), [&](const ModuleSplit& m) {
    return (!in_layers(m.name) && ends_in_parts(m.use)) || (m.again && ends_in_parts(*m.again));
  });
  if (logits && in_parts) {
    notes.push_back("logits are gathered for the loss there; in the plan each rank keeps its part");
  }
  std::vector<std::string> small;
  for (const ModuleSplit& m : e.modules) {
    const std::string name = folded_name(m.name);
    if (m.multiplies || m.use.kind == Kind::kBias) continue;
    if (!m.stored_in_parts && m.use.kind != Kind::kPositions) continue;
    if (std::find(small.begin(), small.end(), name) == small.end()) small.push_back(name);
  }
  if (!small.empty()) {
    notes.push_back(
        fmt::format("every rank keeps and updates all of {} there; in the plan each keeps a part",
                    fmt::join(small, ", ")));
  }
  return notes;
}

}  // namespace cleave
