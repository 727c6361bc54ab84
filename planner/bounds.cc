#include "planner/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "planner/capacity_bound.h"
#include "planner/schedule.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kAscents = 600, kPatience = 8;
constexpr double kLeastPace = 1e-3;

// The dual's value at one point, and what it is made of: the lengths of the paths and the bytes of
// the stages under the cheapest choice there.
struct Point {
  double value = 0;
  std::vector<double> lengths, bytes;
};

class Dual {
 public:
  Dual(const Arrangement& a, const std::vector<Piece>& pieces,
       const std::vector<PieceOption>& options, const std::vector<double>& limits, double sent,
       Schedules& schedules)
      : stages_(a.stages),
        chunks_(a.stages * a.chunks),
        options_(options),
        limits_(limits),
        sent_(a.stages > 1 ? sent : 0),
        flights_(schedules.of(a).in_flight),
        paths_(schedules.critical_paths(a)) {
    for (int32_t c = 0; c < chunks_; ++c) stage_of_.push_back(static_cast<size_t>(c % stages_));
    // Equal pieces are priced once.
    for (size_t p = 0; p < pieces.size(); ++p) {
      const auto equal = [&](size_t example) {
        return std::all_of(options.begin(), options.end(), [&](const PieceOption& o) {
          const PieceLoad &x = o.loads[p], &y = o.loads[example];
          return x.seconds == y.seconds && x.deferrable == y.deferrable &&
                 x.state_bytes == y.state_bytes && x.kept_bytes == y.kept_bytes;
        });
      };
      const auto at = std::find_if(example_.begin(), example_.end(), equal);
      kind_.push_back(static_cast<int32_t>(at - example_.begin()));
      if (at == example_.end()) example_.push_back(p);
    }
  }

  const std::vector<CriticalPath>& paths() const { return paths_; }

  // Whether even the fewest bytes of all stages together are too many.
  bool nothing_fits() const {
    if (std::isinf(limits_[0])) return false;
    const std::vector<double> no_time(paths_.size(), 0), one(limits_.size(), 1);
    return at(no_time, one).value > 0;
  }

