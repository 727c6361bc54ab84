// cleave checkpoint as a user meets it: tables, JSON, exit statuses, mistakes in one line.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/store.h"
#include "cli/command.h"
#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

struct Outcome {
  int status = 0;
  std::string out, err;
};

Outcome checkpoint(const std::string& line) {
  std::vector<std::string> args = {"cleave", "checkpoint"};
  std::istringstream words(line);
  for (std::string w; words >> w;) args.push_back(w);
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome o;
  o.status = run_command(static_cast<int>(args.size()), argv.data());
  o.out = ::testing::internal::GetCapturedStdout();
  o.err = ::testing::internal::GetCapturedStderr();
  return o;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Three checkpoints, of steps 10, 20 and 30.
class CheckpointCommand : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    CheckpointStore store(path("s"));
    for (int64_t step : {10, 20, 30}) {
      std::mt19937 random(static_cast<uint32_t>(step));
      Snapshot s{step, {}, "{}"};
      s.tensors.push_back(random_tensor("fc.weight", {DType::kF32, {64, 32}}, true, random));
      s.tensors.push_back(random_tensor("fc.weight.m", {DType::kF32, {64, 32}}, false, random));
      store.write(s);
    }
  }
  // A byte of the weights of step 30, and the end of the states of step 20.
  void damage() {
    std::string text = read_all(path("s/step-00000030/weights-00001.safetensors"));
    text[text.size() - 7] ^= 4;
    write_all(path("s/step-00000030/weights-00001.safetensors"), text);
    fs::resize_file(path("s/step-00000020/optimizer-00001.safetensors"), 1000);
  }
};

TEST_F(CheckpointCommand, LsShowsTheStepsNewestFirst) {
  Outcome o = checkpoint("ls " + path("s"));
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(has(o.out, "3 checkpoints, ")) << o.out;
  EXPECT_LT(o.out.find("\n  30  "), o.out.find("\n  20  "));
  EXPECT_LT(o.out.find("\n  20  "), o.out.find("\n  10  "));
  damage();
  o = checkpoint("ls " + path("s"));
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(has(o.out, "damaged: 'optimizer-00001.safetensors': cut off, 1000 of its")) << o.out;
  const Json j = Json::parse(checkpoint("ls --json " + path("s")).out);
  ASSERT_EQ(j.at("checkpoints").size(), 3u);
  const Json& newest = j["checkpoints"][0];
  EXPECT_EQ(newest.at("step"), 30);
  EXPECT_EQ(newest.at("complete"), true);  // ls compares lengths alone
  EXPECT_EQ(newest.at("parameters"), 64 * 32);
  EXPECT_EQ(newest.at("tensors"), 2);
  EXPECT_GT(newest.at("bytes"), 2 * 64 * 32 * 4);
  EXPECT_EQ(j["checkpoints"][1].at("complete"), false);
  EXPECT_TRUE(has(j["checkpoints"][1].at("why_not"), "cut off"));
  fs::create_directory(path("empty"));
  EXPECT_TRUE(has(checkpoint("ls " + path("empty")).out, "no checkpoints in"));
}

TEST_F(CheckpointCommand, LsOfAStepOrAFileShowsItsTensors) {
  for (const char* slash : {"", "/"}) {
    const Outcome o = checkpoint("ls " + path("s/step-00000020") + slash);
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_TRUE(has(o.out, "step 20")) << o.out;
    EXPECT_TRUE(has(o.out, "fc.weight    f32[64, 32]  8.00 KiB  parameter")) << o.out;
    EXPECT_TRUE(has(o.out, "fc.weight.m  f32[64, 32]  8.00 KiB  state")) << o.out;
  }
  const std::string file = path("s/step-00000020/weights-00001.safetensors");
  EXPECT_TRUE(has(checkpoint("ls " + file).out, "1 tensor, step: 20"));
  const Json j = Json::parse(checkpoint("ls --json " + file).out);
  EXPECT_EQ(j.at("tensors")[0].at("shape"), (Json{64, 32}));
}

