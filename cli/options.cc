#include "cli/options.h"

#include "cli/shared_options.h"

namespace cleave {
namespace {

constexpr const char* kDevicesHelp =
    "cpu:N: N threads are N devices; h100, h200, ...: this machine's GPU; FILE.toml: either, as "
    "calibrated";

std::vector<Option> data_options(TrainArguments& a) {
  return {
      {.flag = "--data",
       .key = "data.file",
       .type = "FILE",
       .help = "The text to learn",
       .target = &a.data,
       .required = true},
      {.flag = "--val-data",
       .key = "data.validation",
       .type = "FILE",
       .help = "The text to validate on",
       .target = &a.val_data,
       .automatic = "the last tenth of the data"},
      {.flag = "--tokenizer",
       .key = "data.tokenizer",
       .type = "PATH",
       .help = "What makes tokens of the text",
       .target = &a.tokenizer,
       .automatic = "bytes are tokens",
       .automatic_word = "bytes"},
      {.flag = "--devices",
       .key = "devices.use",
       .type = "DEVICES",
       .help = kDevicesHelp,
       .target = &a.devices,
       .required = true},
      mesh_option(a.mesh),
  };
}

std::vector<Option> training_options(TrainArguments& a) {
  return {
      {.flag = "--steps",
       .key = "train.steps",
       .type = "N",
       .help = "Training steps",
       .target = &a.steps,
       .at_least = 1},
      {.flag = "--seed",
       .key = "train.seed",
       .type = "N",
       .help = "Of initial weights, data order and dropout",
       .target = &a.seed,
       .at_least = 0},
      {.flag = "--skip-spikes",
       .key = "train.skip_spikes",
       .type = "Z",
       .help = "Skip the update when the loss is Z standard deviations above its mean; 0: never",
       .target = &a.skip_spikes,
       .at_least = 0},
      {.flag = "--find-nan",
       .key = "train.find_nan",
       .help = "Name the op that made the first NaN or infinity",
       .target = &a.find_nan},
      fp8_option(a.fp8),
      no_fuse_option(a.no_fuse),
      {.flag = "--lr",
       .key = "optimizer.lr",
       .type = "X",
       .help = "Learning rate after the warm-up",
       .target = &a.lr,
       .at_least = 0,
       .above = true},
      {.flag = "--min-lr",
       .key = "optimizer.min_lr",
       .type = "X",
       .help = "Learning rate at the last step",
       .target = &a.min_lr,
       .automatic = "a tenth of the rate",
       .at_least = 0},
      {.flag = "--warmup",
       .key = "optimizer.warmup",
       .type = "N",
       .help = "Steps of warm-up",
       .target = &a.warmup,
       .automatic = "a tenth of the steps, at most 100",
       .at_least = 0},
      {.flag = "--schedule",
       .key = "optimizer.schedule",
       .type = "NAME",
       .help = "Of the learning rate: cosine or constant",
       .target = &a.schedule,
       .choices = {"cosine", "constant"}},
      {.flag = "--weight-decay",
       .key = "optimizer.weight_decay",
       .type = "X",
       .help = "Weight decay, not of gains and biases",
       .target = &a.weight_decay,
       .at_least = 0},
      {.flag = "--clip",
       .key = "optimizer.clip",
       .type = "X",
       .help = "Largest norm of the gradient; 0: no limit",
       .target = &a.clip,
       .at_least = 0},
  };
}

std::vector<Option> telling_options(TrainArguments& a) {
  return {
      {.flag = "--eval-every",
       .key = "evaluation.every",
       .type = "N",
       .help = "Steps between validations; 0: at the end only",
       .target = &a.eval_every,
       .at_least = 0},
      {.flag = "--eval-batches",
       .key = "evaluation.batches",
       .type = "N",
       .help = "Batches of a validation, at most",
       .target = &a.eval_batches,
       .at_least = 1},
      {.flag = "--checkpoint-every",
       .key = "checkpoint.every",
       .type = "N",
       .help = "Steps between checkpoints; 0: at the end only",
       .target = &a.checkpoint_every,
       .at_least = 0},
      {.flag = "--keep",
       .key = "checkpoint.keep",
       .type = "K",
       .help = "The newest K checkpoints stay; 0: all",
       .target = &a.keep,
       .at_least = 0},
      {.flag = "--out",
       .key = "run.folder",
       .type = "DIR",
       .help = "Folder of the run: its TOML, plan, metrics, events and checkpoints",
       .target = &a.out,
       .automatic = "nothing is written",
       .automatic_word = "none"},
      {.flag = "--log-every",
       .key = "run.log_every",
       .type = "N",
       .help = "Steps between lines",
       .target = &a.log_every,
       .at_least = 1},
      {.flag = "--tensorboard,!--no-tensorboard",
       .key = "run.tensorboard",
       .help = "Write events for TensorBoard into the folder",
       .target = &a.tensorboard},
      {.flag = "--progress",
       .key = "run.progress",
       .type = "WHEN",
       .help = "Progress bar: on, off, or auto: on a terminal",
       .target = &a.progress,
       .choices = {"auto", "on", "off"}},
      profile_option(a.profile),
      dump_option(a.dump),
      {.flag = "--resume",
       .type = "[DIR]",
       .help = "Go on from the newest checkpoint of a run's folder, of --out when DIR is left out",
       .target = &a.resume},
      {.flag = "--config",
       .type = "FILE",
       .help = "A TOML with these options; flags override it",
       .target = &a.config},
      {.flag = "--print-config",
       .help = "Print that TOML, complete, and stop",
       .target = &a.print_config},
  };
}

Option path_option(CheckpointArguments& a, const std::string& help) {
  return {.flag = "PATH", .help = help, .target = &a.path, .required = true};
}

// Of what runs a program here.
void say_precision(Option& o) {
  o.help = "Of the computation: fp32 or fp64; of a GPU also bf16, fp16, or tf32 for products";
  o.choices = {"fp32", "fp64", "bf16", "fp16", "tf32"};
}

constexpr const char* kCheckpointFolders = "A run's folder of checkpoints, or one step's folder";

}  // namespace

std::string Option::name() const {
  std::string n = flag.substr(0, flag.find(",!"));
  return n.substr(n.find(',') + 1);
}

std::string Option::section() const { return key.substr(0, key.find('.')); }
std::string Option::entry() const { return key.substr(key.find('.') + 1); }

std::vector<Option> options_of(TraceArguments& a) {
  std::vector<Option> options = model_options(a.model);
  options.push_back(forward_option(a.model));
  options.push_back({.flag = "-o,--out",
                     .type = "FILE",
                     .help = "graph.txt or graph.json",
                     .target = &a.out,
                     .automatic = "text on stdout"});
  return options;
}

std::vector<Option> options_of(RegionsArguments& a) {
  std::vector<Option> options = model_options(a.model);
  append(options, {forward_option(a.model), json_option(a.json)});
  return options;
}

std::vector<Option> options_of(ViewArguments& a) {
  std::vector<Option> options =
      model_options(a.model, "A graph (.txt, .json), a plan (.json), or a built-in model");
  append(options, {forward_option(a.model),
                   {.flag = "-o,--out",
                    .type = "FILE",
                    .help = "FILE.svg, FILE.html, or FILE.dot for Graphviz",
                    .target = &a.out,
                    .required = true},
                   {.flag = "--level",
                    .type = "LEVEL",
                    .help = "model: blocks; block: the ops of one layer; raw: every op",
                    .target = &a.level,
                    .choices = {"model", "block", "raw"}}});
  return options;
}

std::vector<Option> options_of(TrainArguments& a) {
  std::vector<Option> options =
      model_options(a.model, "A plan (.json), or a built-in model, which is planned first");
  append(options, data_options(a));
  append(options, training_options(a));
  append(options, telling_options(a));
  for (Option& o : options) {
    if (o.flag == "--precision") {
      say_precision(o);
      o.automatic = "fp32, or the plan's";
    }
    if (o.flag == "--batch") o.automatic = "the model's own, or the plan's";
    if (o.flag == "--accumulate") o.automatic = "1, or the plan's";
    if (o.flag == "--optimizer") o.automatic = "adamw, or the plan's";
    if (o.flag == "--moments") o.automatic = "as the weights, or the plan's";
    if (o.flag == "--mesh") o.automatic = "searched, or the plan's";
  }
  return options;
}

std::vector<Option> options_of(BenchArguments& a) {
  std::vector<Option> options = model_options(a.model);
  for (Option& o : options) {
    o.key.clear();
    if (o.flag == "--precision") say_precision(o);
  }
  append(
      options,
      {{.flag = "--devices", .type = "DEVICES", .help = kDevicesHelp, .target = &a.devices},
       mesh_option(a.mesh),
       {.flag = "--steps", .type = "N", .help = "Timed steps", .target = &a.steps, .at_least = 1},
       {.flag = "--warm-up",
        .type = "N",
        .help = "Steps before them",
        .target = &a.warm_up,
        .at_least = 0},
       fp8_option(a.fp8),
       no_fuse_option(a.no_fuse),
       profile_option(a.profile),
       dump_option(a.dump),
       json_option(a.json)});
  return options;
}

std::vector<Option> options_of(GenerateArguments& a) {
  return {
      {.flag = "CHECKPOINT",
       .help = "A checkpoint's folder, a folder of checkpoints, or a run's folder",
       .target = &a.checkpoint,
       .required = true},
      {.flag = "--prompt",
       .type = "TEXT",
       .help = "The text to continue",
       .target = &a.prompt,
       .automatic = "an end-of-text token, if there is one",
       .automatic_word = ""},
      {.flag = "--prompt-file",
       .type = "FILE",
       .help = "A file with the text to continue",
       .target = &a.prompt_file},
      {.flag = "--tokens",
       .type = "N",
       .help = "Tokens to add, at most",
       .target = &a.tokens,
       .at_least = 1},
      {.flag = "--temperature",
       .type = "X",
       .help = "Scores are divided by it; 0: always the likeliest token",
       .target = &a.temperature,
       .at_least = 0},
      {.flag = "--top-k",
       .type = "K",
       .help = "Draw from the K likeliest tokens",
       .target = &a.top_k,
       .at_least = 1},
      {.flag = "--top-p",
       .type = "P",
       .help = "Draw from the likeliest tokens that together reach this probability",
       .target = &a.top_p,
       .at_least = 0,
       .above = true},
      {.flag = "--seed",
       .type = "N",
       .help = "The same seed gives the same text",
       .target = &a.seed,
       .at_least = 0},
      {.flag = "--samples",
       .type = "N",
       .help = "So many texts at once",
       .target = &a.samples,
       .at_least = 1},
      {.flag = "--devices",
       .type = "cpu:N",
       .help = "cpu:N: N threads are N devices",
       .target = &a.devices},
      mesh_option(a.mesh),
      {.flag = "--tokenizer",
       .type = "PATH",
       .help = "What makes tokens of the text",
       .target = &a.tokenizer,
       .automatic = "the one that the model was trained with",
       .automatic_word = "trained"},
      json_option(a.json),
  };
}

std::vector<Option> options_of(CalibrateArguments& a) {
  return {
      {.flag = "--devices",
       .type = "DEVICES",
       .help = "cpu:N: the machine's cores are shared out to N; h100, h200, ...: its GPU",
       .target = &a.devices,
       .automatic = "cpu:N, as many as cores"},
      {.flag = "-o,--out",
       .type = "FILE",
       .help = "Writes the cluster as TOML, for --cluster FILE",
       .target = &a.out},
      {.flag = "--quick",
       .help = "In less time (of CPUs a second or two, not ten): rough",
       .target = &a.quick},
  };
}

std::vector<Option> options_of(SimulateArguments& a) {
  return {{.flag = "PLAN",
           .help = "A plan (.json), as cleave plan -o writes it",
           .target = &a.plan,
           .required = true},
          {.flag = "-o,--out",
           .type = "FILE",
           .help = "Write the timeline, for chrome://tracing and ui.perfetto.dev",
           .target = &a.out},
          {.flag = "--ranks",
           .type = "WHICH",
           .help = "In the timeline: stage: one rank of each; all; auto: all of up to 8",
           .target = &a.ranks,
           .choices = {"auto", "stage", "all"}},
          no_fuse_option(a.no_fuse),
          dump_option(a.dump),
          json_option(a.json)};
}

std::vector<Option> options_of(DoctorArguments& a) { return {json_option(a.json)}; }

std::vector<Option> ls_options(CheckpointArguments& a) {
  return {path_option(a, "A run's folder of checkpoints, one step's folder, or a safetensors file"),
          json_option(a.json)};
}

std::vector<Option> verify_options(CheckpointArguments& a) {
  return {path_option(a, kCheckpointFolders), json_option(a.json)};
}

std::vector<Option> export_options(CheckpointArguments& a) {
  return {path_option(a, kCheckpointFolders),
          {.flag = "-o,--out",
           .type = "FILE",
           .help = "FILE.safetensors",
           .target = &a.out,
           .required = true}};
}

}  // namespace cleave
