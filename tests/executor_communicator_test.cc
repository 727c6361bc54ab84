// Collectives between threads, against sums and slices of the whole tensors.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "executor/rank_threads.h"
#include "executor/shards.h"
#include "executor/thread_communicator.h"
#include "graph/error.h"
#include "tests/executor_builder.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

// Runs work(communicator, rank) on all ranks of the mesh.
template <class F>
void on_ranks(const Mesh& mesh, F&& work, int64_t stages = 1) {
  ThreadWorld world(mesh, stages);
  RankThreads threads(stages * mesh.size(), [&] { world.abort(); });
  std::vector<std::unique_ptr<ThreadCommunicator>> ends;
  for (int64_t r = 0; r < stages * mesh.size(); ++r) {
    ends.push_back(std::make_unique<ThreadCommunicator>(world, r));
  }
  threads.run([&](int64_t r) { work(*ends[static_cast<size_t>(r)], r); });
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kF64 : DType::kF32;

// An integer that every rank can compute: exact in both types, whatever the order of a sum.
int64_t number(int64_t rank, int64_t i, int64_t salt) {
  return (rank * 7919 + i * 104729 + salt * 31) % 2003 - 1001;
}

template <class T>
std::vector<T> numbers(int64_t rank, int64_t n, int64_t salt) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = static_cast<T>(number(rank, i, salt));
  return v;
}

template <class T>
CollectiveTensor operand(const std::vector<T>& in, std::vector<T>& out,
                         std::array<int64_t, 5> sizes, int8_t in_cut, int8_t out_cut) {
  return {in.data(), out.data(), kDType<T>, sizes, in_cut, out_cut};
}

std::vector<Mesh> meshes() {
  return {{{{"u", 1}}},           {{{"u", 2}}},           {{{"u", 3}}},
          {{{"u", 4}}},           {{{"u", 8}}},           {{{"u", 2}, {"v", 2}}},
          {{{"u", 4}, {"v", 2}}}, {{{"u", 2}, {"v", 3}}}, {{{"u", 2}, {"v", 2}, {"w", 2}}}};
}

template <class T>
void test_all_reduce(const Mesh& mesh, int32_t axis, int64_t n, bool in_place) {
  for (Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
    on_ranks(mesh, [&](Communicator& c, int64_t rank) {
      // Two tensors at once, of different sizes.
      std::vector<T> a = numbers<T>(rank, n, 1), b = numbers<T>(rank, n / 2 + 1, 2);
      std::vector<T> a_out(a.size(), -1), b_out(b.size(), -1);
      const std::vector<CollectiveTensor> tensors = {
          operand(a, in_place ? a : a_out, {n, 1, 1, 1, 1}, -1, -1),
          operand(b, in_place ? b : b_out, {n / 2 + 1, 1, 1, 1, 1}, -1, -1)};
      c.run(InstrKind::kAllReduce, axis, reduction, tensors);
      const auto want = [&](size_t count, int64_t salt) {
        const auto group = mesh.group(rank, static_cast<size_t>(axis));
        std::vector<T> result = numbers<T>(group[0], static_cast<int64_t>(count), salt);
        for (int64_t r : std::span(group).subspan(1)) {
          for (size_t i = 0; i < count; ++i) {
            const T x = static_cast<T>(number(r, static_cast<int64_t>(i), salt));
            result[i] = reduction == Reduction::kSum ? result[i] + x : std::max(result[i], x);
          }
        }
        return result;
      };
      EXPECT_TRUE((in_place ? a : a_out) == want(a.size(), 1));
      EXPECT_TRUE((in_place ? b : b_out) == want(b.size(), 2));
    });
  }
}

TEST(ThreadCommunicator, AllReduceIsExactOnIntegers) {
  for (const Mesh& mesh : meshes()) {
    for (int32_t axis = 0; axis < static_cast<int32_t>(mesh.axes.size()); ++axis) {
      for (int64_t n : {1, 7, 1000, 5003}) {  // the last takes the path in chunks
        for (bool in_place : {false, true}) {
          SCOPED_TRACE(fmt::format("{} axis {} n {}", mesh.to_string(), axis, n));
          test_all_reduce<float>(mesh, axis, n, in_place);
          test_all_reduce<double>(mesh, axis, n, in_place);
        }
      }
    }
  }
}

