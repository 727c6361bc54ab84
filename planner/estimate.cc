#include "planner/estimate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kRounds = 6;
constexpr size_t kMostRuns = 60, kMostUnits = 1'000'000;  // simulated to improve cuts
constexpr size_t kNeighbours = 3;
constexpr size_t kMostTries = 2000, kMostUnitsTried = 10'000'000;  // the same, when thorough
constexpr double kHot = 3e-3, kCold = 1e-5;  // of the step: how much worse is taken on
// What weight gradients that wait need besides what the forward keeps: gradients of the forward's
// results, as a part of those.
constexpr double kWaitingGradients = 0.5;

void add(PieceLoad& to, const PieceLoad& from, double times) {
  to.deferrable += times * from.deferrable;
  for (size_t p = 0; p < 3; ++p) {
    to.seconds[p] += times * from.seconds[p];
    to.communication[p] += times * from.communication[p];
  }
  to.bundled += times * from.bundled;
  to.state_bytes += static_cast<int64_t>(times * static_cast<double>(from.state_bytes));
  to.kept_bytes += static_cast<int64_t>(times * static_cast<double>(from.kept_bytes));
}

double pass(const GroupLoad& l) { return l.seconds[0] + l.seconds[1]; }

// One stage: which of its pieces run how.
class Stage {
 public:
  // `in_flight`, `deferred`: micro-batches, by piece.
  Stage(const std::vector<PieceOption>& options, std::vector<int32_t> pieces,
        std::vector<double> in_flight, std::vector<double> deferred, double micro_batches)
      : options_(options),
        pieces_(std::move(pieces)),
        in_flight_(std::move(in_flight)),
        deferred_(std::move(deferred)),
        micro_batches_(micro_batches) {}

  double bytes(size_t i, int32_t option) const {
    const GroupLoad& l = load(i, option);
    const auto kept = static_cast<double>(l.kept_bytes);
    double bytes = static_cast<double>(l.state_bytes) + in_flight_[i] * kept;
    if (deferred_[i] > 0) {  // what was recomputed for the backward waits too
      const auto all = static_cast<double>(load(i, 0).kept_bytes);
      bytes += deferred_[i] * ((1 + kWaitingGradients) * all - std::min(kept, all));
    }
    return bytes;
  }
  double seconds(size_t i, int32_t option) const {
    const GroupLoad& l = load(i, option);
    return micro_batches_ * pass(l) + l.seconds[2];
  }
  double bytes(const StageMix& mix) const {
    double sum = 0;
    for (size_t i = 0; i < pieces_.size(); ++i) sum += bytes(i, option(i, mix));
    return sum;
  }
  double seconds(const StageMix& mix) const {
    double sum = 0;
    for (size_t i = 0; i < pieces_.size(); ++i) sum += seconds(i, option(i, mix));
    return sum;
  }
  int32_t option(size_t i, const StageMix& mix) const {
    return pieces_[i] < mix.split ? mix.first : mix.second;
  }

  // The cheapest mix of two options within the limit; split -1: none fits.
  StageMix best(double limit) const {
    StageMix found{0, 0, -1};
    double least = kInfinity;
    const auto count = static_cast<int32_t>(options_.size());
    for (int32_t a = 0; a < count; ++a) {
      for (int32_t b = 0; b < count; ++b) {
        // As many pieces as fit run as `a`, the thirstier.
        double used = bytes({a, b, 0}), spent = seconds({a, b, 0});
        if (used > limit) continue;
        StageMix mix{a, b, 0};
        double best_spent = spent;
        for (size_t i = 0; i < pieces_.size() && a != b; ++i) {
          used += bytes(i, a) - bytes(i, b);
          if (used > limit) break;
          spent += seconds(i, a) - seconds(i, b);
          if (spent >= best_spent) continue;
          best_spent = spent;
          mix.split = pieces_[i] + 1;
        }
        if (best_spent < least) least = best_spent, found = mix;
      }
    }
    return found;
  }

 private:
  const PieceLoad& load(size_t i, int32_t option) const {
    return options_[static_cast<size_t>(option)].loads[static_cast<size_t>(pieces_[i])];
  }

  const std::vector<PieceOption>& options_;
  const std::vector<int32_t> pieces_;  // ascending
  const std::vector<double> in_flight_, deferred_;
  const double micro_batches_;
};

}  // namespace

