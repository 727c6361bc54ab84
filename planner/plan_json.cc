#include "planner/plan_json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "graph/error.h"
#include "graph/philox.h"
#include "planner/cluster_toml.h"
#include "planner/offload.h"
#include "planner/pins.h"

namespace cleave {
namespace {

constexpr size_t kMostAxes = 4;

using Json = nlohmann::ordered_json;

std::string text_of(const AxisOption& o) {
  switch (o.kind) {
    case AxisOption::Kind::kReplicate: return "-";
    case AxisOption::Kind::kPartialLeader: return "partial";
    case AxisOption::Kind::kPartialFollowers: return "partial-backward";
    case AxisOption::Kind::kFactor: return fmt::format("{}{}", o.letter, o.atom);
    case AxisOption::Kind::kRing: return fmt::format("ring-{}{}", o.letter, o.atom);
  }
  return "?";
}

AxisRole axis_role(const std::string& name) {
  const auto role = role_named(name);
  if (!role) fail("plan: unknown axis role '{}'", name);
  return *role;
}

std::string hex(uint64_t x) { return fmt::format("{:016x}", x); }

Json placements_json(const Plan& plan, Value v, int32_t form) {
  Json j = Json::object();
  const Layout layout = plan.layout(v, form);
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    j[plan.mesh.axes[a].name] = to_string(layout.placements[a], layout);
  }
  return j;
}

std::string value_name(const Graph& graph, Value v) {
  const Source* s = graph.source_of(v);
  return s != nullptr ? s->name : fmt::format("%{}", v);
}

Json collectives_json(const Plan& plan) {
  Json list = Json::array();
  for (const PlannedCollectives& c : plan.collectives) {
    list.push_back(
        {{"kind", name_of(c.kind)},
         {"axis", plan.mesh.axes[static_cast<size_t>(c.axis)].name},
         {"stage", c.stage},
         {"count", c.count},
         {"bytes", c.bytes},
         {"where", fmt::format("{}, {}", name_of(c.phase),
                               c.parameters ? "parameters and gradients" : "activations")},
         {"phase", name_of(c.phase)},
         {"seconds", c.seconds}});
  }
  return list;
}

Json pipeline_json(const Graph& graph, const Plan& plan) {
  const Pipeline& p = plan.pipeline;
  const bool one = p.stages == 1 && p.chunks == 1;
  Json j = {{"stages", p.stages},
            {"virtual", p.chunks},
            {"schedule", one ? std::string("none") : std::string(name_of(p.schedule))},
            {"micro_batches", graph.micro_batches}};
  if (one) return j;
  j["step_seconds"] = p.step_seconds;
  j["chunks"] = Json::array();
  for (size_t c = 0; c < p.seconds.size(); ++c) {
    const ChunkSeconds& s = p.seconds[c];
    const auto first = std::find(p.chunk_of.begin(), p.chunk_of.end(), static_cast<int32_t>(c));
    const auto node = static_cast<NodeId>(first - p.chunk_of.begin());
    j["chunks"].push_back({{"stage", static_cast<int32_t>(c) % p.stages},
                           {"first", first == p.chunk_of.end() ? "" : pin_name(graph, node)},
                           {"forward_seconds", s.forward},
                           {"backward_seconds", s.backward},
                           {"weight_gradient_seconds", s.weight_gradient},
                           {"send_forward_seconds", s.send_forward},
                           {"send_backward_seconds", s.send_backward}});
  }
  return j;
}

// The held form of a value: where it is kept between its readers.
std::string held_text(const Placements& placements) {
  std::string text;
  for (const Placement& p : placements) {
    if (!text.empty()) text += ' ';
    if (p.is_replicate()) text += 'r';
    if (p.is_shard()) text += fmt::format("s{}", p.atom);
    if (p.is_partial()) text += fmt::format("p:{}", name_of(p.reduction));
  }
  return text;
}

// What a file says of the choices, before they are tried on a graph.
struct SavedChoices {
  Mesh mesh;
  std::vector<AxisRole> roles;
  Costing costing;
  std::map<NodeId, std::string> choices;
  std::map<Value, std::string> held;
};

// A field of a saved plan, or a one-line Error that names it.
template <class T>
T field(const Json& json, const char* name) {
  try {
    return json.at(name).get<T>();
  } catch (const nlohmann::json::exception&) {
    fail("plan: field '{}' is missing or of the wrong type", name);
  }
}

// A whole number of a saved plan, from 0 to 2^31 - 1.
int32_t whole(const Json& json, const char* name) {
  if (!json.is_number_integer() || json < 0 || json > INT32_MAX) {
    fail("plan: field '{}' holds something else than a whole number", name);
  }
  return json.get<int32_t>();
}

// By group: how often its phases count, what a byte costs there, micro-batches in flight.
Json costing_json(const Costing& costing) {
  Json list = Json::array();
  for (size_t g = 0; g < costing.runs.size(); ++g) {
    const MemoryPrice& p = costing.prices[g];
    list.push_back({{"runs", costing.runs[g]},
                    {"price", {p.low, p.high, p.split}},
                    {"in_flight", costing.in_flight[g]}});
  }
  return list;
}

Costing costing_in(const Json& choices) {
  Costing costing;
  const Json list = field<Json>(choices, "costing");
  if (!list.is_array() || list.empty()) fail("plan: field 'costing' is empty");
  for (const Json& group : list) {
    const auto runs = field<std::vector<double>>(group, "runs");
    const Json price = field<Json>(group, "price");
    if (runs.size() != 3 || !price.is_array() || price.size() != 3) {
      fail("plan: field 'costing' is malformed");
    }
    costing.runs.push_back({runs[0], runs[1], runs[2]});
    costing.prices.push_back({price[0].is_number() ? price[0].get<double>() : -1,
                              price[1].is_number() ? price[1].get<double>() : -1,
                              whole(price[2], "price")});
    costing.in_flight.push_back(field<double>(group, "in_flight"));
    const MemoryPrice& p = costing.prices.back();
    const bool sound = runs[0] >= 0 && runs[1] >= 0 && runs[2] >= 0 && p.low >= 0 && p.high >= 0 &&
                       costing.in_flight.back() >= 0;
    if (!sound) {
      fail("plan: the price of memory is two numbers and a count of pieces, none negative");
    }
  }
  return costing;
}

// Ascending nodes of the traced graph's forward.
std::vector<NodeId> forward_nodes(const Json& rewrite, const char* name, const Graph& traced) {
  std::vector<NodeId> nodes;
  const Json list = field<Json>(rewrite, name);
  if (!list.is_array()) fail("plan: field '{}' is missing or of the wrong type", name);
  for (const Json& item : list) {
    const NodeId n = whole(item, name);
    const bool known = static_cast<size_t>(n) < traced.nodes().size();
    if (!known || traced.node(n).phase != Phase::kForward ||
        (!nodes.empty() && n <= nodes.back())) {
      fail("plan: field '{}' names node {}, which is none of this {}'s forward: plan again", name,
           n, traced.name);
    }
    nodes.push_back(n);
  }
  return nodes;
}

ScheduleKind schedule_in(const std::string& name) {
  for (ScheduleKind kind : {ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                            ScheduleKind::kZeroBubble}) {
    if (name_of(kind) == name) return kind;
  }
  fail("plan: there is no schedule '{}'", name);
}

// What the search compared, where its file says so.
std::vector<Candidate> candidates_in(const Json& search) {
  std::vector<Candidate> result;
  for (const Json& j : field<Json>(search, "candidates")) {
    Candidate c;
    const auto sizes = field<std::vector<int64_t>>(j, "mesh");
    const auto names = j.contains("axes") ? field<std::vector<std::string>>(j, "axes")
                                          : std::vector<std::string>(sizes.size(), "axis");
    if (names.size() != sizes.size()) fail("plan: a candidate has not as many axes as sizes");
    for (size_t a = 0; a < sizes.size(); ++a) c.mesh.axes.push_back({names[a], sizes[a]});
    c.stages = whole(field<Json>(j, "stages"), "stages");
    c.chunks = whole(field<Json>(j, "virtual"), "virtual");
    c.schedule = schedule_in(field<std::string>(j, "schedule"));
    c.micro_batches = field<int64_t>(j, "micro_batches");
    const Json cost = field<Json>(j, "cost");
    c.cost = cost.is_number() ? cost.get<double>() : std::numeric_limits<double>::infinity();
    const Json bound = field<Json>(j, "lower_bound");
    c.lower_bound =
        bound.is_number() ? bound.get<double>() : std::numeric_limits<double>::infinity();
    c.peak_bytes = field<int64_t>(j, "peak_bytes");
    c.planned = j.contains("planned") && field<bool>(j, "planned");
    c.compute_seconds = field<double>(j, "compute_seconds");
    c.communication_seconds = field<double>(j, "communication_seconds");
    c.why_not = field<std::string>(j, "why_not");
    result.push_back(std::move(c));
  }
  return result;
}

Asked asked_in(const Json& j) {
  Asked asked;
  asked.mesh = field<std::string>(j, "mesh");
  const Json limit = field<Json>(j, "memory_bytes");
  asked.memory_limit =
      limit == "none" ? std::numeric_limits<double>::infinity() : field<double>(j, "memory_bytes");
  asked.micro_batches = field<bool>(j, "micro_batches");
  asked.least_memory = j.contains("least_memory") && field<bool>(j, "least_memory");
  return asked;
}

// Without what is computed from it.
Pipeline pipeline_in(const Json& json) {
  Pipeline p;
  const Json j = field<Json>(json, "pipeline");
  p.stages = whole(field<Json>(j, "stages"), "stages");
  p.chunks = whole(field<Json>(j, "virtual"), "virtual");
  if (p.stages < 1 || p.chunks < 1) fail("plan: a pipeline has at least one stage and chunk");
  const auto name = field<std::string>(j, "schedule");
  if (p.stages > 1 || p.chunks > 1) p.schedule = schedule_in(name);
  return p;
}

}  // namespace

