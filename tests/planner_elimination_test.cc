// The exact min-sum solver against brute force, against CBC, and against itself without sharing.
#include "planner/elimination.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <functional>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "tests/support/cbc.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Random = std::mt19937;
using Table = std::shared_ptr<const CostTable>;

int32_t between(Random& random, int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(random);
}

bool chance(Random& random, double probability) {
  return std::bernoulli_distribution(probability)(random);
}

struct TableStyle {
  double infinite = 0;    // share of the entries
  bool integers = false;  // few different costs, so that optima tie
  bool negative = false;
};

Table random_table(Random& random, std::vector<int32_t> sizes, const TableStyle& style) {
  size_t entries = 1;
  for (const int32_t size : sizes) entries *= size;
  auto table = std::make_shared<CostTable>();
  table->sizes = std::move(sizes);
  std::uniform_real_distribution<double> cost(style.negative ? -10.0 : 0.0, 10.0);
  for (size_t i = 0; i < entries; ++i) {
    const double c = style.integers ? std::floor(cost(random) / 4) : cost(random);
    table->cost.push_back(chance(random, style.infinite) ? kInfinity : c);
  }
  return table;
}

std::vector<int32_t> sizes_of(const MinSumProblem& problem, const std::vector<int32_t>& variables) {
  std::vector<int32_t> sizes;
  for (const int32_t v : variables) sizes.push_back(problem.domain_sizes[v]);
  return sizes;
}

// A table that fits the variables: now and then one that the problem has already.
Table new_or_repeated(Random& random, const MinSumProblem& problem,
                      const std::vector<int32_t>& variables, const TableStyle& style) {
  const std::vector<int32_t> sizes = sizes_of(problem, variables);
  if (chance(random, 0.4)) {
    for (const CostTerm& term : problem.terms) {
      if (term.table->sizes == sizes) return term.table;
    }
  }
  return random_table(random, sizes, style);
}

void add_term(Random& random, MinSumProblem& problem, std::vector<int32_t> variables,
              const TableStyle& style) {
  Table table = new_or_repeated(random, problem, variables, style);
  problem.terms.push_back({std::move(variables), std::move(table)});
}

// Up to 8 variables of 1 to 4 choices; terms of none to three, in any order of the variables; in
// half of the problems a hub that most terms have.
MinSumProblem random_small_problem(Random& random) {
  MinSumProblem problem;
  const int32_t variables = between(random, 1, 8);
  const int32_t largest = between(random, 2, 4);
  for (int32_t v = 0; v < variables; ++v) {
    problem.domain_sizes.push_back(chance(random, 0.5) ? largest : between(random, 1, largest));
  }
  TableStyle style;
  style.infinite = chance(random, 0.5) ? 0.0 : 0.3 * between(random, 0, 2) / 2;
  style.integers = chance(random, 0.4);
  style.negative = chance(random, 0.3);
  const bool has_hub = chance(random, 0.5);
  const int32_t hub = between(random, 0, variables - 1);
  const int32_t terms = between(random, 0, 2 * variables + 2);
  std::vector<int32_t> order(variables);
  for (int32_t v = 0; v < variables; ++v) order[v] = v;
  for (int32_t t = 0; t < terms; ++t) {
    std::shuffle(order.begin(), order.end(), random);
    const int32_t arity = chance(random, 0.03) ? 0 : between(random, 1, std::min(3, variables));
    std::vector<int32_t> scope(order.begin(), order.begin() + arity);
    const bool in_scope = std::find(scope.begin(), scope.end(), hub) != scope.end();
    if (has_hub && arity > 0 && !in_scope && chance(random, 0.8)) scope.back() = hub;
    add_term(random, problem, std::move(scope), style);
  }
  return problem;
}

void for_each_choice(const MinSumProblem& problem,
                     const std::function<void(const std::vector<int32_t>&)>& visit) {
  std::vector<int32_t> choice(problem.domain_sizes.size(), 0);
  for (;;) {
    visit(choice);
    size_t v = 0;
    while (v < choice.size() && ++choice[v] == problem.domain_sizes[v]) choice[v++] = 0;
    if (v == choice.size()) return;
  }
}