// The whole tensor that a group of ranks holds together: row-major, any sizes.
double whole_at(int64_t group, int64_t i) { return static_cast<double>(number(group, i, 5)); }

// Index in the whole tensor of element `i` of part `index` of `ranks`, cut along size `cut`.
int64_t whole_index(const std::array<int64_t, 5>& sizes, int8_t cut, int64_t ranks, int64_t index,
                    int64_t i) {
  int64_t result = 0, pitch = 1;
  for (size_t d = 5; d-- > 0;) {
    const bool here = static_cast<int>(d) == cut;
    const int64_t local = here ? sizes[d] / ranks : sizes[d];
    result += (i % local + (here ? index * local : 0)) * pitch;
    i /= local;
    pitch *= sizes[d];
  }
  return result;
}

int64_t count(const std::array<int64_t, 5>& sizes) {
  return sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4];
}

// All-gather and all-to-all: every element of the result is where it is in the whole tensor.
TEST(ThreadCommunicator, MovesShardsToWhereTheyBelong) {
  struct Move {
    InstrKind kind;
    int8_t in_cut, out_cut;
  };
  std::mt19937 random(3);
  for (const Mesh& mesh : meshes()) {
    for (int32_t axis = 0; axis < static_cast<int32_t>(mesh.axes.size()); ++axis) {
      const int64_t t = mesh.axes[static_cast<size_t>(axis)].size;
      for (const Move& move : {Move{InstrKind::kAllGather, 1, -1}, Move{InstrKind::kAllToAll, 1, 3},
                               Move{InstrKind::kAllToAll, 3, 1}}) {
        std::array<int64_t, 5> sizes;
        for (int64_t& s : sizes) s = static_cast<int64_t>(1 + random() % 4);
        sizes[1] *= t, sizes[3] *= t;
        SCOPED_TRACE(fmt::format("{} axis {} {} of {}", mesh.to_string(), axis, name_of(move.kind),
                                 fmt::join(sizes, "x")));
        on_ranks(mesh, [&](Communicator& c, int64_t rank) {
          const int64_t me = mesh.coordinates(rank)[static_cast<size_t>(axis)];
          const int64_t group = mesh.group(rank, static_cast<size_t>(axis))[0];
          std::vector<double> in(static_cast<size_t>(count(sizes) / t));
          std::vector<double> out(static_cast<size_t>(count(sizes) / (move.out_cut < 0 ? 1 : t)),
                                  -1);
          for (size_t i = 0; i < in.size(); ++i) {
            in[i] =
                whole_at(group, whole_index(sizes, move.in_cut, t, me, static_cast<int64_t>(i)));
          }
          const CollectiveTensor tensor = operand(in, out, sizes, move.in_cut, move.out_cut);
          c.run(move.kind, axis, Reduction::kSum, {&tensor, 1});
          for (size_t i = 0; i < out.size(); ++i) {
            const auto at = static_cast<int64_t>(i);
            ASSERT_EQ(out[i], whole_at(group, whole_index(sizes, move.out_cut, t, me, at))) << i;
          }
        });
      }
    }
  }
}

TEST(ThreadCommunicator, ReduceScatterGivesEachItsPart) {
  for (const Mesh& mesh : meshes()) {
    for (int32_t axis = 0; axis < static_cast<int32_t>(mesh.axes.size()); ++axis) {
      const int64_t t = mesh.axes[static_cast<size_t>(axis)].size;
      for (Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
        const std::array<int64_t, 5> sizes = {3, 2 * t, 1, 1, 5};
        SCOPED_TRACE(fmt::format("{} axis {}", mesh.to_string(), axis));
        on_ranks(mesh, [&](Communicator& c, int64_t rank) {
          const int64_t me = mesh.coordinates(rank)[static_cast<size_t>(axis)];
          const std::vector<float> in = numbers<float>(rank, count(sizes), 4);
          std::vector<float> out(in.size() / static_cast<size_t>(t), -1);
          const CollectiveTensor tensor = operand(in, out, sizes, -1, 1);
          c.run(InstrKind::kReduceScatter, axis, reduction, {&tensor, 1});
          for (size_t i = 0; i < out.size(); ++i) {
            const int64_t at = whole_index(sizes, 1, t, me, static_cast<int64_t>(i));
            int64_t want = reduction == Reduction::kSum ? 0 : -5000;
            for (int64_t r : mesh.group(rank, static_cast<size_t>(axis))) {
              const int64_t x = number(r, at, 4);
              want = reduction == Reduction::kSum ? want + x : std::max(want, x);
            }
            ASSERT_EQ(out[i], static_cast<float>(want)) << i;
          }
        });
      }
    }
  }
}

