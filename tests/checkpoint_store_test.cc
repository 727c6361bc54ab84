// What is written is read back, to the bit; what was there stays until what replaces it is whole.
#include "checkpoint/store.h"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

using Store = CheckpointTest;

void expect_equal(const Checkpoint& found, const Snapshot& written) {
  EXPECT_EQ(found.step(), written.step);
  EXPECT_EQ(found.run_json(), written.run_json);
  ASSERT_EQ(found.tensors().size(), written.tensors.size());
  for (const SavedTensor& t : written.tensors) {
    const ManifestTensor* tensor = found.find(t.name);
    ASSERT_NE(tensor, nullptr) << t.name;
    EXPECT_EQ(tensor->parameter, t.parameter);
    const auto bytes = found.bytes(t.name, t.type);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end())) << t.name;
  }
}

std::vector<std::string> hidden_names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with('.')) names.push_back(name);
  }
  return names;
}

TEST_F(Store, EverySnapshotComesBackToTheBit) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    // Small files, so that some snapshots take several.
    CheckpointStore store(path(fmt::format("s{}", seed)), seed % 2 == 0 ? 2'000 : 2'000'000'000);
    const Snapshot snapshot = random_snapshot(seed * 1'000'003, seed);
    const std::string folder = store.write(snapshot);
    EXPECT_EQ(folder, path(fmt::format("s{}/{}", seed, step_folder_name(snapshot.step))));
    EXPECT_EQ(verify(folder), std::vector<std::string>{});
    expect_equal(open_checkpoint(folder), snapshot);
    expect_equal(open_checkpoint(store.folder()), snapshot);
  }
}

TEST_F(Store, StepsAreListedNewestFirstAndTheOldestGo) {
  CheckpointStore store(path("s"));
  for (int64_t step : {5, 100, 99'999'999, 100'000'000, 7}) {
    store.write(random_snapshot(step, static_cast<uint32_t>(step)));
  }
  const auto steps = [&] {
    std::vector<int64_t> found;
    for (const CheckpointInfo& info : store.list()) {
      EXPECT_TRUE(info.complete) << info.why_not;
      EXPECT_GT(info.bytes, 0);
      found.push_back(info.step);
    }
    return found;
  };
  EXPECT_EQ(steps(), (std::vector<int64_t>{100'000'000, 99'999'999, 100, 7, 5}));
  store.keep(0);
  EXPECT_EQ(steps().size(), 5u);
  store.keep(2);
  EXPECT_EQ(steps(), (std::vector<int64_t>{100'000'000, 99'999'999}));
  store.keep(9);
  EXPECT_EQ(steps().size(), 2u);
}

TEST_F(Store, AStepThatIsRepeatedTakesTheOldOnesPlace) {
  CheckpointStore store(path("s"));
  for (uint32_t seed = 0; seed < 5; ++seed) {
    const Snapshot snapshot = random_snapshot(7, seed);
    const std::string folder = store.write(snapshot);
    expect_equal(open_checkpoint(folder), snapshot);
    EXPECT_EQ(store.list().size(), 1u);
  }
  EXPECT_EQ(hidden_names(path("s")), std::vector<std::string>{".lock"});
}

// A checkpoint that is open stays readable while the run goes on and removes it.
TEST_F(Store, WhatIsOpenStaysReadable) {
  CheckpointStore store(path("s"));
  const Snapshot first = random_snapshot(1, 1);
  store.write(first);
  const Checkpoint open = open_checkpoint(path("s"));
  store.write(random_snapshot(1, 2));
  store.write(random_snapshot(2, 3));
  store.keep(1);
  EXPECT_FALSE(fs::exists(open.path()));
  expect_equal(open, first);
}

TEST_F(Store, WhatKilledWritersLeftIsRemovedByTheNextOne) {
  {
    CheckpointStore store(path("s"));
    store.write(random_snapshot(1, 1));
    store.write(random_snapshot(2, 2));
  }
  const auto leave = [&](const std::string& name) {
    fs::copy(path("s/step-00000001"), path("s/" + name));
  };
  leave(".step-00000003.partial-1");
  leave(".step-00000004.removed-1");
  leave(".step-00000001.replaced-1");  // its successor is in place
  // The writer was killed between the two renamings of a file system that cannot exchange.
  leave(".step-00000002.replaced-1");
  fs::remove_all(path("s/step-00000002"));
  leave("mine");
  // Readers take no notice, and change nothing.
  EXPECT_EQ(CheckpointStore(path("s")).list().size(), 1u);
  EXPECT_EQ(hidden_names(path("s")).size(), 5u);
  CheckpointStore store(path("s"));
  store.open_for_writing();
  EXPECT_EQ(hidden_names(path("s")), std::vector<std::string>{".lock"});
  EXPECT_EQ(store.list().size(), 2u);
  EXPECT_TRUE(fs::exists(path("s/mine")));
}

