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

std::vector<int32_t> with_even_stages(const Arrangement& arrangement,
                                      const std::vector<double>& weights, const CutRules& rules,
                                      std::vector<int32_t> first_piece) {
  const auto pieces = static_cast<int32_t>(weights.size());
  const auto stages = static_cast<size_t>(arrangement.stages);
  std::vector<double> before(weights.size() + 1, 0);
  for (size_t p = 0; p < weights.size(); ++p) before[p + 1] = before[p] + weights[p];
  const double mean = before.back() / static_cast<double>(stages);
  const auto m = static_cast<double>(arrangement.micro_batches);
  const auto end_of = [&](const std::vector<int32_t>& cuts, size_t c) {
    return c + 1 < cuts.size() ? cuts[c + 1] : pieces;
  };
  std::vector<double> sums(stages);
  const auto seconds = [&](const std::vector<int32_t>& cuts) {
    sums.assign(stages, 0);
    double longest = 0, row = 0, soft = 0;
    for (size_t c = 0; c < cuts.size(); ++c) {
      if (c % stages == 0) row = 0;
      const double chunk = before[size_t(end_of(cuts, c))] - before[size_t(cuts[c])];
      sums[c % stages] += chunk;
      row += chunk;
      longest = std::max(longest, row);
    }
    for (double s : sums) soft += std::pow(s / mean, kSoft);
    return m * mean * std::pow(soft, 1 / kSoft) + longest;
  };
  double best = seconds(first_piece);
  for (bool better = true; better;) {
    better = false;
    std::vector<int32_t> found;
    const auto most =
        static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
    for (size_t from = most; from < first_piece.size(); from += stages) {
      if (end_of(first_piece, from) - first_piece[from] < 2) continue;
      for (size_t to = 0; to < first_piece.size(); ++to) {
        if (to % stages == most) continue;
        auto cuts = moved(first_piece, from, to);
        const double x = seconds(cuts);
        if (x < best * (1 - 1e-9) && allowed(cuts, pieces, arrangement.stages, rules)) {
          best = x, found = std::move(cuts);
        }
      }
    }
    better = !found.empty();
    if (better) first_piece = std::move(found);
    seconds(first_piece);
  }
  return first_piece;
}

}  // namespace cleave
