#include "cli/explain_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/comparison.h"
#include "cli/format.h"
#include "cli/op_splits.h"
#include "cli/plan_again.h"
#include "cli/plan_parts.h"
#include "cli/planning.h"
#include "cli/syncs.h"
#include "graph/error.h"
#include "planner/pins.h"
#include "viz/class_words.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostSyncs = 16, kMostOthers = 6, kMostGroups = 12, kMostAlternatives = 14;
constexpr size_t kSyncWidth = 96;
constexpr double kSearchSeconds = 6;  // for the alternatives of one group

std::string bold(const std::string& text, bool colour) {
  return colour ? "\033[1m" + text + "\033[0m" : text;
}

std::string syncs_table(const std::vector<Sync>& syncs, const Plan& plan, bool colour) {
  if (syncs.empty()) {
    return plan.pipeline.stages > 1
               ? "devices meet only where stages send each other activations and their gradients: "
                 "cleave simulate\n"
               : "devices never meet\n";
  }
  Table table({"phase", "devices meet", "at", ">bytes", ">seconds"});
  double bytes = 0, seconds = 0;
  int64_t left_out = 0;
  for (size_t i = 0; i < syncs.size(); ++i) {
    const Sync& s = syncs[i];
    if (i >= kMostSyncs) {
      bytes += s.bytes, seconds += s.seconds, left_out += s.bundled ? 1 : s.places;
      continue;
    }
    const std::string times = s.bundled      ? ", all at once"
                              : s.places > 1 ? fmt::format(" ×{}", s.places)
                                             : "";
    table.add({std::string(name_of(s.phase)), cut(text_of(s, plan), kSyncWidth) + times, s.place,
               bytes_text(s.bytes), seconds_text(s.seconds)});
  }
  std::string text = table.to_string(colour);
  if (left_out > 0) {
    text += fmt::format("and {} smaller ones: {}, {}\n", left_out, bytes_text(bytes),
                        seconds_text(seconds));
  }
  return text;
}

std::string others_text(const Plan& plan) {
  const std::vector<const Candidate*> order = beaten(plan);
  if (order.empty()) return "nothing else was compared\n";
  std::string text;
  for (size_t i = 0; i < std::min(order.size(), kMostOthers); ++i) {
    const Candidate& c = *order[i];
    text += fmt::format("  {:<40}  {}\n", words_of(c), why_not(c, plan));
  }
  if (order.size() > kMostOthers) {
    text +=
        fmt::format("  and {} more that are slower or do not fit\n", order.size() - kMostOthers);
  }
  return text;
}

Json sync_json(const Sync& s, const Plan& plan) {
  return {{"kind", name_of(s.kind)},   {"axis", plan.mesh.axes[static_cast<size_t>(s.axis)].name},
          {"phase", name_of(s.phase)}, {"name", s.name},
          {"where", s.place},          {"bundled", s.bundled},
          {"places", s.places},        {"count", s.count},
          {"stage", s.stage},          {"bytes", s.bytes},
          {"seconds", s.seconds}};
}

Json syncs_json(const std::vector<Sync>& syncs, const Plan& plan) {
  Json list = Json::array();
  for (const Sync& s : syncs) list.push_back(sync_json(s, plan));
  return list;
}

// "[8, 1024, 1024] × [3072, 1024] → [8, 1024, 3072], on a device [1, 1024, 1024] ..."
std::string shapes(const Graph& graph, const Plan& plan, NodeId n, bool local) {
  const Node& node = graph.node(n);
  const auto shape = [&](Value v, int32_t form) {
    return to_string(local ? plan.layout(v, form).local_shape(plan.mesh) : graph.type(v).shape);
  };
  std::vector<std::string> in;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    in.push_back(shape(node.inputs[i], plan.nodes[static_cast<size_t>(n)].input_forms[i]));
  }
  return fmt::format("{} → {}", fmt::join(in, ", "), shape(node.outputs[0], 0));
}

