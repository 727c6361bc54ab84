#include "planner/redistribution.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "graph/error.h"

namespace cleave {

PlacementSpace::PlacementSpace(const Cluster& cluster, const Mesh& mesh, std::vector<int64_t> atoms,
                               std::vector<int8_t> atom_dim, DType dtype,
                               std::span<const Reduction> partials, bool bundled,
                               std::span<const uint32_t> splits)
    : cluster_(&cluster),
      mesh_(mesh),
      layout_{std::move(atoms), std::move(atom_dim), {}},
      dtype_(dtype),
      bundled_(bundled) {
  for (size_t a = 0; a < mesh_.axes.size(); ++a) links_.push_back(axis_links(cluster, mesh_, a));
  enumerate(partials, splits);
  neighbours_.resize(size());
  rows_.resize(size());
}

// Every combination of replicate, partial and shard(atom) over the axes that divides. Partial sums
// of different kinds do not mix in one value.
void PlacementSpace::enumerate(std::span<const Reduction> partials,
                               std::span<const uint32_t> splits) {
  size_t codes = 1;
  for (size_t a = 0; a < mesh_.axes.size(); ++a) {
    std::vector<Placement> choices = {Placement::replicate()};
    for (size_t i = 0; i < layout_.atoms.size(); ++i) {
      const bool allowed = splits.empty() || (splits[a] >> i & 1) != 0;
      if (layout_.atoms[i] > 1 && allowed) choices.push_back(Placement::shard(static_cast<int>(i)));
    }
    if (is_float(dtype_)) {
      for (Reduction r : partials) choices.push_back(Placement::partial(r));
    }
    codes *= choices.size();
    choices_.push_back(std::move(choices));
  }
  index_.assign(codes, -1);
  for (size_t code = 0; code < codes; ++code) {
    Placements p(mesh_.axes.size());
    for (size_t a = p.size(), rest = code; a-- > 0; rest /= choices_[a].size()) {
      p[a] = choices_[a][rest % choices_[a].size()];
    }
    std::vector<int64_t> sizes = layout_.atoms;
    bool fits = true, partial = false;
    Reduction kind = Reduction::kSum;
    for (size_t a = 0; a < p.size(); ++a) {
      if (p[a].is_shard()) {
        int64_t& size = sizes[static_cast<size_t>(p[a].atom)];
        fits &= size % mesh_.axes[a].size == 0;
        size /= mesh_.axes[a].size;
      } else if (p[a].is_partial()) {
        fits &= !partial || kind == p[a].reduction;
        partial = true;
        kind = p[a].reduction;
      }
    }
    if (!fits) continue;
    if (code == 0) replicated_ = static_cast<int>(placements_.size());
    index_[code] = static_cast<int32_t>(placements_.size());
    code_.push_back(static_cast<int32_t>(code));
    placements_.push_back(std::move(p));
    partial_.push_back(partial);
    local_bytes_.push_back(static_cast<double>(numel(sizes) * size_of(dtype_)));
  }
}

int PlacementSpace::index_of(const Placements& p) const {
  size_t code = 0;
  for (size_t a = 0; a < p.size(); ++a) {
    const auto at = std::find(choices_[a].begin(), choices_[a].end(), p[a]);
    if (at == choices_[a].end()) return -1;
    code = code * choices_[a].size() + static_cast<size_t>(at - choices_[a].begin());
  }
  return index_[code];
}

bool PlacementSpace::is_free(const Placements& p, size_t axis, const Placement& there) const {
  return !there.is_shard() ||
         std::find(p.begin() + static_cast<int64_t>(axis) + 1, p.end(), there) == p.end();
}

std::optional<Step> PlacementSpace::step_to(size_t from, size_t to, size_t axis) const {
  const Placement &p = placements_[from][axis], &q = placements_[to][axis];
  const int64_t ranks = mesh_.axes[axis].size;
  const double share = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  const double local = local_bytes_[from];
  Step s{.kind = StepKind::kAllReduce, .axis = static_cast<int8_t>(axis), .to = q};
  if (p.is_partial() && q.is_replicate()) {
    s.bytes = 2 * local * share;
  } else if (p.is_partial() && q.is_shard() &&
             p.reduction != Reduction::kLogSumExp) {  // no library scatters that
    s.kind = StepKind::kReduceScatter;
    s.bytes = local * share;
  } else if (p.is_shard() && q.is_replicate()) {
    s.kind = StepKind::kAllGather;
    s.bytes = local * static_cast<double>(ranks - 1);
  } else if (p.is_shard() && q.is_shard()) {
    s.kind = StepKind::kAllToAll;
    s.bytes = local * share;
  } else if (p.is_replicate() && q.is_shard()) {
    s.kind = StepKind::kSlice;
  } else if (p.is_replicate() && q.is_partial() && q.reduction == Reduction::kSum) {
    s.kind = StepKind::kMask;
  } else {
    return std::nullopt;
  }
  if (is_collective(s.kind)) {
    s.seconds = bundled_ ? s.bytes * seconds_a_byte(s.kind, links_[axis])
                         : collective_seconds(s.kind, s.bytes, links_[axis]);
  } else {  // reads what stays and writes it
    s.seconds = local_copy_seconds(*cluster_, local_bytes_[to]) +
                (bundled_ ? 0 : cluster_->device.op_latency);
  }
  return s;
}

const std::vector<PlacementSpace::Neighbour>& PlacementSpace::neighbours(size_t from) const {
  std::vector<Neighbour>& result = neighbours_[from];
  if (!result.empty() || size() == 1) return result;
  const Placements& p = placements_[from];
  int64_t digit = 1;  // of the axis in a code
  for (size_t a = p.size(); a-- > 0; digit *= static_cast<int64_t>(choices_[a].size())) {
    if (!is_free(p, a, p[a])) continue;
    const auto& choices = choices_[a];
    const int64_t own = code_[from] / digit % static_cast<int64_t>(choices.size());
    for (size_t c = 0; c < choices.size(); ++c) {
      const int64_t code = code_[from] + (static_cast<int64_t>(c) - own) * digit;
      const int32_t to = index_[static_cast<size_t>(code)];
      if (static_cast<int64_t>(c) == own || to < 0 || !is_free(p, a, choices[c])) continue;
      if (const auto step = step_to(from, static_cast<size_t>(to), a)) {
        result.push_back({to, *step});
      }
    }
  }
  std::sort(result.begin(), result.end(), [](const Neighbour& x, const Neighbour& y) {
    return x.step.axis != y.step.axis ? x.step.axis < y.step.axis : x.to < y.to;
  });
  return result;
}

// Dijkstra's algorithm: cheapest first, then fewest steps, then lowest index.
const PlacementSpace::Row& PlacementSpace::row(size_t from) const {
  if (rows_[from]) return *rows_[from];
  const size_t n = size();
  auto row = std::make_unique<Row>();
  row->seconds.assign(n, std::numeric_limits<double>::infinity());
  row->previous.assign(n, -1);
  row->last_step.resize(n);
  using Entry = std::tuple<double, int32_t, int32_t>;  // seconds, steps, placement
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  std::vector<int32_t> count(n, 0);
  std::vector<bool> done(n, false);
  row->seconds[from] = 0;
  queue.emplace(0, 0, static_cast<int32_t>(from));
  while (!queue.empty()) {
    const auto [cost, hops, at] = queue.top();
    queue.pop();
    if (done[static_cast<size_t>(at)]) continue;
    done[static_cast<size_t>(at)] = true;
    for (const Neighbour& next : neighbours(static_cast<size_t>(at))) {
      const auto to = static_cast<size_t>(next.to);
      const double c = cost + next.step.seconds;
      if (c < row->seconds[to] || (c == row->seconds[to] && hops + 1 < count[to])) {
        row->seconds[to] = c;
        count[to] = hops + 1;
        row->previous[to] = at;
        row->last_step[to] = next.step;
        queue.emplace(c, hops + 1, next.to);
      }
    }
  }
  rows_[from] = std::move(row);
  return *rows_[from];
}

std::vector<Step> PlacementSpace::steps(size_t from, size_t to) const {
  std::vector<Step> result;
  const Row& ways = row(from);
  for (size_t at = to; at != from;) {
    CLEAVE_ASSERT(ways.previous[at] >= 0, "no way between placements {} and {}", from, to);
    result.push_back(ways.last_step[at]);
    at = static_cast<size_t>(ways.previous[at]);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

}  // namespace cleave
