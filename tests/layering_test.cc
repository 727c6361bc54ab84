// Who may include whom. The table has no cycle, so neither have the folders; nor do the files of
// one folder include each other in a circle.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <istream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "graph/algorithms.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

// A folder may include itself and what begins with one of these.
const std::map<std::string, std::vector<std::string>> kMayInclude = {
    {"graph", {}},
    {"checkpoint", {"graph/"}},
    {"kernels", {"graph/"}},
    {"tracer", {"graph/", "kernels/ops.h"}},
    {"models", {"graph/", "kernels/ops.h", "tracer/"}},
    {"data", {"graph/"}},
    {"planner", {"graph/"}},
    {"executor",
     // Of kernels: the ops, how some lay out their operands, and the GPU's runtime.
     {"checkpoint/", "data/", "graph/", "kernels/assemble.h", "kernels/chain.h",
      "kernels/contraction.h", "kernels/cuda/", "kernels/ops.h", "planner/"}},
    {"viz", {"graph/", "planner/"}},
};

// These may include everything.
const std::set<std::string> kMayIncludeAll = {"cli", "examples", "tests", "benchmarks"};

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

// The headers and sources of all folders, by their path from the root.
std::vector<std::string> all_sources() {
  std::vector<std::string> files;
  for (const auto& top : fs::directory_iterator(CLEAVE_SOURCE_DIR)) {
    const std::string name = top.path().filename().string();
    if (!top.is_directory() || name.starts_with("build") || name.starts_with(".")) continue;
    for (const auto& entry : fs::recursive_directory_iterator(top)) {
      if (entry.is_regular_file() && is_source(entry.path())) {
        files.push_back(fs::relative(entry.path(), CLEAVE_SOURCE_DIR).string());
      }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(Layering, EveryFolderHasItsPlace) {
  for (const std::string& file : all_sources()) {
    const std::string folder = file.substr(0, file.find('/'));
    EXPECT_TRUE(kMayInclude.contains(folder) || kMayIncludeAll.contains(folder)) << file;
  }
}

// Includes in quotes are paths from the root, and following them never comes back.
TEST(Layering, FilesIncludeEachOtherInNoCircle) {
  const std::vector<std::string> files = all_sources();
  const auto index_of = [&](const std::string& path) {
    const auto at = std::lower_bound(files.begin(), files.end(), path);
    return at != files.end() && *at == path ? static_cast<int32_t>(at - files.begin()) : -1;
  };
  Digraph includes{static_cast<int32_t>(files.size()), {}};
  const std::string start = "#include \"";
  for (size_t f = 0; f < files.size(); ++f) {
    std::ifstream file(fs::path(CLEAVE_SOURCE_DIR) / files[f]);
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with(start)) continue;
      const std::string path =
          line.substr(start.size(), line.find('"', start.size()) - start.size());
      if (path.ends_with(".def")) continue;
      const int32_t to = index_of(path);
      EXPECT_GE(to, 0) << files[f] << ": no file " << path << " from the root";
      if (to >= 0) includes.edges.push_back({static_cast<int32_t>(f), to});
    }
  }
  const Components circles = strong_components(includes);
  std::map<int32_t, std::string> members;
  for (size_t f = 0; f < files.size(); ++f) members[circles.of[f]] += " " + files[f];
  for (const auto& [circle, names] : members) {
    EXPECT_EQ(std::count(names.begin(), names.end(), ' '), 1) << "in a circle:" << names;
  }
}

}  // namespace
}  // namespace cleave