double brute_force(const MinSumProblem& problem) {
  double best = kInfinity;
  for_each_choice(problem,
                  [&](const auto& choice) { best = std::min(best, evaluate(problem, choice)); });
  return best;
}

void expect_optimum(const MinSumProblem& problem, const MinSumResult& result, double optimum) {
  if (optimum == kInfinity) {
    ASSERT_EQ(result.status, MinSumStatus::kInfeasible);
    return;
  }
  ASSERT_EQ(result.status, MinSumStatus::kSolved);
  ASSERT_EQ(result.solution.choice.size(), problem.domain_sizes.size());
  for (size_t v = 0; v < problem.domain_sizes.size(); ++v) {
    ASSERT_GE(result.solution.choice[v], 0);
    ASSERT_LT(result.solution.choice[v], problem.domain_sizes[v]);
  }
  const double tolerance = 1e-9 * std::max(1.0, std::abs(optimum));
  EXPECT_NEAR(result.solution.cost, optimum, tolerance);
  EXPECT_NEAR(evaluate(problem, result.solution.choice), optimum, tolerance);
}

TEST(Elimination, EqualsBruteForce) {
  Random random(1);
  int infeasible = 0, reused = 0, pruned = 0;
  EliminationLimits plain, dominance;
  plain.prune_dominated = false;
  dominance.prune_from = 0;
  for (int i = 0; i < 4000; ++i) {
    SCOPED_TRACE(i);
    const MinSumProblem problem = random_small_problem(random);
    const double optimum = brute_force(problem);
    const MinSumResult result = solve_by_elimination(problem, plain);
    expect_optimum(problem, result, optimum);
    const MinSumResult with_dominance = solve_by_elimination(problem, dominance);
    expect_optimum(problem, with_dominance, optimum);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    EXPECT_EQ(solve_by_elimination(problem, plain).solution.choice, result.solution.choice);
    infeasible += optimum == kInfinity;
    reused += result.statistics.tables_reused > 0;
    pruned += with_dominance.statistics.choices_pruned > 0;
  }
  EXPECT_GT(infeasible, 50);  // the generator covers what it is meant to
  EXPECT_LT(infeasible, 2000);
  EXPECT_GT(reused, 20);
  EXPECT_GT(pruned, 1000);
}

// With a tiny limit on tables almost every problem has to fix variables, some several.
TEST(Elimination, FixingHubsEqualsBruteForce) {
  Random random(2);
  int branched = 0, too_large = 0;
  for (int i = 0; i < 1500; ++i) {
    SCOPED_TRACE(i);
    const MinSumProblem problem = random_small_problem(random);
    EliminationLimits limits;
    limits.max_table = between(random, 1, 8);
    limits.prune_dominated = chance(random, 0.5);
    limits.prune_from = 0;
    const MinSumResult result = solve_by_elimination(problem, limits);
    ASSERT_NE(result.status, MinSumStatus::kTooLarge);
    expect_optimum(problem, result, brute_force(problem));
    EXPECT_LE(result.statistics.largest_table, limits.max_table);
    branched += result.statistics.branches > 0;
    limits.max_branches = 4;
    const MinSumResult bounded = solve_by_elimination(problem, limits);
    if (bounded.status == MinSumStatus::kTooLarge) {
      EXPECT_GT(bounded.needed_table, limits.max_table);
      ++too_large;
    } else {
      expect_optimum(problem, bounded, brute_force(problem));
    }
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
  EXPECT_GT(branched, 300);
  EXPECT_GT(too_large, 50);
}

TEST(Elimination, AlternativesEqualBruteForce) {
  Random random(3);
  for (int i = 0; i < 1500; ++i) {
    SCOPED_TRACE(i);
    const MinSumProblem problem = random_small_problem(random);
    EliminationLimits limits;
    limits.prune_dominated = chance(random, 0.5);
    limits.prune_from = between(random, 0, 100);
    if (chance(random, 0.3)) limits.max_table = between(random, 1, 8);
    const int32_t last = static_cast<int32_t>(problem.domain_sizes.size()) - 1;
    const int32_t variable = between(random, 0, last);
    std::vector<double> expected(problem.domain_sizes[variable], kInfinity);
    for_each_choice(problem, [&](const auto& choice) {
      double& best = expected[choice[variable]];
      best = std::min(best, evaluate(problem, choice));
    });
    const std::vector<double> found = alternatives(problem, variable, limits);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t c = 0; c < expected.size(); ++c) {
      if (expected[c] == kInfinity) {
        ASSERT_EQ(found[c], kInfinity);
      } else {
        ASSERT_NEAR(found[c], expected[c], 1e-9 * std::max(1.0, std::abs(expected[c])));
      }
    }
  }
}

