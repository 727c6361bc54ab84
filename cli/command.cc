// Options to arguments, and exceptions to exit statuses. The only file that sees CLI11, which takes
// long to compile.
#include "cli/command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <new>

#include "cli/commands.h"
#include "cli/planning.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr const char* kModelHelp =
    "A built-in model (gpt2:tiny, gpt2:124m, llama:8b, ...; a wrong name lists them all)";

// What every command that traces a model takes.
void add_model(CLI::App& command, ModelArguments& m, const char* help = kModelHelp) {
  auto* model = command.add_option("MODEL", m.model, help);
  if (m.user == nullptr) model->required();
  command.add_option("--set", m.set, "Change numbers of the model: --set layers=4 hidden=256")
      ->type_name("KEY=VALUE ...");
  command.add_option("--batch", m.batch, "Sequences in a step, over all devices")
      ->type_name("N")
      ->check([](const std::string& n) {  // 0 would mean the model's own
        return n == "0" ? std::string("0: write at least 1") : std::string();
      });
  command.add_option("--precision", m.precision, "Of the computation: fp32, fp64 or bf16")
      ->type_name("TYPE");
  command.add_option("--optimizer", m.optimizer, "adamw (the default) or sgd")->type_name("NAME");
}

void add_forward(CLI::App& command, ModelArguments& m) {
  command.add_flag("--forward", m.forward, "The loss alone: no backward, no update");
}

struct Commands {
  TraceArguments trace;
  RegionsArguments regions;
  PlanArguments plan;
  ViewArguments view;
  TrainArguments train;
  DoctorArguments doctor;
};

void add_trace(CLI::App& app, TraceArguments& a) {
  CLI::App* c = app.add_subcommand("trace", "Record a model's graph and write it down");
  add_model(*c, a.model);
  add_forward(*c, a.model);
  c->add_option("-o,--out", a.out, "graph.txt or graph.json; left out: text on stdout")
      ->type_name("FILE");
  c->final_callback([&a] { trace_command(a); });
}

void add_regions(CLI::App& app, RegionsArguments& a) {
  CLI::App* c = app.add_subcommand(
      "regions", "What can be split, how far it runs alone, and where devices must meet");
  add_model(*c, a.model);
  add_forward(*c, a.model);
  c->add_flag("--json", a.json, "JSON on stdout");
  c->final_callback([&a] { regions_command(a); });
}

void add_plan(CLI::App& app, PlanArguments& a) {
  CLI::App* c = app.add_subcommand("plan", "Find the fastest split of a model that fits");
  add_model(*c, a.model);
  add_forward(*c, a.model);
  c->add_option("--cluster", a.cluster, "cpu:4, 8xh100, 64x8xh100 (64 nodes of 8), ...")
      ->required()
      ->type_name("SPEC");
  c->add_option("--mesh", a.mesh, "Fix the mesh: 2x4, or with roles dp=2,tp=4")->type_name("MESH");
  c->add_option("--memory", a.memory,
                "A device's limit: 60GB, or none; the cluster's own if left out")
      ->type_name("SIZE");
  c->add_flag("--json", a.json, "JSON on stdout");
  c->add_option("-o,--out", a.out, "Write the plan as JSON")->type_name("FILE");
  c->final_callback([&a] { plan_command(a); });
}

void add_view(CLI::App& app, ViewArguments& a) {
  CLI::App* c = app.add_subcommand("view", "Draw a graph or a plan");
  add_model(*c, a.model, "A graph (.txt, .json), a plan (.json), or a built-in model");
  add_forward(*c, a.model);
  c->add_option("-o,--out", a.out, "FILE.dot, or FILE.svg (which needs Graphviz)")
      ->required()
      ->type_name("FILE");
  c->add_option("--level", a.level,
                "model: blocks (the default); block: the ops of one layer; raw: every op")
      ->type_name("LEVEL");
  c->add_option("--time-limit", a.time_limit, "Seconds that dot may take (20)")->type_name("S");
  c->final_callback([&a] { view_command(a); });
}