std::vector<PieceLoad> piece_loads(const Outline& outline, const PreparedGraph& prepared,
                                   const Plan& folded) {
  const FoldedGraph& f = outline.folded;
  std::vector<PieceLoad> groups(folded.loads.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    static_cast<GroupLoad&>(groups[g]) = folded.loads[g];
  }
  // Another piece's backward waits for what it reads, and for whatever that is made of.
  const Graph& graph = *prepared.graph;
  std::vector<bool> awaited(graph.nodes().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kBackward) continue;
    for (Value v : node.inputs) {
      const NodeId producer = graph.value(v).producer;
      if (producer == kNoNode) continue;
      const auto p = static_cast<size_t>(producer);
      if (awaited[n] || prepared.group_of[p] != prepared.group_of[n]) awaited[p] = true;
    }
    if (!awaited[n]) {
      groups[static_cast<size_t>(prepared.group_of[n])].deferrable += folded.nodes[n].seconds;
    }
  }
  std::vector<PieceLoad> loads(outline.pieces.size());
  for (size_t p = 0; p < loads.size(); ++p) {
    add(loads[p], groups[static_cast<size_t>(f.group_of_piece[p])], 1);
  }
  // What passes between copies counts with the later one.
  for (size_t g = 0; g < f.groups.size(); ++g) {
    const FoldedGroup& group = f.groups[g];
    if (group.piece >= 0 || group.repeat < 0) continue;
    int32_t last = 0;
    for (const Piece& p : outline.pieces) {
      if (p.repeat == group.repeat) last = std::max(last, p.copy);
    }
    // The group's load is of all its passages: in a repeat that is kept whole, of each.
    const double share = 1 / f.passages(g);
    const bool whole = !group.inside && f.passages(g) == last;
    for (size_t p = 0; p < loads.size(); ++p) {
      const Piece& piece = outline.pieces[p];
      if (piece.repeat != group.repeat || piece.copy == 0) continue;
      const bool end = piece.copy == 1 || piece.copy == last;
      if (whole || group.inside != end) add(loads[p], groups[g], share);
    }
  }
  return loads;
}

Schedules::Entry& Schedules::entry(const Arrangement& a) {
  Entry* found = nullptr;
  {
    const std::lock_guard lock(mutex_);
    auto& entry = known_[{a.schedule, a.stages, a.chunks, a.micro_batches}];
    if (!entry) entry = std::make_unique<Entry>();
    found = entry.get();
  }
  std::call_once(found->made, [&] {
    Facts& facts = found->facts;
    facts.schedule =
        make_schedule(a.schedule, a.stages, a.chunks, static_cast<int32_t>(a.micro_batches));
    for (int32_t c = 0; c < a.stages * a.chunks; ++c) {
      facts.in_flight.push_back(facts.schedule.in_flight(c));
      facts.deferred.push_back(facts.schedule.deferred(c));
    }
  });
  return *found;
}

const Schedules::Facts& Schedules::of(const Arrangement& arrangement) {
  return entry(arrangement).facts;
}

const std::vector<CriticalPath>& Schedules::critical_paths(const Arrangement& arrangement) {
  Entry& e = entry(arrangement);
  std::call_once(e.followed, [&] { e.paths = cleave::critical_paths(e.facts.schedule); });
  return e.paths;
}

double step_seconds(const Arrangement& arrangement, const std::vector<ChunkSeconds>& chunks,
                    const std::vector<double>& updates, Schedules& schedules) {
  if (arrangement.stages == 1) {
    return static_cast<double>(arrangement.micro_batches) *
               (chunks[0].forward + chunks[0].backward + chunks[0].weight_gradient) +
           updates[0];
  }
  const SimulatedSchedule run = simulate(schedules.of(arrangement).schedule, chunks);
  double end = 0;
  for (size_t s = 0; s < updates.size(); ++s) end = std::max(end, run.end[s] + updates[s]);
  return end;
}

