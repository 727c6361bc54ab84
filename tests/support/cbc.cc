// Builds the local polytope of a min-sum problem column by column and hands it to CBC.
#include "tests/support/cbc.h"

#include <cmath>
#include <vector>

#include "graph/error.h"

#ifdef CLEAVE_HAS_CBC
#include <Cbc_C_Interface.h>
#endif

namespace cleave {

#ifndef CLEAVE_HAS_CBC

bool cbc_available() { return false; }

std::optional<CbcAnswer> solve_with_cbc(const MinSumProblem&) {
  throw InternalError("this build has no CBC");
}

#else

namespace {

// Columns of a sparse matrix with their cost and upper bound; the lower bound is 0.
struct Columns {
  std::vector<CoinBigIndex> start = {0};
  std::vector<int> row;
  std::vector<double> value, cost, upper;

  void begin(double c, double bound) {
    cost.push_back(c);
    upper.push_back(bound);
  }
  void add(int r, double v) {
    row.push_back(r);
    value.push_back(v);
  }
  void end() { start.push_back(static_cast<CoinBigIndex>(row.size())); }
};

}  // namespace

bool cbc_available() { return true; }

std::optional<CbcAnswer> solve_with_cbc(const MinSumProblem& problem) {
  const size_t count = problem.domain_sizes.size();
  std::vector<std::vector<double>> unary(count);
  for (size_t v = 0; v < count; ++v) unary[v].assign(problem.domain_sizes[v], 0.0);

  // Rows: a choice a variable; then for each wide term, position and choice, entries = choice.
  int rows = static_cast<int>(count);
  double constant = 0;
  std::vector<std::vector<int>> first_row(problem.terms.size());
  std::vector<std::vector<std::vector<int>>> links(count);
  for (size_t v = 0; v < count; ++v) links[v].resize(problem.domain_sizes[v]);
  for (size_t t = 0; t < problem.terms.size(); ++t) {
    const CostTerm& term = problem.terms[t];
    if (term.variables.empty()) {
      constant += term.table->cost[0];
    } else if (term.variables.size() == 1) {
      for (size_t c = 0; c < term.table->cost.size(); ++c) {
        unary[term.variables[0]][c] += term.table->cost[c];
      }
    } else {
      for (const int32_t v : term.variables) {
        first_row[t].push_back(rows);
        for (auto& of_choice : links[v]) of_choice.push_back(rows++);
      }
    }
  }
  if (std::isinf(constant)) return std::nullopt;

  Columns columns;
  for (size_t v = 0; v < count; ++v) {
    for (int32_t c = 0; c < problem.domain_sizes[v]; ++c) {
      const bool possible = std::isfinite(unary[v][c]);
      columns.begin(possible ? unary[v][c] : 0.0, possible ? 1.0 : 0.0);
      columns.add(static_cast<int>(v), 1.0);
      for (const int row : links[v][c]) columns.add(row, -1.0);
      columns.end();
    }
  }
  const int binaries = static_cast<int>(columns.cost.size());
  for (size_t t = 0; t < problem.terms.size(); ++t) {
    if (first_row[t].empty()) continue;
    const CostTable& table = *problem.terms[t].table;
    for (size_t entry = 0; entry < table.cost.size(); ++entry) {
      if (std::isinf(table.cost[entry])) continue;
      columns.begin(table.cost[entry], 1.0);
      size_t rest = entry;
      for (size_t i = table.sizes.size(); i-- > 0; rest /= table.sizes[i]) {
        columns.add(first_row[t][i] + static_cast<int>(rest % table.sizes[i]), 1.0);
      }
      columns.end();
    }
  }
  std::vector<double> right_side(rows, 0.0);
  for (size_t v = 0; v < count; ++v) right_side[v] = 1.0;

  Cbc_Model* model = Cbc_newModel();
  Cbc_setLogLevel(model, 0);
  Cbc_loadProblem(model, static_cast<int>(columns.cost.size()), rows, columns.start.data(),
                  columns.row.data(), columns.value.data(), nullptr, columns.upper.data(),
                  columns.cost.data(), right_side.data(), right_side.data());
  for (int c = 0; c < binaries; ++c) Cbc_setInteger(model, c);
  Cbc_setParameter(model, "ratioGap", "0");
  Cbc_setParameter(model, "allowableGap", "0");
  Cbc_solve(model);
  std::optional<CbcAnswer> answer;
  const bool optimal = Cbc_isProvenOptimal(model);
  const bool infeasible = Cbc_isProvenInfeasible(model);
  if (optimal) answer = {Cbc_getObjValue(model) + constant, Cbc_getNodeCount(model)};
  Cbc_deleteModel(model);
  CLEAVE_ASSERT(optimal || infeasible, "CBC stopped without an answer");
  return answer;
}

#endif

}  // namespace cleave