TEST_F(CheckpointCommand, VerifyNamesTheDamageAndWhatIsSound) {
  Outcome o = checkpoint("verify " + path("s"));
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(std::count(o.out.begin(), o.out.end(), '\n'), 3);
  damage();
  o = checkpoint("verify " + path("s"));
  EXPECT_EQ(o.status, 1);
  EXPECT_TRUE(has(o.out, "step-00000030: 1 problem\n  'weights-00001.safetensors': damaged"))
      << o.out;
  EXPECT_TRUE(has(o.out, "step-00000020: 1 problem\n  'optimizer-00001.safetensors': cut off"))
      << o.out;
  EXPECT_TRUE(has(o.out, "step-00000010: sound\n")) << o.out;
  EXPECT_TRUE(has(o.err, "2 of the 3 checkpoints in '" + path("s") + "' are damaged; the newest " +
                             "sound one is '" + path("s/step-00000010") + "'"))
      << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1);
  o = checkpoint("verify " + path("s/step-00000030"));
  EXPECT_EQ(o.status, 1);
  EXPECT_TRUE(has(o.err, "'" + path("s/step-00000010") + "' is older and sound")) << o.err;
  o = checkpoint("verify --json " + path("s"));
  EXPECT_EQ(o.status, 1);
  const Json j = Json::parse(o.out);
  EXPECT_EQ(j.at("sound"), false);
  EXPECT_EQ(j.at("newest_sound"), path("s/step-00000010"));
  EXPECT_EQ(j.at("checkpoints").at(0).at("problems").size(), 1u);
  EXPECT_EQ(j["checkpoints"][2].at("sound"), true);
}

TEST_F(CheckpointCommand, ExportTakesTheNewestSoundOne) {
  const std::string out = path("w.safetensors");
  Outcome o = checkpoint("export " + path("s") + " -o " + out);
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(has(o.out, "the weights of step 30")) << o.out;
  damage();
  o = checkpoint("export " + path("s") + " -o " + out);
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(has(o.out, "the weights of step 10")) << o.out;
  EXPECT_TRUE(has(o.out, "passed over: '" + path("s/step-00000030/weights"))) << o.out;
  const SafetensorsFile file(out);
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.tensors()[0].name, "fc.weight");
}

struct Mistake {
  const char* line;
  const char* says;
};

TEST_F(CheckpointCommand, MistakesAreOneLineAndHarmNothing) {
  damage();
  write_all(path("text"), "no checkpoint");
  fs::create_directory(path("empty"));
  const std::vector<Mistake> mistakes = {
      {"", "name a command: ls, verify, export"},
      {"list", "there is no command 'checkpoint list': ls, verify, export"},
      {"ls", "PATH is required"},
      {"ls @nothing", "there is no file or folder"},
      {"ls @text", "no safetensors file"},
      {"ls @s --nonsense", "--nonsense"},
      {"verify", "PATH is required"},
      {"verify @nothing", "there is no checkpoint"},
      {"verify @text", "is a file; a checkpoint is a folder"},
      {"verify @empty", "there is no checkpoint in"},
      {"export @s", "--out is required"},
      {"export @nothing -o @w", "there is no checkpoint"},
      {"export @text -o @w", "is a file"},
      {"export @empty -o @w", "there is no checkpoint in"},
      {"export @s/step-00000030 -o @w", "step-00000010' is older and sound"},
      {"export @s -o @empty", "is a folder, not a file"},
      {"export @s -o @no/such/folder/w", "cannot write"},
      {"export @s -o /dev/null", "'/dev/null' is no regular file"},
  };
  for (const Mistake& m : mistakes) {
    std::string line = m.line;
    for (size_t at; (at = line.find('@')) != std::string::npos;) line.replace(at, 1, path(""));
    const Outcome o = checkpoint(line);
    EXPECT_EQ(o.status, 1) << line << "\n" << o.err;
    EXPECT_TRUE(o.err.starts_with("cleave: error: ")) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << line << "\n" << o.err;
    EXPECT_TRUE(has(o.err, m.says)) << line << "\n" << o.err;
    EXPECT_EQ(o.out, "") << line;
    EXPECT_FALSE(fs::exists(path("w"))) << line;
  }
  EXPECT_EQ(verify(path("s/step-00000010")), std::vector<std::string>{});
}

TEST_F(CheckpointCommand, HelpIsNoMistake) {
  for (const char* line : {"--help", "ls --help", "verify --help", "export --help"}) {
    EXPECT_EQ(checkpoint(line).status, 0) << line;
  }
}

}  // namespace
}  // namespace cleave
