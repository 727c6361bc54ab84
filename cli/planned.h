// A model planned as asked for: what plan, fit and explain --why-not share.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "planner/pins.h"
#include "planner/planner.h"

namespace cleave {

struct PlanRequest {
  ModelSpec spec;
  const UserModel* user = nullptr;
  Cluster cluster;
  std::string mesh, memory;          // as for `cleave plan`
  bool fixed_micro_batches = false;  // as many as the spec says; else the search divides the step
  Pins pins;
  // After it a search throws SearchStopped.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

// As arguments say. Throws Error when they make no sense.
PlanRequest request_of(const ModelArguments& model, const std::string& cluster,
                       const std::string& mesh, const std::string& memory,
                       const std::vector<std::string>& pins);

struct Planned {
  std::shared_ptr<TracedModel> model;  // with the plan's graph, where there is a plan
  PlannerOptions options;              // refers to the model
  PlanResult result;
  double limit = 0;      // bytes a device
  bool stopped = false;  // of several searches: the deadline left some out
};

// Traces the model, in the pinned number of micro-batches, and plans it. Throws Error when the
// request makes no sense.
Planned planned(PlanRequest request);

// "h100" of 64x8xh100; empty for a cluster that a file describes.
std::string preset_kind(const Cluster& cluster);

// The same devices, fewer or more of them; nothing when the links of a file do not join so many.
std::optional<Cluster> resized(const Cluster& cluster, int64_t nodes, int64_t devices_per_node);

// Whether more devices are always more of one node: CPU devices whose only link is their memory.
bool is_one_node(const Cluster& cluster);

// The same kind of devices, so many times as many (a power of two): within a node up to eight, then
// more nodes. Nothing when the links of a file do not join so many.
std::optional<Cluster> larger(const Cluster& cluster, int64_t times);

// For a request that nothing fits: the plan that comes nearest to the limit, of some searches under
// larger ones, as far as the request's deadline lets it; nothing when not even without a limit
// there is a plan. Its `limit` is the request's own. `least`: bytes into which hardly anything
// fits, when they are more than the limit. `tries`: searches after the first, without a limit.
std::optional<Planned> nearest_to_fitting(const PlanRequest& request, double least = 0,
                                          int tries = 6);

// Of `p`, which has no plan though smaller ones were estimated: the nearest, of few searches, where
// that fits after all; else its peak as the smallest.
void replace_by_nearest(const PlanRequest& request, Planned& p);

// The plan that needs the least memory, of those the fastest: find_plan under smaller and smaller
// limits.
Planned with_least_memory(const PlanRequest& request);

// The plan on the fewest of the cluster's devices on which one was found, counts that divide the
// cluster's tried in ascending order. `smaller`: what was tried before, in a line each.
Planned on_fewest_devices(PlanRequest request, std::vector<std::string>& smaller);

}  // namespace cleave
