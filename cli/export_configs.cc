// What is written as JSON: transformers' tp_plan, and DeepSpeed's configuration.
#include <nlohmann/json.hpp>

#include "cli/export_checks.h"
#include "cli/model_spec.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ModuleSplit::Kind;

// The style of a module in a tp_plan; empty: it needs none.
std::string hf_style(const Exported& e, const ModuleSplit& m) {
  const char* no_style = "a tp_plan has no style for that";
  switch (m.use.kind) {
    case Kind::kColumns:
      return in_layers(m.name) && m.use.edges.out != Held::kWhole ? "colwise"
                                                                  : "colwise_gather_output";
    case Kind::kRows: return "rowwise";
    case Kind::kTableRows: return "embedding_rowwise";
    case Kind::kPositions: return "";
    case Kind::kWhole:
      return m.use.edges.in == Held::kInner ? "replicated_with_grad_allreduce" : "";
    case Kind::kTableWidth: refuse(e, "hf-tp", m, no_style, usual_split(e, "hf-tp", Ends::kSplit));
    case Kind::kExperts:
    case Kind::kBias:
    case Kind::kOther: break;
  }
  refuse(e, "hf-tp", m, no_style, in_layers(m.name) ? part_whole(e, m.name) : whole_ends(e));
}

// The weights of a module as DeepSpeed finds them by name.
std::string weight_pattern(const std::string& name) {
  std::string pattern = "^";
  for (char c : name) {
    if (c == '*') {
      pattern += "\\d+";
    } else {
      pattern += c == '.' ? std::string("\\.") : std::string(1, c);
    }
  }
  return pattern + "\\.weight$";
}

// How AutoTP splits a module; null: not at all.
Json autotp_spec(const Exported& e, const std::string& name, const ModuleSplit& m) {
  const std::string target = "deepspeed";
  const ModuleSplit::Use& use = m.use;
  if ((!in_layers(name) && use.kind == Kind::kColumns) ||
      (m.again && m.again->kind != Kind::kWhole)) {
    refuse(e, target,
           fmt::format("the last product, with {}, is split by columns, and AutoTP does not gather "
                       "logits or make the loss of parts",
                       m.name),
           whole_ends(e));
  }
  expect_kept_as_used(e, m, target);
  const char* products = "AutoTP splits products by columns or rows only";
  switch (use.kind) {
    case Kind::kColumns:
    case Kind::kRows: break;
    case Kind::kTableRows:
    case Kind::kTableWidth: refuse(e, target, m, products, whole_ends(e));
    case Kind::kExperts:
    case Kind::kBias:
    case Kind::kOther: refuse(e, target, m, products, only_data(e));
    case Kind::kPositions: return {};
    case Kind::kWhole:
      if (use.edges.in != Held::kInner) return {};
      refuse(e, target, m, "what it works on is split inside, and nothing there sums its gradient",
             only_data(e));
  }
  Json spec = {{"patterns", {weight_pattern(name)}},
               {"partition_type", use.kind == Kind::kColumns ? "column" : "row"}};
  if (use.pieces > 1) {
    spec["shape"] = use.first ? Json{use.pieces, -1} : Json{-1, use.pieces};
    spec["partition_dim"] = use.first ? 0 : 1;
  }
  return spec;
}

}  // namespace

Written hf_tp_plan(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "hf-tp";
  expect_nothing_else(loaded, e, target);
  expect_one_stage(e, target, "a tp_plan has no stages");
  expect_parts(e, target);
  const Advice again = usual_split(e, target);
  expect_usual_edges(e, target, again, true);
  Json plan = Json::object();
  for (const auto& [name, m] : folded(e, target, again)) {
    expect_tied(e, m, target);
    if (m.use.pieces > 1) {
      refuse(e, target, m,
             fmt::format("its {} pieces are cut one by one, and a tp_plan cuts a dimension in one "
                         "piece a rank",
                         m.use.pieces),
             part_whole(e, m.name));
    }
    expect_kept_as_used(e, m, target);
    if (const std::string style = hf_style(e, m); !style.empty()) plan[name] = style;
  }
  std::vector<std::string> notes = notes_on_moments(loaded);
  for (const std::string& note : notes_on_tensor(e, true, true)) notes.push_back(note);
  return {plan.dump(2) + "\n", notes};
}

Written deepspeed_config(const LoadedPlan& loaded, const Exported& e) {
  const std::string target = "deepspeed";
  expect_nothing_else(loaded, e, target);
  expect_one_stage(e, target,
                   "stages are written in the program there (PipelineModule), not in the "
                   "configuration");
  const Advice usual = usual_split(e, target, Ends::kWhole);
  if (e.tensor > 1) {
    expect_parts(e, target);
    expect_usual_edges(e, target, usual, true);
    if (e.zero == 3) {
      refuse(e, target, "tensor_parallel goes with ZeRO 0 to 2, and the plan has 3",
             zero_for_all(e, target));
    }
  }
  std::vector<std::string> notes = expect_whole_zero(loaded, e, target);
  Json json = {{"train_batch_size", e.batch * e.micro_batches},
               {"train_micro_batch_size_per_gpu", e.sequences},
               {"gradient_accumulation_steps", e.micro_batches},
               {"zero_optimization", {{"stage", e.zero}}}};
  if (is_half(loaded.model.spec.dtype)) {
    json[std::string(precision_name(loaded.model.spec.dtype))] = {{"enabled", true}};
  }
  if (e.tensor == 1) return {json.dump(2) + "\n", notes};
  Json specs = Json::array();
  for (const auto& [name, m] : folded(e, target, usual)) {
    const Json spec = autotp_spec(e, name, m);
    if (!spec.is_null()) specs.push_back(spec);
  }
  json["tensor_parallel"] = {
      {"autotp_size", e.tensor},
      {"partition_config", {{"use_default_specs", false}, {"layer_specs", specs}}}};
  for (const std::string& note : notes_on_tensor(e, true, false)) notes.push_back(note);
  return {json.dump(2) + "\n", notes};
}

}  // namespace cleave
