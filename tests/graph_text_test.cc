// The text form: exact round trips, and one clear line for every mistake.
#include "graph/text.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "graph/error.h"
#include "tests/graph_random.h"

namespace cleave {
namespace {

namespace op = test_ops;

constexpr std::string_view kSmall = R"(graph mlp

data %0 x: f32[8, 64] (batch, width)
param %1 fc.weight: f32[32, 64] = normal(0.02) -> %5

forward
%2: f32[8, 32] = matmul(%0, %1) "bk,nk->bn" in fc @mlp.cc:12
%3: f32[8, 32] = dropout(%2) "bs->bs|b:indexed,s:indexed" {name: "fc", p: 0.1} writes %2 @mlp.cc:13

backward
%4: f32[32, 64] = matmul(%3, %0) "bn,bk->nk" follows %2 in fc @mlp.cc:12

update
%5: f32[32, 64] = sgd(%1, %4) "ab,ab->ab" writes %1

output y %3
)";

TEST(GraphText, ReadsAsDocumented) {
  const Graph g = graph_from_text(kSmall, op::find);
  EXPECT_EQ(to_text(g), kSmall);
  EXPECT_EQ(g.source_named("fc.weight")->final, 5);
  EXPECT_EQ(g.node(2).phase, Phase::kBackward);
  EXPECT_EQ(g.node(2).follows, 0);
  EXPECT_EQ(g.value(3).version, 1);
  EXPECT_EQ(g.place(g.node(1).loc), "mlp.cc:13");
  EXPECT_EQ(g.node(1).attrs.real("p"), 0.1);
}

TEST(GraphText, TheManualShowsIt) {
  std::ifstream file(std::string(CLEAVE_SOURCE_DIR) + "/docs/graph.md");
  std::stringstream manual;
  manual << file.rdbuf();
  EXPECT_NE(manual.str().find("```\n" + std::string(kSmall) + "```\n"), std::string::npos);
}

TEST(GraphText, RandomGraphsRoundTrip) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    const Graph g = op::random_graph(seed);
    const std::string text = to_text(g);
    const Graph read = graph_from_text(text, op::find);
    ASSERT_EQ(to_text(read), text) << "seed " << seed;
    op::expect_same(g, read);
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed << "\n" << text;
  }
}

TEST(GraphText, BlankLinesCommentsAndSpacesDoNotMatter) {
  std::string text;
  for (char c : kSmall) {
    text += c == ',' ? " , " : c == '\n' ? " # why\n\n\t" : std::string(1, c);
  }
  // Not inside strings: a factor string keeps its commas.
  for (size_t at; (at = text.find("k , n")) != std::string::npos;) text.replace(at, 5, "k,n");
  for (size_t at; (at = text.find("n , b")) != std::string::npos;) text.replace(at, 5, "n,b");
  for (size_t at; (at = text.find("b , a")) != std::string::npos;) text.replace(at, 5, "b,a");
  for (size_t at; (at = text.find("d , s")) != std::string::npos;) text.replace(at, 5, "d,s");
  EXPECT_EQ(to_text(graph_from_text(text, op::find)), kSmall);
}

