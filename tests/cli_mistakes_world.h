// A folder with something of everything a command reads, sound and damaged, and pictures of a
// folder that show whether anything in it has changed.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/format.h"
#include "tests/cli_run.h"

namespace cleave::testing {

// The bytes of every file below a folder; of folders and links, that they are there.
inline std::map<std::string, std::string> picture_of(const std::filesystem::path& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    all[name] = entry.is_regular_file() ? read_file(entry.path().string()) : "not a file";
  }
  return all;
}

// What differs, for people: "new: a, changed: b"; empty when nothing does. Names that begin with
// `allowed` may be new.
inline std::string difference(const std::map<std::string, std::string>& before,
                              const std::map<std::string, std::string>& after,
                              const std::string& allowed = "") {
  std::string text;
  for (const auto& [name, bytes] : before) {
    const auto at = after.find(name);
    if (at == after.end()) text += "lost: " + name + "; ";
    if (at != after.end() && at->second != bytes) text += "changed: " + name + "; ";
  }
  for (const auto& [name, unused] : after) {
    if (before.contains(name) || (!allowed.empty() && name.starts_with(allowed))) continue;
    text += "new: " + name + "; ";
  }
  return text;
}

class World {
 public:
  World()
      : folder_(std::filesystem::temp_directory_path() /
                fmt::format("cleave_mistakes_{}", ::getpid())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    data();
    tokenizers();
    graphs();
    plans();
    tomls();
    runs();
  }
  ~World() { std::filesystem::remove_all(folder_); }
  World(const World&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary | std::ios::trunc) << bytes;
  }

  // "@x" is x in this folder.
  std::string here(std::string line) const {
    for (size_t at; (at = line.find('@')) != std::string::npos;) line.replace(at, 1, path(""));
    return line;
  }

 private:
  static std::string repeated(const std::string& text, size_t times) {
    std::string result;
    for (size_t i = 0; i < times; ++i) result += text;
    return result;
  }

  template <class T>
  static std::string bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }

  void right(const std::string& line) const {
    const Outcome o = cleave_run(here(line));
    EXPECT_EQ(o.status, 0) << line << "\n" << o.err;
  }

  void data() const {
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("{} times {} is {}. ", i, i, i * i);
    write("data.txt", text);
    write("short.txt", "ab");
    write("empty.txt", "");
    std::filesystem::create_directories(folder_ / "nothing");
    // 200 tokens of llm.c's, and headers that lie.
    std::vector<int32_t> header(256);
    header[0] = 20240520, header[1] = 1, header[2] = 2000;
    const std::string tokens = bytes_of(std::vector<uint16_t>(2000, 300));
    write("shard.bin", bytes_of(header) + tokens);
    write("cut.bin", bytes_of(header) + tokens.substr(0, 1001));
    write("headless.bin", bytes_of(header).substr(0, 100));
    header[1] = 7;
    write("version.bin", bytes_of(header) + tokens);
    write("zeros.bin", std::string(4096, '\0'));
    write("odd.u16", "abc");
    write("bad_idx.bin", tokens);
    write("bad_idx.idx", std::string("MMIDIDX\0\0", 9) + "nonsense");
    write("lonely.idx", std::string("MMIDIDX\0\0", 9) + std::string(25, '\0'));
  }

  void tokenizers() const {
    write("tok/broken.json", "{\"model\": {\"type\": \"BPE\",");
    write(
        "tok/unigram.json",
        R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {"type": "Unigram", "vocab": []}})");
    write("tok/pre.json",
          R"({"pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "BPE", "vocab": {"a": 0},
              "merges": []}})");
    write("tok/deep.json", "{\"model\": {\"vocab\": " + repeated("[", 100'000));
    write("tok/no_model.json", "{}");
    write("tok/empty.json", "");
    write("tok/few/vocab.json", R"({"a": 0, "b": 1})");
    write("tok/few/merges.txt", "#version: 0.2\na b\n");
    write("tok/merges_only/merges.txt", "#version: 0.2\na b\n");
    write("tok/vocab_only/vocab.json", R"({"a": 0, "b": 1})");
  }

  void graphs() const {
    right("trace mlp:tiny -o @graph.txt");
    right("trace mlp:tiny -o @graph.json");
    const std::string text = read_file((folder_ / "graph.txt").string());
    const std::string json = read_file((folder_ / "graph.json").string());
    write("half.txt", text.substr(0, text.size() / 2));
    write("half.json", json.substr(0, json.size() / 2));
    write("shape.txt", "graph x\n\ndata %0 w: f32[2\n");
    write("op.txt", "graph x\ndata %0 w: f32[2]\nforward\n%1: f32[2] = frobnicate(%0) \"A->A\"\n");
    write("undefined.txt", "graph x\ndata %0 w: f32[2]\nforward\n%1: f32[2] = neg(%7) \"A->A\"\n");
    write("binary.txt", std::string("\0\1\2\xff", 4));
    write("deep.json", "{\"cleave_graph\": " + repeated("[", 100'000));
    write("other.json", "{\"a\": 1}");
  }

  void plans() const {
    right("plan gpt2:tiny --set layers=1 hidden=32 --cluster cpu:2 --batch 4 -o @plan.json");
    right("plan mlp:tiny --forward --cluster cpu:2 -o @forward.json");
    right("plan mlp:tiny --precision bf16 --cluster cpu:2 -o @bf16.json");
    const std::string text = read_file((folder_ / "plan.json").string());
    using Json = nlohmann::ordered_json;
    const Json whole = Json::parse(text);
    const auto with = [&](const std::string& name, const auto& change) {
      Json json = whole;
      change(json);
      write(name, json.dump());
    };
    write("plans/cut.json", text.substr(0, text.size() / 2));
    write("plans/words.json", "this is \"cleave-plan\" no JSON\n");
    write("plans/deep.json",
          "{\"format\": \"cleave-plan\", \"choices\": " + repeated("[", 100'000));
    with("plans/version.json", [](Json& j) { j["version"] = 99; });
    with("plans/no_model.json", [](Json& j) { j.erase("model"); });
    with("plans/no_choices.json", [](Json& j) { j.erase("choices"); });
    with("plans/type.json", [](Json& j) { j["mesh"] = "two"; });
    with("plans/hash.json", [](Json& j) { j["graph"]["hash"] = "0123456789abcdef"; });
    with("plans/layers.json", [](Json& j) { j["model"]["set"] = {"layers=2", "hidden=32"}; });
    with("plans/name.json", [](Json& j) { j["model"]["name"] = "gpt2:giant"; });
    with("plans/precision.json", [](Json& j) { j["model"]["precision"] = "fp7"; });
    with("plans/batch.json", [](Json& j) { j["model"]["batch"] = 0; });
  }

  void tomls() const {
    write("toml/line.toml", "[train]\nsteps 3\n");
    write("toml/key.toml", "[model]\nname = \"gpt2:tiny\"\n[train]\nstpes = 3\n");
    write("toml/section.toml", "[trian]\nsteps = 3\n");
    write("toml/type.toml", "[train]\nsteps = \"three\"\n");
    write("toml/twice.toml", "[train]\nsteps = 3\nsteps = 4\n");
    write("toml/range.toml", "[train]\nsteps = 0\n");
    write("toml/set.toml", "[model]\nname = \"gpt2:tiny\"\nset = { depth = 4 }\n");
    write("toml/deep.toml", "[train]\nsteps = " + std::string(100'000, '['));
    write("toml/good.toml",
          here("[model]\nname = \"gpt2:tiny\"\nset = { layers = 1, hidden = 32 }\n[data]\nfile = "
               "\"@data.txt\"\n[devices]\nuse = \"cpu:2\"\n[train]\nsteps = 2\nbatch = 4\n"));
    write("toml/plan.toml",
          here("[model]\nname = \"@plan.json\"\n[data]\nfile = \"@data.txt\"\n[devices]\n"
               "use = \"cpu:2\"\n[train]\nsteps = 2\n"));
    write("toml/no_data.toml", "[model]\nname = \"gpt2:tiny\"\n[devices]\nuse = \"cpu:2\"\n");
  }

  // A run of three checkpoints; the same with the newest damaged; with all damaged; and one of a
  // model that cannot generate.
  void runs() const {
    namespace fs = std::filesystem;
    const std::string small =
        " --set layers=1 hidden=32 --batch 4 --data @data.txt --devices cpu:1"
        " --steps 3 --checkpoint-every 1 --no-tensorboard --seed 5 --out @";
    right("train gpt2:tiny" + small + "run");
    right("train bert:base --set heads=4 sequence=32 vocab=300" + small + "bert");
    for (const char* copy : {"damaged", "ruined", "cut", "torn"}) {
      fs::copy(folder_ / "run", folder_ / copy, fs::copy_options::recursive);
    }
    const auto flip = [&](const std::string& name) {
      std::string bytes = read_file((folder_ / name).string());
      bytes[bytes.size() - 9] ^= 16;
      write(name, bytes);
    };
    flip("damaged/checkpoints/step-00000003/weights-00001.safetensors");
    for (int step : {1, 2, 3}) {
      flip(fmt::format("ruined/checkpoints/step-{:08}/weights-00001.safetensors", step));
    }
    fs::resize_file(folder_ / "cut/checkpoints/step-00000003/optimizer-00001.safetensors", 1000);
    fs::remove(folder_ / "cut/checkpoints/step-00000002/manifest.json");
    write("torn/checkpoints/step-00000003/manifest.json", "{\"format\": \"cleave-checkpoint\",");
    const std::string tensors =
        read_file((folder_ / "run/checkpoints/step-00000003/weights-00001.safetensors").string());
    write("st/cut.safetensors", tensors.substr(0, tensors.size() / 2));
    write("st/huge.safetensors", std::string(7, '\xff') + std::string("\x7f{}", 3));
    write("st/words.safetensors", "twelve words or fewer");
    std::string header = "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], ";
    header += "\"data_offsets\": [0, 9999999]}}";
    write("st/offsets.safetensors", bytes_of(std::vector<uint64_t>{header.size()}) + header);
    fs::create_directory_symlink(folder_ / "gone", folder_ / "dangling");
  }

  std::filesystem::path folder_;
};

}  // namespace cleave::testing