// One layer of a residual network as the planner sees it: in each block a chain of operators that
// starts at the residual stream, sometimes forks, and is added to the stream again.
struct LayerTemplate {
  struct Term {
    std::vector<int32_t> variables;  // 0 is the stream that comes in, 1... the layer's own
    Table table;
  };
  std::vector<int32_t> domain_sizes;  // of the layer's own; the last is the stream that goes out
  std::vector<Term> terms;
};

LayerTemplate residual_layer(Random& random, int32_t variables, int32_t low, int32_t high,
                             int32_t stream_size, const TableStyle& style) {
  LayerTemplate layer;
  std::vector<int32_t> sizes = {stream_size};
  const auto add = [&](std::vector<int32_t> scope) {
    std::vector<int32_t> table_sizes;
    for (const int32_t v : scope) table_sizes.push_back(sizes[v]);
    layer.terms.push_back({std::move(scope), random_table(random, std::move(table_sizes), style)});
  };
  int32_t stream = 0;
  for (int32_t block = 0; block < 2; ++block) {
    const int32_t end = variables * (block + 1) / 2;
    int32_t previous = stream;
    while (static_cast<int32_t>(sizes.size()) < end) {
      const auto v = static_cast<int32_t>(sizes.size());
      sizes.push_back(between(random, low, high));
      add({v});
      add({previous, v});
      if (v + 3 < end && chance(random, 0.2)) {  // a fork: v -> v+1, v -> v+2, both -> v+3
        for (int k = 0; k < 3; ++k) sizes.push_back(between(random, low, high));
        add({v, v + 1});
        add({v, v + 2});
        add({v + 1, v + 2, v + 3});
        previous = v + 3;
      } else {
        previous = v;
      }
    }
    const auto sum = static_cast<int32_t>(sizes.size());
    sizes.push_back(stream_size);
    add({stream, previous, sum});
    stream = sum;
  }
  layer.domain_sizes.assign(sizes.begin() + 1, sizes.end());
  return layer;
}

MinSumProblem stack_layers(const LayerTemplate& layer, int32_t count) {
  MinSumProblem problem;
  problem.domain_sizes = {layer.domain_sizes.back()};
  for (int32_t l = 0; l < count; ++l) {
    const auto stream = static_cast<int32_t>(problem.domain_sizes.size()) - 1;
    problem.domain_sizes.insert(problem.domain_sizes.end(), layer.domain_sizes.begin(),
                                layer.domain_sizes.end());
    for (const auto& term : layer.terms) {
      CostTerm moved{term.variables, term.table};
      for (int32_t& v : moved.variables) v += stream;
      problem.terms.push_back(std::move(moved));
    }
  }
  return problem;
}

// Each term gets a table of its own, its entries moved by up to `noise`.
MinSumProblem with_copied_tables(const MinSumProblem& problem, double noise = 0) {
  Random random(0);
  std::uniform_real_distribution<double> change(0.0, noise);
  MinSumProblem copy = problem;
  for (CostTerm& term : copy.terms) {
    auto table = std::make_shared<CostTable>(*term.table);
    for (double& c : table->cost) c += noise > 0 ? change(random) : 0.0;
    term.table = std::move(table);
  }
  return copy;
}