TEST(GraphText, EveryMistakeIsOneLineThatNamesItsLine) {
  struct Case {
    std::string_view from, to;  // in kSmall
    std::string_view message;
  };
  const std::vector<Case> cases = {
      {"graph mlp", "", "line 3: the text does not begin with 'graph NAME'"},
      {"graph mlp", "graph mlp x", "line 1: nothing more can stand at 'x'"},
      {"data %0", "datum %0",
       "line 3: unknown source 'datum' (one of data, param, state, "
       "accumulator)"},
      {"f32[8, 64] (", "f23[8, 64] (", "line 3: unknown element type 'f23'"},
      {"(batch, width)", "(batch)", "line 3: 'x' has 2 dimensions and 1 roles"},
      {"(batch, width)", "(batch, width", "line 3: expected ')' before the end of the line"},
      {"%1 fc.weight", "%1 x", "line 4: there are two inputs or states named 'x'"},
      {"%1 fc.weight", "%7 fc.weight", "line 7: %1 is not defined before this"},
      {" = normal(0.02)", "", "line 4: 'fc.weight' needs a start"},
      {"normal(0.02)", "gauss(0.02)", "line 4: unknown start 'gauss'"},
      {"normal(0.02)", "normal(inf)", "line 4: 'fc.weight' starts at inf"},
      {"-> %5", "-> %2", "line 4: 'fc.weight' is f32[32, 64], but its next value f32[8, 32]"},
      {"-> %5", "-> %9", "line 4: %9 is not defined before this"},
      {"forward\n", "onward\n", "line 6: unknown phase 'onward' (one of forward, backward, upd"},
      {"forward\n", "\n", "line 7: a line 'forward', 'backward' or 'update' comes before"},
      {"= matmul(%0, %1)", "= matmull(%0, %1)", "line 7: unknown op 'matmull'"},
      {"matmul(%0, %1)", "matmul(%0, %2)", "line 7: %2 is not defined before this"},
      {"matmul(%0, %1)", "matmul(%0)", "line 7: mlp.cc:12: matmul(f32[8, 64]): 'bk,nk->bn' take"},
      {"bk,nk->bn\" in", "bk,nk=bn\" in", "line 7: factor string \"bk,nk=bn\": a factor string"},
      {"b:indexed", ">:indexed", "line 8: "},
      {"bk,nk->bn\" in", "...k,nk->...n\" in", "line 7: factor string \"...k,nk->...n\" is a tem"},
      {"bk,nk->bn\" in", "bk,kn->bn\" in", "line 7: mlp.cc:12: matmul(f32[8, 64], f32[32, 64])"},
      {"\"bk,nk->bn\" in", "in", "line 7: 'matmul' needs its factor string, in quotes"},
      {"%2: f32[8, 32] =", "%2: f64[8, 32] =", "line 7: %2 is said to be f64[8, 32], but is f32"},
      {"%3: f32[8, 32] =", "%4: f32[8, 32] =", "line 8: %4 should be %3"},
      {"%2: f32[8, 32] =", "%2: f32[8, 32], %3: f32[8] =", "line 7: 'matmul' gives 1 values, not"},
      {"in fc @mlp.cc:12\n%3", "in fc @mlp.cc\n%3", "line 7: '@mlp.cc' is not FILE:LINE"},
      {"in fc @mlp.cc:12\n%3", "in fc !\n%3", "line 7: nothing more can stand at '!'"},
      {"p: 0.1", "p: 0.1, p: 2", "line 8: attribute 'p' is given twice"},
      {"p: 0.1", "p: ", "line 8: expected a number before '} writes"},
      {"p: 0.1", "p: 99999999999999999999", "line 8: a number is out of range"},
      {"\"fc\"", "\"fc", "line 8: expected"},
      {"writes %2", "writes %0", "line 8: writes %0, which is f32[8, 64], with f32[8, 32]"},
      {"writes %2", "writes %2, -", "line 8: 1 values, but 2 targets to write"},
      {"\"bn,bk->nk\" f", "\"kb,kn->bn\" f",
       "line 11: factor 'k' is 8, but 64 in node 'bk,nk->bn'"},
      {"matmul(%3, %0) \"bn,bk->nk\"", "matmul(%0, %3) \"b->b\"",
       "line 11: factor string \"b->b\""},
      {"matmul(%0, %1)", "gelu()", "line 7: 'gelu' needs operands"},
      {"follows %2", "follows %0", "line 11: no node before this begins with %0"},
      {"matmul(%3, %0) \"bn,bk->nk\"", "sgd(%1, %1) \"cd,cd->cd\" writes %1", "line 14: writes %1"},
      {"output y %3", "output y", "line 16: expected a value such as %7 before the end"},
      {"output y %3", "output y %6", "line 16: %6 is not defined before this"},
  };
  for (const Case& c : cases) {
    std::string text(kSmall);
    const size_t at = text.find(c.from);
    ASSERT_NE(at, std::string::npos) << c.from;
    text.replace(at, c.from.size(), c.to);
    try {
      graph_from_text(text, op::find);
      ADD_FAILURE() << "accepted '" << c.to << "'";
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.substr(0, c.message.size()), c.message) << "for '" << c.to << "'";
      EXPECT_EQ(message.find('\n'), std::string::npos);
    }
  }
  EXPECT_THROW(graph_from_text("", op::find), Error);
  EXPECT_THROW(graph_from_text("# nothing\n", op::find), Error);
}

// Damaged text gives an Error or another graph, never anything else.
TEST(GraphText, DamagedTextIsRefusedOrRead) {
  std::mt19937 random(1);
  int refused = 0;
  const std::string_view letters = "%,:()[]{}\"->0123456789abX \n#.";
  for (int round = 0; round < 5000; ++round) {
    std::string text(kSmall);
    for (size_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0: text.erase(at, 1 + random() % 5); break;
        case 1: text.insert(at, 1, letters[random() % letters.size()]); break;
        default: text[at] = letters[random() % letters.size()];
      }
    }
    try {
      const std::string printed = to_text(graph_from_text(text, op::find));
      EXPECT_EQ(to_text(graph_from_text(printed, op::find)), printed);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000);
  EXPECT_LT(refused, 4990);
}

}  // namespace
}  // namespace cleave
