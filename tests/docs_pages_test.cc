// The pages of docs/ against what they speak of: links and files that exist, output that is
// printed, factor strings that are read, commands that --help lists.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "cli/command.h"
#include "graph/signature.h"
#include "planner/cluster_toml.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = CLEAVE_SOURCE_DIR;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<fs::path> pages() {
  std::vector<fs::path> result = {kRoot / "README.md", kRoot / "CONTRIBUTING.md"};
  for (const auto& entry : fs::directory_iterator(kRoot / "docs")) {
    if (entry.path().extension() == ".md") result.push_back(entry.path());
  }
  return result;
}

// The first group of every match.
std::vector<std::string> matches(const std::string& text, const char* pattern) {
  std::vector<std::string> result;
  const std::regex regex(pattern);
  for (auto i = std::sregex_iterator(text.begin(), text.end(), regex); i != std::sregex_iterator();
       ++i) {
    result.push_back((*i)[1]);
  }
  return result;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

TEST(Pages, LinksLeadSomewhere) {
  size_t links = 0;
  for (const fs::path& page : pages()) {
    for (const std::string& link : matches(read(page), R"(\]\(([^)#:]+)\))")) {
      EXPECT_TRUE(fs::exists(page.parent_path() / link)) << page << ": " << link;
      ++links;
    }
  }
  EXPECT_GT(links, 20u);
}

TEST(Pages, FilesThatTheyNameExist) {
  size_t files = 0;
  for (const fs::path& page : pages()) {
    for (const std::string& name :
         matches(read(page),
                 "`((?:graph|kernels|tracer|models|planner|executor|viz|cli|examples|"
                 "tests|scripts|data|checkpoint)/[a-z0-9_/-]+\\.[a-z]+)")) {
      EXPECT_TRUE(fs::exists(kRoot / name)) << page << ": " << name;
      ++files;
    }
  }
  EXPECT_GT(files, 15u);
}

TEST(Pages, EveryPageIsInTheIndex) {
  const std::string index = read(kRoot / "docs/README.md");
  for (const fs::path& page : pages()) {
    const std::string name = page.filename();
    if (name == "README.md") continue;
    EXPECT_NE(index.find(name), std::string::npos) << name;
  }
}

// The worked example is what the program prints.
TEST(Concepts, QuoteTheExamplesOutput) {
  const std::vector<std::string> printed = lines_of(read(kRoot / "examples/first_graph.expected"));
  const std::set<std::string> known(printed.begin(), printed.end());
  size_t blocks = 0, lines = 0;
  bool inside = false, quoting = false;
  std::string before;
  for (const std::string& line : lines_of(read(kRoot / "docs/concepts.md"))) {
    if (line.starts_with("```")) {
      inside = !inside;
      quoting = false;
    } else if (inside) {
      if (before.starts_with("```") && known.contains(line)) {
        quoting = true;
        ++blocks;
      }
      if (quoting && line != "...") {
        EXPECT_TRUE(known.contains(line)) << line;
        ++lines;
      }
    }
    before = line;
  }
  EXPECT_EQ(blocks, 3u);
  EXPECT_GT(lines, 20u);
}

TEST(Factors, AreReadAsWritten) {
  size_t strings = 0;
  for (std::string text : matches(read(kRoot / "docs/factors.md"), "\n\\| `([^` ]+)`")) {
    for (size_t at; (at = text.find("\\|")) != std::string::npos;) text.erase(at, 1);
    EXPECT_EQ(signature_mistake(text), nullptr) << text << ": " << signature_mistake(text);
    ++strings;
  }
  EXPECT_GE(strings, 7u);
}

TEST(Clusters, EveryKeyOfAFileIsExplained) {
  Cluster c = parse_cluster("2x8xh100");
  c.device.fused_backward.efficiency = 1;
  c.device.ops = {{"grouped_matmul", 1e12, 0, 0.5}};
  c.device.bf16.measured = {{1, 1, 1, 1}};
  c.tiers[1].ports = 8;
  const std::string page = read(kRoot / "docs/cluster.md");
  size_t keys = 0;
  for (const std::string& key : matches(cluster_to_toml(c), "\n([a-z_0-9]+) =")) {
    EXPECT_NE(page.find("`" + key + "`"), std::string::npos) << key;
    ++keys;
  }
  EXPECT_GT(keys, 40u);
}

TEST(Commands, AreThoseOfHelp) {
  std::vector<std::string> argv = {"cleave", "--help"};
  std::vector<char*> pointers = {argv[0].data(), argv[1].data(), nullptr};
  ::testing::internal::CaptureStdout();
  run_command(2, pointers.data());
  const std::string help = ::testing::internal::GetCapturedStdout();
  const std::string page = read(kRoot / "docs/commands.md");
  const std::string list = help.substr(help.find("Subcommands:"));
  size_t commands = 0;
  for (const std::string& command : matches(list, "\n  ([a-z]+) ")) {
    EXPECT_NE(page.find("\n## " + command + "\n"), std::string::npos) << command;
    ++commands;
  }
  EXPECT_GE(commands, 6u);
}

}  // namespace
}  // namespace cleave