// Numbers that do not add exactly: all ranks still get the same bits, again and again, and the
// small and the chunked path agree.
TEST(ThreadCommunicator, ReductionsAreDeterministic) {
  const Mesh mesh{{{"u", 8}}};
  constexpr size_t kSmall = 1000, kLarge = 50000;
  for (Reduction reduction : {Reduction::kSum, Reduction::kMax, Reduction::kLogSumExp}) {
    std::vector<std::vector<float>> results(16);
    for (size_t round = 0; round < 2; ++round) {
      on_ranks(mesh, [&](Communicator& c, int64_t rank) {
        std::mt19937 random(static_cast<unsigned>(rank));
        std::normal_distribution<float> normal;
        std::vector<float> in(kLarge), out(kLarge), small(kSmall);
        for (float& x : in) x = normal(random);
        const CollectiveTensor all = operand(in, out, {kLarge, 1, 1, 1, 1}, -1, -1);
        c.run(InstrKind::kAllReduce, 0, reduction, {&all, 1});
        const CollectiveTensor some = operand(in, small, {kSmall, 1, 1, 1, 1}, -1, -1);
        c.run(InstrKind::kAllReduce, 0, reduction, {&some, 1});
        EXPECT_EQ(std::memcmp(small.data(), out.data(), kSmall * sizeof(float)), 0);
        results[round * 8 + static_cast<size_t>(rank)] = out;
      });
    }
    for (const auto& r : results) {
      EXPECT_EQ(std::memcmp(r.data(), results[0].data(), kLarge * sizeof(float)), 0);
    }
  }
}

TEST(ThreadCommunicator, LogSumExpAndNaN) {
  const double inf = std::numeric_limits<double>::infinity();
  const Mesh mesh{{{"u", 3}}};
  const double nan = std::nan("");
  const std::vector<std::vector<double>> in = {{0.5, -inf, -inf, 1000, 1, nan, 0},
                                               {-2, -inf, 3, 1001, inf, 2, 1},
                                               {1, -inf, -inf, 999, 0, 5, nan}};
  on_ranks(mesh, [&](Communicator& c, int64_t rank) {
    std::vector<double> out(7);
    const CollectiveTensor t = operand(in[static_cast<size_t>(rank)], out, {7, 1, 1, 1, 1}, -1, -1);
    c.run(InstrKind::kAllReduce, 0, Reduction::kLogSumExp, {&t, 1});
    EXPECT_DOUBLE_EQ(out[0], std::log(std::exp(0.5) + std::exp(-2) + std::exp(1)));
    EXPECT_EQ(out[1], -inf);
    EXPECT_DOUBLE_EQ(out[2], 3);
    EXPECT_DOUBLE_EQ(out[3], 1001 + std::log(std::exp(-1) + 1 + std::exp(-2)));
    EXPECT_EQ(out[4], inf);
    EXPECT_TRUE(std::isnan(out[5]) && std::isnan(out[6]));
    c.run(InstrKind::kAllReduce, 0, Reduction::kMax, {&t, 1});
    EXPECT_TRUE(std::isnan(out[5]) && std::isnan(out[6])) << "a maximum must not hide a NaN";
    EXPECT_EQ(out[3], 1001);
  });
}

