// Flags as a user writes them: each mistake is one line in our words, and flags override a TOML.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "cli/command.h"
#include "cli/format.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status = 0;
  std::string out, err;
};

// Splits at blanks; "''" is an empty word.
Outcome cleave_run(const std::string& line) {
  std::vector<std::string> words = {"cleave"};
  std::istringstream in(line);
  for (std::string w; in >> w;) words.push_back(w == "''" ? "" : w);
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome o;
  o.status = run_command(static_cast<int>(words.size()), argv.data());
  o.out = ::testing::internal::GetCapturedStdout();
  o.err = ::testing::internal::GetCapturedStderr();
  return o;
}

// The line of a TOML that begins with a key, without its comment.
std::string value_in(const std::string& toml, const std::string& key) {
  const size_t at = toml.find("\n" + key + " = ");
  if (at == std::string::npos) return "";
  const size_t from = at + key.size() + 4;
  std::string value = toml.substr(from, toml.find("  #", from) - from);
  value.erase(value.find_last_not_of(' ') + 1);
  return value;
}

class Flags : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(::testing::TempDir()) /
        (std::string("flags_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "run");
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  fs::path folder_;
};

struct Mistake {
  const char* line;
  const char* says;  // all that stands behind "cleave: error: "
};

TEST_F(Flags, MistakesAreOneLineInOurWords) {
  const std::vector<Mistake> mistakes = {
      {"train gpt2:tiny --steps", "--steps needs a value; see cleave train --help"},
      {"train gpt2:tiny --steps=", "--steps needs a value; see cleave train --help"},
      {"train gpt2:tiny --steps --lr 3", "--steps needs a value before --lr: N"},
      {"train gpt2:tiny --data --devices cpu:1", "--data needs a value before --devices: FILE"},
      {"plan gpt2:tiny -o", "--out needs a value; see cleave plan --help"},
      {"train gpt2:tiny --set", "--set needs a value; see cleave train --help"},
      {"train gpt2:tiny --steps x", "--steps 'x': write a whole number"},
      {"train gpt2:tiny --steps 1.5", "--steps '1.5': write a whole number"},
      {"train gpt2:tiny --steps 1e3", "--steps '1e3': write a whole number"},
      {"train gpt2:tiny --steps 0x10", "--steps '0x10': write a whole number"},
      {"train gpt2:tiny --steps ''", "--steps '': write a whole number"},
      {"train gpt2:tiny --steps auto", "--steps 'auto': write a whole number"},
      {"train gpt2:tiny --steps 99999999999999999999", "--steps '99999999999999999999': too large"},
      {"train gpt2:tiny --warmup x", "--warmup 'x': write a whole number, or auto"},
      {"train gpt2:tiny --lr fast", "--lr 'fast': write a number"},
      {"train gpt2:tiny --lr 1e999", "--lr '1e999': write a number"},
      {"train gpt2:tiny --lr=nan", "--lr 'nan': write a number"},
      {"train gpt2:tiny --lr 0", "--lr 0: write a number above 0"},
      {"train gpt2:tiny --lr -1e-3", "--lr -1e-3: write a number above 0"},
      {"train gpt2:tiny --min-lr -1", "--min-lr -1: write at least 0"},
      {"train gpt2:tiny --batch 0", "--batch 0: write at least 1"},
      {"train gpt2:tiny --batch -3", "--batch -3: write at least 1"},
      {"train gpt2:tiny --accumulate 0", "--accumulate 0: write at least 1"},
      {"train gpt2:tiny --keep -1", "--keep -1: write at least 0"},
      {"train gpt2:tiny --log-every 0", "--log-every 0: write at least 1"},
      {"train gpt2:tiny --skip-spikes -2", "--skip-spikes -2: write at least 0"},
      {"view gpt2:tiny -o x.dot --time-limit 0",
       "there is no option '--time-limit'; see cleave view --help"},
      {"train gpt2:tiny --progress maybe", "--progress 'maybe': write auto, on or off"},
      {"train gpt2:tiny --schedule line", "--schedule 'line': write cosine or constant"},
      {"train gpt2:tiny --optimizer ''", "--optimizer '': write adamw or sgd"},
      {"train gpt2:tiny --out ''", "--out '': write DIR"},
      {"train gpt2:tiny --steps 3 --steps 4", "--steps is given 2 times"},
      {"train gpt2:tiny --find-nan --find-nan", "--find-nan is given 2 times"},
      {"train gpt2:tiny --tensorboard --no-tensorboard", "--tensorboard is given 2 times"},
      {"train gpt2:tiny --tensorboard=maybe", "--tensorboard takes no value"},
      {"train gpt2:tiny --no-tensorboard=x", "--no-tensorboard takes no value"},
      {"plan gpt2:tiny --json=3", "--json takes no value"},
      {"train gpt2:tiny --stesp 3", "there is no option '--stesp'; did you mean --steps?"},
      {"train --stesp 3 gpt2:tiny", "there is no option '--stesp'; did you mean --steps?"},
      {"train gpt2:tiny --no-tensorbord",
       "there is no option '--no-tensorbord'; did you mean "
       "--no-tensorboard?"},
      {"train gpt2:tiny --Steps=3", "there is no option '--Steps=3'; did you mean --steps?"},
      {"train gpt2:tiny -q", "there is no option '-q'; see cleave train --help"},
      {"train gpt2:tiny --nothing-like-it 3",
       "there is no option '--nothing-like-it'; see cleave train --help"},
      {"plan gpt2:tiny --data x --cluster cpu:1",
       "there is no option '--data'; see cleave plan --help"},
      {"train gpt2:tiny more",
       "'more' was not expected: MODEL is gpt2:tiny already; see cleave train --help"},
      {"trace gpt2:tiny trace",
       "'trace' was not expected: MODEL is gpt2:tiny already; see cleave trace --help"},
      {"checkpoint", "name a command: ls, verify, export; see cleave checkpoint --help"},
      {"checkpoint lst",
       "there is no command 'checkpoint lst': ls, verify, export; see cleave "
       "checkpoint --help"},
      {"checkpoint --json ls",
       "there is no option '--json' before a command; see cleave "
       "checkpoint --help"},
      {"checkpoint ls x --jsn", "there is no option '--jsn'; did you mean --json?"},
      {"checkpoint ls x --json=1", "--json takes no value"},
      {"checkpoint ls",
       "PATH is required: A run's folder of checkpoints, one step's folder, or a "
       "safetensors file; see cleave checkpoint ls --help"},
      {"checkpoint export x -o", "--out needs a value; see cleave checkpoint export --help"},
      {"train gpt2:tiny", "--data is required: The text to learn; see cleave train --help"},
      {"train -- gpt2:tiny", "--data is required: The text to learn; see cleave train --help"},
      {"train gpt2:tiny --config", "--config needs a value; see cleave train --help"},
      {"train gpt2:tiny --config /nowhere.toml",
       "cannot read '/nowhere.toml': --config takes the TOML of a run; --print-config makes one"},
      {"train gpt2:tiny --resume", "--resume needs a run's folder: write it, or --out DIR"},
      {"train gpt2:tiny --resume /nowhere", "--resume /nowhere: there is no such folder"},
  };
  for (const Mistake& m : mistakes) {
    const Outcome o = cleave_run(m.line);
    EXPECT_EQ(o.status, 1) << m.line;
    EXPECT_EQ(o.err, std::string("cleave: error: ") + m.says + "\n") << m.line;
    EXPECT_EQ(o.out, "") << m.line;
  }
}

TEST_F(Flags, FlagsOverrideTheToml) {
  write_file(path("a.toml"),
             "[model]\nname = \"gpt2:tiny\"\nset = { layers = 2, hidden = 32 }\n"
             "[train]\nsteps = 7\nbatch = 4\n[run]\ntensorboard = false\n");
  const std::string with = "train --print-config --config " + path("a.toml");
  Outcome o = cleave_run(with);
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(value_in(o.out, "steps"), "7");
  EXPECT_EQ(value_in(o.out, "tensorboard"), "false");
  EXPECT_EQ(value_in(o.out, "seed"), "0");
  EXPECT_EQ(value_in(o.out, "file"), "");  // not given: a comment
  o = cleave_run(with + " llama:8b --steps 9 --batch auto --set layers=3 --tensorboard --data x");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(value_in(o.out, "name"), "\"llama:8b\"");
  EXPECT_EQ(value_in(o.out, "steps"), "9");
  EXPECT_EQ(value_in(o.out, "batch"), "\"auto\"");
  EXPECT_EQ(value_in(o.out, "set"), "{ hidden = 32, layers = 3 }");
  EXPECT_EQ(value_in(o.out, "tensorboard"), "true");
  EXPECT_EQ(value_in(o.out, "file"), "\"x\"");
}

TEST_F(Flags, WhatIsPrintedPrintsTheSame) {
  const Outcome first = cleave_run(
      "train gpt2:tiny --set dropout=.1 layers=3 --min-lr 0 --no-tensorboard --out a\"b --seed 5 "
      "--print-config");
  ASSERT_EQ(first.status, 0) << first.err;
  write_file(path("a.toml"), first.out);
  const Outcome second = cleave_run("train --config " + path("a.toml") + " --print-config");
  // Only the pairs' order is the reader's.
  EXPECT_EQ(value_in(second.out, "set"), "{ dropout = 0.1, layers = 3 }");
  EXPECT_EQ(second.out, first.out);
  EXPECT_EQ(second.err, "");
}

TEST_F(Flags, MistakesInATomlNameItsLine) {
  write_file(path("a.toml"), "[model]\nname = \"gpt2:tiny\"\n[train]\nstpes = 3\n");
  const Outcome o = cleave_run("train --config " + path("a.toml"));
  EXPECT_EQ(o.status, 1);
  EXPECT_EQ(o.err, "cleave: error: " + path("a.toml") +
                       ":4: there is no key 'stpes' in [train]; did you mean steps?\n");
}

TEST_F(Flags, ARunGoesOnWithItsOwnToml) {
  write_file(path("run/config.toml"),
             "[model]\nname = \"mlp:tiny\"\n[train]\nsteps = 7\n[run]\nfolder = \"elsewhere\"\n");
  for (const std::string& how : {"--resume " + path("run"), "--resume --out " + path("run"),
                                 "--resume=" + path("run") + " --steps 7"}) {
    const Outcome o = cleave_run("train --print-config " + how);
    ASSERT_EQ(o.status, 0) << o.err;
    EXPECT_EQ(value_in(o.out, "name"), "\"mlp:tiny\"") << how;
    EXPECT_EQ(value_in(o.out, "steps"), "7") << how;
    EXPECT_EQ(value_in(o.out, "folder"), "\"" + path("run") + "\"") << how;
  }
  // Other devices have another mesh.
  write_file(path("run/config.toml"), "[train]\nsteps = 7\n[devices]\nmesh = \"4\"\n");
  const std::string on = "train --print-config --resume " + path("run");
  EXPECT_EQ(value_in(cleave_run(on).out, "mesh"), "\"4\"");
  EXPECT_EQ(value_in(cleave_run(on + " --devices cpu:2").out, "mesh"), "\"auto\"");
  EXPECT_EQ(value_in(cleave_run(on + " --devices cpu:2 --mesh 2").out, "mesh"), "\"2\"");
  // A flag counts more, and so does a TOML that is named.
  EXPECT_EQ(
      value_in(cleave_run("train --print-config --steps 9 --resume " + path("run")).out, "steps"),
      "9");
  write_file(path("a.toml"), "[train]\nsteps = 8\n");
  const Outcome o =
      cleave_run("train --print-config --config " + path("a.toml") + " --resume " + path("run"));
  EXPECT_EQ(value_in(o.out, "steps"), "8");
  EXPECT_NE(o.out.find("\n# name = "), std::string::npos) << o.out;
}

TEST_F(Flags, HelpSaysWhatIsLeftOut) {
  const Outcome o = cleave_run("train --help");
  EXPECT_NE(o.out.find("Training steps (100)"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("(a tenth of the rate)"), std::string::npos);
  EXPECT_NE(o.out.find("The text to learn (required)"), std::string::npos);
  EXPECT_EQ(o.out.find("{false}"), std::string::npos);
}

}  // namespace
}  // namespace cleave
