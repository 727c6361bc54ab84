// Fusions by name: each can be left out, a program tells which were made and of what its
// instructions are made, and a wrong name is refused with the right ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "executor/fuse.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

Program lowered(const FuseOptions& fusing) {
  const Graph graph = testing::training_graph(model_named("gpt2:tiny"), DType::kBF16);
  return lower(graph, testing::plan_for(graph, "1", {}), fusing);
}

int64_t marked(const Program& p, size_t fusion) {
  return std::count_if(p.instrs.begin(), p.instrs.end(),
                       [&](const Instr& i) { return (i.fused >> fusion & 1) != 0; });
}

TEST(FuseOptions, EveryFusionIsCountedAndMarked) {
  const Program p = lowered(true);
  ASSERT_EQ(p.fusions.size(), fusions().size());
  const std::string text = to_text(p);
  EXPECT_NE(text.find("\nfused " + fusions_text(p) + "\n"), std::string::npos);
  for (size_t f = 0; f < fusions().size(); ++f) {
    EXPECT_EQ(p.fusions[f] > 0, marked(p, f) > 0) << fusions()[f].name;
    EXPECT_LE(marked(p, f), p.fusions[f]) << fusions()[f].name;
  }
  EXPECT_GT(std::accumulate(p.fusions.begin(), p.fusions.end(), 0), 0);
  EXPECT_NE(text.find("  fused: "), std::string::npos);
}

TEST(FuseOptions, EachCanBeLeftOut) {
  for (size_t f = 0; f < fusions().size(); ++f) {
    const std::string name(fusions()[f].name);
    const Program p = lowered({true, {name}});
    EXPECT_EQ(p.fusions[f], 0) << name;
    EXPECT_EQ(marked(p, f), 0) << name;
  }
}

TEST(FuseOptions, AllLeftOutIsTheProgramAsItWas) {
  const Program bare = lowered(false);
  EXPECT_EQ(fusions_text(bare), "");
  const Program p = lowered({true, fusions_in("all")});
  EXPECT_EQ(fusions_text(p), "nothing");
  std::string text = to_text(p);
  const std::string line = "fused nothing\n";
  ASSERT_NE(text.find(line), std::string::npos);
  EXPECT_EQ(text.erase(text.find(line), line.size()), to_text(bare));
}

TEST(FuseOptions, ListsOfNames) {
  EXPECT_EQ(fusions_in("all").size(), fusions().size());
  EXPECT_EQ(fusions_in("bias,wide"), (std::vector<std::string>{"bias", "wide"}));
  for (const char* list : {"bais", "bias,", "", "bias wide"}) {
    try {
      fusions_in(list);
      FAIL() << list;
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find("there is no fusion '"), std::string::npos) << what;
      for (const Fusion& f : fusions()) EXPECT_NE(what.find(f.name), std::string::npos) << what;
    }
  }
}

}  // namespace
}  // namespace cleave