TEST(ThreadCommunicator, CountsWhatARingWouldSend) {
  const Mesh mesh{{{"u", 4}, {"v", 2}}};
  on_ranks(mesh, [&](Communicator& c, int64_t) {
    std::vector<float> in(160), out(640);
    const CollectiveTensor reduce = operand(in, out, {160, 1, 1, 1, 1}, -1, -1);
    const CollectiveTensor gather = operand(in, out, {1, 640, 1, 1, 1}, 1, -1);
    const CollectiveTensor scatter = operand(in, out, {1, 160, 1, 1, 1}, -1, 1);
    const CollectiveTensor swap = operand(in, out, {1, 8, 1, 80, 1}, 1, 3);
    const std::vector<CollectiveTensor> two = {reduce, reduce};
    c.run(InstrKind::kAllToAll, 0, Reduction::kSum, {&swap, 1});
    c.run(InstrKind::kAllReduce, 0, Reduction::kSum, {&reduce, 1});
    c.run(InstrKind::kAllReduce, 0, Reduction::kSum, two);
    c.run(InstrKind::kAllReduce, 1, Reduction::kSum, {&reduce, 1});
    c.run(InstrKind::kAllGather, 0, Reduction::kSum, {&gather, 1});
    c.run(InstrKind::kReduceScatter, 0, Reduction::kSum, {&scatter, 1});
    const std::vector<CollectiveCount> want = {{InstrKind::kAllReduce, 0, 2, 3 * 2 * 640 * 0.75},
                                               {InstrKind::kAllReduce, 1, 1, 640},
                                               {InstrKind::kAllGather, 0, 1, 2560 * 0.75},
                                               {InstrKind::kReduceScatter, 0, 1, 640 * 0.75},
                                               {InstrKind::kAllToAll, 0, 1, 640 * 0.75}};
    EXPECT_EQ(c.counts(), want);
    c.reset_counts();
    EXPECT_TRUE(c.counts().empty());
  });
}

// A folded collective tensor: the atoms around the one that is cut, on a program's layouts.
TEST(CollectiveTensors, FoldTheAtoms) {
  using enum InstrKind;
  ProgramBuilder b({{"u", 2}, {"v", 3}});
  const TensorId a = b.tensor("a", {{4}, {6, 12}, {5}}, {cut(1), cut(2)});
  const TensorId g = b.tensor("g", {{4}, {6, 12}, {5}}, {cut(1), kWhole});
  const TensorId s = b.tensor("s", {{4}, {6, 12}, {5}}, {cut(1), cut(1)});
  const TensorId p = b.tensor("p", {{4}, {6, 12}, {5}}, {cut(1), kPart});
  b.move(kAllGather, 1, {a}, {g});
  b.move(kAllToAll, 1, {a}, {s});
  b.move(kAllToAll, 1, {s}, {a});
  b.move(kReduceScatter, 1, {p}, {a});
  b.move(kAllReduce, 1, {p}, {g});
  using Sizes = std::array<int64_t, 5>;
  const std::vector<Sizes> sizes = {
      {12, 12, 5, 1, 1}, {4, 3, 1, 12, 5}, {4, 3, 1, 12, 5}, {12, 12, 5, 1, 1}, {720, 1, 1, 1, 1}};
  const std::vector<std::pair<int, int>> cuts = {{1, -1}, {3, 1}, {1, 3}, {-1, 1}, {-1, -1}};
  for (size_t i = 0; i < sizes.size(); ++i) {
    const CollectiveTensor t = collective_tensor(b.program, b.program.instrs[i], 0);
    EXPECT_EQ(t.sizes, sizes[i]) << i;
    EXPECT_EQ(std::pair(int{t.in_cut}, int{t.out_cut}), cuts[i]) << i;
  }
  const std::vector<CollectiveCount> want = {{kAllReduce, 1, 1, 2 * 2880 * 2 / 3.0},
                                             {kAllGather, 1, 1, 2880 * 2 / 3.0},
                                             {kReduceScatter, 1, 1, 2880 * 2 / 3.0},
                                             {kAllToAll, 1, 2, 2 * 960 * 2 / 3.0}};
  EXPECT_EQ(count_collectives(b.program), want);
}

// --- Ranks that do not agree ---------------------------------------------------------------------