TEST(Elimination, RepeatedLayersCostAsMuchAsOne) {
  Random random(4);
  for (int i = 0; i < 20; ++i) {
    SCOPED_TRACE(i);
    const LayerTemplate layer = residual_layer(random, between(random, 6, 20), 2, 6, 4, {0.1});
    const MinSumProblem few = stack_layers(layer, 6), many = stack_layers(layer, 48);
    const MinSumResult of_few = solve_by_elimination(few), of_many = solve_by_elimination(many);
    ASSERT_EQ(of_few.status, of_many.status);
    if (!of_few.solved()) continue;
    // Only chain links, at most 4 x 4 x 4 entries each, may grow with the layers.
    EXPECT_LE(of_many.statistics.tables_computed, of_few.statistics.tables_computed + 3 * 42);
    EXPECT_LE(of_many.statistics.work, of_few.statistics.work + 3 * 42 * 64);
    EXPECT_GT(of_many.statistics.tables_reused, 7 * of_few.statistics.tables_reused);

    // Tables that are equal but not shared count as shared, tables that differ do not; their
    // noise moves the optimum by no more than its sum.
    const MinSumResult copied = solve_by_elimination(with_copied_tables(many));
    EXPECT_EQ(copied.solution.cost, of_many.solution.cost);
    EXPECT_EQ(copied.solution.choice, of_many.solution.choice);
    const MinSumProblem all_different = with_copied_tables(many, 1e-11);
    const MinSumResult unshared = solve_by_elimination(all_different);
    EXPECT_NEAR(unshared.solution.cost, of_many.solution.cost, 1e-6);
    EXPECT_NEAR(evaluate(many, unshared.solution.choice), of_many.solution.cost, 1e-6);
    EXPECT_LT(unshared.statistics.tables_reused, of_many.statistics.tables_reused / 20);
    EXPECT_GT(unshared.statistics.work, 5 * of_many.statistics.work);
  }
}

// Variables numbered at random: reuse must not depend on equal layers being numbered alike.
TEST(Elimination, NumberingDoesNotChangeTheOptimum) {
  Random random(5);
  for (int i = 0; i < 20; ++i) {
    const LayerTemplate layer = residual_layer(random, 12, 2, 5, 4, {});
    const MinSumProblem problem = stack_layers(layer, 12);
    std::vector<int32_t> name(problem.domain_sizes.size());
    for (size_t v = 0; v < name.size(); ++v) name[v] = static_cast<int32_t>(v);
    std::shuffle(name.begin(), name.end(), random);
    MinSumProblem renamed = problem;
    for (size_t v = 0; v < name.size(); ++v) {
      renamed.domain_sizes[name[v]] = problem.domain_sizes[v];
    }
    for (CostTerm& term : renamed.terms) {
      for (int32_t& v : term.variables) v = name[v];
    }
    std::shuffle(renamed.terms.begin(), renamed.terms.end(), random);
    const MinSumResult plain = solve_by_elimination(problem);
    const MinSumResult shuffled = solve_by_elimination(renamed);
    EXPECT_NEAR(plain.solution.cost, shuffled.solution.cost, 1e-9 * plain.solution.cost);
    EXPECT_GT(shuffled.statistics.tables_reused, plain.statistics.tables_reused / 2);
  }
}

// Each variable is tied to a few of the last ones, so that the width stays small.
MinSumProblem random_narrow_problem(Random& random, int32_t variables, const TableStyle& style) {
  MinSumProblem problem;
  for (int32_t v = 0; v < variables; ++v) {
    problem.domain_sizes.push_back(between(random, 2, 5));
    add_term(random, problem, {v}, {});
    if (v == 0) continue;
    const int32_t near = between(random, std::max(0, v - 3), v - 1);
    add_term(random, problem, {near, v}, style);
    const int32_t other = between(random, std::max(0, v - 3), v - 1);
    if (other != near && chance(random, 0.3)) add_term(random, problem, {v, other, near}, style);
  }
  return problem;
}

