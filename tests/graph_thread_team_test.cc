// A team does every task once, on several threads, and hands on what a task throws.
#include "graph/thread_team.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <set>
#include <stdexcept>

namespace cleave {
namespace {

TEST(ThreadTeam, DoesEveryTaskOnceHoweverManyThreads) {
  for (const int size : {1, 2, 3, 7}) {
    ThreadTeam team(size);
    EXPECT_EQ(team.size(), size);
    for (int64_t tasks = 0; tasks < 300; ++tasks) {
      std::vector<std::atomic<int>> times(static_cast<size_t>(tasks));
      team.run(tasks, [&](int64_t task, int member) {
        EXPECT_TRUE(member >= 0 && member < size);
        times[static_cast<size_t>(task)].fetch_add(1);
      });
      for (const auto& t : times) ASSERT_EQ(t.load(), 1) << size << " threads, " << tasks;
    }
  }
}

// Members that are late from a run of few tasks meet the next one, of more.
TEST(ThreadTeam, TurnsFromFewTasksToManyAndBack) {
  ThreadTeam team(4);
  for (int round = 0; round < 20000; ++round) {
    const int64_t tasks = round % 2 == 0 ? 2 : 40;
    std::array<std::atomic<int>, 40> times{};
    team.run(tasks, [&](int64_t task, int) { times[static_cast<size_t>(task)].fetch_add(1); });
    for (int64_t i = 0; i < 40; ++i) ASSERT_EQ(times[size_t(i)].load(), i < tasks) << round;
  }
}

// Members never share a number while they work, so what belongs to a number needs no lock.
TEST(ThreadTeam, AMembersScratchIsItsOwn) {
  ThreadTeam team(4);
  for (int round = 0; round < 200; ++round) {
    team.run(32, [&](int64_t task, int member) {
      auto* room = static_cast<int64_t*>(team.scratch(member, 64 * sizeof(int64_t)));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(room) % 64, 0u);
      std::fill_n(room, 64, task);
      EXPECT_EQ(std::accumulate(room, room + 64, int64_t{0}), 64 * task);
    });
  }
}

// Tasks that wait for each other: both run at once, or this never ends.
TEST(ThreadTeam, RunsTasksAtOnce) {
  ThreadTeam team(2);
  std::atomic<int> arrived{0};
  team.run(2, [&](int64_t, int) {
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadTeam, ThrowsWhatATaskThrewAndGoesOn) {
  ThreadTeam team(3);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> done{0};
    EXPECT_THROW(team.run(20,
                          [&](int64_t task, int) {
                            done.fetch_add(1);
                            if (task == 7) throw std::runtime_error("seven");
                          }),
                 std::runtime_error);
    EXPECT_EQ(done.load(), 20);
    team.run(5, [&](int64_t, int) { done.fetch_add(1); });
    EXPECT_EQ(done.load(), 25);
  }
}

}  // namespace
}  // namespace cleave
