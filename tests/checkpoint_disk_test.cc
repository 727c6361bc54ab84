// Killed, out of space, not allowed to write, not alone: whatever happens to a writer, the newest
// whole checkpoint is sound.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "checkpoint/store.h"
#include "tests/checkpoint_temporary.h"
#include "tests/mount_namespace.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

using Disk = CheckpointTest;

// About 600 kB in five files, each byte of which follows from the step.
Snapshot snapshot_of(int64_t step) {
  Snapshot s{step, {}, fmt::format("{{\"step\": {}}}", step)};
  for (int64_t i = 0; i < 6; ++i) {
    SavedTensor t{fmt::format("w{}", i), {DType::kF32, {25'000}}, {}, i % 2 == 0};
    t.bytes.assign(100'000, static_cast<std::byte>(step * 31 + i));
    s.tensors.push_back(std::move(t));
  }
  return s;
}

void expect_whole(const Checkpoint& c) {
  const Snapshot s = snapshot_of(c.step());
  EXPECT_EQ(c.run_json(), s.run_json);
  ASSERT_EQ(c.tensors().size(), s.tensors.size());
  for (const SavedTensor& t : s.tensors) {
    const auto bytes = c.bytes(t.name, t.type);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end()));
  }
}

// A run that goes on from the newest checkpoint and saves each step, keeping two; every third step
// is saved twice. It tells when it begins (step 0) and each step that is on the disk. It is killed
// when it has told so many, and some microseconds have passed since.
void run_and_kill(const std::string& folder, uint32_t told_before, useconds_t after,
                  int64_t& told) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto tell = [&](int64_t step) {
      [[maybe_unused]] const ssize_t n = ::write(ends[1], &step, sizeof step);
    };
    CheckpointStore store(folder, /*file_bytes=*/250'000);
    std::vector<std::string> problems;
    store.open_for_writing();
    const std::optional<Checkpoint> newest = store.latest(problems);
    tell(0);
    for (int64_t step = newest ? newest->step() + 1 : 1;; ++step) {
      for (int times = step % 3 == 0 ? 2 : 1; times > 0; --times) {
        store.write(snapshot_of(step));
        tell(step);
      }
      store.keep(2);
    }
  }
  ::close(ends[1]);
  const auto next = [&] {
    int64_t step = 0;
    const bool more = ::read(ends[0], &step, sizeof step) == sizeof step;
    told = std::max(told, step);
    return more;
  };
  for (uint32_t i = 0; i < told_before; ++i) ASSERT_TRUE(next()) << "it ended by itself";
  ::usleep(after);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "it ended by itself";
  while (next()) continue;
  ::close(ends[0]);
}

// What was promised to be on the disk is found, whole, after each of `kills` kills, and nothing
// else is seen. A save takes about `save` microseconds, so that some hit the middle of one.
void kill_often(const std::string& folder, int kills, uint32_t save) {
  std::mt19937 random(5);
  int64_t told = 0;
  int in_the_middle = 0;
  for (int i = 0; i < kills; ++i) {
    run_and_kill(folder, random() % 4, random() % save, told);
    if (!fs::exists(folder)) continue;
    for (const auto& entry : fs::directory_iterator(folder)) {
      in_the_middle += entry.path().filename().string().find(".partial-") != std::string::npos;
    }
    std::vector<std::string> problems;
    const std::optional<Checkpoint> newest = CheckpointStore(folder).latest(problems);
    EXPECT_EQ(problems, std::vector<std::string>{}) << "after kill " << i;
    if (!newest) {
      ASSERT_EQ(told, 0) << "after kill " << i;
      continue;
    }
    ASSERT_GE(newest->step(), told) << "after kill " << i;
    ASSERT_LE(newest->step(), told + 1) << "after kill " << i;
    told = newest->step();  // the next one begins after it, though it may not have been told
    expect_whole(*newest);
    // Nor is an older one seen that was being removed.
    EXPECT_EQ(verify(folder), std::vector<std::string>{}) << "after kill " << i;
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(told, kills / 4);
  EXPECT_GT(in_the_middle, kills / 20);
  CheckpointStore store(folder);
  store.open_for_writing();
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name == ".lock" || step_of_folder_name(name)) << name;
  }
  ::testing::Test::RecordProperty("killed_while_writing", in_the_middle);
}