// Costs as plans have them: a choice has a price, and a change between neighbours costs more the
// further they are apart. Many choices are dominated, most of them only on the way.
TEST(Elimination, DominanceKeepsAnOptimum) {
  Random random(10);
  int64_t before = 0, on_the_way = 0, work = 0, less_work = 0;
  for (int i = 0; i < 200; ++i) {
    SCOPED_TRACE(i);
    LayerTemplate layer = residual_layer(random, between(random, 8, 16), 4, 12, 8, {});
    for (LayerTemplate::Term& term : layer.terms) {
      auto table = std::make_shared<CostTable>(*term.table);
      for (size_t entry = 0; entry < table->cost.size(); ++entry) {
        size_t rest = entry;
        int32_t lowest = 100, highest = 0;
        for (size_t axis = table->sizes.size(); axis-- > 0; rest /= table->sizes[axis]) {
          const auto c = static_cast<int32_t>(rest % table->sizes[axis]);
          lowest = std::min(lowest, c);
          highest = std::max(highest, c);
        }
        const double price = chance(random, 0.5) ? 1.0 : 0.25 * between(random, 0, 4);
        table->cost[entry] = table->sizes.size() == 1 ? price : 0.5 * (highest - lowest) * price;
        if (chance(random, 0.02)) table->cost[entry] = kInfinity;
      }
      term.table = std::move(table);
    }
    const MinSumProblem problem = stack_layers(layer, 3);
    EliminationLimits off, first_only, always;
    off.prune_dominated = false;
    always.prune_from = 0;
    const MinSumResult plain = solve_by_elimination(problem, off);
    const MinSumResult pruned = solve_by_elimination(problem, always);
    ASSERT_EQ(plain.status, pruned.status);
    if (!plain.solved()) continue;
    ASSERT_NEAR(plain.solution.cost, pruned.solution.cost, 1e-9);
    before += solve_by_elimination(problem, first_only).statistics.choices_pruned;
    on_the_way += pruned.statistics.choices_pruned;
    work += plain.statistics.work;
    less_work += pruned.statistics.work;
    const auto last = static_cast<int32_t>(problem.domain_sizes.size()) - 1;
    const int32_t variable = between(random, 0, last);
    const std::vector<double> costs = alternatives(problem, variable, always);
    const std::vector<double> plain_costs = alternatives(problem, variable, off);
    for (size_t c = 0; c < costs.size(); ++c) {
      ASSERT_TRUE(costs[c] == plain_costs[c] || std::abs(costs[c] - plain_costs[c]) < 1e-9);
    }
  }
  std::printf("dominated: %ld before, %ld with those on the way; work %ld -> %ld\n",
              static_cast<long>(before), static_cast<long>(on_the_way), static_cast<long>(work),
              static_cast<long>(less_work));
  EXPECT_GT(on_the_way, before + 100);
  EXPECT_LT(less_work, work);
}

TEST(Elimination, EqualsCbc) {
  if (!cbc_available()) GTEST_SKIP() << "built without CBC (coinor-libcbc-dev)";
  Random random(6);
  int fractional = 0, infeasible = 0;
  for (int i = 0; i < 45; ++i) {
    SCOPED_TRACE(i);
    const int32_t variables = i < 40 ? between(random, 30, 60) : between(random, 100, 200);
    const bool with_infinite = i % 3 == 0;
    const MinSumProblem problem =
        random_narrow_problem(random, variables, {with_infinite ? 0.25 : 0.0});
    const MinSumResult result = solve_by_elimination(problem);
    const std::optional<CbcAnswer> answer = solve_with_cbc(problem);
    if (!answer) {
      EXPECT_EQ(result.status, MinSumStatus::kInfeasible);
      ++infeasible;
      continue;
    }
    ASSERT_TRUE(result.solved());
    EXPECT_NEAR(result.solution.cost, answer->cost, 1e-6 * std::max(1.0, answer->cost));
    fractional += answer->nodes > 0;
  }
  std::printf("CBC: 45 problems, %d infeasible, %d needed branching\n", infeasible, fractional);
  EXPECT_LT(infeasible, 15);
}

