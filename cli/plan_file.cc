#include "cli/plan_file.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "cli/memory_parts.h"
#include "cli/plan_again.h"
#include "cli/planning.h"
#include "graph/error.h"
#include "graph/json.h"
#include "planner/plan_json.h"
#include "planner/regions.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

std::string one_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// One line a field, and one line an element of a list of objects: files that can be compared.
std::string lines(const Json& object, const std::string& indent = "") {
  std::string text = "{\n";
  size_t left = object.size();
  for (const auto& [key, value] : object.items()) {
    text += fmt::format("{}  {}: ", indent, one_line(Json(key)));
    const bool list = value.is_array() && !value.empty() && value[0].is_structured();
    const bool nested = value.is_object() && !value.empty() && one_line(value).size() > 200;
    if (nested) {
      text += lines(value, indent + "  ");
    } else if (list) {
      text += "[\n";
      for (size_t i = 0; i < value.size(); ++i) {
        text += fmt::format("{}    {}{}\n", indent, one_line(value[i]),
                            i + 1 < value.size() ? "," : "");
      }
      text += indent + "  ]";
    } else {
      text += one_line(value);
    }
    text += --left > 0 ? ",\n" : "\n";
  }
  return text + indent + "}";
}

Json model_json(const TracedModel& model) {
  const ModelSpec& s = model.spec;
  Json json = {{"name", s.name},
               {"set", s.set},
               {"batch", model.config.batch},
               {"micro_batches", s.optimizer.micro_batches},
               {"sequence", model.config.sequence},
               {"precision", precision_name(s.dtype)},
               {"training", s.training},
               {"optimizer", name_of(s.optimizer.kind)}};
  if (s.optimizer.moments) json["moments"] = moments_name(s);
  return json;
}

Json regions_json(const Graph& graph, const Dimensions& dims) {
  Json list = Json::array();
  for (const RegionGroup& group : fold_regions(graph, find_regions(graph, dims))) {
    const Region& r = group.first;
    const DimensionClass& c = dims.classes[static_cast<size_t>(r.dimension_class)];
    Json syncs = Json::array();
    for (const SyncGroup& s : fold_syncs(graph, r.syncs)) {
      syncs.push_back({{"kind", name_of(s.first.kind)},
                       {"op", graph.node(s.first.node).op->name},
                       {"phase", name_of(s.first.phase)},
                       {"bytes", s.first.bytes},
                       {"count", s.count},
                       {"where", s.first.place}});
    }
    list.push_back({{"class", c.name},
                    {"role", c.role},
                    {"size", c.size},
                    {"ops", r.nodes.size()},
                    {"count", group.count},
                    {"flops_share", r.flops_share},
                    {"sync_points", syncs}});
  }
  return list;
}

// The library would cut a fraction off.
int64_t whole_number(const Json& json, const char* key) {
  if (!json.at(key).is_number_integer()) fail("'{}' is not a whole number", key);
  return json.at(key).get<int64_t>();
}

// Throws Json's exceptions, and Error without the file's name.
ModelSpec spec_in_json(const Json& model) {
  ModelSpec spec;
  spec.name = model.at("name").get<std::string>();
  spec.set = model.at("set").get<std::vector<std::string>>();
  spec.batch = whole_number(model, "batch");
  spec.optimizer.micro_batches = whole_number(model, "micro_batches");
  spec.dtype = precision_named(model.at("precision").get<std::string>());
  spec.training = model.at("training").get<bool>();
  spec.optimizer.kind = optimizer_named(model.at("optimizer").get<std::string>());
  if (model.contains("moments")) {
    spec.optimizer.moments = moments_named(model.at("moments").get<std::string>(), spec.dtype);
  }
  return spec;
}

Json parsed(const std::string& path, std::string_view text) {
  Json json;
  try {
    json = parse_json(text);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
  if (!json.is_object() || !json.contains("format") || json["format"] != "cleave-plan") {
    fail("{}: not a plan; cleave plan -o writes one", path);
  }
  return json;
}

}  // namespace

