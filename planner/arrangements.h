// The outer choices of a plan: how many stages and micro-batches, which schedule, which mesh.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/cluster.h"
#include "planner/family.h"
#include "planner/mesh.h"
#include "planner/pins.h"
#include "planner/plan.h"
#include "planner/schedule.h"

namespace cleave {

struct Arrangement {
  int32_t stages = 1, chunks = 1;
  ScheduleKind schedule = ScheduleKind::kOneForwardOneBackward;
  int64_t micro_batches = 1;
  Mesh mesh;  // of one stage; axes named a0, a1, ...
  std::vector<AxisRole> roles;

  // "pp 4 x dp 2 x tp 8, 16 micro-batches"
  std::string to_string() const;
};

// What there is to choose from.
struct ArrangementLimits {
  int64_t batch = 1;      // sequences in a step, of all micro-batches; 0: not known
  int64_t pieces = 1;     // into which the model can be cut
  bool sequence = false;  // there is a sequence to split
  bool experts = false;   // repeated layers look something up by index
  std::vector<int64_t> micro_batches = {1};  // counts for which there is a graph; ascending
  size_t max_axes = 2;
  bool stages = false;       // pipelines too
  bool every_count = false;  // of micro-batches, though others are close
};

// A mesh as asked for: sizes with roles left open ("2x4"), or named ("dp=2,tp=4"); empty: chosen.
struct MeshRequest {
  std::vector<int64_t> sizes;
  std::vector<AxisRole> roles;  // as many as sizes
  bool empty() const { return sizes.empty(); }
  std::string to_string() const;  // as parse_mesh reads it; empty: chosen
};

Pipeline pipeline_of(const Arrangement& arrangement);    // chunk_of and seconds left empty
Candidate candidate_of(const Arrangement& arrangement);  // nothing known of it yet

// Of n >= 1, ascending.
std::vector<int64_t> divisors(int64_t n);

// Every arrangement that uses all devices of the cluster, the simplest first. Throws Error when the
// mesh that was asked for, or the pins, leave none.
std::vector<Arrangement> arrangements_of(const Cluster& cluster, const MeshRequest& request,
                                         const Pins& pins, const ArrangementLimits& limits);

// The same with each number of micro-batches that arrangements_of passes over as close to others.
std::vector<Arrangement> with_other_counts(const Arrangement& from,
                                           const ArrangementLimits& limits);

// The same devices and pipeline with a third axis, of the sequence or of experts, taken from the
// other two.
std::vector<Arrangement> with_third_axis(const Arrangement& from, const Cluster& cluster,
                                         const ArrangementLimits& limits);

// Reads "8", "2x4", "dp=2,tp=4". Throws Error on anything else, or on more than four axes.
MeshRequest parse_mesh(std::string_view text);

}  // namespace cleave