  Point at(const std::vector<double>& weights, const std::vector<double>& prices) const {
    std::vector<double> forward(size_t(chunks_), 0), backward = forward, awaited = forward;
    std::vector<double> update(size_t(stages_), 0);
    double sends = 0;
    for (size_t k = 0; k < paths_.size(); ++k) {
      if (weights[k] == 0) continue;
      for (size_t c = 0; c < forward.size(); ++c) {
        forward[c] += weights[k] * paths_[k].forward[c];
        backward[c] += weights[k] * paths_[k].backward[c];
        awaited[c] += weights[k] * paths_[k].awaited[c];
      }
      sends += weights[k] * paths_[k].sends;
      for (size_t s = 0; s < update.size(); ++s) update[s] += weights[k] * paths_[k].update[s];
    }
    // The cheapest option of each kind of piece in each chunk.
    const auto columns = static_cast<size_t>(chunks_);
    std::vector<double> cost(example_.size() * columns, kInfinity);
    std::vector<int32_t> option(cost.size(), 0);
    std::vector<double> updates, state, kept;  // by chunk
    for (size_t c = 0; c < columns; ++c) {
      updates.push_back(update[stage_of_[c]]);
      state.push_back(prices[stage_of_[c]]);
      kept.push_back(state[c] * flights_[c]);
    }
    for (size_t kind = 0; kind < example_.size(); ++kind) {
      double* least = cost.data() + kind * columns;
      int32_t* best = option.data() + kind * columns;
      for (size_t o = 0; o < options_.size(); ++o) {
        const PieceLoad& l = options_[o].loads[example_[kind]];
        const double awaits = l.seconds[1] - l.deferrable;
        const auto own = static_cast<double>(l.state_bytes);
        const auto each = static_cast<double>(l.kept_bytes);
        for (size_t c = 0; c < columns; ++c) {
          const double x = forward[c] * l.seconds[0] + backward[c] * l.seconds[1] +
                           awaited[c] * awaits + updates[c] * l.seconds[2] + state[c] * own +
                           kept[c] * each;
          best[c] = x < least[c] ? static_cast<int32_t>(o) : best[c];
          least[c] = std::min(least[c], x);
        }
      }
    }
    // The cheapest way to deal the pieces out in their order.
    const size_t n = kind_.size();
    std::vector<int32_t> from(n * columns);
    std::vector<double> sum(columns, kInfinity);
    for (size_t i = 0; i < n; ++i) {
      std::vector<double> next(columns, kInfinity);
      for (size_t c = 0; c < columns; ++c) {
        const bool stays = c == 0 || sum[c] <= sum[c - 1];
        from[i * columns + c] = static_cast<int32_t>(stays ? c : c - 1);
        const double before = i == 0 ? (c == 0 ? 0 : kInfinity) : stays ? sum[c] : sum[c - 1];
        next[c] = before + cost[size_t(kind_[i]) * columns + c];
      }
      sum = std::move(next);
    }
    size_t c = columns - 1;  // every chunk has a piece
    Point point;
    point.value = sum[c] + sends * sent_;
    for (size_t s = 0; s < limits_.size(); ++s) {
      if (prices[s] > 0) point.value -= prices[s] * limits_[s];
    }
    point.lengths.assign(paths_.size(), 0);
    point.bytes.assign(static_cast<size_t>(stages_), 0);
    std::vector<PieceLoad> loads(columns);
    for (size_t i = n; i-- > 0;) {
      const size_t kind = size_t(kind_[i]);
      const PieceLoad& l = options_[size_t(option[kind * columns + c])].loads[example_[kind]];
      for (size_t p = 0; p < 3; ++p) loads[c].seconds[p] += l.seconds[p];
      loads[c].deferrable += l.deferrable;
      point.bytes[stage_of_[c]] +=
          static_cast<double>(l.state_bytes) + flights_[c] * static_cast<double>(l.kept_bytes);
      c = size_t(from[i * columns + c]);
    }
    // By chunk, the forward, the backward and what of it is awaited; by stage, the update.
    std::vector<double> f(columns), b(columns), w(columns), u(static_cast<size_t>(stages_), 0);
    for (size_t j = 0; j < columns; ++j) {
      f[j] = loads[j].seconds[0], b[j] = loads[j].seconds[1];
      w[j] = b[j] - loads[j].deferrable;
      u[stage_of_[j]] += loads[j].seconds[2];
    }
    for (size_t k = 0; k < paths_.size(); ++k) {
      const CriticalPath& path = paths_[k];
      double length = path.sends * sent_;
      for (size_t s = 0; s < u.size(); ++s) length += path.update[s] * u[s];
      const auto part = [&](size_t j) {
        return path.forward[j] * f[j] + path.backward[j] * b[j] + path.awaited[j] * w[j];
      };
      // Four sums, so that additions need not wait for one another.
      double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      size_t j = 0;
      for (; j + 4 <= columns; j += 4) {
        s0 += part(j), s1 += part(j + 1), s2 += part(j + 2), s3 += part(j + 3);
      }
      for (; j < columns; ++j) s0 += part(j);
      point.lengths[k] = length + ((s0 + s1) + (s2 + s3));
    }
    return point;
  }

 private:
  const int32_t stages_, chunks_;
  const std::vector<PieceOption>& options_;
  const std::vector<double>& limits_;
  const double sent_;
  const std::vector<double>& flights_;  // by chunk
  std::vector<size_t> stage_of_;        // by chunk
  const std::vector<CriticalPath>& paths_;
  std::vector<int32_t> kind_;    // by piece
  std::vector<size_t> example_;  // by kind: a piece
};

// Pieces are not divided: the stage that has the longest has a piece in each of its other chunks
// too; without others, the best way to deal pieces out to stages is known.
double whole_pieces_bound(const Arrangement& a, const std::vector<PieceOption>& options) {
  const double m = static_cast<double>(a.micro_batches);
  std::vector<double> seconds(options[0].loads.size(), kInfinity);
  for (size_t p = 0; p < seconds.size(); ++p) {
    for (const PieceOption& o : options) {
      seconds[p] = std::min(seconds[p], o.loads[p].seconds[0] + o.loads[p].seconds[1]);
    }
  }
  if (a.chunks == 1) return m * least_longest(seconds, a.stages);
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  double sum = sorted.back();
  for (int32_t c = 1; c < a.chunks; ++c) sum += sorted[static_cast<size_t>(c) - 1];
  return m * sum;
}

}  // namespace

bool nothing_fits(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                  const std::vector<PieceOption>& options, const std::vector<double>& limits,
                  Schedules& schedules) {
  if (std::isinf(limits[0])) return false;
  return Dual(arrangement, pieces, options, limits, 0, schedules).nothing_fits() ||
         std::isinf(capacity_bound(arrangement, pieces, options, {}, limits, 0, 0, schedules));
}