std::string plan_file_text(const TracedModel& model, const Plan& plan) {
  const Json rest = plan_to_json(model.graph, plan);
  Json json;
  for (const auto& [key, value] : rest.items()) {
    if (key == "graph") json["model"] = model_json(model);
    if (key == "asked") {
      json["again"] = {{"command", command_of(model, plan)},
                       {"exact", plan_again(model, plan).exact}};
    }
    if (key == "collectives") json["memory"] = memory_json(memory_parts(model.graph, plan));
    if (key == "values") json["regions"] = regions_json(model.graph, *plan.dimensions);
    json[key] = value;
  }
  return lines(json) + "\n";
}

std::string job_text(const TracedModel& model, const std::string& tokenizer) {
  return one_line(
      {{"model", model_json(model)}, {"tokenizer", tokenizer.empty() ? "bytes" : tokenizer}});
}

bool is_plan_file(std::string_view text) {
  // Its first field, so that a large graph need not be parsed to be told apart.
  return text.substr(0, 200).find("\"cleave-plan\"") != std::string_view::npos;
}

ModelSpec spec_in_plan_file(const std::string& path, std::string_view text) {
  const Json json = parsed(path, text);
  try {
    return spec_in_json(json.at("model"));
  } catch (const nlohmann::json::exception&) {
    fail("{}: the field 'model' is missing or malformed; write the plan again", path);
  } catch (const Error& e) {
    fail("{}: the field 'model': {}", path, e.what());
  }
}

TrainedJob job_in_checkpoint(const std::string& checkpoint, std::string_view run_json) {
  const Json json = Json::parse(run_json, nullptr, false);
  try {
    return {spec_in_json(json.at("model")), json.value("tokenizer", std::string())};
  } catch (const nlohmann::json::exception&) {
    fail("checkpoint '{}': its run.json does not say which model was trained", checkpoint);
  } catch (const Error& e) {
    fail("checkpoint '{}': its run.json: {}", checkpoint, e.what());
  }
}

LoadedPlan load_plan(const std::string& path, std::string_view text, ModelSpec spec,
                     const UserModel* user) {
  LoadedPlan loaded;
  const Json json = parsed(path, text);
  try {
    loaded.model = trace_model(std::move(spec), user);
    const Rewrite rewrite = rewrite_in_plan(json, loaded.model.graph);
    RewrittenGraph placed;
    if (!rewrite.empty()) {
      placed = rewritten(loaded.model.graph, rewrite);
      loaded.model.graph = placed.graph;
    }
    const PlannerOptions options = planner_options(loaded.model.graph, "", "none");
    loaded.plan = plan_from_json(json, loaded.model.graph, options, placed.chunk_of);
    loaded.plan.rewrite = rewrite;
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  } catch (const nlohmann::json::exception& e) {
    fail("{}: damaged: {}", path, e.what());
  }
  return loaded;
}

std::string regions_text(const TracedModel& model) {
  const Json json = {{"model", model_json(model)},
                     {"regions", regions_json(model.graph, find_dimensions(model.graph))}};
  return lines(json) + "\n";
}

std::string no_plan_text(const TracedModel& model, const Cluster& cluster, double limit,
                         const PlanResult& result) {
  Json candidates = Json::array();
  for (const Candidate& c : result.candidates) {
    Json sizes = Json::array();
    for (const MeshAxis& a : c.mesh.axes) sizes.push_back(a.size);
    candidates.push_back({{"mesh", sizes}, {"peak_bytes", c.peak_bytes}, {"why_not", c.why_not}});
  }
  const Json json = {{"model", model_json(model)},
                     {"cluster", cluster.spec},
                     {"fits", false},
                     {"smallest_peak_bytes", result.smallest_peak},
                     {"limit_bytes", limit},
                     {"candidates", candidates}};
  return lines(json) + "\n";
}

}  // namespace cleave
