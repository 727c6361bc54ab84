#include "cli/calibration_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "executor/step_bench.h"
#include "graph/error.h"
#include "planner/cost.h"

namespace cleave {

MatrixRate fitted_rate(const std::vector<MeasuredProduct>& products, const Tiling& tiling,
                       double most) {
  CLEAVE_ASSERT(!products.empty(), "a rate of no products");
  // Unknowns: seconds a flop, and what an m, n or k of 1 adds to each; see MatrixRate.
  using Row = std::array<double, 4>;
  const std::array<double, 4> least = {1 / most, 0, 0, 0};
  std::array<bool, 4> used = {true, true, true, true};  // the others are the least they may be
  Row x{};
  while (true) {
    std::array<std::array<double, 5>, 4> normal{};  // of the least squares
    for (const MeasuredProduct& p : products) {
      const double m = static_cast<double>(p.m), n = static_cast<double>(p.n),
                   k = static_cast<double>(p.k);
      const double flops = 2 * m * n * k * tile_waste(tiling, 1, m, n, k) / p.seconds;
      const Row row = {flops, flops / m, flops / n, flops / k};
      for (size_t i = 0; i < 4; ++i) {
        for (size_t j = 0; j < 4; ++j) normal[i][j] += row[i] * row[j];
        normal[i][4] += row[i];
      }
    }
    for (size_t i = 0; i < 4; ++i) {
      if (used[i]) continue;
      for (size_t j = 0; j < 4; ++j) {
        normal[j][4] -= normal[j][i] * least[i];
        normal[i][j] = normal[j][i] = 0;
      }
      normal[i][i] = 1, normal[i][4] = least[i];
    }
    for (size_t i = 0; i < 4; ++i) {  // the matrix is positive definite, but for rounding
      for (size_t r = 0; r < 4; ++r) {
        if (r == i || normal[i][i] == 0) continue;
        const double times = normal[r][i] / normal[i][i];
        for (size_t c = i; c < 5; ++c) normal[r][c] -= times * normal[i][c];
      }
    }
    for (size_t i = 0; i < 4; ++i)
      x[i] = normal[i][i] != 0 ? normal[i][4] / normal[i][i] : least[i];
    if (used[0] && x[0] < least[0]) {
      used = {false, true, true, true};  // the half sizes again, at the highest peak
      continue;
    }
    const size_t worst = static_cast<size_t>(std::min_element(x.begin() + 1, x.end()) - x.begin());
    if (x[worst] >= 0) break;
    used[worst] = false;
  }
  MatrixRate rate;
  rate.peak = 1 / std::max(x[0], 1e-30);
  rate.half_m = x[1] * rate.peak, rate.half_n = x[2] * rate.peak, rate.half_k = x[3] * rate.peak;
  return rate;
}

MatrixRate measured_rate(const std::vector<MeasuredProduct>& products, const Cluster& cluster,
                         double peak, double latency) {
  std::vector<MeasuredProduct> kernels = products;
  for (MeasuredProduct& p : kernels) p.seconds = std::max(p.seconds - latency, p.seconds / 2);
  // Products that are bound by memory say nothing about the rate.
  std::vector<MeasuredProduct> bound;
  for (const MeasuredProduct& p : kernels) {
    const double bytes =
        static_cast<double>((p.m * p.k + p.k * p.n + p.m * p.n) * size_of(p.dtype));
    if (bytes / cluster.device.bandwidth < 0.8 * p.seconds) bound.push_back(p);
  }
  MatrixRate rate = fitted_rate(bound.empty() ? kernels : bound, cluster.device.tiling, peak);
  rate.efficiency = std::min(1.0, rate.peak / peak);
  rate.peak = peak;
  Cluster fitted = cluster;
  fitted.device.f32 = rate;
  for (const MeasuredProduct& p : bound) {
    const double formula = product_seconds(fitted, DType::kF32, 1, static_cast<double>(p.m),
                                           static_cast<double>(p.n), static_cast<double>(p.k));
    rate.measured.push_back({p.m, p.n, p.k, p.seconds / formula});
  }
  return rate;
}

FusedProducts fitted_fused(const std::vector<MeasuredFused>& calls, double peak) {
  CLEAVE_ASSERT(!calls.empty(), "a rate of no products");
  // Half sizes are looked for on a grid: for each, the efficiency is the mean of what calls say.
  std::vector<double> grid = {0};
  for (double x = 4; x <= 4096; x *= std::sqrt(2.0)) grid.push_back(x);
  FusedProducts best;
  double least = std::numeric_limits<double>::infinity(), highest = 0;
  for (const MeasuredFused& c : calls) highest = std::max(highest, c.flops / c.seconds / peak);
  for (const double half_width : grid) {
    for (const double half_length : grid) {
      std::vector<double> logs;
      double mean = 0;
      for (const MeasuredFused& c : calls) {
        const double shape = c.width / (c.width + half_width) * c.length / (c.length + half_length);
        logs.push_back(std::log(c.flops / c.seconds / peak / shape));
        mean += logs.back() / static_cast<double>(calls.size());
      }
      double error = 0;
      for (const double x : logs) error += (x - mean) * (x - mean);
      if (error >= least * (1 - 1e-9)) continue;
      least = error;
      best = {.efficiency = std::exp(mean),
              .half_width = half_width,
              .half_length = half_length,
              .backward = 1,
              .most = std::min(1.0, highest)};
    }
  }
  return best;
}

namespace {

// Sums over calls for the least squares of [1/s, b/s] (start, 1/bandwidth) = 1.
struct Normal {
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  void add(const MeasuredOp& c) {
    const double a = 1 / c.seconds, b = c.bytes / c.seconds;
    aa += a * a, ab += a * b, bb += b * b, a1 += a, b1 += b;
  }
  double slope_from(double start) const {
    return std::max(0.0, (b1 - start * ab) / std::max(bb, 1e-300));
  }
};

OpRate fitted_op(const std::string& op, const std::vector<MeasuredOp>& calls, double latency) {
  constexpr double kMostBandwidth = 1e15;  // of ops whose bytes do not tell in their time
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (const MeasuredOp& c : calls) {
    least = std::min(least, c.bytes), most = std::max(most, c.bytes);
  }
  Normal all, large;
  for (const MeasuredOp& c : calls) {
    all.add(c);
    if (c.bytes >= most / 4) large.add(c);
  }
  const double determinant = all.aa * all.bb - all.ab * all.ab;
  double start = latency, slope = 0;
  if (most > 1.5 * least && determinant > 1e-12 * all.aa * all.bb) {
    start = (all.a1 * all.bb - all.b1 * all.ab) / determinant;
    slope = (all.b1 * all.aa - all.a1 * all.ab) / determinant;
  }
  if (slope < 0) {
    start = all.a1 / all.aa, slope = 0;
  } else {
    // Where the sizes are too alike to tell the two apart, it starts as any.
    if (start < 0 || slope == 0) start = std::clamp(start, 0.0, latency);
    slope = large.slope_from(start);
  }
  return {op, slope > 1 / kMostBandwidth ? 1 / slope : kMostBandwidth, std::min(start, 1.0)};
}

std::map<std::string, std::vector<MeasuredOp>> by_op(const std::vector<MeasuredOp>& calls) {
  std::map<std::string, std::vector<MeasuredOp>> result;
  for (const MeasuredOp& c : calls) {
    if (c.seconds > 0) result[c.op].push_back(c);
  }
  return result;
}

}  // namespace

std::vector<OpRate> fitted_ops(const std::vector<MeasuredOp>& calls, double latency) {
  std::vector<OpRate> rates;
  for (const auto& [op, of_op] : by_op(calls)) rates.push_back(fitted_op(op, of_op, latency));
  return rates;
}

std::vector<OpRate> fitted_experts(const std::vector<MeasuredOp>& calls, const Device& device,
                                   double peak) {
  std::vector<OpRate> rates;
  for (const auto& [op, of_op] : by_op(calls)) {
    std::vector<double> shares;
    for (const MeasuredOp& c : of_op) {
      const double seconds = std::max(c.seconds - device.op_latency, c.seconds / 2);
      shares.push_back(std::clamp(c.flops / seconds / peak, 1e-6, 1.0));
    }
    rates.push_back({op, device.bandwidth, device.op_latency, median(std::move(shares))});
  }
  return rates;
}

}  // namespace cleave