double pipeline_bound(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                      const std::vector<PieceOption>& options, const std::vector<double>& limits,
                      double sent, double enough, Schedules& schedules) {
  const Dual dual(arrangement, pieces, options, limits, sent, schedules);
  const auto stages = static_cast<size_t>(arrangement.stages);
  if (dual.nothing_fits()) return kInfinity;
  std::vector<double> weights(dual.paths().size(), 1.0 / static_cast<double>(dual.paths().size()));
  std::vector<double> prices(stages, 0);
  // Under 1f1b with more micro-batches than stages, the third paths weighted so count every chunk
  // (m + p - 1) / p times: no cut is faster than an even one.
  const double m = static_cast<double>(arrangement.micro_batches), p = arrangement.stages;
  const bool all_through = std::count_if(dual.paths().begin(), dual.paths().end(),
                                         [](const CriticalPath& path) { return path.kind == 2; }) ==
                           static_cast<int64_t>(stages);
  if (arrangement.schedule == ScheduleKind::kOneForwardOneBackward && m > p + 1 && all_through) {
    const double count = (m - 1) / p;
    double sum = 0;
    weights.assign(weights.size(), 0);
    for (size_t k = 0; k < weights.size(); ++k) {
      const CriticalPath& path = dual.paths()[k];
      if (path.kind != 2) continue;
      weights[k] = (count - sum) / (m - p + path.stage);
      sum += weights[k];
    }
  }
  // From the best of this, all paths of one kind alike, and each path alone.
  double start = dual.at(weights, prices).value;
  const auto try_from = [&](const auto& takes_part) {
    std::vector<double> other(weights.size(), 0);
    double count = 0;
    for (size_t k = 0; k < other.size(); ++k) count += takes_part(k);
    if (count == 0) return;
    for (size_t k = 0; k < other.size(); ++k) other[k] = takes_part(k) / count;
    const double value = dual.at(other, prices).value;
    if (value > start) start = value, weights = std::move(other);
  };
  for (int32_t kind = 0; kind < 5; ++kind) {
    try_from([&](size_t k) { return dual.paths()[k].kind == kind ? 1.0 : 0.0; });
  }
  for (size_t only = 0; only < weights.size(); ++only) {
    try_from([&](size_t k) { return k == only ? 1.0 : 0.0; });
  }
  // None is 0, or factors would leave it there.
  double sum = 0;
  for (double& w : weights) {
    w = std::max(w, 1e-4 / static_cast<double>(weights.size()));
    sum += w;
  }
  for (double& w : weights) w /= sum;
  std::vector<double> best_weights = weights, best_prices = prices;
  double best = std::max(
      whole_pieces_bound(arrangement, options),
      capacity_bound(arrangement, pieces, options, dual.paths(), limits, sent, enough, schedules));
  if (best >= enough) return best;
  // Steps towards the goal, shorter whenever a few have brought nothing, from the best point then.
  double pace = 1;
  int since = 0;
  for (int step = 0; step < kAscents && pace > kLeastPace; ++step) {
    const Point point = dual.at(weights, prices);
    if (point.value > best * (1 + 1e-5)) {
      best = point.value, best_weights = weights, best_prices = prices;
      since = 0;
    } else if (++since == kPatience) {
      pace /= 2, since = 0;
      weights = best_weights, prices = best_prices;
      continue;
    }
    if (best >= enough) break;
    const double goal = std::isfinite(enough) ? enough : 1.1 * best;
    const double gain = pace * std::max(goal - point.value, 1e-3 * goal);
    // Weights grow where the path is long: on the simplex, by factors.
    double mean = 0, spread = 0, total = 0;
    for (size_t k = 0; k < weights.size(); ++k) mean += weights[k] * point.lengths[k];
    for (size_t k = 0; k < weights.size(); ++k) {
      spread += weights[k] * (point.lengths[k] - mean) * (point.lengths[k] - mean);
    }
    for (size_t k = 0; k < weights.size() && spread > 0; ++k) {
      const double up = gain / spread * (point.lengths[k] - mean);
      weights[k] = std::max(weights[k] * std::exp(std::clamp(up, -2.0, 2.0)), 1e-12);
    }
    for (double w : weights) total += w;
    for (double& w : weights) w /= total;
    double norm = 0;
    std::vector<double> slope(stages, 0);
    for (size_t s = 0; s < stages; ++s) {
      if (std::isinf(limits[s])) continue;
      const double over = point.bytes[s] - limits[s];
      if (over > 0 || prices[s] > 0) slope[s] = over;
      norm += slope[s] * slope[s];
    }
    for (size_t s = 0; s < stages && norm > 0; ++s) {
      prices[s] = std::max(0.0, prices[s] + gain / norm * slope[s]);
    }
  }
  return best;
}

}  // namespace cleave
