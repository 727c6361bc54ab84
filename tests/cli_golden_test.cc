// Whole reports, compared with the texts in tests/golden. After a change that is meant:
//   CLEAVE_UPDATE_GOLDEN=1 build/bin/cli_golden_test && git diff tests/golden
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "cli/command.h"
#include "cli/format.h"

namespace cleave {
namespace {

std::string output_of(const std::string& line) {
  std::vector<std::string> args = {"cleave"};
  std::istringstream words(line);
  for (std::string w; words >> w;) args.push_back(w);
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(run_command(static_cast<int>(args.size()), argv.data()), 0) << line;
  // The time that a search took is nobody's to promise.
  return std::regex_replace(::testing::internal::GetCapturedStdout(),
                            std::regex("searched( in|) [(]?[0-9.]+ [mu]?s[)]?"), "searched in T");
}

size_t columns(const std::string& line) {
  return static_cast<size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

struct Golden {
  const char* file;
  const char* command;
};

class GoldenReport : public ::testing::TestWithParam<Golden> {};

TEST_P(GoldenReport, IsAsItWas) {
  const std::string path = std::string(CLEAVE_SOURCE_DIR) + "/tests/golden/" + GetParam().file;
  const std::string text = output_of(GetParam().command);
  // One screen that needs no scrolling.
  std::istringstream lines(text);
  size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) EXPECT_LE(columns(line), 116u) << line;
  EXPECT_LE(count, 42u);
  if (std::getenv("CLEAVE_UPDATE_GOLDEN") != nullptr) write_file(path, text);
  EXPECT_EQ(text, read_file(path)) << "see the head of tests/cli_golden_test.cc";
}

INSTANTIATE_TEST_SUITE_P(
    Reports, GoldenReport,
    ::testing::Values(Golden{"plan-gpt2-355m-tp8.txt",
                             "plan gpt2:355m --cluster 8xh100 --mesh tp=8"},
                      Golden{"plan-llama-8b-8xh100.txt", "plan llama:8b --cluster 8xh100"},
                      Golden{"regions-gpt2-124m.txt", "regions gpt2:124m"},
                      Golden{"regions-llama-8b.txt", "regions llama:8b"}),
    [](const auto& info) {
      std::string name = info.param.file;
      std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
      return name;
    });

// What a row of regions is called, and the part of the model, tell it from every other.
TEST(Regions, RowsHaveDifferentNames) {
  for (const char* model : {"llama:8b", "gpt2:124m", "mixtral:tiny", "bert:base"}) {
    std::istringstream lines(output_of(std::string("regions ") + model));
    std::set<std::string> seen;
    size_t rows = 0;
    for (std::string line; std::getline(lines, line);) {
      const std::regex row("(\\S.*?)  +[0-9,]+  (\\S.*?)  +[<0-9]+ %.*");
      std::smatch parts;
      if (!std::regex_match(line, parts, row)) continue;
      ++rows;
      EXPECT_TRUE(seen.insert(parts[1].str() + " in " + parts[2].str()).second)
          << model << ": " << line;
    }
    EXPECT_GT(rows, 4u) << model;
  }
}

}  // namespace
}  // namespace cleave
