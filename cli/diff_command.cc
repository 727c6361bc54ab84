// cleave diff
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/comparison.h"
#include "cli/format.h"
#include "cli/op_splits.h"
#include "cli/plan_file.h"
#include "cli/plan_parts.h"
#include "cli/syncs.h"
#include "graph/error.h"
#include "planner/pins.h"
#include "viz/class_words.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostRows = 14;

LoadedPlan loaded(const std::string& path, const UserModel* user) {
  const std::string text = read_file(path);
  return load_plan(path, text, spec_in_plan_file(path, text), user);
}

// Two of a kind can be compared: the same model, but for how its step is cut into micro-batches.
void expect_one_model(const LoadedPlan& a, const LoadedPlan& b, const DiffArguments& args) {
  const ModelSpec &x = a.model.spec, &y = b.model.spec;
  const auto differ = [&](std::string_view what, const std::string& first,
                          const std::string& second) {
    fail("{} and {} are plans of different models: {} {} and {}", args.a, args.b, what, first,
         second);
  };
  const auto list = [](const std::vector<std::string>& set) {
    return set.empty() ? std::string("none") : fmt::format("{}", fmt::join(set, " "));
  };
  if (x.name != y.name) differ("the models", x.name, y.name);
  if (x.set != y.set) differ("--set", list(x.set), list(y.set));
  if (x.dtype != y.dtype) {
    differ("precisions", std::string(precision_name(x.dtype)),
           std::string(precision_name(y.dtype)));
  }
  if (x.training != y.training) {
    const auto kind = [](bool t) { return std::string(t ? "training" : "forward only"); };
    differ("a plan for", kind(x.training), kind(y.training));
  }
  if (x.optimizer.kind != y.optimizer.kind) {
    differ("optimizers", std::string(name_of(x.optimizer.kind)),
           std::string(name_of(y.optimizer.kind)));
  }
  if (x.optimizer.moments != y.optimizer.moments) {
    differ("moments in", std::string(moments_name(x)), std::string(moments_name(y)));
  }
  const int64_t first = x.batch * x.optimizer.micro_batches;
  const int64_t second = y.batch * y.optimizer.micro_batches;
  if (first != second) {
    differ("batches of", std::to_string(first), std::to_string(second));
  }
}

// By product, look-up or sum, with its layer's number, how it is split; by parameter, how it is
// kept. What lies between follows.
using Splits = std::map<std::string, std::string>;

Splits op_splits(const LoadedPlan& p) {
  const Graph& graph = p.model.graph;
  const std::vector<std::string> words = class_words(graph, *p.plan.dimensions);
  Splits result;
  std::map<std::string, int> seen;  // several ops of one name
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const auto n = static_cast<NodeId>(i);
    if (graph.node(n).phase != Phase::kForward || !contracts(graph.node(n))) continue;
    std::string name = pin_name(graph, n);
    if (const int again = seen[name]++; again > 0) name += fmt::format("#{}", again + 1);
    result[name] = split_text(graph, p.plan, words, n, p.plan.choices[i]);
  }
  return result;
}

Splits kept(const LoadedPlan& p) {
  Splits result;
  for (const Source& s : p.model.graph.sources()) {
    if (s.kind != SourceKind::kParameter) continue;
    result[s.name] = to_string(p.plan.layout(s.value, 0), p.plan.mesh);
  }
  return result;
}

struct SplitDifference {
  std::string name;  // layers folded
  int64_t count = 0;
  std::string a, b;
};

// Those that differ, equal layers together; with `together`, all that differ alike, named by the
// first.
std::vector<SplitDifference> differences(const Splits& a, const Splits& b, bool together) {
  std::map<std::tuple<std::string, std::string, std::string>, int64_t> found;
  std::map<std::pair<std::string, std::string>, std::string> first;
  for (const auto& [name, split] : a) {
    const auto other = b.find(name);
    const std::string there = other == b.end() ? "not there" : other->second;
    if (split == there) continue;
    std::string group = folded_name(name);
    if (together) group = first.emplace(std::pair(split, there), group).first->second;
    ++found[{group, split, there}];
  }
  std::vector<SplitDifference> result;
  for (const auto& [key, count] : found) {
    result.push_back({std::get<0>(key), count, std::get<1>(key), std::get<2>(key)});
  }
  return result;
}

std::string differences_table(const char* what, const std::vector<SplitDifference>& all,
                              const std::string& name_a, const std::string& name_b, bool colour) {
  if (all.empty()) return "";
  Table table({what, name_a, name_b});
  for (size_t i = 0; i < std::min(all.size(), kMostRows); ++i) {
    const SplitDifference& d = all[i];
    table.add({cut(d.name, kWidest) + (d.count > 1 ? fmt::format(" ×{}", d.count) : ""),
               cut(d.a, kWidest), cut(d.b, kWidest)});
  }
  std::string text = "\n" + table.to_string(colour);
  if (all.size() > kMostRows) text += fmt::format("and {} more\n", all.size() - kMostRows);
  return text;
}

