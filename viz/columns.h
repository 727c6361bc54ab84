// Where boxes stand in their rows: an order with few crossings, and places from left to right.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace cleave {

struct ColumnProblem {
  struct Item {
    double width = 0;
    int32_t row = 0;
    int32_t cluster = -1;  // neighbours in a row with the same one stay together
  };
  std::vector<Item> items;
  std::vector<std::pair<int32_t, int32_t>> links;  // of different rows
  double gap = 20;                                 // between items
  double lane = 12;                                // beside a link that passes a row
};

struct Columns {
  std::vector<double> left;  // by item
  // By link: where it passes the rows between its ends, in the order from its first end to its
  // second.
  std::vector<std::vector<double>> passes;
  double width = 0;
};

// The method of Sugiyama, Tagawa and Toda (1981): links that span several rows become points in
// each; rows are ordered by the means of their neighbours, and placed by least squares.
Columns find_columns(const ColumnProblem& problem);

}  // namespace cleave