TEST(ThreadCommunicator, DifferentCollectivesOfOneGroupAreReported) {
  std::vector<float> in(64), out(64);
  const CollectiveTensor reduce = operand(in, out, {8, 1, 1, 1, 1}, -1, -1);
  const CollectiveTensor longer = operand(in, out, {16, 1, 1, 1, 1}, -1, -1);
  const CollectiveTensor gather = operand(in, out, {1, 8, 1, 1, 1}, 1, -1);
  const Mesh mesh{{{"u", 4}}};
  const auto run = [&](InstrKind kind, Reduction reduction, const CollectiveTensor& other) {
    return message_of([&] {
      on_ranks(mesh, [&](Communicator& c, int64_t rank) {
        if (rank == 2) {
          c.run(kind, 0, reduction, {&other, 1});
        } else {
          c.run(InstrKind::kAllReduce, 0, Reduction::kSum, {&reduce, 1});
        }
      });
    });
  };
  EXPECT_EQ(run(InstrKind::kAllGather, Reduction::kSum, gather),
            "rank 0 asks for all-reduce over u by sum f32[8, 1, 1, 1, 1], rank 2 for all-gather "
            "over u f32[1, 8, 1, 1, 1] cut 1");
  EXPECT_EQ(run(InstrKind::kAllReduce, Reduction::kMax, reduce),
            "rank 0 asks for all-reduce over u by sum f32[8, 1, 1, 1, 1], rank 2 for all-reduce "
            "over u by max f32[8, 1, 1, 1, 1]");
  EXPECT_EQ(run(InstrKind::kAllReduce, Reduction::kSum, longer),
            "rank 0 asks for all-reduce over u by sum f32[8, 1, 1, 1, 1], rank 2 for all-reduce "
            "over u by sum f32[16, 1, 1, 1, 1]");
}

