// What is kept on disk for GPUs: the first value stays, and a damaged one is replaced.
#include <gtest/gtest.h>

#ifdef CLEAVE_CUDA

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/disk_cache.h"
#include "tests/support/environment.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

class Disk : public ::testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder_); }
  fs::path only_file() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    EXPECT_EQ(files.size(), 1u) << "parts are left";
    return files.at(0);
  }

  // Tests run at the same time, each in a process.
  const fs::path folder_ = fs::path(::testing::TempDir()) /
                           (std::string("cleave_disk_cache_") +
                            ::testing::UnitTest::GetInstance()->current_test_info()->name());
  const testing::EnvironmentVariable at_{"XDG_CACHE_HOME", folder_.string()};
};

TEST_F(Disk, TheFirstValueStays) {
  const DiskCache cache("things");
  EXPECT_EQ(cache.find("key"), "");
  EXPECT_EQ(cache.keep("key", std::string("a\0b", 3)), std::string("a\0b", 3));
  EXPECT_EQ(cache.keep("key", "another"), std::string("a\0b", 3));
  EXPECT_EQ(DiskCache("things").find("key"), std::string("a\0b", 3));
  EXPECT_EQ(DiskCache("others").find("key"), "");
}

TEST_F(Disk, WritersAtOnceAgree) {
  std::vector<std::string> kept(8);
  {
    std::vector<std::jthread> writers;
    for (size_t i = 0; i < kept.size(); ++i) {
      writers.emplace_back(
          [&kept, i] { kept[i] = DiskCache("things").keep("key", std::to_string(i)); });
    }
  }
  for (const std::string& value : kept) EXPECT_EQ(value, kept[0]);
  only_file();
}

TEST_F(Disk, DamageIsNoticedAndMended) {
  const DiskCache cache("things");
  cache.keep("key", "a value of some length");
  const fs::path path = only_file();
  std::ifstream in(path, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  for (size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(path, std::ios::binary) << whole.substr(0, size);
    ASSERT_EQ(cache.find("key"), "") << size << " bytes are left";
  }
  EXPECT_EQ(cache.keep("key", "new"), "new");
  EXPECT_EQ(cache.find("key"), "new");
}

TEST_F(Disk, IsDoneWithoutWhereNothingCanBeWritten) {
  const testing::EnvironmentVariable nowhere("XDG_CACHE_HOME", "/proc/no/such");
  const DiskCache cache("things");
  EXPECT_EQ(cache.keep("key", "value"), "value");
  EXPECT_EQ(cache.find("key"), "");
}

}  // namespace
}  // namespace cleave

#endif