namespace {

// One way to deal out the pieces: every stage's cheapest mix.
StageEstimate mix_stages(const Arrangement& arrangement, int32_t pieces,
                         const std::vector<PieceOption>& options, const std::vector<double>& limits,
                         const std::vector<double>& in_flight, const std::vector<double>& deferred,
                         double sent, Schedules& schedules, std::vector<int32_t> first_piece) {
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  const auto stages = static_cast<size_t>(arrangement.stages);
  StageEstimate e;
  e.step_seconds = kInfinity;
  e.first_piece = std::move(first_piece);
  if (e.first_piece.empty()) return e;
  const auto end_of = [&](int32_t c) {
    return c + 1 < chunks ? e.first_piece[static_cast<size_t>(c) + 1] : pieces;
  };
  e.mixes.resize(stages);
  e.bytes.assign(stages, 0);
  e.seconds.resize(static_cast<size_t>(chunks));
  std::vector<double> updates(stages, 0);
  for (int32_t s = 0; s < arrangement.stages; ++s) {
    std::vector<int32_t> own;
    std::vector<double> flights, waits;
    for (int32_t c = s; c < chunks; c += arrangement.stages) {
      for (int32_t p = e.first_piece[size_t(c)]; p < end_of(c); ++p) {
        own.push_back(p);
        flights.push_back(in_flight[size_t(c)]);
        waits.push_back(deferred[size_t(c)]);
      }
    }
    const Stage stage(options, std::move(own), std::move(flights), std::move(waits),
                      static_cast<double>(arrangement.micro_batches));
    const StageMix mix = stage.best(limits[size_t(s)]);
    if (mix.split < 0) return e;
    e.mixes[size_t(s)] = mix;
    e.bytes[size_t(s)] = stage.bytes(mix);
    for (int32_t c = s; c < chunks; c += arrangement.stages) {
      ChunkSeconds& t = e.seconds[size_t(c)];
      for (int32_t p = e.first_piece[size_t(c)]; p < end_of(c); ++p) {
        const int32_t o = p < mix.split ? mix.first : mix.second;
        const PieceLoad& l = options[size_t(o)].loads[size_t(p)];
        const bool split = arrangement.schedule == ScheduleKind::kZeroBubble;
        t.forward += l.seconds[0];
        t.backward += l.seconds[1] - (split ? l.deferrable : 0);
        t.weight_gradient += split ? l.deferrable : 0;
        updates[size_t(s)] += l.seconds[2];
      }
      if (c + 1 < chunks) t.send_forward = sent;
      if (c > 0) t.send_backward = sent;
    }
  }
  e.step_seconds = step_seconds(arrangement, e.seconds, updates, schedules);
  return e;
}

// Equal chunks are not always the best: what fills and drains an interleaved pipeline are its first
// chunks. Downhill: from a chunk whose units count most often in the chain that the step waits for
// to one whose units count least, as long as that helps.
template <class Mix>
void improve_cuts(const Arrangement& arrangement, int32_t pieces, const CutRules& rules,
                  Schedules& schedules, const Mix& mix, StageEstimate& best) {
  const Schedule& schedule = schedules.of(arrangement).schedule;
  int runs = static_cast<int>(std::min(kMostRuns, kMostUnits / schedule.units()));
  const size_t chunks = best.first_piece.size();
  const auto size_of = [&](size_t c) {
    return (c + 1 < chunks ? best.first_piece[c + 1] : pieces) - best.first_piece[c];
  };
  for (bool better = true; better && runs > 0;) {
    better = false;
    const SimulatedSchedule run = simulate(schedule, best.seconds);
    const auto last = std::max_element(run.end.begin(), run.end.end()) - run.end.begin();
    const UnitChain chain = critical_chain(schedule, best.seconds, run, static_cast<int32_t>(last));
    std::vector<double> count(chunks);
    std::vector<size_t> order(chunks);
    for (size_t c = 0; c < chunks; ++c) {
      count[c] = chain.forward[c] + 2 * chain.backward[c] + chain.weights[c];
      order[c] = c;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return count[a] < count[b]; });
    for (size_t high = chunks; high-- > 0 && !better;) {
      const size_t from = order[high];
      if (size_of(from) < 2) continue;
      for (size_t low = 0; low < std::min(high, kNeighbours) && !better && runs > 0; ++low) {
        if (count[order[low]] >= count[from]) break;
        auto cuts = moved(best.first_piece, from, order[low]);
        if (!allowed(cuts, pieces, arrangement.stages, rules)) continue;
        --runs;
        StageEstimate e = mix(std::move(cuts));
        better = e.step_seconds < best.step_seconds * (1 - 1e-6);
        if (better) best = std::move(e);
      }
      if (high + kNeighbours < chunks) break;
    }
  }
}