std::string parameters_text(const Graph& graph, const Plan& plan, NodeId n) {
  std::string text;
  for (Value v : graph.node(n).inputs) {
    const Value source = [&] {
      for (int depth = 0; depth < 4; ++depth) {
        if (graph.source_of(v) != nullptr) return v;
        const NodeId producer = graph.value(v).producer;
        if (producer == kNoNode || graph.node(producer).inputs.size() != 1) break;
        v = graph.node(producer).inputs[0];
      }
      return kNoValue;
    }();
    if (source == kNoValue) continue;
    const Source& s = *graph.source_of(source);
    if (s.kind != SourceKind::kParameter) continue;
    text += fmt::format("  {:<11}{} {}, kept {}\n", "reads", s.name,
                        to_string(graph.type(source).shape),
                        to_string(plan.layout(source, 0), plan.mesh));
  }
  return text;
}

struct Explained {
  OpGroup group;
  std::vector<Alternative> one, all;  // with one of them changed, and with all
  std::vector<Sync> syncs;
};

// The ops that take part in the group's splits, its backward too.
std::vector<NodeId> families_of(const Graph& graph, const std::vector<NodeId>& nodes) {
  std::vector<bool> leads(graph.nodes().size(), false);
  for (NodeId n : nodes) leads[static_cast<size_t>(leader_of(graph, n))] = true;
  std::vector<NodeId> result;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (leads[static_cast<size_t>(leader_of(graph, static_cast<NodeId>(n)))]) {
      result.push_back(static_cast<NodeId>(n));
    }
  }
  return result;
}

std::vector<Explained> explained(const LoadedPlan& loaded, const std::string& pattern) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  std::vector<OpGroup> groups = op_groups(graph, plan, pattern);
  if (groups.empty()) {
    fail("no op or parameter of {} is called {}; cleave trace {} lists them", graph.name, pattern,
         loaded.model.spec.name);
  }
  std::vector<Explained> result;
  // In full: the op that does most of the work; the rest are casts and the like.
  std::vector<double> flops;
  for (const OpGroup& g : groups) {
    const Node& node = graph.node(g.nodes[0]);
    flops.push_back(node.op->flops(Graph::call(node, graph.input_types(node))));
  }
  const double most = *std::max_element(flops.begin(), flops.end());
  const auto large =
      std::count_if(flops.begin(), flops.end(), [&](double f) { return f >= 0.5 * most; });
  for (size_t i = 0; i < groups.size(); ++i) {
    OpGroup& g = groups[i];
    const bool detailed = groups.size() <= 2 || (large == 1 && flops[i] == most);
    Explained e;
    e.syncs = syncs_of(graph, plan, families_of(graph, g.nodes));
    if (detailed) {
      const NodeId middle = g.nodes[g.nodes.size() / 2];
      const double seconds =
          kSearchSeconds / static_cast<double>(std::min<size_t>(groups.size(), 2));
      e.one = alternatives_of(graph, plan, middle, {}, seconds);
      if (g.nodes.size() > 1) e.all = alternatives_of(graph, plan, middle, g.nodes, seconds);
    }
    e.group = std::move(g);
    result.push_back(std::move(e));
  }
  return result;
}

const Alternative* same_choice(const std::vector<Alternative>& list, const Alternative& a) {
  const auto found = std::find_if(list.begin(), list.end(),
                                  [&](const Alternative& b) { return b.choice == a.choice; });
  return found == list.end() ? nullptr : &*found;
}

std::string slower(const Alternative* a, const Alternative& chosen) {
  if (a == nullptr) return "not tried";
  if (a->chosen) return "chosen";
  if (!a->possible) return "impossible";
  const double d = a->seconds - chosen.seconds;
  if (std::abs(d) < 1e-6 * chosen.seconds) return "the same";
  return fmt::format("{} {}", d > 0 ? "+" : "-", seconds_text(std::abs(d)));
}