Rewrite rewrite_in_plan(const Json& json, const Graph& traced) {
  if (!json.is_object() || !json.contains("rewrite")) return {};  // an earlier build's
  const Json rewrite = field<Json>(json, "rewrite");
  Rewrite r{forward_nodes(rewrite, "remade", traced), forward_nodes(rewrite, "cuts", traced)};
  const Pipeline p = pipeline_in(json);
  if (std::ssize(r.cuts) + 1 != int64_t{p.stages} * p.chunks) {
    fail("plan: {} cuts do not make {} stages of {} chunks", r.cuts.size(), p.stages, p.chunks);
  }
  return r;
}

uint64_t graph_hash(const Graph& graph) {
  std::string text;
  for (const Source& s : graph.sources()) {
    text += fmt::format("{} {} {} {} {} {} {} {};", name_of(s.kind), s.name, s.value, s.final,
                        to_string(graph.type(s.value)), fmt::join(s.roles, ","),
                        static_cast<int>(s.init.kind), s.init.a);
  }
  for (const Node& n : graph.nodes()) {
    text +=
        fmt::format("{} {} {} {} {} {} {} {};", n.op->name, n.signature->text(),
                    fmt::join(n.inputs, ","), fmt::join(n.outputs, ","), fmt::join(n.extents, ","),
                    static_cast<int>(n.phase), n.follows, fmt::join(n.writes, ","));
    for (const auto& [name, value] : n.attrs.items()) {
      // The update's numbers (learning rate, decay, ...) are training's to choose, after the plan.
      if (n.phase == Phase::kUpdate) break;
      text += name;
      if (const auto* i = std::get_if<int64_t>(&value)) text += fmt::format("={};", *i);
      if (const auto* r = std::get_if<double>(&value)) text += fmt::format("={};", *r);
      if (const auto* t = std::get_if<std::string>(&value)) text += fmt::format("={};", *t);
      if (const auto* l = std::get_if<std::vector<int64_t>>(&value)) {
        text += fmt::format("={};", fmt::join(*l, ","));
      }
    }
    for (Value v : n.outputs) text += name_of(graph.type(v).dtype);
  }
  for (const Output& o : graph.outputs()) text += fmt::format("{} {};", o.name, o.value);
  return stream_of(text);
}

