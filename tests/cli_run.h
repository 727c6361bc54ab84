// Runs the command inside a test and hears what it says.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "cli/command.h"

namespace cleave::testing {

struct Outcome {
  int status = 0;
  std::string out, err;
};

inline Outcome capture(std::vector<std::string> args, const UserModel* user = nullptr) {
  args.insert(args.begin(), "cleave");
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome o;
  const int argc = static_cast<int>(args.size());
  o.status =
      user != nullptr ? run_command(argc, argv.data(), *user) : run_command(argc, argv.data());
  o.out = ::testing::internal::GetCapturedStdout();
  o.err = ::testing::internal::GetCapturedStderr();
  return o;
}

// Splits at blanks; "''" is an empty argument.
inline Outcome cleave_run(const std::string& line, const UserModel* user = nullptr) {
  std::vector<std::string> args;
  std::istringstream words(line);
  for (std::string w; words >> w;) args.push_back(w == "''" ? "" : w);
  return capture(std::move(args), user);
}

inline bool one_line(const std::string& text) {
  return std::count(text.begin(), text.end(), '\n') == 1 && text.back() == '\n';
}

}  // namespace cleave::testing