TEST(Elimination, SaysWhatWouldBeNeeded) {
  Random random(7);
  MinSumProblem clique;
  clique.domain_sizes.assign(20, 10);
  for (int32_t v = 0; v < 20; ++v) {
    for (int32_t u = 0; u < v; ++u) add_term(random, clique, {u, v}, {});
  }
  const MinSumResult result = solve_by_elimination(clique);
  EXPECT_EQ(result.status, MinSumStatus::kTooLarge);
  EXPECT_DOUBLE_EQ(result.needed_table, 1e19);
  EXPECT_GE(result.needed_total, 1.1e19);
  EXPECT_TRUE(result.solution.choice.empty());
  EXPECT_TRUE(alternatives(clique, 3).empty());

  EliminationLimits small;
  small.max_total = 1000;
  const MinSumProblem layers = stack_layers(residual_layer(random, 10, 4, 8, 4, {}), 4);
  const MinSumResult bounded = solve_by_elimination(layers, small);
  EXPECT_EQ(bounded.status, MinSumStatus::kTooLarge);
  EXPECT_GT(bounded.needed_total, 1000);
}

// A hub in every term: fixing it leaves parts that are solved apart.
TEST(Elimination, FixingAHubLeavesParts) {
  Random random(8);
  MinSumProblem problem;
  problem.domain_sizes.assign(61, 3);
  problem.domain_sizes[60] = 50;
  for (int32_t v = 0; v < 59; ++v) add_term(random, problem, {v, v + 1, 60}, {});
  const MinSumResult free = solve_by_elimination(problem);
  EliminationLimits limits;
  limits.max_table = 100;
  const MinSumResult fixed = solve_by_elimination(problem, limits);
  ASSERT_TRUE(free.solved() && fixed.solved());
  EXPECT_EQ(free.statistics.branches, 0);
  EXPECT_EQ(fixed.statistics.branches, 50);
  EXPECT_NEAR(free.solution.cost, fixed.solution.cost, 1e-9);
  limits.max_branches = 49;
  EXPECT_EQ(solve_by_elimination(problem, limits).status, MinSumStatus::kTooLarge);
}

TEST(Elimination, CornerCases) {
  EXPECT_EQ(solve_by_elimination({}).solution.cost, 0.0);
  MinSumProblem loose;
  loose.domain_sizes = {3, 1, 2};
  EXPECT_EQ(solve_by_elimination(loose).solution.choice, (std::vector<int32_t>{0, 0, 0}));
  EXPECT_EQ(alternatives(loose, 0), (std::vector<double>{0, 0, 0}));
  loose.domain_sizes[1] = 0;
  EXPECT_EQ(solve_by_elimination(loose).status, MinSumStatus::kInfeasible);
  EXPECT_EQ(alternatives(loose, 0), (std::vector<double>(3, kInfinity)));

  // Ties take the lowest choice.
  const auto flat = std::make_shared<CostTable>(CostTable{{2, 2}, {1, 1, 1, 1}});
  const MinSumProblem tied{{2, 2, 2}, {{{0, 1}, flat}, {{2, 1}, flat}}};
  EXPECT_EQ(solve_by_elimination(tied).solution.choice, (std::vector<int32_t>{0, 0, 0}));
  EXPECT_EQ(solve_by_elimination(tied).solution.cost, 2.0);

  EXPECT_THROW(solve_by_elimination({{2, 3}, {{{0, 1}, flat}}}), InternalError);
  EXPECT_THROW(solve_by_elimination({{2, 2}, {{{0, 0}, flat}}}), InternalError);
  EXPECT_THROW(solve_by_elimination({{2, 2}, {{{0, 2}, flat}}}), InternalError);
  const auto wrong = std::make_shared<CostTable>(CostTable{{2}, {std::nan(""), 0}});
  EXPECT_THROW(solve_by_elimination({{2}, {{{0}, wrong}}}), InternalError);
}

