// Options to arguments, and exceptions to exit statuses. The only file that sees CLI11, which takes
// long to compile.
#include "cli/command.h"
#include "cli/run_folder.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>

#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/nearest.h"
#include "cli/options.h"
#include "cli/planning.h"
#include "graph/error.h"

namespace cleave {
namespace {

// Without what CLI11 says of flags' values: "--no-tensorboard{false}".
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* o, bool is_positional) const override {
    std::string name = CLI::Formatter::make_option_name(o, is_positional);
    for (size_t at; (at = name.find("{false}")) != std::string::npos;) name.erase(at, 7);
    return name;
  }
};

struct Commands {
  TraceArguments trace;
  RegionsArguments regions;
  PlanArguments plan;
  ExplainArguments explain;
  DiffArguments diff;
  FitArguments fit;
  ExportArguments export_to;
  ViewArguments view;
  TrainArguments train;
  BenchArguments bench;
  CheckpointArguments checkpoint;
  GenerateArguments generate;
  CalibrateArguments calibrate;
  SimulateArguments simulate;
  DoctorArguments doctor;
};

// "Training steps (100)"
std::string help_of(const Option& o) {
  const std::string value = default_text(o);
  return value.empty() ? o.help : fmt::format("{} ({})", o.help, value);
}

// CLI11 sorts the words; what they mean is the table's.
CLI::Option* add_to(CLI::App& command, const Option& o) {
  const auto keep_words = [](const CLI::results_t&) { return true; };
  if (std::holds_alternative<bool*>(o.target)) {
    return command.add_flag_function(
        o.flag, [](int64_t) {}, help_of(o));
  }
  CLI::Option* added = command.add_option(o.flag, keep_words, help_of(o));
  added->type_name(o.type)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  if (std::holds_alternative<std::optional<std::string>*>(o.target)) added->expected(0, 1);
  if (std::holds_alternative<std::vector<std::string>*>(o.target)) added->expected(-1);
  return added;
}

// A row of the table, and what was written for it.
struct Row {
  Option option;
  const CLI::Option* written;
};

