// What was written on the command line, before it means anything.
#pragma once

#include <cstdint>
#include <optional>
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
  int64_t accumulate = 0;           // micro-batches in a step; 0: one, or the plan's
  std::string precision;            // "fp32", "fp64", "bf16"; empty: the command's choice
  std::string optimizer;            // "adamw", "sgd"; empty: adamw
  std::string moments;              // "bf16"; empty: as the parameters
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
  std::vector<std::string> pins;  // planner/pins.h
  std::string objective = "time";
  bool json = false;
};

struct ExplainArguments {
  const UserModel* user = nullptr;  // null: only the built-in models
  std::string plan;                 // a plan's file
  std::string op;                   // a pattern; empty: the whole plan
  std::string why_not;              // pins with commas between them
  std::string memory;
  bool json = false;
};

struct DiffArguments {
  const UserModel* user = nullptr;
  std::string a, b;  // plans' files
  bool json = false;
};

struct FitArguments {
  ModelArguments model;
  std::string cluster, mesh, memory;
  std::vector<std::string> pins;
  double seconds = 60;  // for the nearest plan and the changes
  bool json = false;
};

struct ExportArguments {
  const UserModel* user = nullptr;
  std::string plan;  // a plan's file
  std::string to;    // "megatron", ...
  std::string out;   // empty: stdout
};

struct ViewArguments {
  ModelArguments model;  // or a graph's or plan's file
  std::string out, level = "model";
};

struct CalibrateArguments {
  std::string devices;  // "cpu:4"; empty: as many as cores
  std::string out;
  bool quick = false;
};

struct SimulateArguments {
  const UserModel* user = nullptr;  // null: only the built-in models
  std::string plan;                 // its file
  std::string out;                  // the timeline; empty: none is written
  std::string ranks = "auto";       // "stage", "all"; auto: all of up to 8
  std::string no_fuse;              // fusions that a GPU's program does without: "bias,wide", "all"
  std::string dump;                 // a file for the program; empty: none
  bool json = false;
};

struct DoctorArguments {
  bool json = false;
};

struct TrainArguments {
  ModelArguments model;  // or a plan's file
  std::string data;
  std::string val_data;   // empty: the last tenth of `data`
  std::string tokenizer;  // empty: bytes are tokens
  std::string devices, mesh;
  int64_t steps = 100;
  int64_t seed = 0;
  double skip_spikes = 0;  // deviations above the mean loss that make a spike; 0: none is skipped
  bool find_nan = false;
  std::string fp8;      // "current", "delayed": linear layers in floats of 8 bits; empty: not
  std::string no_fuse;  // fusions that a GPU's program does without: "bias,wide", "all"
  std::string schedule = "cosine";
  double lr = 1e-3;
  double min_lr = -1;   // below 0: a tenth of lr
  int64_t warmup = -1;  // below 0: a tenth of the steps, at most 100
  double weight_decay = 0.1;
  double clip = 1;  // 0: no limit
  int64_t eval_every = 0;
  int64_t eval_batches = 16;
  int64_t checkpoint_every = 0;  // 0: at the end, and when interrupted
  int64_t keep = 3;              // checkpoints; 0: all
  std::string out;               // the run's folder; empty: nothing is written
  int64_t log_every = 1;
  bool tensorboard = true;
  std::string progress = "auto";  // "on", "off"; auto: on a terminal
  // Actions, which a run's TOML does not repeat.
  std::optional<std::string> resume;  // goes on from this folder; "": from `out`
  std::string config;                 // a TOML file, which flags override
  bool print_config = false;
  std::string dump;     // a file for the program that runs; empty: none
  std::string profile;  // a file for a step's timeline, predicted and measured; empty: none
};

struct BenchArguments {
  ModelArguments model;
  std::string devices = "cpu:1", mesh;
  std::string memory;  // as in PlanArguments
  int64_t steps = 20, warm_up = 5;
  int64_t threads = 0;  // of each device of cpu:N; 0: all cores shared out
  std::string fp8, no_fuse, dump, profile;
  bool json = false;
};

struct CheckpointArguments {
  std::string path;  // of a step or of a folder of them
  std::string out;   // export: the safetensors file
  bool json = false;
};

struct GenerateArguments {
  const UserModel* user = nullptr;  // null: only the built-in models
  std::string checkpoint;           // a step's folder, or a folder of steps
  std::string prompt, prompt_file, tokenizer, mesh, devices = "cpu:1";
  int64_t tokens = 200, samples = 1, seed = 0, top_k = 40;
  double temperature = 0.8, top_p = 1;
  bool json = false;
};

}  // namespace cleave