TEST(Elimination, PrunesWhatItCan) {
  const auto equal = std::make_shared<CostTable>(CostTable{
      {3, 3}, {0, kInfinity, kInfinity, kInfinity, 0, kInfinity, kInfinity, kInfinity, 0}});
  const auto only_one = std::make_shared<CostTable>(CostTable{{3}, {kInfinity, 5, kInfinity}});
  MinSumProblem chain;
  chain.domain_sizes.assign(10, 3);
  for (int32_t v = 0; v < 9; ++v) chain.terms.push_back({{v, v + 1}, equal});
  chain.terms.push_back({{4}, only_one});
  const MinSumResult result = solve_by_elimination(chain);
  EXPECT_EQ(result.statistics.choices_pruned, 20);
  EXPECT_EQ(result.statistics.tables_computed, 0);
  EXPECT_EQ(result.solution.cost, 5.0);

  // Of the rows the first dominates the second, of the columns the second the third; what is
  // forbidden to both does not count.
  const auto table =
      std::make_shared<CostTable>(CostTable{{3, 3}, {kInfinity, 0, 1, kInfinity, 1, 2, 0, 5, 5}});
  EliminationLimits plain;
  plain.prune_dominated = false;
  const MinSumProblem pair{{3, 3}, {{{0, 1}, table}}};
  EXPECT_EQ(solve_by_elimination(pair).statistics.choices_pruned, 2);
  EXPECT_EQ(solve_by_elimination(pair, plain).statistics.choices_pruned, 0);
}

// Milliseconds of this process's time, which other processes disturb less than the clock's.
double milliseconds_of(const std::function<void()>& work) {
  const std::clock_t start = std::clock();
  work();
  return 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

void time_solve(const char* what, const MinSumProblem& problem, const EliminationLimits& limits) {
  double best = kInfinity;
  MinSumResult result;
  for (int repeat = 0; repeat < 3; ++repeat) {
    best = std::min(best, milliseconds_of([&] { result = solve_by_elimination(problem, limits); }));
  }
  ASSERT_TRUE(result.solved());
  const EliminationStatistics& s = result.statistics;
  std::printf(
      "%-34s %6zu variables %6zu terms %8.2f ms; %6ld computed %6ld reused, width %d, "
      "largest %8ld, %.3g entries, %ld pruned\n",
      what, problem.domain_sizes.size(), problem.terms.size(), best,
      static_cast<long>(s.tables_computed), static_cast<long>(s.tables_reused), s.induced_width,
      static_cast<long>(s.largest_table), static_cast<double>(s.work),
      static_cast<long>(s.choices_pruned));
}

TEST(EliminationBenchmark, Layers) {
  Random random(9);
  EliminationLimits plain, dominance;
  plain.prune_dominated = false;
  const LayerTemplate layer = residual_layer(random, 70, 5, 36, 36, {});
  for (const int32_t layers : {1, 12, 96}) {
    time_solve("residual layers", stack_layers(layer, layers), plain);
  }
  const MinSumProblem layers = stack_layers(layer, 96);
  time_solve("  with dominance", layers, dominance);
  time_solve("  tables copied", with_copied_tables(layers), plain);
  time_solve("  tables all different", with_copied_tables(layers, 1e-9), plain);
  time_solve("small domains, all different", random_narrow_problem(random, 6000, {}), plain);

  size_t choices = 0;
  const double took = milliseconds_of([&] { choices = alternatives(layers, 3000).size(); });
  std::printf("alternatives of one variable with %zu choices: %.2f ms\n", choices, took);
}

}  // namespace
}  // namespace cleave