std::string alternatives_table(const LoadedPlan& loaded, const Explained& e,
                               const std::vector<std::string>& words, bool colour) {
  if (e.one.empty()) return "";
  const Alternative& chosen = e.one.front();
  const size_t n = e.group.nodes.size();
  std::vector<std::string> header = {"  split", ">step"};
  if (n > 1) header = {"  split", ">one of them", fmt::format(">all {}", n)};
  header.insert(header.end(), {">computing", ">sending", ">kept on a device"});
  Table table(header);
  for (size_t i = 0; i < std::min(e.one.size(), kMostAlternatives); ++i) {
    const Alternative& a = e.one[i];
    const Alternative* all = n > 1 ? same_choice(e.all, a) : &a;
    std::vector<std::string> row = {
        "  " + split_text(loaded.model.graph, loaded.plan, words, e.group.nodes[0], a.choice),
        slower(&a, chosen)};
    if (n > 1) row.push_back(slower(all, chosen));
    const Alternative& shown = all != nullptr && all->possible ? *all : a;
    if (shown.possible) {
      row.insert(row.end(),
                 {seconds_text(shown.compute_seconds), seconds_text(shown.communication_seconds),
                  bytes_text(static_cast<double>(shown.held_bytes))});
    }
    table.add(std::move(row));
  }
  std::string text = table.to_string(colour);
  if (e.one.size() > kMostAlternatives) {
    text += fmt::format("  and {} more ways that are slower\n", e.one.size() - kMostAlternatives);
  }
  if (loaded.plan.pipeline.stages > 1) {
    text += "  (computing, sending, kept: one device of each stage, added up)\n";
  }
  return text;
}

Json alternative_json(const LoadedPlan& loaded, const std::vector<std::string>& words, NodeId node,
                      const Alternative& a) {
  Json j = {{"split", split_text(loaded.model.graph, loaded.plan, words, node, a.choice)},
            {"chosen", a.chosen},
            {"possible", a.possible}};
  if (a.possible) {
    j["step_seconds"] = a.seconds;
    j["compute_seconds"] = a.compute_seconds;
    j["communication_seconds"] = a.communication_seconds;
    j["held_bytes"] = a.held_bytes;
  }
  return j;
}

std::string head_text(const LoadedPlan& loaded, bool colour) {
  const Plan& plan = loaded.plan;
  return bold(describe(loaded.model), colour) + "   on " + bold(plan.cluster.spec, colour) + "\n";
}

}  // namespace

std::string explain_text(const LoadedPlan& loaded, bool colour) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  std::string text = head_text(loaded, colour);
  text += fmt::format("\n{}  {}, {} a step\n", bold("chosen", colour), plan_words(graph, plan),
                      seconds_text(plan.predicted.step_seconds));
  if (!plan.pins.empty()) text += fmt::format("pinned  {}\n", fmt::join(plan.pins, ", "));
  const PlanAgain again = plan_again(loaded.model, plan);
  text += fmt::format("again   {}\n", command_of(loaded.model, plan));
  if (!again.exact) {
    text +=
        "        gives this arrangement; what memory asks for is then searched anew, and may come "
        "out otherwise\n";
  }
  const Certificate& c = plan.certificate;
  text += c.lower_bound <= 0 ? "proof   no lower bound is known\n"
                             : fmt::format(
                                   "proof   at most {:.2f} % slower than any other of the plans "
                                   "searched{}\n",
                                   100 * c.gap(), plan.pins.empty() ? "" : ", as pinned");
  text += "\n" + bold("beaten", colour) + "\n" + others_text(plan);
  const std::vector<Sync> syncs = syncs_of(graph, plan);
  text += "\n" + syncs_table(syncs, plan, colour);
  text += fmt::format(
      "\nBytes and seconds are those of a step, of one device{}. cleave explain PLAN OP shows one "
      "op.\n",
      plan.pipeline.stages == 1 || syncs.empty()
          ? ""
          : fmt::format(" of stage {}, the busiest", syncs[0].stage));
  return text;
}

