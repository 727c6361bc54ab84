// Pipeline schedules: against the closed forms of the papers that they are from, and on random
// sizes and uneven stages against rules checked one by one and a simulation made differently.
#include "planner/schedule.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "graph/error.h"
#include "tests/support/sanitized.h"

namespace cleave {
namespace {

constexpr auto kPlain = ScheduleKind::kOneForwardOneBackward;
constexpr auto kInterleaved = ScheduleKind::kInterleaved;
constexpr auto kZeroBubble = ScheduleKind::kZeroBubble;

std::vector<ChunkSeconds> equal_chunks(int32_t n, double f, double b, double w) {
  return std::vector<ChunkSeconds>(static_cast<size_t>(n), {f, b, w, 0, 0});
}

// Whole numbers, so that sums are exact in any order.
std::vector<ChunkSeconds> random_chunks(std::mt19937& random, int32_t n) {
  std::vector<ChunkSeconds> result;
  const bool sends = random() % 3 != 0;
  const auto draw = [&](uint32_t least, uint32_t most) {
    return static_cast<double>(least + random() % (most - least + 1));
  };
  for (int32_t c = 0; c < n; ++c) {
    result.push_back({draw(1, 20), draw(1, 20), draw(0, 20), 0, 0});
    if (sends) result.back().send_forward = draw(0, 12), result.back().send_backward = draw(0, 12);
  }
  return result;
}

struct Sizes {
  ScheduleKind kind;
  int32_t stages, chunks, micro_batches;
};

Sizes random_sizes(std::mt19937& random) {
  Sizes z{kPlain, 1 + static_cast<int32_t>(random() % 9), 1,
          1 + static_cast<int32_t>(random() % 20)};
  if (random() % 3 == 0) z.kind = kZeroBubble;
  if (random() % 3 == 0) {
    z.kind = kInterleaved;
    z.chunks = 2 + static_cast<int32_t>(random() % 4);
    z.micro_batches = z.stages * (1 + static_cast<int32_t>(random() % 5));
  }
  return z;
}

std::string to_string(const Sizes& z) {
  return fmt::format("{} p={} V={} m={}", name_of(z.kind), z.stages, z.chunks, z.micro_batches);
}

// Every unit's start, by repeating the rules until nothing moves: no order of working them out, no
// counting of arrivals.
std::map<std::tuple<UnitKind, int32_t, int32_t>, double> starts_by_relaxation(
    const Schedule& schedule, const std::vector<ChunkSeconds>& seconds) {
  const int32_t last = schedule.stages * schedule.chunks - 1;
  const auto length = [&](const Unit& u) {
    const ChunkSeconds& s = seconds[static_cast<size_t>(u.chunk)];
    if (u.kind == UnitKind::kForward) return s.forward;
    if (u.kind == UnitKind::kWeightGradient) return s.weight_gradient;
    return s.backward + (schedule.kind == kZeroBubble ? 0 : s.weight_gradient);
  };
  std::map<std::tuple<UnitKind, int32_t, int32_t>, double> start, arrival;
  const auto key = [](const Unit& u) { return std::tuple(u.kind, u.chunk, u.micro_batch); };
  for (bool moved = true; moved;) {
    moved = false;
    for (const std::vector<Unit>& order : schedule.order) {
      double free = 0, link[2] = {0, 0};
      for (const Unit& u : order) {
        double begin = free;
        if (u.kind == UnitKind::kForward && u.chunk > 0) {
          begin = std::max(begin, arrival[{u.kind, u.chunk, u.micro_batch}]);
        } else if (u.kind == UnitKind::kBackward && u.chunk == last) {
          const Unit own{UnitKind::kForward, u.chunk, u.micro_batch};
          begin = std::max(begin, start[key(own)] + length(own));
        } else if (u.kind == UnitKind::kBackward) {
          begin = std::max(begin, arrival[{u.kind, u.chunk, u.micro_batch}]);
        } else if (u.kind == UnitKind::kWeightGradient) {
          const Unit own{UnitKind::kBackward, u.chunk, u.micro_batch};
          begin = std::max(begin, start[key(own)] + length(own));
        }
        free = begin + length(u);
        if (!start.contains(key(u)) || start[key(u)] != begin) moved = true, start[key(u)] = begin;
        if (u.kind == UnitKind::kWeightGradient) continue;
        const bool forward = u.kind == UnitKind::kForward;
        const int32_t to = u.chunk + (forward ? 1 : -1);
        if (to < 0 || to > last) continue;
        const ChunkSeconds& s = seconds[static_cast<size_t>(u.chunk)];
        double& sent = link[forward ? 0 : 1];
        sent = std::max(sent, free) + (forward ? s.send_forward : s.send_backward);
        double& there = arrival[{u.kind, to, u.micro_batch}];
        const double at = schedule.stages == 1 ? free : sent;
        if (there != at) moved = true, there = at;
      }
    }
  }
  return start;
}

TEST(Schedule, OneForwardOneBackwardHasItsClosedForm) {
  for (const auto& [p, m] : {std::pair{1, 1}, {1, 5}, {4, 1}, {4, 3}, {4, 4}, {4, 32}, {7, 13}}) {
    const Schedule schedule = make_schedule(kPlain, p, 1, m);
    const auto chunks = equal_chunks(p, 3, 4, 2);
    const SimulatedSchedule simulated = simulate(schedule, chunks);
    EXPECT_EQ(simulated.seconds, (m + p - 1) * 9.0) << p << " stages, " << m << " micro-batches";
    EXPECT_EQ(simulated_seconds(schedule, chunks), simulated.seconds);
    for (const double busy : simulated.busy) EXPECT_EQ(busy, m * 9.0);
  }
}

TEST(Schedule, InterleavedHasMegatronsBubble) {
  for (const auto& [p, v, m] :
       {std::tuple{2, 2, 2}, {2, 2, 4}, {4, 2, 8}, {4, 3, 16}, {8, 6, 64}}) {
    const SimulatedSchedule simulated =
        simulate(make_schedule(kInterleaved, p, v, m), equal_chunks(p * v, 1, 1.5, 0.5));
    const double work = m * v * 3.0;  // of one stage
    EXPECT_NEAR(simulated.seconds / work - 1, (p - 1) / static_cast<double>(v * m), 1e-12)
        << p << " stages of " << v << " chunks, " << m << " micro-batches";
  }
}

// Qi et al. 2023, table 2: (p - 1)(f + b - w) is idle, and 1f1b's (p - 1)(f + b + w).
TEST(Schedule, ZeroBubbleHasAThirdOfTheBubble) {
  for (const auto& [p, m] : {std::pair{2, 2}, {4, 8}, {4, 64}, {8, 24}, {16, 64}}) {
    const SimulatedSchedule simulated =
        simulate(make_schedule(kZeroBubble, p, 1, m), equal_chunks(p, 1, 1, 1));
    EXPECT_EQ(simulated.seconds, 3.0 * m + (p - 1)) << p << " stages, " << m << " micro-batches";
    for (const double busy : simulated.busy) EXPECT_EQ(busy, 3.0 * m);
  }
}

TEST(Schedule, ZeroBubbleIsNeverSlower) {
  std::mt19937 random(1);
  int faster = 0;
  for (int i = 0; i < 600; ++i) {
    const auto p = 1 + static_cast<int32_t>(random() % 8);
    const auto m = 1 + static_cast<int32_t>(random() % 24);
    const auto chunks = random_chunks(random, p);
    const double plain = simulate(make_schedule(kPlain, p, 1, m), chunks).seconds;
    const double zero = simulate(make_schedule(kZeroBubble, p, 1, m, chunks), chunks).seconds;
    ASSERT_LE(zero, plain) << p << " stages, " << m << " micro-batches, case " << i;
    faster += zero < plain;
  }
  EXPECT_GT(faster, 400);
}

TEST(Schedule, MicroBatchesInFlight) {
  for (const auto& [p, m] : {std::pair{1, 3}, {4, 2}, {4, 4}, {4, 32}, {7, 5}}) {
    const Schedule plain = make_schedule(kPlain, p, 1, m),
                   zero = make_schedule(kZeroBubble, p, 1, m);
    for (int32_t s = 0; s < p; ++s) {
      EXPECT_EQ(plain.in_flight(s), std::min(m, p - s)) << p << " stages, stage " << s;
      EXPECT_LE(zero.in_flight(s), std::min(m, p)) << p << " stages, stage " << s;
    }
  }
  // Narayanan et al. 2021: the first stage holds 1 + (p - 1) / (p V) times what 1f1b's holds, which
  // is p V chunks' worth.
  for (const auto& [p, v, m] : {std::tuple{2, 2, 4}, {4, 2, 8}, {4, 3, 16}, {8, 6, 64}}) {
    const Schedule schedule = make_schedule(kInterleaved, p, v, m);
    const std::vector<double> one(static_cast<size_t>(p * v), 1);
    EXPECT_EQ(schedule.most_held(0, one), p * v + p - 1);
    double apart = 0;
    for (int32_t c = 0; c < v; ++c) apart += schedule.in_flight(c * p);
    EXPECT_GE(apart, schedule.most_held(0, one));
  }
}

TEST(Schedule, RandomOnesHaveEveryUnitOnceInAnOrderThatEnds) {
  std::mt19937 random(2);
  for (int i = 0; i < 400; ++i) {
    const Sizes z = random_sizes(random);
    SCOPED_TRACE(to_string(z));
    const auto chunks = random_chunks(random, z.stages * z.chunks);
    const Schedule schedule = make_schedule(z.kind, z.stages, z.chunks, z.micro_batches, chunks);
    ASSERT_EQ(static_cast<int32_t>(schedule.order.size()), z.stages);
    const int32_t kinds = z.kind == kZeroBubble ? 3 : 2;
    std::set<std::tuple<UnitKind, int32_t, int32_t>> seen;
    for (int32_t s = 0; s < z.stages; ++s) {
      const std::vector<Unit>& order = schedule.order[static_cast<size_t>(s)];
      ASSERT_EQ(static_cast<int32_t>(order.size()), kinds * z.chunks * z.micro_batches);
      std::map<std::pair<UnitKind, int32_t>, int32_t> next;
      for (const Unit& u : order) {
        ASSERT_EQ(u.chunk % z.stages, s);
        ASSERT_LT(u.chunk, z.stages * z.chunks);
        ASSERT_EQ(u.micro_batch, (next[{u.kind, u.chunk}]++)) << "a chunk's micro-batches in order";
        ASSERT_TRUE(seen.emplace(u.kind, u.chunk, u.micro_batch).second);
        if (u.kind != UnitKind::kForward) {
          const UnitKind before =
              u.kind == UnitKind::kBackward ? UnitKind::kForward : UnitKind::kBackward;
          ASSERT_TRUE(seen.contains({before, u.chunk, u.micro_batch}));
        }
      }
    }
    // Never more held than by 1f1b's first stage.
    if (z.kind == kZeroBubble) {
      for (int32_t s = 0; s < z.stages; ++s)
        ASSERT_LE(schedule.in_flight(s), std::min(z.stages, z.micro_batches));
    }

    const SimulatedSchedule simulated = simulate(schedule, chunks);
    ASSERT_EQ(simulated_seconds(schedule, chunks), simulated.seconds);
    const auto expected = starts_by_relaxation(schedule, chunks);
    double busy = 0, longest = 0;
    for (size_t s = 0; s < schedule.order.size(); ++s) {
      for (size_t k = 0; k < schedule.order[s].size(); ++k) {
        const Unit& u = schedule.order[s][k];
        ASSERT_EQ(simulated.start[s][k], (expected.at({u.kind, u.chunk, u.micro_batch})))
            << "stage " << s << " unit " << k;
      }
      longest = std::max(longest, simulated.end[s]);
      busy += simulated.busy[s];
    }
    ASSERT_EQ(longest, simulated.seconds);
    double work = 0;
    for (const ChunkSeconds& c : chunks) work += c.forward + c.backward + c.weight_gradient;
    ASSERT_EQ(busy, work * z.micro_batches);
  }
}

TEST(Schedule, AnOrderThatWaitsForItselfIsRefused) {
  Schedule schedule = make_schedule(kPlain, 2, 1, 2);
  std::swap(schedule.order[1][0], schedule.order[1][1]);  // a backward before its forward
  EXPECT_THROW(simulate(schedule, equal_chunks(2, 1, 1, 1)), InternalError);
}

TEST(Schedule, ImpossibleNumbersAreRefused) {
  EXPECT_THROW(make_schedule(kPlain, 0, 1, 1), Error);
  EXPECT_THROW(make_schedule(kPlain, 2, 1, 0), Error);
  EXPECT_THROW(make_schedule(kPlain, 2, 2, 4), Error);
  EXPECT_THROW(make_schedule(kZeroBubble, 2, 2, 4), Error);
  EXPECT_THROW(make_schedule(kInterleaved, 2, 1, 4), Error);
  EXPECT_THROW(make_schedule(kInterleaved, 4, 2, 6), Error);
  EXPECT_EQ(schedule_named("zero-bubble"), kZeroBubble);
  EXPECT_EQ(schedule_named("gpipe"), std::nullopt);
}

// A search simulates thousands. Generous to a loaded machine: what is measured is the least of ten.
TEST(Schedule, SimulationIsFast) {
#ifdef CLEAVE_SANITIZED
  GTEST_SKIP() << "times mean nothing under a sanitizer";
#endif
  const Schedule schedule = make_schedule(kInterleaved, 64, 4, 2048);
  const auto chunks = equal_chunks(256, 1e-3, 2e-3, 0);
  double least = 1;
  for (int i = 0; i < 10; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_GT(simulated_seconds(schedule, chunks), 0);
    least = std::min(
        least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  fmt::print("1,048,576 units in {:.2f} ms\n", least * 1e3);
  EXPECT_LT(least, 0.05);
}

}  // namespace
}  // namespace cleave
