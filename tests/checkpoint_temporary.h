// What the checkpoints' tests share: folders that go with the test, random snapshots, whole files.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>

#include "checkpoint/snapshot.h"
#include "graph/error.h"

namespace cleave {

// A test with an empty folder of its own.
class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) /
              fmt::format("{}.{}.{}", test->test_suite_name(), test->name(), ::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::filesystem::path folder_;
};

inline std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

inline void write_all(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

inline SavedTensor random_tensor(const std::string& name, TensorType type, bool parameter,
                                 std::mt19937& random) {
  SavedTensor t{name, type, {}, parameter};
  t.bytes.resize(static_cast<size_t>(numel(type.shape) * size_of(type.dtype)));
  for (std::byte& b : t.bytes) b = static_cast<std::byte>(random());
  return t;
}

// Up to eight tensors of every type, some scalars, some empty; parameters and states mixed.
inline Snapshot random_snapshot(int64_t step, uint32_t seed) {
  std::mt19937 random(seed);
  Snapshot s;
  s.step = step;
  const DType dtypes[] = {DType::kF64, DType::kF32, DType::kBF16, DType::kI32};
  for (size_t i = 0; i < 1 + random() % 8; ++i) {
    TensorType type{dtypes[random() % 4], {}};
    for (size_t d = random() % 4; d-- > 0;) type.shape.push_back(random() % 20);
    s.tensors.push_back(
        random_tensor(fmt::format("h.{}.\"ö\\\n{}", i, random()), type, random() % 2 == 0, random));
  }
  s.run_json = fmt::format("{{\"seed\": {}}}\n", random());
  return s;
}

// The message of the Error that `call` throws; empty when it throws none.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e.what();
  }
  return "";
}

}  // namespace cleave
