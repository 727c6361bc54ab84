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

inline std::string program_name(const char* path) {
  return std::filesystem::path(path).filename().string();
}

// Ends the program after --help, and with status 1 after a mistake, of which it says a line.
inline void read_arguments(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    std::exit(app.exit(e));
  } catch (const CLI::ParseError& e) {
    fmt::print(stderr, "{}: {}; see --help\n", program_name(argv[0]), e.what());
    std::exit(1);
  }
}

// The exit status: that of `run(argc, argv)`, or 1 when it throws, with a line that opens with the
// program's name.
template <class Run>
int benchmark_main(int argc, char** argv, const Run& run) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", program_name(argv[0]), e.what());
    return 1;
  }
}

}  // namespace cleave
