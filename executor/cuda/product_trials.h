// Chooses the algorithms of a program's products in its own passes: between its other kernels, with
// the clock, the power and the caches of training, others are the fastest than by themselves.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "executor/program.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/products.h"

namespace cleave {

// The forward and backward of a program, which can be run again and again. Each call captures it
// anew, with the algorithms that are in use then.
class TriedPass {
 public:
  virtual ~TriedPass() = default;
  // Seconds of each launch, the means of so many passes.
  virtual std::vector<double> launches(int passes) = 0;
  // Seconds of a pass, of as many in a row as take about so long.
  virtual double in_a_row(double seconds) = 0;
};

// What is known of a launch of it.
struct TriedLaunch {
  std::optional<Product> product;  // that it is, if it is one
  bool clocked = false;            // else: whether it takes the longer the lower the clock is
};

// Whether the program's products are tried at all: it trains, a pass has at least `least` flop of
// products, and changes nothing which the step begins with. That depends on nothing but the
// program, so that a run and its repetition have the same algorithms.
bool worth_a_trial(const Program& program, double least);

// Tries the products for which no trial has chosen, here or before, and keeps what it chooses; of
// the others, that is in use then. When a trial fails, as for lack of memory, all are as they were.
// `tell`: is told of it, in lines; may be empty.
void try_products(TriedPass& pass, const std::vector<TriedLaunch>& launches, DeviceContext& device,
                  const std::function<void(const std::string&)>& tell);

}  // namespace cleave
