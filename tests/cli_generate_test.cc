// cleave generate as a user meets it, from checkpoints of small models; and the shorter programs
// that short texts get.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>

#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/scorers.h"
#include "models/next_token.h"
#include "tests/cli_run.h"
#include "tests/cli_trained.h"
#include "tracer/functional.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

const std::vector<std::string> kSmall = {"layers=2", "hidden=32", "heads=4", "sequence=32"};

// A user's own model, with learned positions.
const UserModel& own_model() {
  static const UserModel model{
      "own",
      {.layers = 1, .hidden = 32, .heads = 4, .vocab = 128, .sequence = 32},
      [](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
        const Embedding embed("embed", c.vocab, c.hidden);
        const Tensor positions = parameter("positions", {c.hidden, c.sequence}, normal(0.1));
        Tensor x = embed(tokens) + positions.transpose(0, 1);
        const SelfAttention attention("attention", c.hidden, c.heads, {.dropout = 0.1});
        x = dropout(x + attention(x), 0.1);
        return cross_entropy(Linear("head", c.hidden, c.vocab)(x), targets);
      }};
  return model;
}

// One folder for all tests of the program: models are trained once.
class Generate : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / fmt::format("cleave_generate_{}", ::getpid());
    fs::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 800; ++i) text += fmt::format("{} and {} are {}. ", i % 10, i % 7, i % 5);
    write_file(path("data.txt"), text);
    const TrainedModel gpt = trained("gpt2:tiny", kSmall, 8, path("data.txt"), 250);
    gpt_ = save(path("gpt"), 250, gpt.tensors, job_text(gpt.model, "bytes"));
    TracedModel deeper = gpt.model, wider = deeper, named = deeper;
    deeper.spec.set.push_back("layers=3");
    wider.spec.set.push_back("ffn=64");
    named.spec.name = "gpt2:giant";
    deeper_ = save(path("deeper"), 1, gpt.tensors, job_text(deeper, "bytes"));
    wider_ = save(path("wider"), 1, gpt.tensors, job_text(wider, "bytes"));
    named_ = save(path("named"), 1, gpt.tensors, job_text(named, "bytes"));
    nameless_ = save(path("nameless"), 1, gpt.tensors, "{}");
    elsewhere_ = save(path("elsewhere"), 1, gpt.tensors, job_text(gpt.model, "/no/such.json"));
    const TrainedModel bert = trained("bert:base", kSmall, 4, path("data.txt"), 2);
    bert_ = save(path("bert"), 2, bert.tensors, job_text(bert.model, "bytes"));
    const TrainedModel own = trained("own", {"hidden=16"}, 4, path("data.txt"), 20, &own_model());
    own_ = save(path("own"), 20, own.tensors, job_text(own.model, "bytes"));
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }
  static std::string path(const std::string& name) { return (folder_ / name).string(); }

  static std::string text_of(const Outcome& o) {
    EXPECT_EQ(o.status, 0) << o.err;
    return o.out;
  }

  inline static fs::path folder_;
  inline static std::string gpt_, deeper_, wider_, named_, nameless_, elsewhere_, bert_, own_;
};

