#include "planner/critical_paths.h"

#include <algorithm>

namespace cleave {
namespace {

constexpr size_t kMostSimulated = 2'000'000;  // units, over all runs
constexpr double kSlow = 1.02, kSend = 1e-3;  // of a unit

}  // namespace

std::vector<CriticalPath> critical_paths(const Schedule& schedule) {
  const int32_t stages = schedule.stages, chunks = stages * schedule.chunks;
  const auto columns = static_cast<size_t>(chunks);
  const bool halves = schedule.kind == ScheduleKind::kZeroBubble;
  const double m = schedule.micro_batches;
  std::vector<CriticalPath> paths;
  for (int32_t s = 0; s < stages; ++s) {
    const std::vector<Unit>& order = schedule.order[static_cast<size_t>(s)];
    CriticalPath all;
    all.forward.assign(columns, 0);
    all.backward = all.awaited = all.forward;
    all.update.assign(static_cast<size_t>(stages), 0);
    all.stage = s;
    CriticalPath back = all, through = all, drained = all;
    back.kind = 1, through.kind = 2, drained.kind = 3;
    for (int32_t c = 0; c < s; ++c) all.forward[size_t(c)] = 1;
    all.sends = s;
    for (int32_t c = s; c < chunks; c += stages)
      all.forward[size_t(c)] = all.backward[size_t(c)] = m;
    all.update[size_t(s)] = 1;
    paths.push_back(all);
    const auto last_back = std::find_if(
        order.rbegin(), order.rend(), [](const Unit& u) { return u.kind == UnitKind::kBackward; });
    if (last_back != order.rend()) {
      drained.forward = all.forward;
      for (auto u = last_back; u != order.rend(); ++u) {
        const auto c = static_cast<size_t>(u->chunk);
        if (u->kind == UnitKind::kBackward) (halves ? drained.awaited : drained.backward)[c] += 1;
        // A gradient of weights and what was awaited before it make a whole backward.
        if (u->kind == UnitKind::kWeightGradient) drained.backward[c] += 1, drained.awaited[c] -= 1;
      }
      for (int32_t c = 0; c < last_back->chunk; ++c) {
        (halves ? drained.awaited : drained.backward)[size_t(c)] += 1;
      }
      drained.sends = s + last_back->chunk;
      drained.update[0] = 1;
      paths.push_back(drained);
    }
    // From the first backward on; of a backward that is two units only what is there of both.
    const auto first = std::find_if(order.begin(), order.end(),
                                    [](const Unit& u) { return u.kind == UnitKind::kBackward; });
    if (first == order.end() || first->micro_batch != 0) continue;
    for (size_t c = 0; c < columns; ++c) back.forward[c] = 1;
    for (int32_t c = first->chunk + 1; c < chunks; ++c) {
      (halves ? back.awaited : back.backward)[size_t(c)] = 1;
    }
    back.sends = chunks - 1 + (chunks - 1 - first->chunk);
    through.forward = back.forward, through.backward = back.backward;
    auto last = order.end();
    for (auto u = order.begin(); u != order.end(); ++u) {
      if (u->kind == UnitKind::kForward) last = u;
    }
    for (auto u = first; u != order.end(); ++u) {
      const auto c = static_cast<size_t>(u->chunk);
      if (u->kind == UnitKind::kForward) back.forward[c] += 1;
      if (u->kind == UnitKind::kBackward) back.backward[c] += 1;
      if (u > last) continue;
      if (u->kind == UnitKind::kForward) through.forward[c] += 1;
      if (u->kind == UnitKind::kBackward) through.backward[c] += 1;
    }
    back.update[size_t(s)] = 1;
    paths.push_back(back);
    if (halves || last < first || last->micro_batch != schedule.micro_batches - 1) continue;
    for (int32_t c = last->chunk + 1; c < chunks; ++c) through.forward[size_t(c)] += 1;
    for (size_t c = 0; c < columns; ++c) through.backward[c] += 1;
    through.sends = back.sends + (chunks - 1 - last->chunk) + chunks - 1;
    through.update[0] = 1;
    paths.push_back(through);
  }
  if (stages == 1 || schedule.units() * static_cast<size_t>(stages) > kMostSimulated) {
    return paths;
  }
  for (int32_t s = 0; s < stages; ++s) {
    std::vector<ChunkSeconds> seconds(columns);
    for (size_t c = 0; c < columns; ++c) {
      const double slow = static_cast<int32_t>(c) % stages == s ? kSlow : 1;
      seconds[c] = {slow, slow, slow, kSend, kSend};
    }
    const UnitChain chain = critical_chain(schedule, seconds, simulate(schedule, seconds), s);
    CriticalPath path;
    path.kind = 4;
    path.stage = s;
    path.forward = chain.forward;
    path.update.assign(static_cast<size_t>(stages), 0);
    path.update[static_cast<size_t>(s)] = 1;
    path.backward = chain.backward;
    path.awaited.assign(columns, 0);
    for (size_t c = 0; c < columns; ++c) {
      path.sends += chain.sent_forward[c] + chain.sent_backward[c];
      if (!halves) continue;
      // As many whole backwards as there are both halves of.
      path.backward[c] = std::min(chain.backward[c], chain.weights[c]);
      path.awaited[c] = chain.backward[c] - path.backward[c];
    }
    paths.push_back(std::move(path));
  }
  return paths;
}

}  // namespace cleave
