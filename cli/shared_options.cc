#include "cli/shared_options.h"

#include <utility>

namespace cleave {

std::vector<Option> model_options(ModelArguments& m, const std::string& help) {
  return {
      {.flag = "MODEL",
       .key = "model.name",
       .help = help,
       .target = &m.model,
       .automatic = m.user != nullptr ? "the program's own" : "",
       .required = m.user == nullptr},
      {.flag = "--set",
       .key = "model.set",
       .type = "KEY=VALUE ...",
       .help = "Change numbers of the model: layers=4 hidden=256",
       .target = &m.set},
      {.flag = "--batch",
       .key = "train.batch",
       .type = "N",
       .help = "Sequences in a micro-batch, over all devices",
       .target = &m.batch,
       .automatic = "the model's own",
       .at_least = 1},
      {.flag = "--accumulate",
       .key = "train.accumulate",
       .type = "K",
       .help = "Micro-batches in a step, whose gradients are averaged",
       .target = &m.accumulate,
       .automatic = "1",
       .at_least = 1},
      {.flag = "--precision",
       .key = "train.precision",
       .type = "TYPE",
       .help = "Of the computation: fp32, fp64, bf16 or fp16",
       .target = &m.precision,
       .automatic = "fp32",
       .choices = {"fp32", "fp64", "bf16", "fp16"}},
      {.flag = "--optimizer",
       .key = "optimizer.name",
       .type = "NAME",
       .help = "adamw or sgd",
       .target = &m.optimizer,
       .automatic = "adamw",
       .choices = {"adamw", "sgd"}},
      {.flag = "--moments",
       .key = "optimizer.moments",
       .type = "TYPE",
       .help = "Of the optimizer's moments: fp32, or bf16, rounded stochastically",
       .target = &m.moments,
       .automatic = "as the weights",
       .choices = {"fp32", "bf16"}},
  };
}

Option forward_option(ModelArguments& m) {
  return {
      .flag = "--forward", .help = "The loss alone: no backward, no update", .target = &m.forward};
}

Option json_option(bool& json) {
  return {.flag = "--json", .help = "JSON on stdout", .target = &json};
}

Option mesh_option(std::string& mesh) {
  return {.flag = "--mesh",
          .key = "devices.mesh",
          .type = "MESH",
          .help = "Fix the mesh: 2x4, or with roles dp=2,tp=4",
          .target = &mesh,
          .automatic = "searched"};
}

Option fp8_option(std::string& scaling) {
  return {.flag = "--fp8",
          .key = "train.fp8",
          .type = "SCALING",
          .help =
              "Of a GPU: linear layers but the last in floats of 8 bits, scaled by their tensors "
              "(current) or by those of the steps before (delayed)",
          .target = &scaling,
          .automatic = "not, all are in the --precision",
          .automatic_word = "none",
          .choices = {"current", "delayed"}};
}

Option no_fuse_option(std::string& no_fuse) {
  return {.flag = "--no-fuse",
          .key = "train.no_fuse",
          .type = "NAMES",
          .help = "Of a GPU: fusions that are not made, with commas between them, or all",
          .target = &no_fuse,
          .automatic = "every one is made",
          .automatic_word = "none"};
}

Option profile_option(std::string& profile) {
  return {.flag = "--profile",
          .type = "FILE",
          .help = "Write a step's timeline, predicted and measured, for ui.perfetto.dev",
          .target = &profile};
}

Option dump_option(std::string& dump) {
  return {.flag = "--dump",
          .type = "FILE",
          .help = "Write the program: its fusions, its memory, a line an instruction",
          .target = &dump};
}

void append(std::vector<Option>& to, std::vector<Option> more) {
  for (Option& o : more) to.push_back(std::move(o));
}

}  // namespace cleave