Json plan_to_json(const Graph& graph, const Plan& plan) {
  Json j;
  j["format"] = "cleave-plan";
  j["version"] = kPlanFormatVersion;
  j["graph"] = {{"name", graph.name}, {"hash", hex(graph_hash(graph))}};
  j["cluster"] = plan.cluster.spec;
  if (!plan.cluster.description.empty()) j["cluster_toml"] = plan.cluster.description;
  j["mesh"] = Json::object();
  for (const MeshAxis& a : plan.mesh.axes) j["mesh"][a.name] = a.size;
  j["pipeline"] = pipeline_json(graph, plan);
  j["zero"] = plan.zero;
  j["recompute"] = plan.rewrite.remade.empty() ? "none" : "some";
  j["rewrite"] = {{"remade", plan.rewrite.remade}, {"cuts", plan.rewrite.cuts}};
  j["pins"] = plan.pins;
  const double limit = plan.asked.memory_limit;
  j["asked"] = {{"mesh", plan.asked.mesh},
                {"memory_bytes", std::isinf(limit) ? Json("none") : Json(limit)},
                {"micro_batches", plan.asked.micro_batches},
                {"least_memory", plan.asked.least_memory}};
  j["offloaded"] = Json::array();
  for (size_t i = 0; i < plan.on_host.size(); ++i) {
    if (plan.on_host[i]) j["offloaded"].push_back(graph.sources()[i].name);
  }
  j["kept_for_backward"] = plan.kept;
  j["gathered_again"] = plan.regathered;
  const Prediction& p = plan.predicted;
  j["predicted"] = {{"step_seconds", p.step_seconds},
                    {"compute_seconds", p.compute_seconds},
                    {"communication_seconds", p.communication_seconds},
                    {"tokens_per_second", p.tokens_per_second},
                    {"mfu_full", p.mfu_full},
                    {"mfu_causal", p.mfu_causal},
                    {"peak_bytes", p.peak_bytes},
                    {"state_bytes", p.state_bytes}};
  j["collectives"] = collectives_json(plan);
  j["certificate"] = {
      {"cost", plan.certificate.cost},
      {"lower_bound", plan.certificate.lower_bound},
      // No bound, no gap: infinity is not JSON.
      {"gap", plan.certificate.lower_bound > 0 ? Json(plan.certificate.gap()) : Json()}};
  Json candidates = Json::array();
  for (const Candidate& c : plan.candidates) {
    Json sizes = Json::array(), axes = Json::array();
    for (const MeshAxis& a : c.mesh.axes) sizes.push_back(a.size), axes.push_back(a.name);
    // Infinity is not JSON: what does not fit has no cost.
    candidates.push_back(
        {{"mesh", sizes},
         {"axes", axes},
         {"stages", c.stages},
         {"virtual", c.chunks},
         {"schedule", name_of(c.schedule)},
         {"micro_batches", c.micro_batches},
         {"cost", c.cost < std::numeric_limits<double>::infinity() ? Json(c.cost) : Json()},
         {"lower_bound", c.lower_bound},
         {"peak_bytes", c.peak_bytes},
         {"planned", c.planned},
         {"compute_seconds", c.compute_seconds},
         {"communication_seconds", c.communication_seconds},
         {"why_not", c.why_not}});
  }
  j["search"] = {{"seconds", plan.search_seconds}, {"candidates", candidates}};
  j["values"] = Json::array();
  for (size_t v = 0; v < plan.values.size(); ++v) {
    if (plan.values[v].empty()) continue;
    const Layout layout = plan.layout(static_cast<Value>(v), 0);
    j["values"].push_back({{"name", value_name(graph, static_cast<Value>(v))},
                           {"shape", layout.global_shape()},
                           {"local_shape", layout.local_shape(plan.mesh)},
                           {"placement", placements_json(plan, static_cast<Value>(v), 0)}});
  }
  Json roles = Json::array(), choices = Json::array(), held = Json::array();
  for (AxisRole r : plan.roles) roles.push_back(std::string(name_of(r)));
  for (size_t n = 0; n < plan.choices.size(); ++n) {
    if (plan.choices[n].empty()) continue;
    std::string text;
    for (const AxisOption& o : plan.choices[n]) text += (text.empty() ? "" : " ") + text_of(o);
    choices.push_back({n, text});
  }
  for (const auto& [v, placements] : plan.held) held.push_back({v, held_text(placements)});
  j["choices"] = {{"roles", roles},
                  {"costing", costing_json(plan.costing)},
                  {"nodes", choices},
                  {"held", held}};
  return j;
}