// Simulated annealing from there: random moves of one cut or of a run of cuts, worse ones taken on
// the less the longer it lasts. The same every time.
template <class Mix>
void anneal_cuts(const Arrangement& arrangement, int32_t pieces, const CutRules& rules,
                 Schedules& schedules, const Mix& mix, StageEstimate& best) {
  const size_t units = schedules.of(arrangement).schedule.units();
  const size_t tries = std::min(kMostTries, kMostUnitsTried / units);
  const size_t chunks = best.first_piece.size();
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  std::vector<int32_t> cuts = best.first_piece;
  double now = best.step_seconds;
  for (size_t i = 0; i < tries; ++i) {
    const double part = static_cast<double>(i) / static_cast<double>(tries);
    const double heat = now * kHot * std::pow(kCold / kHot, part);
    std::vector<int32_t> next = cuts;
    const size_t first = 1 + below(chunks - 1);
    const size_t run = below(2) == 0 ? 1 : 1 + below(static_cast<size_t>(arrangement.stages));
    const int32_t step = below(2) == 0 ? 1 : -1;
    for (size_t c = first; c < std::min(chunks, first + run); ++c) next[c] += step;
    bool empty = next.back() >= pieces;
    for (size_t c = 1; c < chunks; ++c) empty = empty || next[c] <= next[c - 1];
    const double chance = static_cast<double>(random()) / 4294967296.0;
    if (empty || !allowed(next, pieces, arrangement.stages, rules)) continue;
    StageEstimate e = mix(std::move(next));
    if (!(e.step_seconds < now || std::exp((now - e.step_seconds) / heat) > chance)) continue;
    now = e.step_seconds, cuts = e.first_piece;
    if (now < best.step_seconds * (1 - 1e-6)) best = std::move(e);
  }
}

}  // namespace

StageEstimate estimate_stages(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                              const std::vector<PieceOption>& options,
                              const std::vector<double>& limits, double sent, Schedules& schedules,
                              const CutRules& rules) {
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  const auto count = static_cast<int32_t>(pieces.size());
  CLEAVE_ASSERT(chunks <= count, "{} chunks of {} pieces", chunks, count);
  std::vector<double> in_flight(static_cast<size_t>(chunks), 1);
  std::vector<double> deferred(static_cast<size_t>(chunks), 0);
  if (arrangement.stages > 1) {
    in_flight = schedules.of(arrangement).in_flight;
    deferred = schedules.of(arrangement).deferred;
  }
  // Balanced as if nothing were short, then as what each stage does to fit has made its pieces
  // longer, as long as that helps.
  std::vector<double> weights;
  for (const GroupLoad& l : options[0].loads) weights.push_back(pass(l));
  const auto mix = [&](std::vector<int32_t> first_piece) {
    return mix_stages(arrangement, count, options, limits, in_flight, deferred, sent, schedules,
                      std::move(first_piece));
  };
  const bool moves = arrangement.chunks > 1 && !rules.even;
  StageEstimate best, even_stages;
  best.step_seconds = even_stages.step_seconds = kInfinity;
  for (int round = 0; round < kRounds; ++round) {
    StageEstimate e = mix(deal_out(weights, arrangement.stages, chunks, rules));
    if (moves && !e.first_piece.empty()) {
      StageEstimate other = mix(with_even_stages(arrangement, weights, rules, e.first_piece));
      if (other.step_seconds < even_stages.step_seconds) even_stages = std::move(other);
    }
    const bool better = e.step_seconds < best.step_seconds * (1 - 1e-6);
    if (better) best = e;
    if (e.first_piece.empty() || arrangement.stages == 1) break;
    if (std::isinf(e.step_seconds)) {
      if (round > 0) break;
      // By what the thriftiest way holds: the pieces of stages that have many micro-batches in
      // flight weigh more.
      for (int32_t c = 0, p = 0; c < chunks; ++c) {
        const int32_t end = c + 1 < chunks ? e.first_piece[size_t(c) + 1] : count;
        for (; p < end; ++p) {
          double least = kInfinity;
          for (const PieceOption& o : options) {
            const GroupLoad& l = o.loads[size_t(p)];
            least = std::min(least, static_cast<double>(l.state_bytes) +
                                        in_flight[size_t(c)] * static_cast<double>(l.kept_bytes));
          }
          weights[size_t(p)] = least;
        }
      }
      continue;
    }
    if (!better) break;
    for (int32_t c = 0, p = 0; c < chunks; ++c) {
      const StageMix& mix = e.mixes[size_t(c % arrangement.stages)];
      const int32_t end = c + 1 < chunks ? e.first_piece[size_t(c) + 1] : count;
      for (; p < end; ++p) {
        const int32_t o = p < mix.split ? mix.first : mix.second;
        weights[size_t(p)] = pass(options[size_t(o)].loads[size_t(p)]);
      }
    }
  }
  for (StageEstimate* start : {&best, &even_stages}) {
    if (!moves || std::isinf(start->step_seconds)) continue;
    improve_cuts(arrangement, count, rules, schedules, mix, *start);
  }
  if (even_stages.step_seconds < best.step_seconds) best = std::move(even_stages);
  if (moves && rules.thorough && std::isfinite(best.step_seconds)) {
    anneal_cuts(arrangement, count, rules, schedules, mix, best);
  }
  return best;
}

}  // namespace cleave