TEST_F(Store, OneWriterAtATime) {
  {
    CheckpointStore first(path("s"));
    first.write(random_snapshot(1, 1));
    CheckpointStore second(path("s"));
    const std::string error = error_of([&] { second.write(random_snapshot(2, 2)); });
    EXPECT_NE(error.find(fmt::format("(process {})", ::getpid())), std::string::npos) << error;
    EXPECT_NE(error.find("use another folder"), std::string::npos) << error;
    EXPECT_EQ(second.list().size(), 1u);
    EXPECT_EQ(open_checkpoint(path("s")).step(), 1);  // reading is free
    first.write(random_snapshot(3, 3));
  }
  CheckpointStore third(path("s"));
  third.write(random_snapshot(2, 2));
  EXPECT_EQ(third.list().size(), 3u);
}

TEST_F(Store, ALaterStepIsSetAsideNotLost) {
  CheckpointStore store(path("s"));
  for (int64_t step : {1, 2, 3}) store.write(random_snapshot(step, static_cast<uint32_t>(step)));
  for (const char* aside : {"s/step-00000002.aside-1", "s/step-00000003.aside-1"}) {
    EXPECT_FALSE(fs::exists(path(aside)));
  }
  EXPECT_EQ(store.set_aside_after(1), (std::vector<std::string>{path("s/step-00000003.aside-1"),
                                                                path("s/step-00000002.aside-1")}));
  EXPECT_EQ(open_checkpoint(path("s")).step(), 1);
  store.write(random_snapshot(2, 9));
  EXPECT_EQ(store.set_aside_after(1), std::vector<std::string>{path("s/step-00000002.aside-2")});
  store.keep(1);
  EXPECT_EQ(verify(path("s/step-00000003.aside-1")), std::vector<std::string>{});
  EXPECT_EQ(store.set_aside_after(1), std::vector<std::string>{});
}

TEST_F(Store, ExportedWeightsAreTheParametersAlone) {
  CheckpointStore store(path("s"), /*file_bytes=*/500);
  Snapshot s = random_snapshot(4, 11);
  std::mt19937 random(1);
  for (int i = 0; i < 6; ++i) {
    s.tensors.push_back(
        random_tensor(fmt::format("w{}", i), {DType::kF32, {i, 30}}, i % 2 == 0, random));
  }
  store.write(s);
  export_weights(path("s"), path("out.safetensors"));
  const SafetensorsFile file(path("out.safetensors"));
  size_t parameters = 0;
  for (const SavedTensor& t : s.tensors) {
    const TensorInfo* info = file.find(t.name);
    ASSERT_EQ(info != nullptr, t.parameter) << t.name;
    if (info == nullptr) continue;
    ++parameters;
    EXPECT_EQ(info->type, t.type);
    const auto bytes = file.bytes(*info);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end()));
  }
  EXPECT_EQ(file.tensors().size(), parameters);
  EXPECT_EQ(file.metadata().at("step"), "4");
  // A checkpoint without any, and an unwritable place, leave what was there.
  const std::string before = read_all(path("out.safetensors"));
  store.write({5, {}, ""});
  EXPECT_NE(error_of([&] {
              export_weights(path("s"), path("out.safetensors"));
            }).find("has no parameters"),
            std::string::npos);
  EXPECT_NE(error_of([&] { export_weights(path("s/step-00000004"), path("no/out")); }), "");
  EXPECT_EQ(read_all(path("out.safetensors")), before);
}

TEST(StepNames, AreReadAsTheyAreWritten) {
  for (const int64_t step : {int64_t{0}, int64_t{7}, int64_t{99999999}, int64_t{100000000},
                             std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(step_of_folder_name(step_folder_name(step)), step);
  }
  for (const char* name :
       {"", "step-", "step-1", "step-0000001", "step-00000001x", "step--0000001", "step-000000001",
        "step-99999999999999999999", ".step-00000001", "step-00000001.aside-1"}) {
    EXPECT_EQ(step_of_folder_name(name), std::nullopt) << name;
  }
}

// The checksum is the one that is documented: known answers of XXH128 (as the program xxh128sum
// gives them), in any pieces.
TEST(Checksums, AreXxh128) {
  EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of("{}"), "dc7048f8f8747f561349cde127705c16");
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7);
  Checksum pieces;
  for (size_t i = 0, n = 1; i < text.size(); n = n * 3 % 257 + 1) {
    const size_t length = std::min(n, text.size() - i);
    pieces.add(std::as_bytes(std::span(text).subspan(i, length)));
    i += length;
  }
  EXPECT_EQ(pieces.hex(), checksum_of(text));
}

}  // namespace
}  // namespace cleave