std::vector<std::string> flags_of(const std::vector<Row>& rows) {
  std::vector<std::string> flags = {"--help"};
  for (const Row& row : rows) {
    for (const std::string& name : row.written->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

// CLI11 takes any word for a value that is missing, also another flag.
void refuse_flags_as_values(const std::vector<Row>& rows) {
  const std::vector<std::string> flags = flags_of(rows);
  for (const Row& row : rows) {
    for (const std::string& word : row.written->results()) {
      const std::string flag = word.substr(0, word.find('='));
      if (std::find(flags.begin(), flags.end(), flag) == flags.end()) continue;
      fail("{} needs a value before {}: {}", row.option.name(), flag, row.option.type);
    }
  }
}

// What was written for an option goes to where its row points.
void take(const Row& row) {
  const Option& o = row.option;
  const std::vector<std::string>& words = row.written->results();
  const bool many = std::holds_alternative<std::vector<std::string>*>(o.target);
  if (words.size() > 1 && !many) fail("{} is given {} times", o.name(), words.size());
  for (const std::string& word : words) set_text(o, word, o.name());
}

// "train ", "checkpoint ls "; empty for the program itself.
std::string path_of(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? "" : path_of(*parent) + command.get_name() + " ";
}

// Words that belong to no option, the first that looks like one before the others.
void refuse_extras(const CLI::App& command, const std::vector<Row>& rows) {
  std::vector<std::string> extras = command.remaining();
  std::erase(extras, "--");  // what follows it is no option, and has been taken as such
  if (extras.empty()) return;
  const auto flag = std::find_if(extras.begin(), extras.end(),
                                 [](const std::string& word) { return word.starts_with('-'); });
  const std::string see = fmt::format("; see cleave {}--help", path_of(command));
  if (flag != extras.end()) {
    const std::string hint = did_you_mean(flag->substr(0, flag->find('=')), flags_of(rows));
    fail("there is no option '{}'{}", *flag, hint.empty() ? see : hint);
  }
  if (rows.front().option.flag.starts_with('-')) {
    fail("'{}' was not expected{}", extras.front(), see);
  }
  fail("'{}' was not expected: {} is {} already{}", extras.front(), rows.front().option.flag,
       fmt::join(rows.front().written->results(), " "), see);
}

const Row& row_of(const std::vector<Row>& rows, std::string_view flag) {
  const auto at = std::find_if(rows.begin(), rows.end(),
                               [&](const Row& row) { return row.option.name() == flag; });
  CLEAVE_ASSERT(at != rows.end(), "no option {}", flag);
  return *at;
}

// Below the flags lie the values of a TOML: the one that is named, or that of the run to go on
// with.
void take_config(const std::vector<Row>& rows, TrainArguments& a) {
  const Row& out = row_of(rows, "--out");
  for (const char* name : {"--config", "--resume", "--out"}) take(row_of(rows, name));
  std::string path = a.config;
  if (path.empty() && a.resume) {
    const std::string& folder = a.resume->empty() ? a.out : *a.resume;
    if (folder.empty()) fail("--resume needs a run's folder: write it, or --out DIR");
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error)) {
      fail("--resume {}: there is no such folder", folder);
    }
    const std::string config = folder + "/config.toml";
    if (std::filesystem::exists(config, error)) path = config;
    // What goes on is saved where it was, unless it is told otherwise.
    if (!a.resume->empty() && a.out.empty()) {
      if (path.empty() && checkpoints_in(folder) == folder) {
        fail("--resume {}: that is no run's folder; say with --out where the run goes on", folder);
      }
      a.out = folder;
    }
  }
  if (path.empty()) return;
  std::vector<Option> options;
  for (const Row& row : rows) options.push_back(row.option);
  read_config(path, options);
  // The folder may have been moved since, or the command run from elsewhere.
  if (a.resume && !a.resume->empty() && out.written->empty()) a.out = *a.resume;
  // A mesh is one of the devices that it was written with.
  const auto is_written = [&](const char* name) { return !row_of(rows, name).written->empty(); };
  if (is_written("--devices") && !is_written("--mesh")) a.mesh.clear();
}

// A command of the program: `run` is called with its arguments when they are complete.
template <class Arguments>
void add_command(CLI::App& app, const char* name, const char* help, std::vector<Option> options,
                 Arguments& arguments, void (*run)(const Arguments&)) {
  CLI::App* c = app.add_subcommand(name, help);
  c->allow_extras();
  std::vector<Row> rows;
  for (Option& o : options) {
    CLI::Option* written = add_to(*c, o);
    rows.push_back({std::move(o), written});
  }
  c->final_callback([c, rows, run, &arguments] {
    refuse_flags_as_values(rows);
    refuse_extras(*c, rows);
    constexpr bool trains = std::is_same_v<Arguments, TrainArguments>;
    if constexpr (trains) take_config(rows, arguments);
    for (const Row& row : rows) take(row);
    if constexpr (trains) {
      if (arguments.print_config) {
        fmt::print("{}", config_text(arguments));
        return;
      }
    }
    for (const auto& [option, unused] : rows) {
      if (!option.required || !text_of(option).empty()) continue;
      fail("{} is required: {}; see cleave {}--help", option.name(), option.help, path_of(*c));
    }
    run(arguments);
  });
}

void add_checkpoint(CLI::App& app, CheckpointArguments& a) {
  CLI::App* c = app.add_subcommand("checkpoint", "List, check and export what training has saved");
  c->require_subcommand(1);
  add_command(*c, "ls", "The checkpoints in a folder, or the tensors of one", ls_options(a), a,
              checkpoint_ls_command);
  add_command(*c, "verify", "Read every byte and name what is damaged (exit status 1)",
              verify_options(a), a, checkpoint_verify_command);
  add_command(*c, "export", "The weights in one safetensors file, for other programs",
              export_options(a), a, checkpoint_export_command);
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

// The command that the first words name. Throws Error when they name none, unless they ask for
// help.
const CLI::App& named_command(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  for (int i = 1;; ++i) {
    std::vector<std::string> names;
    for (const CLI::App* c : at->get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(c->get_name());
    }
    const std::string word = i < argc ? argv[i] : "";
    if (names.empty() || word == "-h" || word == "--help" || word == "--version") return *at;
    const std::string path = path_of(*at);
    if (word.starts_with('-')) {
      fail("there is no option '{}' before a command; see cleave {}--help", word, path);
    }
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      fail("{}: {}; see cleave {}--help",
           word.empty() ? "name a command" : fmt::format("there is no command '{}{}'", path, word),
           fmt::join(names, ", "), path);
    }
    at = at->get_subcommand(word);
  }
}

// CLI11 ends the program's parse by throwing, --help included.
int finish_parse(const CLI::App& app, const CLI::ParseError& e, const CLI::App& command) {
  if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
  const std::string what = e.what();
  if (e.get_name() != "ArgumentMismatch") fail("{}; see cleave {}--help", what, path_of(command));
  // "--steps: 1 required N missing"
  fail("{} needs a value; see cleave {}--help", what.substr(0, what.find(':')), path_of(command));
}

// CLI11 reads a flag's value in ways of its own: "--json=3" is refused before.
void refuse_values_of_flags(const CLI::App& command, int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (!word.starts_with("--") || equals == std::string::npos) continue;
    const std::string name = word.substr(0, equals);
    const CLI::Option* option = command.get_option_no_throw(name);
    if (option != nullptr && option->get_expected_max() == 0) fail("{} takes no value", name);
  }
}

