// Random plans over the whole joint space train like one device, send what they promised, and take
// the memory that they predicted. Hundreds of them: training_space_slow_test.cc.
#include <gtest/gtest.h>

#include "tests/support/sanitized.h"
#include "tests/training_space_run.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(Space, RandomPlansTrainLikeOneDevice) {
  constexpr size_t kPlans = 50;
  const Coverage coverage = run_space(1, drawn(kPlans));
  if (number_in("CLEAVE_SPACE_SEED") || drawn(kPlans) < kPlans) return;
  EXPECT_EQ(coverage.never(false), std::vector<std::string>{});
}

// --- Mistakes would show -------------------------------------------------------------------------

// The sum in the middle of those that make an op's partial results whole; -1: there is none.
int64_t middle_sum(const Program& p) {
  std::vector<int64_t> sums;
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    const Instr& instr = p.instrs[i];
    if (instr.kind != InstrKind::kAllReduce || instr.reduction != Reduction::kSum) continue;
    const auto axis = static_cast<size_t>(instr.axis);
    const bool made = std::any_of(p.instrs.begin(), p.instrs.end(), [&](const Instr& maker) {
      return maker.kind == InstrKind::kCompute && maker.splits[axis].letter != 0 &&
             std::find(maker.out.begin(), maker.out.end(), instr.in[0]) != maker.out.end();
    });
    if (made && p.mesh.axes[axis].size > 1) sums.push_back(static_cast<int64_t>(i));
  }
  return sums.empty() ? -1 : sums[sums.size() / 2];
}

// The last copy of a state back to the host; -1: there is none.
int64_t last_store(const Program& p) {
  for (size_t i = p.instrs.size(); i-- > 0;) {
    const Instr& instr = p.instrs[i];
    if (instr.kind == InstrKind::kCopy &&
        p.buffers[static_cast<size_t>(p.tensor(instr.out[0]).buffer)].host) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

TEST(Space, AMistakeShows) {
  int sums = 0, stores = 0, promises = 0;
  for (uint64_t seed = 100; seed < 200 && (sums < 4 || stores < 3 || promises < 3); ++seed) {
    Draw d = draw(seed);
    if (d.pinned || d.dtype != DType::kF64) continue;
    SCOPED_TRACE(fmt::format("{}, seed {}", text_of(d), seed));
    const Traced& t = traced(d);
    const auto p = plan_directly(d, t);
    if (!p) continue;
    const Program sound = lower(*p->graph, p->plan);
    const auto distance_of = [&](Program program) {
      return distance(train_in_parts(std::move(program), *p->graph, t.config, nullptr,
                                     {.seed = 42, .check = false}),
                      t.one);
    };
    if (const int64_t at = middle_sum(sound); at >= 0 && sums < 4) {
      Program broken = sound;
      broken.instrs[static_cast<size_t>(at)].kind = InstrKind::kCopy;
      EXPECT_THROW(check(broken), InternalError);
      EXPECT_GT(distance_of(std::move(broken)), 100 * kF64);
      ++sums;
    }
    if (const int64_t at = last_store(sound); at >= 0 && stores < 3) {
      Program broken = sound;
      broken.instrs.erase(broken.instrs.begin() + at);
      EXPECT_GT(distance_of(std::move(broken)), 100 * kF64);
      ++stores;
    }
    if (!p->plan.collectives.empty() && promises < 3) {
      Plan other = p->plan;
      ++other.collectives[0].count;
      EXPECT_THROW(train_in_parts(sound, *p->graph, t.config, &other), InternalError);
      ++promises;
    }
  }
  EXPECT_EQ(sums, 4);
  EXPECT_EQ(stores, 3);
  EXPECT_EQ(promises, 3);
}

}  // namespace
}  // namespace cleave