TEST_F(Disk, AKilledWriterLeavesTheNewestCheckpointSound) { kill_often(path("s"), 30, 50'000); }

// Kept in memory, where saving takes a millisecond or two: more moments are hit.
TEST(Memory, AKilledWriterLeavesTheNewestCheckpointSound) {
  const std::string folder = fmt::format("/dev/shm/cleave-checkpoint-test-{}", ::getpid());
  std::error_code error;
  fs::create_directory(folder, error);
  if (error) GTEST_SKIP() << "no /dev/shm here";
  kill_often(folder + "/s", 120, 4'000);
  fs::remove_all(folder);
}

// Writes steps until there is no room; then the first ones are whole and nothing else is there.
std::string fill(const std::string& folder, const std::string& expected) {
  CheckpointStore store(folder);
  std::string error;
  int64_t step = 0;
  while (error.empty() && step < 50) error = error_of([&] { store.write(snapshot_of(++step)); });
  if (error.find(expected) == std::string::npos) return "not refused as expected: " + error;
  if (error.find(step_folder_name(step)) == std::string::npos) return "no file named: " + error;
  if (verify(folder) != std::vector<std::string>{}) return "an older one was harmed";
  std::vector<std::string> problems;
  const std::optional<Checkpoint> newest = store.latest(problems);
  if (newest->step() != step - 1) return "the newest is lost";
  expect_whole(*newest);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name != ".lock" && !step_of_folder_name(name)) return "left behind: " + name;
  }
  // Another name for a step that is there already, which does not fit either.
  if (error_of([&] { store.write(snapshot_of(step - 1)); }).empty()) return "no room, and written";
  if (verify(folder) != std::vector<std::string>{}) return "the one to be replaced was harmed";
  // Room is made by removing old ones, and writing goes on.
  store.keep(1);
  store.write(snapshot_of(step));
  return ::testing::Test::HasFailure() ? "see above" : "";
}

TEST_F(Disk, AFullDiskIsOneLineAndHarmsNothing) {
  const std::string result = in_child([&]() -> std::string {
    if (!mount_small_disk(path(""), "2m")) return "skip";
    return fill(path("s"), "No space left on device; free some space");
  });
  if (result == "skip") GTEST_SKIP() << "cannot mount a small tmpfs here";
  EXPECT_EQ(result, "");
}

// The same where nothing can be mounted: files may not grow.
TEST_F(Disk, AFileThatCannotGrowIsOneLineAndHarmsNothing) {
  const std::string result = in_child([&]() -> std::string {
    CheckpointStore store(path("s"));
    store.write(snapshot_of(1));
    ::signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit : {0, 1, 100, 4096, 100'000, 300'000}) {
      const rlimit less = {limit, RLIM_INFINITY};
      if (::setrlimit(RLIMIT_FSIZE, &less) != 0) return "cannot limit files";
      for (const int64_t step : {1, 2}) {
        const std::string error = error_of([&] { store.write(snapshot_of(step)); });
        if (error.find("File too large") == std::string::npos) {
          return fmt::format("at {}: {}", limit, error);
        }
      }
      if (verify(path("s")) != std::vector<std::string>{}) return "harmed";
      if (store.list().size() != 1) return "half of one is there";
    }
    const rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &all);
    store.write(snapshot_of(2));
    return "";
  });
  EXPECT_EQ(result, "");
}

// A device that takes nothing.
TEST_F(Disk, ADeviceThatIsFullIsAnError) {
  const int full = ::open("/dev/full", O_WRONLY);
  if (full < 0) GTEST_SKIP() << "no /dev/full here";
  FileWriter file(full, "full");
  const std::string error = error_of([&] { file.write("some text"); });
  EXPECT_NE(error.find("cannot write 'full': No space left"), std::string::npos) << error;
  ::close(full);
}

TEST_F(Disk, AReadOnlyFolderIsReadAndNotWritten) {
  { CheckpointStore(path("s")).write(snapshot_of(1)); }
  const std::string result = in_child([&]() -> std::string {
    if (!mount_read_only(path(""))) return "skip";
    CheckpointStore old(path("s")), fresh(path("t/u"));
    for (CheckpointStore* store : {&old, &fresh}) {
      for (int times = 0; times < 2; ++times) {
        const std::string error = error_of([&] { store->write(snapshot_of(2)); });
        if (error.find("Read-only file system; use a folder you may write to") ==
                std::string::npos ||
            error.find(store->folder()) == std::string::npos) {
          return "not refused as expected: " + error;
        }
      }
      if (error_of([&] { store->open_for_writing(); }).empty()) return "opened";
    }
    if (open_checkpoint(path("s")).step() != 1) return "not read";
    return error_of([&] { export_weights(path("s"), path("out")); }).empty() ? "exported" : "";
  });
  if (result == "skip") GTEST_SKIP() << "cannot mount a read-only folder here";
  EXPECT_EQ(result, "");
}

TEST_F(Disk, TwoRunsDoNotWriteIntoOneFolder) {
  CheckpointStore store(path("s"));
  store.write(snapshot_of(1));
  const std::string error = in_child([&] {
    CheckpointStore other(path("s"));
    return error_of([&] { other.write(snapshot_of(2)); });
  });
  EXPECT_NE(error.find(fmt::format("another run (process {}) writes", ::getpid())),
            std::string::npos)
      << error;
  // Its half-written checkpoint is not taken for a leftover.
  fs::create_directory(path("s/.step-00000009.partial-1"));
  in_child([&] {
    CheckpointStore other(path("s"));
    return error_of([&] { other.open_for_writing(); });
  });
  EXPECT_TRUE(fs::exists(path("s/.step-00000009.partial-1")));
  store.write(snapshot_of(3));
  EXPECT_EQ(store.list().size(), 2u);
}

}  // namespace
}  // namespace cleave