std::string explain_json(const LoadedPlan& loaded) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  Json others = Json::array();
  for (const Candidate* other : beaten(plan)) {
    const Candidate& c = *other;
    others.push_back({{"mesh", words_of(c)},
                      {"step_seconds", std::isfinite(c.cost) ? Json(c.cost) : Json()},
                      {"planned", c.planned},
                      {"why_not", c.why_not}});
  }
  const Json json = {{"chosen", plan_words(graph, plan)},
                     {"step_seconds", plan.predicted.step_seconds},
                     {"lower_bound", plan.certificate.lower_bound},
                     {"pins", plan.pins},
                     {"again", command_of(loaded.model, plan)},
                     {"again_is_exact", plan_again(loaded.model, plan).exact},
                     {"others", others},
                     {"synchronizations", syncs_json(syncs_of(graph, plan), plan)}};
  return json.dump(2) + "\n";
}

std::string explain_op_text(const LoadedPlan& loaded, const std::string& pattern, bool colour) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  const std::vector<std::string> words = class_words(graph, *plan.dimensions);
  const std::vector<Explained> all = explained(loaded, pattern);
  std::string text = head_text(loaded, colour);
  for (size_t i = 0; i < std::min(all.size(), kMostGroups); ++i) {
    const Explained& e = all[i];
    const NodeId n = e.group.nodes[0];
    const size_t count = e.group.nodes.size();
    text += fmt::format("\n{}{}  {}\n", bold(e.group.name, colour),
                        count > 1 ? fmt::format(" ×{}", count) : "", e.group.place);
    text += fmt::format(
        "  {:<11}{}\n", "split",
        split_text(graph, plan, words, n, plan.choices[static_cast<size_t>(leader_of(graph, n))]));
    if (e.one.empty()) continue;
    text += fmt::format("  {:<11}{}\n  {:<11}{}\n", "whole", shapes(graph, plan, n, false),
                        "a device", shapes(graph, plan, n, true));
    text += parameters_text(graph, plan, n);
    text += "\n" + syncs_table(e.syncs, plan, colour);
    if (plan.pipeline.stages > 1 && !e.syncs.empty()) {
      text += fmt::format("a step, one device of stage {}\n", e.syncs[0].stage);
    }
    text += "\n" + alternatives_table(loaded, e, words, colour);
  }
  if (all.size() > kMostGroups) text += fmt::format("\nand {} more\n", all.size() - kMostGroups);
  const bool shown =
      std::any_of(all.begin(), all.end(), [](const Explained& e) { return !e.one.empty(); });
  if (!shown) text += "\nName one of them to see its alternatives and their price.\n";
  return text;
}

std::string explain_op_json(const LoadedPlan& loaded, const std::string& pattern) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  const std::vector<std::string> words = class_words(graph, *plan.dimensions);
  Json list = Json::array();
  for (const Explained& e : explained(loaded, pattern)) {
    const NodeId n = e.group.nodes[0];
    Json one = Json::array(), all = Json::array();
    for (const Alternative& a : e.one) one.push_back(alternative_json(loaded, words, n, a));
    for (const Alternative& a : e.all) all.push_back(alternative_json(loaded, words, n, a));
    list.push_back({{"name", e.group.name},
                    {"where", e.group.place},
                    {"count", e.group.nodes.size()},
                    {"split", split_text(graph, plan, words, n,
                                         plan.choices[static_cast<size_t>(leader_of(graph, n))])},
                    {"synchronizations", syncs_json(e.syncs, plan)},
                    {"alternatives", one},
                    {"alternatives_of_all", all}});
  }
  return Json{{"ops", list}}.dump(2) + "\n";
}

