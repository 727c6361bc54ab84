// Snapshots that are written in the background: in order, none lost, errors told at the next call.
#include "checkpoint/async_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

using Async = CheckpointTest;

Snapshot snapshot_of(int64_t step, int64_t numbers = 1000) {
  std::mt19937 random(static_cast<uint32_t>(step));
  Snapshot s{step, {}, fmt::format("run of {}", step)};
  s.tensors.push_back(random_tensor("w", {DType::kF32, {numbers}}, true, random));
  return s;
}

TEST_F(Async, WritesAllInOrderAndKeepsTheNewest) {
  CheckpointStore store(path("s"));
  AsyncWriter writer(store, /*keep=*/3);
  for (int64_t step = 1; step <= 12; ++step) writer.submit(snapshot_of(step));
  writer.wait();
  const std::vector<WrittenCheckpoint> written = writer.take_written();
  ASSERT_EQ(written.size(), 12u);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(written[i].step, static_cast<int64_t>(i + 1));
    EXPECT_EQ(written[i].bytes, 4000);
    EXPECT_GT(written[i].seconds, 0);
  }
  EXPECT_TRUE(writer.take_written().empty());
  ASSERT_EQ(store.list().size(), 3u);
  const Checkpoint newest = open_checkpoint(path("s"));
  EXPECT_EQ(newest.run_json(), "run of 12");
  const auto bytes = newest.bytes("w", {DType::kF32, {1000}});
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), snapshot_of(12).tensors[0].bytes.begin()));
}

// Of five times the shortest, since others may be at work on the machine.
TEST_F(Async, SubmittingDoesNotWaitForTheDisk) {
  CheckpointStore store(path("s"));
  AsyncWriter writer(store, 1);
  double submitted = 1e9, written = 1e9;
  for (int64_t step = 1; step <= 5; ++step) {
    Snapshot large = snapshot_of(step, 2'000'000);
    const auto start = std::chrono::steady_clock::now();
    writer.submit(std::move(large));
    submitted = std::min(
        submitted, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    writer.wait();
    written = std::min(written, writer.take_written().at(0).seconds);
  }
  EXPECT_LT(submitted, written / 4);
  // Its buffers come back, once.
  const Snapshot again = writer.recycled();
  ASSERT_EQ(again.tensors.size(), 1u);
  EXPECT_EQ(again.tensors[0].bytes.size(), 8'000'000u);
  EXPECT_TRUE(writer.recycled().tensors.empty());
}

TEST_F(Async, TheEndWritesWhatWaits) {
  CheckpointStore store(path("s"));
  {
    AsyncWriter writer(store, 0);
    writer.submit(snapshot_of(1));
    writer.submit(snapshot_of(2));
  }
  EXPECT_EQ(store.list().size(), 2u);
}

// The folder goes and comes back, as a disk does that is full for a while.
TEST_F(Async, ErrorsAreToldAtTheNextCallAndWritingGoesOn) {
  CheckpointStore store(path("s"));
  AsyncWriter writer(store, 2);
  writer.submit(snapshot_of(1));
  writer.wait();
  fs::rename(path("s"), path("gone"));
  writer.submit(snapshot_of(2));
  const std::string error = error_of([&] { writer.wait(); });
  EXPECT_NE(error.find("step-00000002"), std::string::npos) << error;
  writer.wait();  // it was told
  writer.submit(snapshot_of(3));
  EXPECT_NE(error_of([&] { writer.wait(); }).find("step-00000003"), std::string::npos);
  fs::rename(path("gone"), path("s"));
  EXPECT_EQ(open_checkpoint(path("s")).step(), 1);
  writer.submit(snapshot_of(4));
  writer.wait();
  EXPECT_EQ(open_checkpoint(path("s")).step(), 4);
  EXPECT_EQ(writer.take_error(), std::nullopt);
  // submit() tells too, after it has taken the next one.
  fs::rename(path("s"), path("gone"));
  writer.submit(snapshot_of(5));
  std::string told;
  for (int64_t step = 6; told.empty() && step < 100; ++step) {
    told = error_of([&] { writer.submit(snapshot_of(step)); });
  }
  EXPECT_NE(told.find("step-0000000"), std::string::npos) << told;
  error_of([&] { writer.wait(); });
  fs::rename(path("gone"), path("s"));
}

TEST_F(Async, OurBugsComeThroughAsOurs) {
  CheckpointStore store(path("s"));
  AsyncWriter writer(store, 0);
  writer.submit({-1, {}, ""});
  EXPECT_THROW(writer.wait(), InternalError);
  writer.submit(snapshot_of(1));
  writer.wait();
}

}  // namespace
}  // namespace cleave