TEST_F(Generate, ContinuesThePromptAndSaysHowFast) {
  const Outcome o =
      capture({"generate", gpt_, "--prompt", "3 and 3 a", "--tokens", "60", "--temperature", "0"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(o.out.starts_with("3 and 3 a")) << o.out;
  EXPECT_EQ(o.out.size(), 9u + 60u + 1u) << o.out;  // one letter a token
  EXPECT_EQ(o.out.back(), '\n');
  // It has learnt how the text goes on.
  EXPECT_TRUE(o.out.starts_with("3 and 3 are ")) << o.out;
  EXPECT_NE(o.out.find(" and ", 12), std::string::npos) << o.out;
  EXPECT_TRUE(std::regex_match(
      o.err,
      std::regex(R"(60 tokens in .*: [\d.]+ tokens/s on one device, step 250 of gpt2:tiny\n)")))
      << o.err;
}

TEST_F(Generate, TheSameSeedIsTheSameTextOnAnyMesh) {
  const std::vector<std::string> common = {"generate", gpt_, "--prompt",  "7 and",
                                           "--tokens", "50", "--samples", "2"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return text_of(capture(more));
  };
  const std::string one = with({"--seed", "4"});
  EXPECT_NE(one.find("--- sample 2 of 2 ---\n7 and"), std::string::npos) << one;
  EXPECT_EQ(with({"--seed", "4"}), one);
  EXPECT_NE(with({"--seed", "5"}), one);
  EXPECT_EQ(with({"--seed", "4", "--devices", "cpu:2"}), one);
  EXPECT_EQ(with({"--seed", "4", "--devices", "cpu:4", "--mesh", "dp=2,tp=2"}), one);
  EXPECT_EQ(with({"--seed", "4", "--devices", "cpu:4", "--mesh", "tp=4"}), one);
  // Greedy: no seed matters.
  EXPECT_EQ(with({"--temperature", "0", "--seed", "1"}),
            with({"--temperature", "0", "--seed", "2"}));
  EXPECT_EQ(with({"--temperature", "0"}), with({"--top-k", "1"}));
}

TEST_F(Generate, JsonHasEverySample) {
  const Outcome o = capture({"generate", path("gpt"), "--prompt", "1 and 1", "--tokens", "20",
                             "--samples", "3", "--seed", "9", "--json"});
  ASSERT_EQ(o.status, 0) << o.err;
  const Json j = Json::parse(o.out);
  EXPECT_EQ(j.at("checkpoint"), gpt_);
  EXPECT_EQ(j.at("step"), 250);
  EXPECT_EQ(j.at("model"), "gpt2:tiny");
  EXPECT_EQ(j.at("prompt"), "1 and 1");
  EXPECT_EQ(j.at("prompt_tokens").size(), 7u);
  EXPECT_EQ(j.at("seed"), 9);
  EXPECT_GT(j.at("tokens_per_second").get<double>(), 0);
  ASSERT_EQ(j.at("samples").size(), 3u);
  for (const Json& s : j["samples"]) {
    EXPECT_EQ(s.at("tokens").size(), 20u);
    EXPECT_FALSE(s.at("ended").get<bool>());
  }
  // The first sample is what one alone is.
  const std::string alone =
      text_of(capture({"generate", gpt_, "--prompt", "1 and 1", "--tokens", "20", "--seed", "9"}));
  EXPECT_EQ(alone, "1 and 1" + j["samples"][0].at("text").get<std::string>() + "\n");
}

TEST_F(Generate, ReadsThePromptFromAFile) {
  write_file(path("prompt.txt"), "5 and 5 are");
  EXPECT_EQ(text_of(capture({"generate", gpt_, "--prompt-file", path("prompt.txt")})),
            text_of(capture({"generate", gpt_, "--prompt", "5 and 5 are"})));
}

TEST_F(Generate, BrokenCharactersAreReplaced) {
  const Outcome o =
      capture({"generate", gpt_, "--prompt", "\xff\xc3", "--tokens", "30", "--temperature", "50"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NO_THROW(Json(o.out).dump());  // throws at what is no UTF-8
}

TEST_F(Generate, AUsersOwnModelGenerates) {
  const Outcome o =
      capture({"generate", own_, "--prompt", "2 and", "--tokens", "70"}, &own_model());
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out.size(), 5u + 70u + 1u);
  const Outcome without = capture({"generate", own_, "--prompt", "2 and"});
  EXPECT_EQ(without.status, 1);
  EXPECT_NE(without.err.find("the model 'own', which is not built in"), std::string::npos)
      << without.err;
  // The built-in ones are still there.
  EXPECT_EQ(capture({"generate", gpt_, "--prompt", "2", "--tokens", "1"}, &own_model()).status, 0);
}

// From training to text with nothing but the command.
TEST_F(Generate, ContinuesFromWhatTrainingHasWritten) {
  const Outcome t = capture({"train", "llama:tiny", "--set", "layers=1", "hidden=32", "heads=4",
                             "kv_heads=2", "ffn=64", "--batch", "4", "--data", path("data.txt"),
                             "--devices", "cpu:2", "--steps", "6", "--out", path("run")});
  ASSERT_EQ(t.status, 0) << t.err;
  const Outcome o = capture({"generate", path("run"), "--prompt", "7 a", "--tokens", "100"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(o.out.starts_with("7 a")) << o.out;
  EXPECT_NE(o.err.find("100 tokens in"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("step 6 of llama:tiny"), std::string::npos) << o.err;
}

// A byte-level tokenizer as GPT-2's files say it: the bytes, "an", "and", and an end of text.
std::string write_tokenizer(const std::string& folder) {
  Json vocab;
  for (int byte = 0, other = 0; byte < 256; ++byte) {
    const bool shown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    const int c = shown ? byte : 256 + other++;
    std::string text(1, static_cast<char>(c));
    if (c >= 128) text = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    vocab[text] = byte;
  }
  vocab["an"] = 256, vocab["and"] = 257, vocab["<|endoftext|>"] = 258;
  fs::create_directories(folder);
  write_file(folder + "/vocab.json", vocab.dump());
  write_file(folder + "/merges.txt", "#version: 0.2\na n\nan d\n");
  return folder;
}

TEST_F(Generate, TextBeginsAndEndsWithTheTokenizersEndOfText) {
  const std::string tokenizer = write_tokenizer(path("tokenizer"));
  std::string text;
  for (int i = 0; i < 800; ++i) text += fmt::format("{} and {}.<|endoftext|>", i % 10, i % 7);
  write_file(path("ended.txt"), text);
  std::vector<std::string> set = kSmall;
  set.push_back("vocab=384");
  const TrainedModel bpe = trained("gpt2:tiny", set, 8, path("ended.txt"), 150, nullptr, tokenizer);
  const std::string folder = save(path("bpe"), 150, bpe.tensors, job_text(bpe.model, tokenizer));
  const Json j = Json::parse(
      text_of(capture({"generate", folder, "--samples", "4", "--temperature", "0.5", "--json"})));
  EXPECT_EQ(j.at("prompt"), "");
  for (const Json& s : j.at("samples")) {
    EXPECT_TRUE(s.at("ended").get<bool>()) << s.dump();
    EXPECT_LT(s.at("tokens").size(), 30u);
    EXPECT_EQ(s.at("text").get<std::string>().find("<|"), std::string::npos) << s.dump();
    for (const Json& t : s.at("tokens")) EXPECT_LT(t.get<int>(), 258);  // never of the padding
  }
  const std::string alone = text_of(capture({"generate", folder, "--temperature", "0.5"}));
  EXPECT_EQ(alone, j["samples"][0].at("text").get<std::string>() + "\n");
  const std::string going_on =
      text_of(capture({"generate", folder, "--prompt", "3 a", "--temperature", "0"}));
  EXPECT_TRUE(going_on.starts_with("3 a")) << going_on;
  const Outcome o = capture({"generate", gpt_, "--prompt", "a", "--tokenizer", tokenizer});
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("has 259 tokens, but the model knows 256"), std::string::npos) << o.err;
}

TEST_F(Generate, MistakesAreOneLine) {
  struct Mistake {
    std::vector<std::string> args;
    std::string says;
    const UserModel* user = nullptr;
  };
  write_file(path("empty"), "");
  fs::create_directories(path("nothing"));
  const std::vector<Mistake> mistakes = {
      {{}, "CHECKPOINT"},
      {{path("nowhere"), "--prompt", "a"}, "there is no checkpoint '" + path("nowhere") + "'"},
      {{path("nothing"), "--prompt", "a"}, "there is no checkpoint in"},
      {{path("data.txt"), "--prompt", "a"}, "a checkpoint is a folder"},
      {{gpt_}, "the prompt is empty, and the tokenizer 'bytes' has no end-of-text token"},
      {{gpt_, "--prompt", ""}, "the prompt is empty"},
      {{gpt_, "--prompt-file", path("empty")}, "the prompt is empty"},
      {{gpt_, "--prompt-file", path("missing.txt")}, "missing.txt"},
      {{gpt_, "--prompt", "a", "--prompt-file", path("data.txt")}, "write one of them"},
      {{gpt_, "--prompt", "a", "--tokens", "0"}, "--tokens 0"},
      {{gpt_, "--prompt", "a", "--tokens", "x"}, "--tokens"},
      {{gpt_, "--prompt", "a", "--samples", "0"}, "--samples 0"},
      {{gpt_, "--prompt", "a", "--temperature", "-1"}, "--temperature -1"},
      {{gpt_, "--prompt", "a", "--temperature", "nan"}, "--temperature 'nan'"},
      {{gpt_, "--prompt", "a", "--top-k", "0"}, "--top-k 0"},
      {{gpt_, "--prompt", "a", "--top-p", "0"}, "--top-p 0"},
      {{gpt_, "--prompt", "a", "--seed", "-1"}, "--seed -1"},
      {{gpt_, "--prompt", "a", "--devices", "8xh100"}, "generate runs on cpu:N only"},
      {{gpt_, "--prompt", "a", "--devices", "cpu:0"}, "cpu:0"},
      {{gpt_, "--prompt", "a", "--devices", "cpu:2", "--mesh", "dp=2"}, "try --samples 2"},
      {{gpt_, "--prompt", "a", "--devices", "cpu:2", "--mesh", "4"}, "4 devices"},
      {{gpt_, "--prompt", "a", "--tokenizer", "/no/such.json"}, "/no/such.json"},
      {{elsewhere_, "--prompt", "a"}, "/no/such.json"},
      {{elsewhere_, "--prompt", "a"}, "name it with --tokenizer"},
      {{deeper_, "--prompt", "a"}, "has no tensor 'h.2."},
      {{wider_, "--prompt", "a"}, "mlp.fc.weight' is f32[128, 32], and the model's is f32[64, 32]"},
      {{named_, "--prompt", "a"}, "the model 'gpt2:giant', which is not built in"},
      {{nameless_, "--prompt", "a"}, "does not say which model"},
      {{bert_, "--prompt", "a"}, "bert:base predicts masked tokens"},
      {{own_, "--prompt", "a\xc3\xa9"},
       "token 2 of the prompt is 195, but the model knows tokens 0 "
       "to 127",
       &own_model()},
  };
  for (const Mistake& m : mistakes) {
    std::vector<std::string> args = m.args;
    args.insert(args.begin(), "generate");
    const Outcome o = capture(args, m.user);
    EXPECT_EQ(o.status, 1) << m.says << "\n" << o.err;
    EXPECT_TRUE(one_line(o.err)) << o.err;
    EXPECT_TRUE(o.err.starts_with("cleave: error: ")) << o.err;
    EXPECT_NE(o.err.find(m.says), std::string::npos) << m.says << "\n" << o.err;
    EXPECT_EQ(o.out, "") << m.says;
  }
}

// --- Shorter programs for short texts ------------------------------------------------------------

// Scores by windows that grow, and by the whole window, of texts of every length.
void expect_same_scores(const TrainedModel& t, const UserModel* user, bool shorter) {
  const auto weights = [&](std::string_view name, const TensorType& type) {
    for (const SavedTensor& s : t.tensors) {
      if (s.name == name && s.type == type) return std::span<const std::byte>(s.bytes);
    }
    fail("no tensor '{}'", name);
  };
  const Cluster one = parse_cluster("cpu:1"), two = parse_cluster("cpu:2");
  ModelSpec spec = t.model.spec;
  spec.batch = 2;
  Scorers growing(spec, user, two, "", weights), whole(spec, user, one, "", weights);
  const int64_t full = t.model.config.sequence;
  EXPECT_EQ(growing.at_least(3).length() < full, shorter);
  std::mt19937 random(5);
  std::vector<std::vector<int32_t>> texts(2);
  for (int64_t n = 1; n <= full + 3; ++n) {
    for (auto& text : texts) text.push_back(static_cast<int32_t>(random() % 100));
    Scorer& scorer = growing.at_least(n);
    EXPECT_GE(scorer.length(), std::min(n, full));
    const std::vector<double> a = scorer.scores(texts), b = whole.at_least(full).scores(texts);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4) << n;
  }
  EXPECT_EQ(growing.at_least(full).length(), full);
}

UserModel with_loss(decltype(UserModel::loss) loss) {
  return {"mine", {.layers = 1, .hidden = 16, .heads = 4, .vocab = 128, .sequence = 64}, loss};
}

TEST_F(Generate, ShortTextsGetTheSameScoresFromShorterPrograms) {
  for (const char* name : {"gpt2:tiny", "llama:tiny", "mlp:tiny"}) {
    SCOPED_TRACE(name);
    std::vector<std::string> set = {"layers=2", "hidden=32", "sequence=64"};
    if (std::string_view(name) != "mlp:tiny") set.emplace_back("heads=4");
    expect_same_scores(trained(name, set, 4, path("data.txt"), 10), nullptr, true);
  }
  const UserModel own{"own", own_model().defaults, own_model().loss};
  expect_same_scores(trained("own", {"sequence=64"}, 4, path("data.txt"), 5, &own), &own, true);
}

// Models that are another model for shorter sequences are not shortened.
TEST_F(Generate, WhatDependsOnTheLengthIsNotShortened) {
  const UserModel scaled = with_loss([](const ModelConfig& c, const Tensor& x, const Tensor& y) {
    const SelfAttention attention("attention", c.hidden, c.heads, {});
    const Tensor h = Embedding("embed", c.vocab, c.hidden)(x);
    const Tensor scaled_h = h + attention(h) * (8.0 / static_cast<double>(c.sequence));
    return cross_entropy(Linear("head", c.hidden, c.vocab)(scaled_h), y);
  });
  // A table as large as the sequence that has nothing to do with it.
  const UserModel table = with_loss([](const ModelConfig& c, const Tensor& x, const Tensor& y) {
    const SelfAttention attention("attention", c.hidden, c.heads, {});
    const Tensor h = Embedding("embed", c.vocab, c.hidden)(x);
    const Linear up("up", c.hidden, c.sequence), down("down", c.sequence, c.hidden);
    return cross_entropy(Linear("head", c.hidden, c.vocab)(attention(down(relu(up(h))))), y);
  });
  for (const UserModel* model : {&scaled, &table}) {
    expect_same_scores(trained("mine", {}, 4, path("data.txt"), 5, model), model, false);
  }
}

}  // namespace
}  // namespace cleave
