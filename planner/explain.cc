#include "planner/explain.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>
#include <tuple>

namespace cleave {
namespace {

constexpr double kForbidden = std::numeric_limits<double>::infinity();

}  // namespace

NodeId leader_of(const Graph& graph, NodeId node) {
  while (graph.node(node).follows != kNoNode) node = graph.node(node).follows;
  return node;
}

std::vector<Alternative> alternatives_of(const Graph& graph, const Plan& plan, NodeId node,
                                         const std::vector<NodeId>& alike, double most_seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const NodeId leader = leader_of(graph, node);
  std::set<NodeId> leaders = {leader};
  for (NodeId n : alike) leaders.insert(leader_of(graph, n));
  PlannerOptions options;
  const auto solved = [&] {
    return plan_with(graph, plan.cluster, plan.mesh, plan.roles, plan.costing, plan.pipeline,
                     options);
  };
  std::vector<std::vector<AxisOption>> choices;
  options.preferences.choice = [&](NodeId n, const std::vector<AxisOption>& choice) {
    if (n == leader) choices.push_back(choice);
    return 0.0;
  };
  solved();
  const std::vector<AxisOption>& chosen = plan.choices[static_cast<size_t>(leader)];
  // The chosen one first, so that it is there however little time there is.
  std::stable_partition(choices.begin(), choices.end(), [&](const auto& c) { return c == chosen; });
  std::vector<Alternative> result;
  for (const auto& choice : choices) {
    Alternative a;
    a.choice = choice;
    a.chosen = choice == chosen;
    options.preferences.choice = [&](NodeId n, const std::vector<AxisOption>& c) {
      return leaders.contains(n) && c != choice ? kForbidden : 0.0;
    };
    if (const auto other = solved()) {
      a.possible = true;
      a.seconds = other->certificate.cost;
      a.compute_seconds = other->predicted.compute_seconds;
      a.communication_seconds = other->predicted.communication_seconds;
      a.held_bytes = other->predicted.held_bytes;
    }
    result.push_back(std::move(a));
    if (std::chrono::duration<double>(Clock::now() - start).count() > most_seconds) break;
  }
  std::stable_sort(result.begin(), result.end(), [](const Alternative& a, const Alternative& b) {
    return std::tuple(!a.chosen, !a.possible, a.seconds) <
           std::tuple(!b.chosen, !b.possible, b.seconds);
  });
  return result;
}

}  // namespace cleave
