// Every kind of damage to a checkpoint is noticed, named in one line, and the older one is found.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "checkpoint/store.h"
#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

Snapshot small_snapshot(int64_t step) {
  std::mt19937 random(static_cast<uint32_t>(step));
  Snapshot s;
  s.step = step;
  s.tensors.push_back(random_tensor("w", {DType::kF32, {3, 5}}, true, random));
  s.tensors.push_back(random_tensor("b", {DType::kBF16, {7}}, true, random));
  s.tensors.push_back(random_tensor("m", {DType::kF64, {2}}, false, random));
  s.run_json = "{\"seed\": 7, \"cursor\": 12}\n";
  return s;
}

// Two checkpoints, of which the newer is damaged and mended again.
class Damage : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    CheckpointStore store(path("s"));
    older_ = store.write(small_snapshot(1));
    newer_ = store.write(small_snapshot(2));
    for (const auto& entry : fs::directory_iterator(newer_)) {
      const std::string name = entry.path().filename().string();
      whole_[name] = read_all(newer_ + "/" + name);
    }
    ASSERT_EQ(whole_.size(), 4u);
  }

  // The damage is named with its file, and the older checkpoint is used or offered.
  void expect_noticed(const std::string& name, const std::string& how) {
    const std::vector<std::string> found = verify(newer_);
    ASSERT_FALSE(found.empty()) << name << " " << how;
    for (const std::string& line : found) {
      EXPECT_EQ(line.find('\n'), std::string::npos) << line;
      EXPECT_NE(line.find(name), std::string::npos) << line << "\n" << how;
    }
    if (noticed_++ % 9 != 0) return;  // the rest reads the older one too
    std::vector<std::string> problems;
    const std::optional<Checkpoint> latest = CheckpointStore(path("s")).latest(problems);
    ASSERT_TRUE(latest.has_value()) << name << " " << how;
    EXPECT_EQ(latest->path(), older_);
    EXPECT_EQ(problems, found);
    const std::string error = error_of([&] { open_checkpoint(newer_); });
    EXPECT_TRUE(error.starts_with(found[0])) << error;
    EXPECT_NE(error.find("'" + older_ + "' is older and sound"), std::string::npos) << error;
  }
  void mend() {
    for (const auto& [name, text] : whole_) write_all(newer_ + "/" + name, text);
    ASSERT_EQ(verify(newer_), std::vector<std::string>{});
  }

  std::string older_, newer_;
  std::map<std::string, std::string> whole_;
  int noticed_ = 0;
};

TEST_F(Damage, AnyFlippedBitIsNoticed) {
  for (const auto& [name, text] : whole_) {
    for (size_t i = 0; i < text.size(); ++i) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ 1 << i % 8);
      write_all(newer_ + "/" + name, damaged);
      expect_noticed(name, fmt::format("byte {} flipped", i));
      if (HasFatalFailure()) return;
    }
    write_all(newer_ + "/" + name, text);
  }
  mend();
}

TEST_F(Damage, AnyCutAndAnyMoreIsNoticed) {
  for (const auto& [name, text] : whole_) {
    for (size_t n = 0; n < text.size(); ++n) {
      write_all(newer_ + "/" + name, text.substr(0, n));
      expect_noticed(name, fmt::format("cut to {} bytes", n));
      if (HasFatalFailure()) return;
    }
    write_all(newer_ + "/" + name, text + "x");
    expect_noticed(name, "a byte more");
    write_all(newer_ + "/" + name, text);
  }
  mend();
}

TEST_F(Damage, AMissingFileIsNoticed) {
  for (const auto& [name, text] : whole_) {
    fs::remove(newer_ + "/" + name);
    expect_noticed(name, "missing");
    fs::create_directory(newer_ + "/" + name);
    expect_noticed(name, "a folder");
    fs::remove(newer_ + "/" + name);
    mend();
  }
  fs::remove_all(newer_);
  fs::create_directory(newer_);
  expect_noticed("manifest.json", "an empty folder");
}

