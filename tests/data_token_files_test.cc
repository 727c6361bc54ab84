// Token files: each kind holds what was written into it, several are one text, and whatever is
// wrong with one is said in one line that names it.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>

#include "data/token_data.h"
#include "graph/error.h"

namespace cleave {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

template <class T>
std::string binary(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// A shard as llm.c writes it.
template <class T>
std::string shard(const std::vector<T>& tokens,
                  int32_t magic = sizeof(T) == 2 ? 20240520 : 20240801) {
  std::vector<int32_t> header(256, 0);
  header[0] = magic, header[1] = 1, header[2] = static_cast<int32_t>(tokens.size());
  return binary(header) + binary(tokens);
}

// An index as Megatron writes it.
struct Index {
  uint64_t version = 1;
  uint8_t type = 8;
  std::vector<int32_t> sizes;
  std::vector<int64_t> pointers, documents;

  // One document of each size.
  static Index of(std::vector<int32_t> sizes, uint8_t type, int64_t width) {
    Index index{1, type, std::move(sizes), {}, {0}};
    int64_t at = 0;
    for (size_t s = 0; s < index.sizes.size(); ++s) {
      index.pointers.push_back(at);
      at += index.sizes[s] * width;
      index.documents.push_back(static_cast<int64_t>(s) + 1);
    }
    return index;
  }
  std::string text() const {
    return std::string("MMIDIDX\0\0", 9) + binary(std::vector<uint64_t>{version}) +
           static_cast<char>(type) + binary(std::vector<uint64_t>{sizes.size(), documents.size()}) +
           binary(sizes) + binary(pointers) + binary(documents);
  }
};

class TokenFiles : public ::testing::Test {
 protected:
  TokenFiles() {
    folder_ = std::filesystem::temp_directory_path() /
              ("cleave_token_files_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  ~TokenFiles() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string file(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }
  // What is said of a file when it is opened, with its path left out.
  std::string said_of(const std::string& data, int64_t sequence = 2) const {
    std::string said = message_of([&] { TokenData({data}, sequence); });
    for (size_t at; (at = said.find(folder_.string() + "/")) != said.npos;) {
      said.erase(at, folder_.string().size() + 1);
    }
    EXPECT_EQ(said.find('\n'), said.npos) << said;
    return said;
  }

 private:
  std::filesystem::path folder_;
};

template <class T>
std::vector<T> some_tokens(size_t n, T most, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> tokens(n);
  for (T& t : tokens) t = static_cast<T>(random() % (static_cast<uint64_t>(most) + 1));
  return tokens;
}

template <class T>
std::vector<int32_t> widened(const std::vector<T>& tokens) {
  return {tokens.begin(), tokens.end()};
}

std::vector<int32_t> all_of(const TokenData& data) {
  std::vector<int32_t> all = data.training(0, data.training_tokens());
  const std::vector<int32_t> tail = data.validation(0, data.validation_tokens());
  all.insert(all.end(), tail.begin(), tail.end());
  return all;
}

TEST_F(TokenFiles, EachKindHoldsWhatWasWritten) {
  const auto u8 = some_tokens<uint8_t>(500, 255, 1);
  const auto u16 = some_tokens<uint16_t>(500, 65535, 2);
  const auto u32 = some_tokens<uint32_t>(500, 2000000, 3);
  const auto i16 = some_tokens<int16_t>(500, 32767, 4);
  const auto i32 = some_tokens<int32_t>(500, 2000000, 5);
  const auto expect = [](const std::string& data, const auto& tokens, TextFormat format) {
    const TokenData text({data}, 8);
    EXPECT_EQ(all_of(text), widened(tokens)) << data;
    EXPECT_EQ(text.format(), format) << data;
  };
  expect("text:" + file("bytes", binary(u8)), u8, TextFormat::kBytes);
  expect(file("gpt2.bin", shard(u16)), u16, TextFormat::kLlmc);
  expect(file("llama", shard(u32)), u32, TextFormat::kLlmc);
  expect("uint16:" + file("raw", binary(u16)), u16, TextFormat::kRaw);
  expect("uint32:" + file("raw", binary(u32)), u32, TextFormat::kRaw);
  const auto pair = [&](const std::string& name, uint8_t code, int64_t width,
                        const std::string& tokens) {
    file(name + ".idx", Index::of({100, 0, 399, 1}, code, width).text());
    file(name + ".bin", tokens);
  };
  pair("m1", 1, 1, binary(u8)), pair("m3", 3, 2, binary(i16)), pair("m4", 4, 4, binary(i32));
  pair("m8", 8, 2, binary(u16));
  for (const char* ending : {"", ".bin", ".idx"}) {
    expect(path("m1") + ending, u8, TextFormat::kMegatron);
    expect(path("m3") + ending, i16, TextFormat::kMegatron);
    expect(path("m4") + ending, i32, TextFormat::kMegatron);
    expect(path("m8") + ending, u16, TextFormat::kMegatron);
  }
}

TEST_F(TokenFiles, SeveralFilesAreOneText) {
  std::vector<uint16_t> whole;
  std::string list;
  for (const char* name : {"s_a.bin", "s_b.bin", "s_c.bin"}) {
    const auto tokens = some_tokens<uint16_t>(7 + whole.size(), 5000, 9);
    whole.insert(whole.end(), tokens.begin(), tokens.end());
    list += (list.empty() ? "" : ",") + file(name, shard(tokens));
  }
  for (const std::string& data :
       {list, path("s_*.bin"), path("s_a.bin") + "," + path("s_[bc].bin"), path("s_?.bin")}) {
    const TokenData text({data}, 5, 0);
    EXPECT_EQ(all_of(text), widened(whole)) << data;
    // Windows lie across the ends of files.
    for (int64_t first = 0; first + 6 <= text.training_tokens(); ++first) {
      const std::vector<int32_t> some = text.training(first, 6);
      ASSERT_TRUE(std::equal(some.begin(), some.end(), whole.begin() + first));
    }
  }
  // Both files of a pair match; they are one.
  file("p_1.bin", binary(whole)), file("p_2.bin", binary(whole));
  for (const char* name : {"p_1.idx", "p_2.idx"}) {
    file(name, Index::of({static_cast<int32_t>(whole.size())}, 8, 2).text());
  }
  EXPECT_EQ(TokenData({path("p_*")}, 5, 0).training_tokens(),
            2 * static_cast<int64_t>(whole.size()));
  // A name with a comma or a star is a name when there is such a file.
  EXPECT_EQ(TokenData({file("a,b*", "some text")}, 3, 0).training_tokens(), 9);
}

TEST_F(TokenFiles, AnotherFileValidates) {
  const auto train = some_tokens<uint16_t>(300, 50000, 1), valid = some_tokens<uint16_t>(41, 9, 2);
  const TokenData data({file("t", shard(train)), file("v", shard(valid))}, 8);
  EXPECT_EQ(data.training(0, data.training_tokens()), widened(train));
  EXPECT_EQ(data.validation(0, data.validation_tokens()), widened(valid));
  EXPECT_EQ(data.validation_windows(), 5);
  const Batch batch = data.validation_batch(0, {.batch = 5, .vocab = 50257});
  EXPECT_TRUE(std::equal(batch.tokens.begin(), batch.tokens.end(), valid.begin()));
  const TokenData other = data.with_sequence(20);
  EXPECT_EQ(other.validation_windows(), 2);
  EXPECT_EQ(message_of([&] { data.with_sequence(41); }),
            "the data '" + path("v") +
                "' have 41 tokens, but one sequence of 41 needs 42; take more data, or --set "
                "sequence=40");
  const std::string text = file("text", "a text of letters");
  EXPECT_NE(message_of([&] {
              TokenData({path("t"), text}, 8);
            }).find("are bytes, but"),
            std::string::npos);
}

// What a step reads must not depend on how the run was cut into batches, nor where it was stopped.
TEST_F(TokenFiles, SamplesAreCountedFromTheStartOfTheRun) {
  const TokenData data({file("t", shard(some_tokens<uint16_t>(900, 50000, 3)))}, 8);
  for (const Targets targets : {Targets::kNextToken, Targets::kMaskedTokens}) {
    const auto batch = [&](int64_t first, int64_t n) {
      return data.training_batch(first,
                                 {.batch = n, .vocab = 50304, .targets = targets, .seed = 7});
    };
    const Batch whole = batch(30, 12);
    Batch parts;
    for (const auto& [first, n] : {std::pair{30, 5}, {35, 1}, {36, 6}}) {
      const Batch part = batch(first, n);
      parts.tokens.insert(parts.tokens.end(), part.tokens.begin(), part.tokens.end());
      parts.targets.insert(parts.targets.end(), part.targets.begin(), part.targets.end());
    }
    EXPECT_EQ(parts.tokens, whole.tokens);
    EXPECT_EQ(parts.targets, whole.targets);
  }
}

TEST_F(TokenFiles, MasksAreOutsideTheTokensWhereTheVocabularyHasOne) {
  const TokenData data({file("t", shard(some_tokens<uint16_t>(5000, 50256, 3)))}, 64);
  const auto masks = [&](int64_t vocab, int64_t mask) {
    const Batch plain = data.training_batch(0, {.batch = 20, .vocab = vocab});
    const Batch batch = data.training_batch(
        0, {.batch = 20, .vocab = vocab, .targets = Targets::kMaskedTokens, .mask_token = mask});
    std::map<int32_t, int> counts;
    for (size_t i = 0; i < plain.tokens.size(); ++i) {
      if (batch.tokens[i] != plain.tokens[i]) ++counts[batch.tokens[i]];
    }
    return std::max_element(counts.begin(), counts.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  };
  EXPECT_EQ(masks(50304, -1), 50257);
  EXPECT_EQ(masks(50257, -1), 50256);
  EXPECT_EQ(masks(50304, 50300), 50300);
}

TEST_F(TokenFiles, TheFingerprintIsOfTheTokensAndNotOfTheFiles) {
  auto tokens = some_tokens<uint16_t>(200000, 50000, 8);
  const auto print = [](const std::string& train, const std::string& valid = "") {
    return TokenData({train, valid}, 8).fingerprint();
  };
  const std::string one = print(file("one", shard(tokens)));
  const std::vector<uint16_t> a(tokens.begin(), tokens.begin() + 777),
      b(tokens.begin() + 777, tokens.end());
  EXPECT_EQ(print(file("a", shard(a)) + "," + file("b", shard(b))), one);
  file("m.idx", Index::of({200000}, 8, 2).text());
  EXPECT_EQ(print(file("m.bin", binary(tokens))), one);
  EXPECT_EQ(TokenData({path("one")}, 100).fingerprint(), one);
  EXPECT_EQ(one.find(' '), std::string::npos);

  EXPECT_NE(print(path("one"), path("a")), one);
  EXPECT_NE(print(path("one"), path("a")), print(path("one"), path("b")));
  EXPECT_NE(print(path("a"), path("one")), print(path("one"), path("a")));
  tokens.back() ^= 1;
  EXPECT_NE(print(file("two", shard(tokens))), one);
  tokens.back() ^= 1;
  tokens.push_back(3);
  EXPECT_NE(print(file("two", shard(tokens))), one);
}

TEST_F(TokenFiles, ATokenThatTheModelDoesNotKnowIsNamed) {
  auto tokens = some_tokens<uint16_t>(2000, 50000, 8);
  tokens[1234] = 50300;
  const TokenData data({file("t", shard(tokens))}, 8);
  EXPECT_NO_THROW(data.check_vocab(50301));
  EXPECT_EQ(message_of([&] { data.check_vocab(50257); }),
            "the data hold token 50300 in '" + path("t") +
                "' at byte 3492, but the model knows tokens 0 to 50256; --set vocab=50301 takes "
                "any such data");
  const TokenData both({path("t") + "," + file("u", shard(std::vector<uint16_t>{60000, 1}))}, 8);
  EXPECT_NE(message_of([&] {
              both.check_vocab(50301);
            }).find("token 60000 in '" + path("u") + "' at byte 1024"),
            std::string::npos);
  const TokenData text({file("text", "plain text, then \xc3\xa9")}, 4);
  EXPECT_NO_THROW(text.check_vocab(196));
  EXPECT_EQ(message_of([&] { text.check_vocab(128); }),
            "the data hold byte 195 in '" + path("text") +
                "' at byte 17, but the model knows tokens 0 to 127; --set vocab=256 takes any such "
                "data");
  std::vector<int32_t> negative(100, 5);
  negative[40] = -7;
  file("n.idx", Index::of({100}, 4, 4).text());
  const TokenData below({file("n.bin", binary(negative))}, 4);
  EXPECT_NE(message_of([&] { below.check_vocab(100); }).find("token -7 in"), std::string::npos);
  // No sample finds it when the text is long; the batch that holds it does.
  std::string said = "no error";
  for (int64_t s = 0; s < data.training_windows() && said == "no error"; ++s) {
    said = message_of([&] { data.training_batch(s, {.vocab = 50257}); });
  }
  EXPECT_NE(said.find("token 50300 in '" + path("t") + "' at byte 3492"), std::string::npos);
}

TEST_F(TokenFiles, SaysWhatIsWrongWithAFile) {
  EXPECT_EQ(
      said_of(path("nothing")),
      "cannot read the data 'nothing': No such file or directory; name a text or token files");
  std::filesystem::create_directory(path("folder"));
  EXPECT_EQ(
      said_of(path("folder")),
      "cannot read the data 'folder': it is a folder, not a file; name a text or token files");
  ::mkfifo(path("pipe").c_str(), 0600);
  EXPECT_EQ(said_of(path("pipe")),
            "cannot read the data 'pipe': it is not a file; name a text or token files");
  EXPECT_EQ(said_of(file("empty", "")), "the data 'empty' are empty; name a text or token files");
  EXPECT_EQ(said_of(path("x*.bin")), "cannot read the data 'x*.bin': no file matches the pattern");
  EXPECT_NE(said_of(file("ok", "text") + ",").find("a name is empty"), std::string::npos);
  EXPECT_EQ(said_of(file("few", "sixteen bytes ..."), 17),
            "the data 'few' have 17 bytes, but one sequence of 17 needs 18; take more data, or "
            "--set sequence=16");
  EXPECT_EQ(said_of(file("zero", std::string("ab\0cd", 5))),
            "'zero' is no text (byte 2 is zero) and no token file that is known; write uint16:zero "
            "for tokens without a header, text:zero to take its bytes all the same");
  EXPECT_EQ(said_of("uint16:" + file("odd", "12345")),
            "'odd' has 5 bytes, which are no whole number of uint16 tokens");
  EXPECT_EQ(said_of(path("ok") + "," + file("sh", shard(std::vector<uint16_t>{1, 2, 3}))),
            "'sh' is a GPT-2 shard of llm.c's, but 'ok' is a text; only files of one kind are one "
            "text");
}

TEST_F(TokenFiles, SaysWhatIsWrongWithAShard) {
  const std::string good = shard(std::vector<uint16_t>{1, 2, 3, 4, 5});
  const auto with = [&](size_t at, int32_t value) {
    std::string bad = good;
    std::memcpy(bad.data() + at, &value, 4);
    return said_of(file("s", bad));
  };
  EXPECT_EQ(said_of(file("s", good)), "no error");
  EXPECT_EQ(said_of(file("s", good.substr(0, 100))),
            "'s': a token shard's header has 1024 bytes, but the file only 100; copy it again");
  EXPECT_NE(with(4, 2).find("version 2 (byte 4)"), std::string::npos);
  for (const int32_t count : {6, 4, -1, INT32_MAX, INT32_MIN}) {
    EXPECT_NE(with(8, count).find("says " + std::to_string(count) +
                                  " tokens (byte 8) of 2 bytes, "
                                  "but 10 bytes follow it"),
              std::string::npos)
        << with(8, count);
  }
  EXPECT_EQ(said_of(file("s", shard(std::vector<uint16_t>{}))), "the data 's' hold no tokens");
}

TEST_F(TokenFiles, SaysWhatIsWrongWithAnIndex) {
  const std::vector<uint16_t> tokens(10, 3);
  file("m.bin", binary(tokens));
  const auto said = [&](const std::function<void(Index&)>& change) {
    Index index = Index::of({4, 6}, 8, 2);
    change(index);
    file("m.idx", index.text());
    return said_of(path("m"));
  };
  const auto expect = [&](const std::string& part, const std::function<void(Index&)>& change) {
    const std::string message = said(change);
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nhas no " << part;
  };
  expect("no error", [](Index&) {});
  expect("version 2 (byte 9)", [](Index& i) { i.version = 2; });
  expect("tokens of type 5 (byte 17)", [](Index& i) { i.type = 5; });
  expect("'m.bin' has 20 bytes, but the sequences in 'm.idx' have 40: 10 tokens of 4",
         [](Index& i) { i.type = 4, i.pointers[1] = 16; });
  expect("'m.bin' has 20 bytes", [](Index& i) { i.sizes[1] = 7; });
  expect("sequence 1 begins at byte 10 of the .bin (byte 50)",
         [](Index& i) { i.pointers[1] = 10; });
  expect("sequence 0 has -4 tokens (byte 34)", [](Index& i) { i.sizes[0] = -4; });
  expect("document 1 begins at sequence 9 (byte 66)", [](Index& i) { i.documents[1] = 9; });
  expect("document 2 begins at sequence 0", [](Index& i) { i.documents[2] = 0; });
  // Every way to cut it, and counts that would need more than there is.
  const std::string good = Index::of({4, 6}, 8, 2).text();
  file("m.idx", good + std::string(2, '\0'));
  EXPECT_NE(said_of(path("m")).find("multimodal"), std::string::npos);
  file("m.idx", good + "x");
  EXPECT_NE(said_of(path("m")).find("the tables end at byte 82, but the file has 83"),
            std::string::npos);
  for (size_t n = 0; n < good.size(); ++n) {
    file("m.idx", good.substr(0, n));
    EXPECT_NE(said_of(path("m")), "no error") << n;
  }
  for (const size_t at : {18, 26}) {
    for (const uint64_t count : {UINT64_MAX, UINT64_MAX / 12, uint64_t{1} << 61, uint64_t{5}}) {
      std::string bad = good;
      std::memcpy(bad.data() + at, &count, 8);
      file("m.idx", bad);
      EXPECT_NE(said_of(path("m")).find("need more than the file's 82 bytes"), std::string::npos);
    }
  }
  file("m.idx", good);
  std::filesystem::remove(path("m.bin"));
  EXPECT_NE(said_of(path("m")).find("cannot read the data 'm.bin': No such file"),
            std::string::npos);
  EXPECT_NE(said_of(path("m.idx")).find("cannot read the data 'm.bin': No such file"),
            std::string::npos);
  EXPECT_NE(said_of(file("renamed", good)).find("name it NAME.idx"), std::string::npos);
}

}  // namespace
}  // namespace cleave
