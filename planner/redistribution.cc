#include "planner/redistribution.h"

#include <algorithm>
#include <limits>

#include "graph/error.h"

namespace cleave {

std::string_view name_of(StepKind kind) {
  switch (kind) {
    case StepKind::kAllReduce: return "all-reduce";
    case StepKind::kAllGather: return "all-gather";
    case StepKind::kReduceScatter: return "reduce-scatter";
    case StepKind::kAllToAll: return "all-to-all";
    case StepKind::kSlice: return "local slice";
    case StepKind::kMask: return "local mask";
  }
  return "?";
}

bool is_collective(StepKind kind) { return kind != StepKind::kSlice && kind != StepKind::kMask; }

double collective_seconds(StepKind kind, double bytes, int64_t ranks, const Link& link) {
  const double rounds = static_cast<double>(ranks - 1) * (kind == StepKind::kAllReduce ? 2 : 1);
  return link.start + rounds * link.latency + bytes / link.bandwidth;
}

PlacementSpace::PlacementSpace(const Cluster& cluster, const Mesh& mesh, std::vector<int64_t> atoms,
                               std::vector<int8_t> atom_dim, DType dtype,
                               std::span<const Reduction> partials, bool bundled)
    : mesh_(mesh), layout_{std::move(atoms), std::move(atom_dim), {}}, dtype_(dtype) {
  enumerate(partials);
  find_ways(cluster, bundled);
}

// Every combination of replicate, partial and shard(atom) over the axes that
// divides. Partial sums of different kinds do not mix in one value.
void PlacementSpace::enumerate(std::span<const Reduction> partials) {
  std::vector<Placement> choices = {Placement::replicate()};
  for (size_t i = 0; i < layout_.atoms.size(); ++i) {
    if (layout_.atoms[i] > 1) choices.push_back(Placement::shard(static_cast<int>(i)));
  }
  if (is_float(dtype_)) {
    for (Reduction r : partials) choices.push_back(Placement::partial(r));
  }
  std::vector<size_t> pick(mesh_.axes.size(), 0);
  while (true) {
    Placements p;
    std::vector<int64_t> sizes = layout_.atoms;
    bool fits = true, partial = false;
    Reduction kind = Reduction::kSum;
    for (size_t a = 0; a < pick.size(); ++a) {
      p.push_back(choices[pick[a]]);
      if (p.back().is_shard()) {
        int64_t& size = sizes[static_cast<size_t>(p.back().atom)];
        fits &= size % mesh_.axes[a].size == 0;
        size /= mesh_.axes[a].size;
      } else if (p.back().is_partial()) {
        fits &= !partial || kind == p.back().reduction;
        partial = true;
        kind = p.back().reduction;
      }
    }
    if (fits) {
      const double bytes = static_cast<double>(numel(sizes) * size_of(dtype_));
      if (std::all_of(p.begin(), p.end(), [](const Placement& q) { return q.is_replicate(); })) {
        replicated_ = static_cast<int>(placements_.size());
      }
      placements_.push_back(std::move(p));
      partial_.push_back(partial);
      local_bytes_.push_back(bytes);
    }
    size_t a = pick.size();
    while (a > 0 && ++pick[a - 1] == choices.size()) pick[--a] = 0;
    if (a == 0) break;
  }
}

int PlacementSpace::index_of(const Placements& p) const {
  const auto at = std::find(placements_.begin(), placements_.end(), p);
  return at == placements_.end() ? -1 : static_cast<int>(at - placements_.begin());
}

std::vector<Step> PlacementSpace::neighbours(size_t from, const Cluster& cluster, bool bundled,
                                             std::vector<int32_t>& targets) const {
  std::vector<Step> result;
  targets.clear();
  const Placements& p = placements_[from];
  for (size_t a = 0; a < p.size(); ++a) {
    const int64_t ranks = mesh_.axes[a].size;
    const double share = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
    const double local = local_bytes_[from];
    // The earlier axis cuts first, so an atom that a later axis has cut cannot be cut or gathered.
    const auto free = [&](const Placement& q) {
      return !q.is_shard() || std::none_of(p.begin() + static_cast<int64_t>(a) + 1, p.end(),
                                           [&](const Placement& later) { return later == q; });
    };
    if (!free(p[a])) continue;
    for (size_t to = 0; to < size(); ++to) {
      const Placements& q = placements_[to];
      bool only_this = q[a] != p[a] && free(q[a]);
      for (size_t b = 0; b < p.size() && only_this; ++b) only_this = b == a || p[b] == q[b];
      if (!only_this) continue;
      Step s{.kind = StepKind::kAllReduce, .axis = static_cast<int8_t>(a), .to = q[a]};
      if (p[a].is_partial() && q[a].is_replicate()) {
        s.bytes = 2 * local * share;
      } else if (p[a].is_partial() && q[a].is_shard() &&
                 p[a].reduction != Reduction::kLogSumExp) {  // no library scatters that
        s.kind = StepKind::kReduceScatter;
        s.bytes = local * share;
      } else if (p[a].is_shard() && q[a].is_replicate()) {
        s.kind = StepKind::kAllGather;
        s.bytes = local * static_cast<double>(ranks - 1);
      } else if (p[a].is_shard() && q[a].is_shard()) {
        s.kind = StepKind::kAllToAll;
        s.bytes = local * share;
      } else if (p[a].is_replicate() && q[a].is_shard()) {
        s.kind = StepKind::kSlice;
      } else if (p[a].is_replicate() && q[a].is_partial() && q[a].reduction == Reduction::kSum) {
        s.kind = StepKind::kMask;
      } else {
        continue;
      }
      if (is_collective(s.kind)) {
        const Link& link = cluster.link(mesh_, a);
        s.seconds =
            bundled ? s.bytes / link.bandwidth : collective_seconds(s.kind, s.bytes, ranks, link);
      } else {  // reads what stays and writes it
        s.seconds = 2 * local_bytes_[to] / cluster.device.bandwidth +
                    (bundled ? 0 : cluster.device.op_latency);
      }
      result.push_back(s);
      targets.push_back(static_cast<int32_t>(to));
    }
  }
  return result;
}

// Dijkstra's algorithm from each placement: cheapest first, then fewest steps, then lowest index.
void PlacementSpace::find_ways(const Cluster& cluster, bool bundled) {
  const size_t n = size();
  seconds_.assign(n * n, std::numeric_limits<double>::infinity());
  previous_.assign(n * n, -1);
  last_step_.resize(n * n);
  std::vector<std::vector<Step>> steps(n);
  std::vector<std::vector<int32_t>> targets(n);
  for (size_t i = 0; i < n; ++i) steps[i] = neighbours(i, cluster, bundled, targets[i]);
  for (size_t from = 0; from < n; ++from) {
    double* cost = &seconds_[from * n];
    std::vector<int32_t> count(n, 0);
    std::vector<bool> done(n, false);
    cost[from] = 0;
    for (size_t round = 0; round < n; ++round) {
      size_t best = n;
      for (size_t i = 0; i < n; ++i) {
        if (done[i] || cost[i] == std::numeric_limits<double>::infinity()) continue;
        if (best == n || cost[i] < cost[best] ||
            (cost[i] == cost[best] && count[i] < count[best])) {
          best = i;
        }
      }
      if (best == n) break;
      done[best] = true;
      for (size_t k = 0; k < steps[best].size(); ++k) {
        const size_t to = static_cast<size_t>(targets[best][k]);
        const double c = cost[best] + steps[best][k].seconds;
        const int32_t hops = count[best] + 1;
        if (c < cost[to] || (c == cost[to] && hops < count[to])) {
          cost[to] = c;
          count[to] = hops;
          previous_[from * n + to] = static_cast<int32_t>(best);
          last_step_[from * n + to] = steps[best][k];
        }
      }
    }
  }
}

std::vector<Step> PlacementSpace::steps(size_t from, size_t to) const {
  std::vector<Step> result;
  for (size_t at = to; at != from;) {
    CLEAVE_ASSERT(previous_[from * size() + at] >= 0, "no way between placements {} and {}", from,
                  to);
    result.push_back(last_step_[from * size() + at]);
    at = static_cast<size_t>(previous_[from * size() + at]);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

}  // namespace cleave
