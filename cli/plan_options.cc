// The options of the commands that make plans and answer questions about them.
#include "cli/options.h"
#include "cli/shared_options.h"

namespace cleave {
namespace {

std::vector<Option> planning_options(std::string& cluster, std::string& mesh, std::string& memory,
                                     std::vector<std::string>& pins) {
  return {{.flag = "--cluster",
           .type = "SPEC",
           .help = "cpu:4, 8xh100, 64x8xh100 (64 nodes of 8), FILE.toml, FILE.toml:8, ...",
           .target = &cluster,
           .required = true},
          mesh_option(mesh),
          {.flag = "--memory",
           .type = "SIZE",
           .help = "A device's limit: 60GB, or none",
           .target = &memory,
           .automatic = "the cluster's own"},
          {.flag = "--pin",
           .type = "PATTERN=VALUE ...",
           .help = "Fix a part of the plan: tp=4, zero=1, 'h.*.attn.qkv:tp=shard(0)', ...",
           .target = &pins,
           .keys_repeat = true}};
}

// What is left to the search here.
void say_what_is_searched(std::vector<Option>& options) {
  for (Option& o : options) {
    if (o.flag == "--precision") {
      o.automatic = "bf16 (or fp16) where the devices are faster in it, or fp32";
    } else if (o.flag == "--batch") {
      o.help = "Sequences in a step, or with --accumulate in a micro-batch, over all devices";
    } else if (o.flag == "--accumulate") {
      o.automatic = "as many as are fastest make the --batch";
    }
  }
}

Option plan_file_option(std::string& plan, const std::string& flag = "PLAN") {
  return {.flag = flag,
          .help = "A plan's file, as cleave plan -o writes it",
          .target = &plan,
          .required = true};
}

}  // namespace

std::vector<Option> options_of(PlanArguments& a) {
  std::vector<Option> options = model_options(a.model);
  options.push_back(forward_option(a.model));
  append(options, planning_options(a.cluster, a.mesh, a.memory, a.pins));
  append(
      options,
      {{.flag = "--objective",
        .type = "WHAT",
        .help = "time; memory: the smallest peak; gpus: the fewest devices on which it fits",
        .target = &a.objective,
        .choices = {"time", "memory", "gpus"}},
       json_option(a.json),
       {.flag = "-o,--out", .type = "FILE", .help = "Write the plan as JSON", .target = &a.out}});
  say_what_is_searched(options);
  return options;
}

std::vector<Option> options_of(FitArguments& a) {
  std::vector<Option> options = model_options(a.model);
  options.push_back(forward_option(a.model));
  append(options, planning_options(a.cluster, a.mesh, a.memory, a.pins));
  append(options, {{.flag = "--seconds",
                    .type = "S",
                    .help = "So long it looks for the nearest plan and for changes that fit",
                    .target = &a.seconds,
                    .at_least = 0},
                   json_option(a.json)});
  say_what_is_searched(options);
  return options;
}

std::vector<Option> options_of(ExplainArguments& a) {
  return {plan_file_option(a.plan),
          {.flag = "OP",
           .help = "A pattern of names: h.3.attn.qkv, h.*.mlp, wte.weight",
           .target = &a.op,
           .automatic = "the whole plan"},
          {.flag = "--why-not",
           .type = "PINS",
           .help = "Price another plan: tp=2,dp=4 (pins, with commas between them)",
           .target = &a.why_not},
          {.flag = "--memory",
           .type = "SIZE",
           .help = "A device's limit for --why-not: 60GB, or none",
           .target = &a.memory,
           .automatic = "the cluster's own"},
          json_option(a.json)};
}

std::vector<Option> options_of(DiffArguments& a) {
  return {plan_file_option(a.a, "PLAN"), plan_file_option(a.b, "OTHER"), json_option(a.json)};
}

std::vector<Option> options_of(ExportArguments& a) {
  return {plan_file_option(a.plan),
          {.flag = "--to",
           .type = "TARGET",
           .help = "megatron: flags; dtensor: a script; hf-tp: a tp_plan; deepspeed: a config",
           .target = &a.to,
           .choices = {"megatron", "dtensor", "hf-tp", "deepspeed"},
           .required = true},
          {.flag = "-o,--out",
           .type = "FILE",
           .help = "Write it there",
           .target = &a.out,
           .automatic = "on stdout",
           .automatic_word = "-"}};
}

}  // namespace cleave