std::string why_not_text(const LoadedPlan& loaded, const Planned& other, const std::string& asked,
                         const WhyNotTerms& terms, bool colour) {
  const Plan& chosen = loaded.plan;
  std::string text = head_text(loaded, colour);
  text += fmt::format("\n{}  {} a step: {}\n", bold("chosen ", colour),
                      seconds_text(chosen.predicted.step_seconds),
                      plan_words(loaded.model.graph, chosen));
  if (!terms.kept.empty()) text += fmt::format("keeping  {}\n", fmt::join(terms.kept, ", "));
  if (!terms.gave_way.empty()) {
    text += fmt::format("without  {}, which {} way to {}\n", fmt::join(terms.gave_way, ", "),
                        terms.gave_way.size() > 1 ? "give" : "gives", asked);
  }
  if (!other.result.plan) {
    const auto peak = static_cast<double>(other.result.smallest_peak);
    if (peak > other.limit) {
      text += fmt::format(
          "{}  {}: does not fit: the smallest peak found or estimated is {} a device, the limit "
          "{}: {} too "
          "much\n",
          bold("why not", colour), asked, bytes_text(peak), bytes_text(other.limit),
          bytes_text(peak - other.limit));
      return text;
    }
    text += fmt::format("{}  {}: cannot be made\n", bold("why not", colour), asked);
    for (const Candidate& c : other.result.candidates) {
      // One that failed before there was a mesh has none.
      std::string why = c.why_not;
      if (why.starts_with("--pin: ")) why.erase(0, 7);
      text += c.mesh.axes.empty() ? fmt::format("  {}\n", why)
                                  : fmt::format("  {:<40}  {}\n", words_of(c), why);
    }
    return text;
  }
  const Plan& plan = *other.result.plan;
  const double a = chosen.predicted.step_seconds, b = plan.predicted.step_seconds;
  const double share = 100 * std::abs(b / a - 1);
  const std::string compared = share < 0.05
                                   ? std::string("as fast")
                                   : fmt::format("{} ({:.1f} %) {}", seconds_text(std::abs(b - a)),
                                                 share, b > a ? "slower" : "faster");
  text += fmt::format("{}  {} a step, {}: {}\n", bold("why not", colour), seconds_text(b), compared,
                      plan_words(other.model->graph, plan));
  const auto why = reasons(loaded.model, chosen, *other.model, plan);
  for (const std::string& line : why) {
    const size_t detail = line.find("; ");
    text += "  - " + line.substr(0, detail) + "\n";
    if (detail != std::string::npos) text += "      " + line.substr(detail + 2) + "\n";
  }
  if (why.empty()) text += "  - the two do the same work and send the same\n";
  text += "\n" + measures_table(measures(loaded.model, chosen, *other.model, plan), "chosen", asked,
                                colour);
  return text;
}

std::string why_not_json(const LoadedPlan& loaded, const Planned& other, const std::string& asked,
                         const WhyNotTerms& terms) {
  Json json = {{"asked", asked},
               {"chosen", plan_words(loaded.model.graph, loaded.plan)},
               {"kept", terms.kept},
               {"gave_way", terms.gave_way},
               {"possible", other.result.plan.has_value()}};
  if (!other.result.plan) {
    const auto peak = static_cast<double>(other.result.smallest_peak);
    json["fits"] = false;
    json["smallest_peak_bytes"] = other.result.smallest_peak;
    json["limit_bytes"] = std::isfinite(other.limit) ? Json(other.limit) : Json();
    json["possible"] = peak > other.limit;  // with more memory
    Json why = Json::array();
    for (const Candidate& c : other.result.candidates) {
      why.push_back({{"mesh", words_of(c)}, {"why_not", c.why_not}});
    }
    json["why_not"] = why;
    return json.dump(2) + "\n";
  }
  json["fits"] = true;
  json["plan"] = plan_words(other.model->graph, *other.result.plan);
  json["reasons"] = reasons(loaded.model, loaded.plan, *other.model, *other.result.plan);
  Json numbers = Json::array();
  for (const Measure& m : measures(loaded.model, loaded.plan, *other.model, *other.result.plan)) {
    const size_t first = m.name.find_first_not_of(' ');
    numbers.push_back({{"name", m.name.substr(first)},
                       {"unit", m.bytes ? "bytes" : "seconds"},
                       {"chosen", m.a},
                       {"asked", m.b}});
  }
  json["measures"] = numbers;
  return json.dump(2) + "\n";
}

}  // namespace cleave
