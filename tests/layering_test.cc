// Who may include whom. The table has no cycle, so neither have the folders.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <istream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace cleave {
namespace {

namespace fs = std::filesystem;

// A folder may include itself and what begins with one of these.
const std::map<std::string, std::vector<std::string>> kMayInclude = {
    {"graph", {}},
    {"kernels", {"graph/"}},
    {"tracer", {"graph/", "kernels/ops.h"}},
    {"models", {"graph/", "tracer/"}},
    {"planner", {"graph/"}},
    {"executor", {"graph/", "planner/"}},
    {"viz", {"graph/", "planner/"}},
};

// The lines of a file of `folder` that include what the folder may not.
std::vector<std::string> violations(const std::string& folder, std::istream& file) {
  const std::string start = "#include \"";
  std::vector<std::string> bad;
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(start)) continue;
    const std::string path = line.substr(start.size());
    bool allowed = path.starts_with(folder + "/");
    for (const std::string& prefix : kMayInclude.at(folder)) {
      allowed = allowed || path.starts_with(prefix);
    }
    if (!allowed) bad.push_back(line);
  }
  return bad;
}

bool is_source(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh";
}

TEST(Layering, FoldersIncludeOnlyWhatIsBelowThem) {
  size_t files = 0;
  for (const auto& [folder, unused] : kMayInclude) {
    const fs::path directory = fs::path(CLEAVE_SOURCE_DIR) / folder;
    if (!fs::exists(directory)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(directory)) {
      if (!is_source(entry.path())) continue;
      std::ifstream file(entry.path());
      for (const std::string& line : violations(folder, file)) {
        ADD_FAILURE() << entry.path().string() << ": " << folder << "/ may not have " << line;
      }
      ++files;
    }
  }
  EXPECT_GT(files, 20u);  // the folders were found
}

TEST(Layering, SeesAPlantedViolation) {
  std::istringstream planner(
      "#include <map>\n#include \"graph/graph.h\"\n#include \"kernels/ops.h\"\n");
  EXPECT_EQ(violations("planner", planner), std::vector<std::string>{"#include \"kernels/ops.h\""});
  std::istringstream tracer("#include \"kernels/ops.h\"\n#include \"kernels/blas.h\"\n");
  EXPECT_EQ(violations("tracer", tracer), std::vector<std::string>{"#include \"kernels/blas.h\""});
}

// Follows the table from each folder: coming back to it would be a cycle.
TEST(Layering, TheTableHasNoCycle) {
  for (const auto& [folder, unused] : kMayInclude) {
    std::vector<std::string> reached = {folder};
    for (size_t i = 0; i < reached.size(); ++i) {
      for (const std::string& prefix : kMayInclude.at(reached[i])) {
        const std::string next = prefix.substr(0, prefix.find('/'));
        ASSERT_NE(next, folder) << fmt::format("{} -> ... -> {} -> {}", folder, reached[i], next);
        if (std::find(reached.begin(), reached.end(), next) == reached.end()) {
          reached.push_back(next);
        }
      }
    }
  }
}

}  // namespace
}  // namespace cleave