int run(int argc, char** argv, const UserModel* user) {
  CLI::App app("Splits models across devices by itself.", "cleave");
  app.require_subcommand(1);
  app.set_version_flag("--version", "cleave " CLEAVE_VERSION);
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(34);
  app.footer(
      "cleave COMMAND --help lists a command's options. Exit status: 0 done, 1 a mistake of the\n"
      "user's, 2 a bug in cleave, 3 the model does not fit, 128 + N stopped by signal N.");
  Commands commands;
  for (ModelArguments* m :
       {&commands.trace.model, &commands.regions.model, &commands.plan.model, &commands.fit.model,
        &commands.view.model, &commands.train.model, &commands.bench.model}) {
    m->user = user;
  }
  commands.generate.user = user;
  commands.simulate.user = user;
  commands.explain.user = commands.diff.user = commands.export_to.user = user;
  const auto add = [&](const char* name, const char* help, auto& arguments, auto run_it) {
    add_command(app, name, help, options_of(arguments), arguments, run_it);
  };
  add("trace", "Record a model's graph and write it down", commands.trace, trace_command);
  add("regions", "What can be split, how far it runs alone, and where devices must meet",
      commands.regions, regions_command);
  add("plan", "Find the fastest split of a model that fits", commands.plan, plan_command);
  add("simulate", "Predict a plan's step on a timeline: computing, waiting, memory",
      commands.simulate, simulate_command);
  add("explain", "Why a plan is as it is, what else there was, and what that would cost",
      commands.explain, explain_command);
  add("diff", "What two plans of one model differ in", commands.diff, diff_command);
  add("fit", "Whether a model fits, by how much, and what would make it fit", commands.fit,
      fit_command);
  add("export", "A plan in the words of another program", commands.export_to, export_command);
  add("view", "Draw a graph or a plan", commands.view, view_command);
  add("train", "Train a model as its plan says, on this machine", commands.train, train_command);
  add("bench", "Time a model's training steps on this machine, and where the time goes",
      commands.bench, bench_command);
  add_checkpoint(app, commands.checkpoint);
  add("generate", "Continue a text with a trained model", commands.generate, generate_command);
  add("calibrate", "Measure this machine, for plans that are made for it", commands.calibrate,
      calibrate_command);
  add("doctor", "What this machine offers, and what each missing thing costs", commands.doctor,
      doctor_command);

  const CLI::App& command = named_command(app, argc, argv);
  refuse_values_of_flags(command, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return finish_parse(app, e, command);
  }
  return 0;
}

// A full disk behind stdout, also when only what came in the middle was lost.
int stdout_lost() {
  return report(1, "error", "cannot write all of the output to stdout; is the disk full?");
}

int run_safely(int argc, char** argv, const UserModel* user) {
  try {
    const int status = run(argc, argv, user);
    return std::fflush(stdout) != 0 || std::ferror(stdout) != 0 ? stdout_lost() : status;
  } catch (const DoesNotFit& e) {
    return report(3, "does not fit", e.what());
  } catch (const Interrupted& e) {
    return report(e.status(), "interrupted", e.what());
  } catch (const Error& e) {
    return report(1, "error", e.what());
  } catch (const std::bad_alloc&) {
    return report(1, "error", "out of memory; try a smaller model or a smaller batch");
  } catch (const std::exception& e) {
    if (std::ferror(stdout) != 0) return stdout_lost();  // what fmt throws then
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