// Manifests that were sealed, and say what they must not.
TEST_F(Damage, AManifestThatLiesIsNoticed) {
  const std::string whole = whole_.at("manifest.json");
  const size_t seal = whole.find("  \"manifest_xxh128\"");
  ASSERT_NE(seal, std::string::npos);
  struct Lie {
    const char *from, *to, *says;
  };
  const std::vector<Lie> lies = {
      {"\"version\": 1", "\"version\": 2", "format version 2, and this program reads 1"},
      {"\"version\": 1", "\"version\": \"1\"", "'version' holds something else"},
      {"cleave-checkpoint", "cleave-plan", "not the manifest of a checkpoint"},
      {"\"step\": 2", "\"step\": 3", "its folder is named after step 2"},
      {"\"step\": 2", "\"step\": -2", "'step' holds something else than a count"},
      {"\"step\": 2", "\"step\": 1e99", "'step' holds something else than a count"},
      {"\"step\": 2,", "\"step\": 2", "not JSON"},
      {"  \"step\": 2,\n", "", "'step' is missing"},
      {"\"step\": 2", "\"step\": [[[[[[[[2]]]]]]]]", "nested too deeply"},
      {"\"files\": [", "\"files\": [7,", "'name' is looked for in something that is no object"},
      {"\"name\":\"run.json\"", "\"name\":\"../run.json\"", "cannot be the name of a file"},
      {"\"name\":\"run.json\"", "\"name\":\"\"", "cannot be the name of a file"},
      {"\"name\":\"run.json\"", "\"name\":\"optimizer-00001.safetensors\"", "listed twice"},
      {"\"bytes\":26", "\"bytes\":27", "run.json': cut off, 26 of its 27 bytes"},
      {"\"bytes\":26", "\"bytes\":18446744073709551615", "'bytes' holds something else"},
      {"\"xxh128\":\"", "\"xxh128\":\"z", "is no checksum"},
      {"\"name\":\"w\"", "\"name\":\"b\"", "tensor 'b' is listed twice"},
      {"\"name\":\"w\"", "\"name\":\"v\"", "no tensor 'v'"},
      {"\"dtype\":\"f32\"", "\"dtype\":\"i32\"", "'w' is f32[3, 5], and the manifest says i32"},
      {"\"dtype\":\"f32\"", "\"dtype\":\"f17\"", "unknown element type 'f17'"},
      {"[3,5]", "[5,3]", "'w' is f32[3, 5], and the manifest says f32[5, 3]"},
      {"[3,5]", "[3,-5]", "'shape' holds something else than a count"},
      {"[3,5]", "[4611686018427387904,5]", "its shape is too large"},
      {"\"kind\":\"state\"", "\"kind\":\"thing\"", "neither parameter nor state"},
      {"\"file\":\"optimizer-00001.safetensors\"", "\"file\":\"x\"", "which is not listed"},
      {"\"file\":\"optimizer-00001.safetensors\"", "\"file\":\"run.json\"", "no file of tensors"},
      {"\"file\":\"optimizer-00001.safetensors\"", "\"file\":\"weights-00001.safetensors\"",
       "no tensor 'm'"},
  };
  for (const Lie& lie : lies) {
    std::string text = whole.substr(0, seal);
    const size_t at = text.find(lie.from);
    ASSERT_NE(at, std::string::npos) << lie.from;
    text.replace(at, std::strlen(lie.from), lie.to);
    write_all(newer_ + "/manifest.json", text + manifest_seal(text));
    const std::vector<std::string> found = verify(newer_);
    ASSERT_FALSE(found.empty()) << lie.to;
    EXPECT_TRUE(std::any_of(
        found.begin(), found.end(),
        [&](const std::string& line) { return line.find(lie.says) != std::string::npos; }))
        << lie.to << "\n"
        << fmt::format("{}", fmt::join(found, "\n"));
    EXPECT_FALSE(error_of([&] { open_checkpoint(newer_); }).empty());
    EXPECT_EQ(open_checkpoint(path("s")).path(), older_);
  }
  // One tensor fewer than its file holds.
  std::string text = whole.substr(0, seal);
  const size_t line = text.find("    {\"name\":\"b\"");
  text.erase(line, text.find('\n', line) + 1 - line);
  write_all(newer_ + "/manifest.json", text + manifest_seal(text));
  expect_noticed("weights-00001.safetensors", "a tensor that is not listed");
}

TEST_F(Damage, WrongPathsAreSaidInOneLine) {
  EXPECT_NE(error_of([&] { open_checkpoint(path("nothing")); }).find("there is no checkpoint"),
            std::string::npos);
  EXPECT_NE(error_of([&] { open_checkpoint(newer_ + "/run.json"); }).find("is a file"),
            std::string::npos);
  EXPECT_NE(error_of([&] { verify(newer_ + "/run.json"); }).find("is a file"), std::string::npos);
  fs::create_directory(path("empty"));
  EXPECT_NE(error_of([&] { open_checkpoint(path("empty")); }).find("there is no checkpoint in"),
            std::string::npos);
  EXPECT_NE(error_of([&] { verify(path("empty")); }).find("there is no checkpoint in"),
            std::string::npos);
  CheckpointStore file(newer_ + "/run.json");
  EXPECT_NE(error_of([&] { file.write(small_snapshot(1)); }).find("is a file"), std::string::npos);
  EXPECT_EQ(verify(newer_), std::vector<std::string>{});
  // Tensors are asked for with the type that the model has.
  const Checkpoint c = open_checkpoint(newer_ + "/");
  EXPECT_NE(error_of([&] { c.bytes("x", {}); }).find("has no tensor 'x'"), std::string::npos);
  EXPECT_NE(error_of([&] {
              c.bytes("w", {DType::kF32, {5, 3}});
            }).find("'w' is f32[3, 5]"),
            std::string::npos);
  // With nothing sound left, the newest problem is named.
  fs::remove(older_ + "/run.json");
  fs::remove(newer_ + "/run.json");
  EXPECT_NE(error_of([&] { open_checkpoint(path("s")); }).find(newer_ + "/run.json': missing"),
            std::string::npos);
  EXPECT_NE(error_of([&] { open_checkpoint(newer_); }).find("no older sound checkpoint"),
            std::string::npos);
  EXPECT_EQ(verify(path("s")).size(), 2u);
}

TEST_F(Damage, KeepingCountsWhatIsCompleteAlone) {
  CheckpointStore store(path("s"));
  store.write(small_snapshot(3));
  fs::resize_file(store.folder() + "/step-00000003/weights-00001.safetensors", 9);
  store.keep(1);
  std::vector<int64_t> left;
  for (const CheckpointInfo& info : store.list()) left.push_back(info.step);
  EXPECT_EQ(left, (std::vector<int64_t>{3, 2}));
  store.write(small_snapshot(4));
  store.keep(1);
  ASSERT_EQ(store.list().size(), 1u);
  EXPECT_EQ(store.list()[0].step, 4);
}

}  // namespace
}  // namespace cleave