struct CollectiveSum {
  int64_t count = 0;
  double bytes = 0;
};
using Collectives = std::map<std::string, CollectiveSum>;  // by "all-reduce over tp"

// What one device of the busiest stage sends.
Collectives collectives(const LoadedPlan& loaded) {
  const Plan& plan = loaded.plan;
  const int32_t stage = busiest_stage(loaded.model.graph, plan).stage;
  Collectives sums;
  for (const PlannedCollectives& c : plan.collectives) {
    if (c.stage != stage) continue;
    CollectiveSum& s = sums[fmt::format("{} over {}", name_of(c.kind),
                                        plan.mesh.axes[static_cast<size_t>(c.axis)].name)];
    s.count += c.count;
    s.bytes += c.bytes;
  }
  return sums;
}

std::string collectives_table(const LoadedPlan& a, const LoadedPlan& b, const std::string& name_a,
                              const std::string& name_b, bool colour) {
  const Collectives x = collectives(a), y = collectives(b);
  Collectives all = x;
  all.insert(y.begin(), y.end());
  Table table({"one device sends", ">" + name_a, ">" + name_b});
  const auto text = [](const Collectives& sums, const std::string& key) {
    const auto at = sums.find(key);
    if (at == sums.end()) return std::string("-");
    return fmt::format("{} in {}", bytes_text(at->second.bytes), at->second.count);
  };
  for (const auto& [key, sum] : all) {
    if (text(x, key) == text(y, key)) continue;
    table.add({key, text(x, key), text(y, key)});
  }
  return table.empty() ? "" : "\n" + table.to_string(colour);
}

// The files' names; with their folders when the names are the same.
std::pair<std::string, std::string> column_names(const DiffArguments& a) {
  const auto base = [](const std::string& path) { return path.substr(path.rfind('/') + 1); };
  if (base(a.a) != base(a.b)) return {base(a.a), base(a.b)};
  return {a.a, a.b};
}

Json differences_json(const std::vector<SplitDifference>& all) {
  Json list = Json::array();
  for (const SplitDifference& d : all) {
    list.push_back({{"name", d.name}, {"count", d.count}, {"a", d.a}, {"b", d.b}});
  }
  return list;
}

}  // namespace

void diff_command(const DiffArguments& a) {
  const LoadedPlan x = loaded(a.a, a.user), y = loaded(a.b, a.user);
  expect_one_model(x, y, a);
  const auto all = measures(x.model, x.plan, y.model, y.plan);
  const auto splits = differences(op_splits(x), op_splits(y), false);
  const auto weights = differences(kept(x), kept(y), true);
  if (a.json) {
    Json numbers = Json::array();
    for (const Measure& m : all) {
      numbers.push_back({{"name", m.name.substr(m.name.find_first_not_of(' '))},
                         {"unit", m.bytes ? "bytes" : "seconds"},
                         {"a", m.a},
                         {"b", m.b}});
    }
    Json sums = Json::array();
    const Collectives p = collectives(x), q = collectives(y);
    Collectives both = p;
    both.insert(q.begin(), q.end());
    for (const auto& entry : both) {
      const auto of = [&](const Collectives& c) {
        return c.contains(entry.first) ? c.at(entry.first) : CollectiveSum{};
      };
      sums.push_back({{"collective", entry.first},
                      {"a", {{"count", of(p).count}, {"bytes", of(p).bytes}}},
                      {"b", {{"count", of(q).count}, {"bytes", of(q).bytes}}}});
    }
    const Json json = {{"a", {{"file", a.a}, {"plan", plan_words(x.model.graph, x.plan)}}},
                       {"b", {{"file", a.b}, {"plan", plan_words(y.model.graph, y.plan)}}},
                       {"measures", numbers},
                       {"collectives", sums},
                       {"splits", differences_json(splits)},
                       {"kept", differences_json(weights)}};
    fmt::print("{}\n", json.dump(2));
    return;
  }
  const bool colour = colours_wanted();
  const auto [name_a, name_b] = column_names(a);
  fmt::print("{}\n\n", describe(x.model));
  const size_t width = std::max({name_a.size(), name_b.size(), size_t{24}});
  fmt::print("{:<{}}  {} on {}\n", name_a, width, plan_words(x.model.graph, x.plan),
             x.plan.cluster.spec);
  fmt::print("{:<{}}  {} on {}\n\n", name_b, width, plan_words(y.model.graph, y.plan),
             y.plan.cluster.spec);
  fmt::print("{}", measures_table(all, name_a, name_b, colour));
  fmt::print("{}", collectives_table(x, y, name_a, name_b, colour));
  fmt::print("{}", differences_table("op is split", splits, name_a, name_b, colour));
  fmt::print("{}", differences_table("weights are kept", weights, name_a, name_b, colour));
  if (splits.empty() && weights.empty())
    fmt::print("\nall ops are split, and all weights kept, alike\n");
}

}  // namespace cleave
