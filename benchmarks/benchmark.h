// What every benchmark's main does: it reads the arguments, and says in one line what went wrong.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>

namespace cleave {

// Ends the program after --help and after a mistake.
inline void read_arguments(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e));
  }
}

// The exit status: that of `run(argc, argv)`, or 1 when it throws, with a line that opens with the
// program's name.
template <class Run>
int benchmark_main(int argc, char** argv, const Run& run) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    const std::string name = std::filesystem::path(argv[0]).filename().string();
    fmt::print(stderr, "{}: {}\n", name, e.what());
    return 1;
  }
}

}  // namespace cleave
