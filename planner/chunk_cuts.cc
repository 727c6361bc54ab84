#include "planner/chunk_cuts.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSoft = 24;  // exponent of a soft maximum

}  // namespace

bool allowed(const std::vector<int32_t>& first_piece, int32_t pieces, int32_t stages,
             const CutRules& rules) {
  for (size_t c = 0; c < first_piece.size(); ++c) {
    const int32_t end = c + 1 < first_piece.size() ? first_piece[c + 1] : pieces;
    for (int32_t p = first_piece[c]; p < end; ++p) {
      const auto i = static_cast<size_t>(p);
      if (!rules.stage_of.empty() && rules.stage_of[i] >= 0 &&
          rules.stage_of[i] != static_cast<int32_t>(c) % stages) {
        return false;
      }
      if (!rules.begins.empty() && rules.begins[i] && p > first_piece[c]) return false;
    }
  }
  return true;
}

std::vector<int32_t> deal_out(const std::vector<double>& weights, int32_t stages, int32_t chunks,
                              const CutRules& rules) {
  const auto n = static_cast<int32_t>(weights.size());
  std::vector<double> before(static_cast<size_t>(n) + 1, 0);
  for (int32_t i = 0; i < n; ++i) {
    before[static_cast<size_t>(i) + 1] = before[static_cast<size_t>(i)] + weights[size_t(i)];
  }
  struct Best {
    double most = kInfinity, squares = 0;
    int32_t from = -1;
  };
  const double slack = 1e-12 * before.back();
  std::vector<std::vector<Best>> best(static_cast<size_t>(chunks) + 1,
                                      std::vector<Best>(static_cast<size_t>(n) + 1));
  best[0][0] = {0, 0, 0};
  for (int32_t c = 1; c <= chunks; ++c) {
    for (int32_t end = c; end <= n - (chunks - c); ++end) {
      Best& b = best[static_cast<size_t>(c)][static_cast<size_t>(end)];
      for (int32_t from = end - 1; from >= c - 1; --from) {
        if (!rules.stage_of.empty() && rules.stage_of[static_cast<size_t>(from)] >= 0 &&
            rules.stage_of[static_cast<size_t>(from)] != (c - 1) % stages) {
          break;
        }
        if (!rules.begins.empty() && from + 1 < end &&
            rules.begins[static_cast<size_t>(from) + 1]) {
          break;
        }
        const Best& a = best[static_cast<size_t>(c) - 1][static_cast<size_t>(from)];
        const double own = before[static_cast<size_t>(end)] - before[static_cast<size_t>(from)];
        if (own > b.most + slack) break;
        if (a.from < 0) continue;
        const double most = std::max(a.most, own), squares = a.squares + own * own;
        if (most < b.most - slack || (most <= b.most + slack && squares < b.squares)) {
          b = {most, squares, from};
        }
      }
    }
  }
  std::vector<int32_t> first(static_cast<size_t>(chunks));
  for (int32_t c = chunks, end = n; c > 0; --c) {
    if (best[static_cast<size_t>(c)][static_cast<size_t>(end)].from < 0) return {};
    end = best[static_cast<size_t>(c)][static_cast<size_t>(end)].from;
    first[static_cast<size_t>(c) - 1] = end;
  }
  return first;
}

double least_longest(const std::vector<double>& seconds, int32_t stages) {
  const std::vector<int32_t> first = deal_out(seconds, stages, stages, {});
  double most = 0;
  for (size_t s = 0; s < first.size(); ++s) {
    const auto end = s + 1 < first.size() ? static_cast<size_t>(first[s + 1]) : seconds.size();
    double sum = 0;
    for (auto p = static_cast<size_t>(first[s]); p < end; ++p) sum += seconds[p];
    most = std::max(most, sum);
  }
  return most;
}

std::vector<int32_t> moved(std::vector<int32_t> first_piece, size_t from, size_t to) {
  for (size_t c = std::min(from, to) + 1; c <= std::max(from, to); ++c) {
    first_piece[c] += from < to ? -1 : 1;
  }
  return first_piece;
}

namespace {

struct Balance {
  std::vector<double> sums;  // of a micro-batch, by stage: seconds
  double seconds = 0;        // of a step, about
};

// `before`: seconds of all pieces before this one.
Balance balance(const Arrangement& arrangement, const std::vector<double>& before,
                const std::vector<int32_t>& first_piece) {
  const auto stages = static_cast<size_t>(arrangement.stages);
  const double mean = before.back() / static_cast<double>(stages);
  Balance b;
  b.sums.assign(stages, 0);
  double longest = 0, row = 0, soft = 0;
  for (size_t c = 0; c < first_piece.size(); ++c) {
    const size_t end =
        c + 1 < first_piece.size() ? static_cast<size_t>(first_piece[c + 1]) : before.size() - 1;
    const double chunk = before[end] - before[static_cast<size_t>(first_piece[c])];
    row = c % stages == 0 ? chunk : row + chunk;
    b.sums[c % stages] += chunk;
    longest = std::max(longest, row);
  }
  for (double s : b.sums) soft += std::pow(s / mean, kSoft);
  b.seconds =
      static_cast<double>(arrangement.micro_batches) * mean * std::pow(soft, 1 / kSoft) + longest;
  return b;
}

}  // namespace

std::vector<int32_t> with_even_stages(const Arrangement& arrangement,
                                      const std::vector<double>& weights, const CutRules& rules,
                                      std::vector<int32_t> first_piece) {
  const auto pieces = static_cast<int32_t>(weights.size());
  const auto stages = static_cast<size_t>(arrangement.stages);
  std::vector<double> before(weights.size() + 1, 0);
  for (size_t p = 0; p < weights.size(); ++p) before[p + 1] = before[p] + weights[p];
  Balance best = balance(arrangement, before, first_piece);
  for (bool better = true; better;) {
    better = false;
    const std::vector<int32_t> cuts = first_piece;
    const std::vector<double> sums = best.sums;
    const auto most =
        static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
    for (size_t from = most; from < cuts.size(); from += stages) {
      if ((from + 1 < cuts.size() ? cuts[from + 1] : pieces) - cuts[from] < 2) continue;
      for (size_t to = 0; to < cuts.size(); ++to) {
        if (to % stages == most) continue;
        auto next = moved(cuts, from, to);
        Balance b = balance(arrangement, before, next);
        if (b.seconds < best.seconds * (1 - 1e-9) &&
            allowed(next, pieces, arrangement.stages, rules)) {
          best = std::move(b), first_piece = std::move(next);
          better = true;
        }
      }
    }
  }
  return first_piece;
}

}  // namespace cleave
