// The command: cleave trace, regions, plan, explain, diff, fit, export, view, train, generate,
// checkpoint, doctor.
#pragma once

#include <functional>
#include <string>

#include "models/config.h"
#include "tracer/tensor.h"

namespace cleave {

// A user's own model, which the command then takes where it takes a built-in one.
struct UserModel {
  std::string name;      // its name on the command line: "my-model"
  ModelConfig defaults;  // what --set changes; fields that the loss ignores mean nothing
  // The mean loss, from tokens and targets: i32 [batch, sequence].
  std::function<Tensor(const ModelConfig&, const Tensor& tokens, const Tensor& targets)> loss;
};

// Runs the command and returns its exit status: 0 done, 1 the user's mistake, 2 a bug of ours, 3
// the model does not fit, 128 + N stopped by signal N. Results go to stdout; mistakes are one line
// on stderr.
int run_command(int argc, char** argv);
// The same, where MODEL may be left out and is then the user's.
int run_command(int argc, char** argv, const UserModel& model);

}  // namespace cleave
