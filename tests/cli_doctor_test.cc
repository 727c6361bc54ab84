// cleave doctor, as a program in environments that lack something.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

struct Outcome {
  int status = 0;
  std::string out;
};

// The command with these settings of the environment before it ("PATH= env").
Outcome doctor(const std::string& environment, const std::string& options = "") {
  const std::string command = "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE " + environment +
                              " " CLEAVE_BINARY_DIR "/bin/cleave doctor " + options + " 2>&1";
  Outcome result;
  std::FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 512> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) result.out += buffer.data();
  result.status = pclose(pipe) >> 8;
  return result;
}

// The finding of this name; null when there is none.
Json finding(const Outcome& outcome, const std::string& name) {
  const Json json = Json::parse(outcome.out, nullptr, false);
  if (json.is_discarded()) return nullptr;
  for (const Json& f : json["findings"]) {
    if (f["name"] == name) return f;
  }
  return nullptr;
}

TEST(Doctor, FindsWhatTheTestsNeed) {
  const Outcome text = doctor("");
  EXPECT_EQ(text.status, 0) << text.out;
  EXPECT_NE(text.out.find("All that cleave needs works"), std::string::npos) << text.out;
  const Outcome json = doctor("", "--json");
  EXPECT_EQ(json.status, 0);
  EXPECT_GT(Json::parse(json.out)["matrix_product_rate"], 1e8);
  for (const char* name : {"cleave", "BLAS", "cores", "memory", "this folder", "temporary files"}) {
    EXPECT_FALSE(finding(json, name).is_null()) << name << "\n" << json.out;
  }
  EXPECT_EQ(finding(json, "BLAS")["status"], "ok");
}

TEST(Doctor, WhatIsMissingHasACostAndAWayToGetIt) {
  const Outcome json = doctor("/usr/bin/env PATH=/nowhere", "--json");
  EXPECT_EQ(json.status, 0) << json.out;
  for (const char* name : {"Graphviz dot", "MPI"}) {
    const Json f = finding(json, name);
    EXPECT_EQ(f["status"], "missing") << name;
    EXPECT_EQ(f.value("fix", "").substr(0, 16), "apt-get install ") << f;
  }
  const Json report = Json::parse(json.out);
  for (const Json& f : report["findings"]) {
    EXPECT_EQ(f["status"] != "ok", f.contains("cost")) << f;
  }
}

TEST(Doctor, AnOlderCoreNamedToOpenBlasIsMeasured) {
  const Outcome json = doctor("OPENBLAS_CORETYPE=Prescott", "--json");
  EXPECT_EQ(json.status, 0) << json.out;
  const Json f = finding(json, "OPENBLAS_CORETYPE");
  EXPECT_EQ(f["status"], "warning");
  EXPECT_EQ(f["fix"], "unset OPENBLAS_CORETYPE");
  EXPECT_NE(f["cost"].get<std::string>().find("GFLOP/s a core instead of"), std::string::npos) << f;
}

TEST(Doctor, AGpuIsAskedThroughItsDriver) {
  const Outcome json = doctor("LD_LIBRARY_PATH=" CLEAVE_BINARY_DIR "/tests/fake_cuda", "--json");
  const Json f = finding(json, "GPU");
  EXPECT_EQ(f["status"], "ok") << json.out;
  EXPECT_EQ(f["detail"].get<std::string>().substr(0, 44),
            "2 x Test GPU, 24.0 GiB; driver for CUDA 12.4")
      << f;
}

TEST(Doctor, AFolderThatCannotBeWrittenIsAWarning) {
  const Outcome json = doctor("TMPDIR=/proc", "--json");
  EXPECT_EQ(json.status, 0) << json.out;
  EXPECT_EQ(finding(json, "temporary files")["status"], "warning") << json.out;
}

}  // namespace
}  // namespace cleave