Plan plan_from_json(const Json& json, const Graph& graph, const PlannerOptions& options,
                    const std::vector<int32_t>& chunk_of) {
  if (!json.is_object() || !json.contains("format") || json["format"] != "cleave-plan") {
    fail("not a plan: the file has no \"format\": \"cleave-plan\"");
  }
  const Json version_json = field<Json>(json, "version");
  if (!version_json.is_number_integer()) {
    fail("plan: field 'version' holds something else than a whole number");
  }
  const auto version = version_json.get<int64_t>();
  if (version != kPlanFormatVersion) {
    fail("the plan has format version {}, this build reads {}", version, kPlanFormatVersion);
  }
  if (field<std::string>(field<Json>(json, "graph"), "hash") != hex(graph_hash(graph))) {
    fail("the plan was made for another graph than this {}: plan again", graph.name);
  }
  const Json choices = field<Json>(json, "choices");
  SavedChoices saved;
  const Json mesh = field<Json>(json, "mesh");
  for (const auto& [name, size] : mesh.items()) {
    if (!size.is_number_integer() || size.get<int64_t>() < 1 || size.get<int64_t>() > 1'000'000)
      fail("plan: mesh axis '{}' does not have a number of devices", name);
    saved.mesh.axes.push_back({name, size.get<int64_t>()});
  }
  if (saved.mesh.axes.size() > kMostAxes) {
    fail("plan: its mesh has {} axes; at most {} are planned", saved.mesh.axes.size(), kMostAxes);
  }
  for (const auto& r : field<std::vector<std::string>>(choices, "roles"))
    saved.roles.push_back(axis_role(r));
  if (saved.roles.size() != saved.mesh.axes.size())
    fail("plan: as many roles as mesh axes are needed");
  saved.costing = costing_in(choices);
  try {
    for (const char* list : {"nodes", "held"}) {
      if (!choices.contains(list) || !choices[list].is_array())
        fail("plan: field '{}' is missing or of the wrong type", list);
    }
    for (const Json& item : field<Json>(choices, "nodes")) {
      saved.choices[whole(item.at(0), "nodes")] = item.at(1).get<std::string>();
    }
    for (const Json& item : field<Json>(choices, "held")) {
      saved.held[whole(item.at(0), "held")] = item.at(1).get<std::string>();
    }
  } catch (const nlohmann::json::exception&) {
    fail("plan: the field 'choices' is malformed");
  }
  constexpr double kForbidden = std::numeric_limits<double>::infinity();
  PlannerOptions fixed = options;
  fixed.preferences.choice = [&saved](NodeId leader, const std::vector<AxisOption>& choice) {
    std::string text;
    for (const AxisOption& o : choice) text += (text.empty() ? "" : " ") + text_of(o);
    const auto at = saved.choices.find(leader);
    return at != saved.choices.end() && at->second == text ? 0.0 : kForbidden;
  };
  fixed.preferences.held = [&saved](Value v, const Placements& placements) {
    const auto at = saved.held.find(v);
    return at == saved.held.end() || at->second == held_text(placements) ? 0.0 : kForbidden;
  };
  std::set<std::string> offloaded;
  if (json.contains("offloaded")) {
    for (const auto& name : field<std::vector<std::string>>(json, "offloaded")) {
      const Source* s = graph.source_named(name);
      if (s == nullptr || !can_be_offloaded(graph, *s)) {
        fail("plan: there is no state '{}' that the host could keep", name);
      }
      offloaded.insert(name);
    }
  }
  fixed.preferences.on_host = [&offloaded](const Source& s) { return offloaded.contains(s.name); };
  // The file that it was planned for may be gone: the plan has it whole.
  const auto spec = field<std::string>(json, "cluster");
  const Cluster cluster = json.contains("cluster_toml")
                              ? cluster_from_toml(field<std::string>(json, "cluster_toml"), spec)
                              : parse_cluster(spec);
  Pipeline pipeline = pipeline_in(json);
  if (cluster.size() != saved.mesh.size() * pipeline.stages) {
    fail("plan: its mesh has {} devices, its cluster {} has {}",
         saved.mesh.size() * pipeline.stages, cluster.spec, cluster.size());
  }
  pipeline.chunk_of = chunk_of;
  if (std::ssize(saved.costing.runs) != int64_t{pipeline.stages} * pipeline.chunks) {
    fail("plan: its costing is of {} chunks, its pipeline of {}", saved.costing.runs.size(),
         pipeline.stages * pipeline.chunks);
  }
  if (pipeline.stages * pipeline.chunks > 1 && chunk_of.size() != graph.nodes().size()) {
    fail("plan: its graph is not cut into the chunks of its pipeline");
  }
  auto plan = plan_with(graph, cluster, saved.mesh, saved.roles, saved.costing, pipeline, fixed);
  if (!plan) fail("plan: its choices do not make a plan of this graph");
  // The bound was found by the search; it holds while the costs are the same.
  const Json certificate = field<Json>(json, "certificate");
  const double cost = field<double>(certificate, "cost");
  if (std::abs(plan->certificate.cost - cost) <= 1e-9 * cost) {
    plan->certificate.lower_bound = field<double>(certificate, "lower_bound");
    const Json search = field<Json>(json, "search");
    plan->search_seconds = field<double>(search, "seconds");
    plan->candidates = candidates_in(search);
  }
  if (json.contains("pins")) plan->pins = field<std::vector<std::string>>(json, "pins");
  if (json.contains("asked")) plan->asked = asked_in(field<Json>(json, "asked"));
  return std::move(*plan);
}

}  // namespace cleave
