// cleave train where the disk fills up, and where it may not write.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "checkpoint/store.h"
#include "tests/cli_run.h"
#include "tests/mount_namespace.h"

namespace cleave {
namespace {

using testing::capture;
using testing::one_line;
using testing::Outcome;
namespace fs = std::filesystem;

class FullDisk : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    fs::create_directory(path("disk"));
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("{} times {} is {}. ", i, i, i * i);
    write_all(path("data.txt"), text);
  }

  // A run whose checkpoints have 270 kB each.
  Outcome train(const std::vector<std::string>& more) const {
    std::vector<std::string> args = {
        "train",  "gpt2:tiny",      "--set",     "layers=1", "hidden=32", "--batch", "2",
        "--data", path("data.txt"), "--devices", "cpu:1",    "--steps",   "8"};
    args.insert(args.end(), more.begin(), more.end());
    return capture(args);
  }
};

int64_t count(const std::string& text, const std::string& part) {
  int64_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++n;
  return n;
}

// All steps are made, each save that fails is a line, the last one ends the command with status 1;
// and with room again the run goes on from what was saved.
TEST_F(FullDisk, TrainingGoesOnAndOlderCheckpointsStay) {
  const std::string run = path("disk/run");
  const std::string result = in_child([&]() -> std::string {
    if (!mount_small_disk(path("disk"), "1m")) return "skip";
    const Outcome full = train({"--checkpoint-every", "1", "--keep", "0", "--out", run});
    EXPECT_EQ(full.status, 1) << full.out;
    EXPECT_TRUE(one_line(full.err)) << full.err;
    EXPECT_TRUE(full.err.starts_with(
        "cleave: error: the checkpoint of step 8 could not be saved: cannot write '" + run))
        << full.err;
    EXPECT_NE(full.err.find("No space left on device; free some space"), std::string::npos);
    EXPECT_EQ(count(full.out, "grad norm"), 8) << full.out;
    const int64_t saved = count(full.out, "\nsaved ");
    const int64_t warned = count(full.out, "\nwarning: checkpoints: cannot write '");
    EXPECT_GT(saved, 0);
    EXPECT_GT(warned, 0);
    // One a step, and the last one's second try. Two that fail before either is told of share a
    // line.
    EXPECT_LE(saved + warned, 9);
    if (count(full.out, "more failed") == 0) {
      EXPECT_EQ(saved + warned, 9) << full.out;
    }
    EXPECT_EQ(verify(run + "/checkpoints"), std::vector<std::string>{});
    EXPECT_EQ(static_cast<int64_t>(CheckpointStore(run + "/checkpoints").list().size()), saved);

    fs::remove_all(run + "/checkpoints/step-00000001");
    const Outcome again = train({"--keep", "1", "--resume", "--out", run});
    EXPECT_EQ(again.status, 0) << again.err;
    EXPECT_EQ(again.err, "");
    EXPECT_NE(again.out.find(fmt::format("step-{:08}, step {}\n", saved, saved)), std::string::npos)
        << again.out;
    EXPECT_EQ(count(again.out, "grad norm"), 8 - saved) << again.out;
    EXPECT_EQ(verify(run + "/checkpoints"), std::vector<std::string>{});
    const std::string metrics = read_all(run + "/metrics.jsonl");
    for (int step = 1; step <= 8; ++step) {
      EXPECT_EQ(count(metrics, fmt::format("{{\"step\":{},\"loss\"", step)), 1) << metrics;
    }
    return HasFailure() ? "see above" : "";
  });
  if (result == "skip") GTEST_SKIP() << "cannot mount a small tmpfs here";
  EXPECT_EQ(result, "");
}

// No room for the run's own files: one line, before anything is trained.
TEST_F(FullDisk, ARunThatCannotBeginIsOneLine) {
  const std::string result = in_child([&]() -> std::string {
    if (!mount_small_disk(path("disk"), "16k")) return "skip";
    const Outcome o = train({"--out", path("disk/run")});
    EXPECT_EQ(o.status, 1) << o.out;
    EXPECT_TRUE(one_line(o.err)) << o.err;
    EXPECT_NE(o.err.find("cannot write '" + path("disk/run")), std::string::npos) << o.err;
    EXPECT_EQ(count(o.out, "grad norm"), 0) << o.out;
    return HasFailure() ? "see above" : "";
  });
  if (result == "skip") GTEST_SKIP() << "cannot mount a small tmpfs here";
  EXPECT_EQ(result, "");
}

// What is printed to a full disk is missed at the end at the latest.
TEST_F(FullDisk, OutputThatIsLostIsOneLine) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  for (const std::string& command : std::vector<std::string>{
           "trace mlp:tiny", "regions gpt2:tiny", "plan mlp:tiny --cluster cpu:2 --json",
           "checkpoint --help", "view mlp:tiny -o " + path("a.dot"),
           "train mlp:tiny --devices cpu:1 --steps 2 --data " + path("data.txt")}) {
    const std::string err = path("err.txt");
    const std::string line =
        fmt::format("{}/bin/cleave {} >/dev/full 2>{}", CLEAVE_BINARY_DIR, command, err);
    const int status = std::system(line.c_str());
    EXPECT_EQ(WEXITSTATUS(status), 1) << command;
    EXPECT_EQ(read_all(err),
              "cleave: error: cannot write all of the output to stdout; is the disk full?\n")
        << command;
  }
}

TEST_F(FullDisk, AReadOnlyFolderIsOneLineBeforeTraining) {
  const Outcome first = train({"--out", path("disk/run")});
  ASSERT_EQ(first.status, 0) << first.err;
  const std::string result = in_child([&]() -> std::string {
    if (!mount_read_only(path("disk"))) return "skip";
    for (const std::vector<std::string>& more :
         {std::vector<std::string>{"--out", path("disk/new/run")},
          std::vector<std::string>{"--resume", path("disk/run"), "--steps", "9"},
          std::vector<std::string>{"--resume", path("disk/run"), "--out", path("disk/new")}}) {
      std::vector<std::string> args = more;
      const bool steps = args.size() > 2 && args[2] == "--steps";
      const Outcome o =
          steps ? capture({"train", "--resume", path("disk/run"), "--steps", "9"}) : train(args);
      EXPECT_EQ(o.status, 1) << o.out;
      EXPECT_TRUE(one_line(o.err)) << o.err;
      EXPECT_TRUE(o.err.starts_with("cleave: error: cannot ")) << o.err;
      EXPECT_NE(o.err.find("'" + path("disk/")), std::string::npos) << o.err;
      EXPECT_EQ(o.out, "");
    }
    // Reading it is no mistake; writing elsewhere neither.
    EXPECT_EQ(capture({"checkpoint", "verify", path("disk/run/checkpoints")}).status, 0);
    const Outcome o = train({"--resume", path("disk/run"), "--out", path("other")});
    EXPECT_EQ(o.status, 0) << o.err;
    for (const char* line : {"plan mlp:tiny --cluster cpu:2 -o ", "trace mlp:tiny -o "}) {
      const Outcome w = testing::cleave_run(line + path("disk/file.json"));
      EXPECT_EQ(w.status, 1);
      EXPECT_TRUE(one_line(w.err)) << w.err;
      EXPECT_NE(w.err.find("file.json': Read-only file system"), std::string::npos) << w.err;
    }
    return HasFailure() ? "see above" : "";
  });
  if (result == "skip") GTEST_SKIP() << "cannot mount a read-only folder here";
  EXPECT_EQ(result, "");
}

}  // namespace
}  // namespace cleave