TEST(ThreadCommunicator, WaitingForEachOtherForEverIsReported) {
  const Mesh mesh{{{"u", 2}, {"v", 2}}};
  const std::string message = message_of([&] {
    on_ranks(mesh, [&](Communicator& c, int64_t rank) {
      std::vector<float> in(8), out(8);
      const CollectiveTensor t = operand(in, out, {8, 1, 1, 1, 1}, -1, -1);
      for (int i = 0; i < 20; ++i) c.run(InstrKind::kAllReduce, i % 2, Reduction::kSum, {&t, 1});
      // Rank 0 takes the axes in another order; rank 3 has nothing left to do.
      if (rank != 3) c.run(InstrKind::kAllReduce, rank == 0 ? 0 : 1, Reduction::kSum, {&t, 1});
      c.synchronize();
    });
  });
  EXPECT_NE(message.find("the ranks wait for each other for ever: rank 0 all-reduce over u"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("rank 1 all-reduce over v"), std::string::npos) << message;
  EXPECT_NE(message.find("rank 3 waiting for all ranks"), std::string::npos) << message;
}

TEST(ThreadCommunicator, AFailingRankWakesTheOthers) {
  for (int64_t failing = 0; failing < 8; ++failing) {
    const Mesh mesh{{{"u", 4}, {"v", 2}}};
    std::atomic<int> finished = 0;
    // A rank that leaves early may still be read by others: the operands outlive all ranks.
    std::vector<std::vector<float>> in(8, std::vector<float>(8)), out = in;
    const std::string message = message_of([&] {
      on_ranks(mesh, [&](Communicator& c, int64_t rank) {
        const auto r = static_cast<size_t>(rank);
        const CollectiveTensor t = operand(in[r], out[r], {8, 1, 1, 1, 1}, -1, -1);
        for (int i = 0; i < 100; ++i) {
          c.run(InstrKind::kAllReduce, i % 2, Reduction::kSum, {&t, 1});
          if (rank == failing && i == 50) fail("rank {} stumbles", rank);
        }
        c.synchronize();
        ++finished;
      });
    });
    EXPECT_EQ(message, fmt::format("rank {} stumbles", failing));
    EXPECT_EQ(finished, 0);
  }
}

// Many short sums over crossing groups, by turns.
void many_sums(const Mesh& mesh, int rounds,
               const std::function<void(Communicator&)>& before_each) {
  on_ranks(mesh, [&](Communicator& c, int64_t rank) {
    double value = static_cast<double>(rank), sum = 0;
    const CollectiveTensor t = {&value, &sum, DType::kF64};
    for (int i = 0; i < rounds; ++i) {
      const int32_t axis = i % 2;
      double want = 0;
      for (int64_t r : mesh.group(rank, static_cast<size_t>(axis))) {
        want += static_cast<double>(r + i);
      }
      value = static_cast<double>(rank + i);
      before_each(c);
      c.run(InstrKind::kAllReduce, axis, Reduction::kSum, {&t, 1});
      ASSERT_EQ(sum, want);
    }
  });
}

// The barriers hold, and a result is never overwritten while another rank reads it.
TEST(ThreadCommunicator, ManyRounds) {
  many_sums(Mesh{{{"u", 2}, {"v", 4}}}, 500, [](Communicator&) {});
}

// Whoever is released first goes on at once, while others are still on their way out.
TEST(ThreadCommunicator, GoesOnAtOnceAfterSynchronizing) {
  many_sums(Mesh{{{"u", 4}, {"v", 2}}}, 2000, [](Communicator& c) { c.synchronize(); });
}

// --- Messages ----------------------------------------------------------------------------------

std::span<const std::byte> bytes_of(const std::vector<int64_t>& v) {
  return std::as_bytes(std::span(v));
}

// Everyone sends all it has before it takes anything, and takes it in another order: nobody waits
// for the other's turn. Between the messages, stages work by themselves.
TEST(Messages, ArriveWhateverTheOrder) {
  const Mesh mesh{{{"u", 2}}};
  constexpr int64_t kStages = 3, kMessages = 40;
  on_ranks(
      mesh,
      [&](Communicator& c, int64_t rank) {
        const int64_t next = (rank + 2) % 6, before = (rank + 4) % 6;
        for (int64_t m = 0; m < kMessages; ++m) {
          const std::vector<int64_t> sent(static_cast<size_t>(m % 5), 100 * rank + m);
          c.send({.to = next, .from = rank, .transfer = 7, .micro_batch = m}, bytes_of(sent));
        }
        // The sum over a stage's two ranks, and over no other's.
        std::vector<double> x = {static_cast<double>(rank)}, sum = {0};
        const std::vector<CollectiveTensor> tensors = {operand(x, sum, {1, 1, 1, 1, 1}, -1, -1)};
        c.run(InstrKind::kAllReduce, 0, Reduction::kSum, tensors);
        if (sum[0] != static_cast<double>(rank / 2 * 4 + 1)) throw Error("the wrong ranks' sum");
        for (int64_t m = kMessages; m-- > 0;) {
          std::vector<int64_t> got(static_cast<size_t>(m % 5), -1);
          c.receive({.to = rank, .from = before, .transfer = 7, .micro_batch = m},
                    std::as_writable_bytes(std::span(got)));
          if (got != std::vector<int64_t>(got.size(), 100 * before + m)) throw Error("other data");
        }
        CollectiveCounter want;
        for (int64_t m = 0; m < kMessages; ++m)
          want.add(InstrKind::kSend, -1, static_cast<double>(m % 5 * 8));
        const auto& counts = c.counts();
        const auto sends = std::find_if(counts.begin(), counts.end(), [](const auto& count) {
          return count.kind == InstrKind::kSend;
        });
        if (sends == counts.end() || *sends != want.counts()[0]) throw Error("other counts");
      },
      kStages);
}

TEST(Messages, OfAnotherSizeAreRefused) {
  const Mesh mesh{{{"u", 1}}};
  const std::string message = message_of([&] {
    on_ranks(
        mesh,
        [](Communicator& c, int64_t rank) {
          std::vector<int64_t> three(3), four(4);
          if (rank == 0) c.send({.to = 1, .from = 0, .transfer = 1}, bytes_of(three));
          if (rank == 1) {
            c.receive({.to = 1, .from = 0, .transfer = 1}, std::as_writable_bytes(std::span(four)));
          }
        },
        2);
  });
  EXPECT_NE(message.find("24 bytes were sent, 32 are awaited"), std::string::npos) << message;
}

TEST(Messages, ThatNobodySendsAreReported) {
  const Mesh mesh{{{"u", 2}}};
  const std::string message = message_of([&] {
    on_ranks(
        mesh,
        [](Communicator& c, int64_t rank) {
          std::vector<int64_t> got(1);
          if (rank == 2) {
            c.receive({.to = 2, .from = 0, .transfer = 9, .micro_batch = 4},
                      std::as_writable_bytes(std::span(got)));
          }
          c.synchronize();
        },
        2);
  });
  EXPECT_NE(message.find("rank 2 waiting for node 9 of micro-batch 4 from rank 0"),
            std::string::npos)
      << message;
}

}  // namespace
}  // namespace cleave
