// Plans of small models to ask about, made once.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/cli_run.h"

namespace cleave::testing {

// A folder with plans of small models, made once.
class Plans {
 public:
  static const Plans& get() {
    static const Plans plans;
    return plans;
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

 private:
  Plans()
      : folder_(std::filesystem::temp_directory_path() /
                fmt::format("cleave_answers_{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
    const auto made = [&](const std::string& line, const std::string& name) {
      const Outcome o = cleave_run("plan " + line + " -o " + path(name));
      EXPECT_EQ(o.status, 0) << line << ": " << o.err;
    };
    made("gpt2:124m --set layers=2 --cluster 8xh100 --mesh dp=2,tp=4 --accumulate 1", "gpt.json");
    made("gpt2:124m --set layers=2 --cluster 8xh100 --mesh dp=8 --accumulate 1", "dp.json");
    made("gpt2:124m --set layers=2 --cluster 4xh100 --pin pp=2 dp=2 micro=4", "stages.json");
    made("gpt2:124m --set layers=2 --cluster h100 --memory 1100MB", "host.json");
  }
  ~Plans() { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

inline std::string plan(const std::string& name) { return Plans::get().path(name); }

// Of `measures` of an answer's JSON: the step is the sum of its parts, and so is the memory, in
// both columns.
inline void expect_rows_add_up(const nlohmann::ordered_json& measures, const char* a,
                               const char* b) {
  ASSERT_GE(measures.size(), 4u);
  for (const char* column : {a, b}) {
    double whole = 0, parts = 0;
    const auto close = [&] { EXPECT_NEAR(parts, whole, 1e-9 * whole) << column << measures; };
    for (const auto& m : measures) {
      const bool head = m["name"] == "step" || m["name"] == "memory of a device";
      if (head) close(), whole = m[column].get<double>(), parts = 0;
      if (!head) parts += m[column].get<double>();
    }
    close();
  }
}

}  // namespace cleave::testing