void add_train(CLI::App& app, TrainArguments& a) {
  CLI::App* c = app.add_subcommand("train", "Train a model as its plan says, on this machine");
  add_model(*c, a.model, "A plan (.json), or a built-in model, which is planned first");
  c->add_option("--data", a.data, "The text to learn, read as bytes")
      ->required()
      ->type_name("FILE");
  c->add_option("--devices", a.devices, "cpu:N: N threads are N devices")
      ->required()
      ->type_name("cpu:N");
  c->add_option("--mesh", a.mesh, "Fix the mesh: 2x4, or with roles dp=2,tp=4")->type_name("MESH");
  c->add_option("--steps", a.steps, "Training steps (100)")->type_name("N");
  c->add_option("--seed", a.seed, "Of initial weights, data order and dropout (0)")->type_name("N");
  c->add_option("--lr", a.lr, "Learning rate after the warm-up (1e-3)")->type_name("X");
  c->add_option("--min-lr", a.min_lr, "At the last step (a tenth of --lr)")->type_name("X");
  c->add_option("--warmup", a.warmup, "Steps of warm-up (a tenth of --steps, at most 100)")
      ->type_name("N");
  c->add_option("--schedule", a.schedule, "cosine (the default) or constant")->type_name("NAME");
  c->add_option("--weight-decay", a.weight_decay, "(0.1)")->type_name("X");
  c->add_option("--clip", a.clip, "Largest norm of the gradient; 0: no limit (1)")->type_name("X");
  c->add_option("--eval-every", a.eval_every, "Steps between validations; 0: at the end only (0)")
      ->type_name("N");
  c->add_option("--log-every", a.log_every, "Steps between lines (1)")->type_name("N");
  c->add_option("--out", a.out, "Folder for metrics.jsonl and plan.json")->type_name("DIR");
  c->final_callback([&a] { train_command(a); });
}

void add_doctor(CLI::App& app, DoctorArguments& a) {
  CLI::App* c = app.add_subcommand(
      "doctor", "What this machine offers, what is missing, what that costs, how to get it");
  c->add_flag("--json", a.json, "JSON on stdout");
  c->final_callback([&a] { doctor_command(a); });
}

// One line, whatever the message was.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

int report(int status, std::string_view kind, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "cleave: {}: {}\n", kind, one_line(message));
  return status;
}

// CLI11 ends the program's parse by throwing, --help included.
int finish_parse(const CLI::App& app, const CLI::ParseError& e, const std::string& command) {
  if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
  return report(
      1, "error",
      fmt::format("{}; see cleave {}--help", e.what(), command.empty() ? "" : command + " "));
}

int run(int argc, char** argv, const UserModel* user) {
  CLI::App app("Splits models across devices by itself.", "cleave");
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "cleave COMMAND --help lists a command's options. Exit status: 0 done, 1 a mistake of the\n"
      "user's, 2 a bug in cleave, 3 the model does not fit.");
  Commands commands;
  for (ModelArguments* m : {&commands.trace.model, &commands.regions.model, &commands.plan.model,
                            &commands.view.model, &commands.train.model}) {
    m->user = user;
  }
  add_trace(app, commands.trace);
  add_regions(app, commands.regions);
  add_plan(app, commands.plan);
  add_view(app, commands.view);
  add_train(app, commands.train);
  add_doctor(app, commands.doctor);

  std::vector<std::string> names;
  for (const CLI::App* c : app.get_subcommands([](CLI::App*) { return true; }))
    names.push_back(c->get_name());
  std::string command = argc > 1 ? argv[1] : "";
  if (!command.starts_with('-') && std::find(names.begin(), names.end(), command) == names.end()) {
    const std::string wrong =
        command.empty() ? "name a command" : fmt::format("there is no command '{}'", command);
    return report(1, "error",
                  fmt::format("{}: {}; see cleave --help", wrong, fmt::join(names, ", ")));
  }
  if (command.starts_with('-') && command != "-h" && command != "--help") {
    return report(
        1, "error",
        fmt::format("there is no option '{}' before a command; see cleave --help", command));
  }
  if (command.starts_with('-')) command.clear();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return finish_parse(app, e, command);
  }
  return 0;
}

int run_safely(int argc, char** argv, const UserModel* user) {
  try {
    const int status = run(argc, argv, user);
    if (std::fflush(stdout) != 0) return report(1, "error", "cannot write to stdout");
    return status;
  } catch (const DoesNotFit& e) {
    return report(3, "does not fit", e.what());
  } catch (const Error& e) {
    return report(1, "error", e.what());
  } catch (const std::bad_alloc&) {
    return report(1, "error", "out of memory; try a smaller model or a smaller batch");
  } catch (const std::exception& e) {
    return report(2, "internal error",
                  fmt::format("{}; this is a bug in cleave, please report it", e.what()));
  }
}

}  // namespace

int run_command(int argc, char** argv) { return run_safely(argc, argv, nullptr); }

int run_command(int argc, char** argv, const UserModel& model) {
  return run_safely(argc, argv, &model);
}

}  // namespace cleave
