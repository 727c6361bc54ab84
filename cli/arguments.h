// What was written on the command line, before it means anything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cleave {

struct UserModel;

// Which model, and what of it is traced.
struct ModelArguments {
  const UserModel* user = nullptr;  // null: only the built-in models
  std::string model;                // "gpt2:124m"; some commands take a file here
  std::vector<std::string> set;     // "layers=4"
  int64_t batch = 0;                // 0: the model's own
  std::string precision;            // "fp32", "fp64", "bf16"; empty: the command's choice
  std::string optimizer;            // "adamw", "sgd"; empty: adamw
  bool forward = false;             // the loss alone
};

struct TraceArguments {
  ModelArguments model;
  std::string out;  // *.json: JSON; else text; empty: text on stdout
};

struct RegionsArguments {
  ModelArguments model;
  bool json = false;
};

struct PlanArguments {
  ModelArguments model;
  std::string cluster, mesh, memory, out;
  bool json = false;
};

struct ViewArguments {
  ModelArguments model;  // or a graph's or plan's file
  std::string out, level = "model";
  double time_limit = 20;  // seconds for dot
};

struct DoctorArguments {
  bool json = false;
};

struct TrainArguments {
  ModelArguments model;  // or a plan's file
  std::string data, devices, mesh, schedule = "cosine", out;
  int64_t steps = 100;
  int64_t seed = 0;
  double lr = 1e-3;
  double min_lr = -1;   // below 0: a tenth of lr
  int64_t warmup = -1;  // below 0: a tenth of the steps, at most 100
  double weight_decay = 0.1;
  double clip = 1;
  int64_t eval_every = 0;
  int64_t log_every = 1;
};

}  // namespace cleave
