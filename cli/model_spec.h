// A model as it was asked for, in a form that a plan file keeps, and its graph.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/arguments.h"
#include "models/trace.h"

namespace cleave {

struct ModelSpec {
  std::string name;
  std::vector<std::string> set;
  int64_t batch = 0;  // 0: the model's own
  DType dtype = DType::kF32;
  bool training = true;
  OptimizerOptions optimizer;
};

// What was asked for. Throws Error on an unknown precision or optimizer. `precision`: when none was
// asked for.
ModelSpec spec_of(const ModelArguments& arguments, DType precision = DType::kF32);

// "fp32"; the other direction throws Error.
std::string_view precision_name(DType dtype);
DType precision_named(std::string_view name);
OptimizerOptions::Kind optimizer_named(std::string_view name);
std::string_view name_of(OptimizerOptions::Kind kind);
// What --moments asks for of a model in this precision; nothing: as the parameters. Throws Error.
std::optional<DType> moments_named(std::string_view name, DType precision);
// "fp32", "bf16": the other way, of what is there.
std::string_view moments_name(const ModelSpec& spec);

struct TracedModel {
  ModelSpec spec;  // with its batch
  ModelConfig config;
  Objective objective = Objective::kNextToken;
  Graph graph;
};

// The model's numbers as the spec asks for them; the spec gets its batch. `user`: null, or the
// model that the spec names. Throws Error when there is no such model or number.
ModelConfig config_of(ModelSpec& spec, const UserModel* user);

// Throws Error when there is no such model, or its numbers make no sense.
TracedModel trace_model(ModelSpec spec, const UserModel* user);

// "gpt2:124m layers=4, batch 8 x 1024 tokens, bf16, adamw"
std::string describe(const TracedModel& model);

}  // namespace cleave
