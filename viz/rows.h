// In which row of a picture each box stands.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace cleave {

struct RowProblem {
  int32_t size = 0;                                 // boxes
  std::vector<std::pair<int32_t, int32_t>> below;   // the second stands below the first
  std::vector<std::pair<int32_t, int32_t>> beside;  // would like to stand in the same row
  // Sets that fill rows of their own, as far as the arrows allow.
  std::vector<std::vector<int32_t>> bands;
};

struct Rows {
  std::vector<int32_t> of_box;
  int32_t count = 0;
};

// Wishes that contradict the ones before them are left out: first `below`, in their order, then
// `bands`, then `beside`. Of what is left, boxes stand close to those that they are connected to.
Rows find_rows(const RowProblem& problem);

}  // namespace cleave
