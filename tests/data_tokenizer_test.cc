// Tokenizers against the reference library's tokens (tests/tokenizers/make_fixtures.py), against a
// direct implementation of the merges, and there and back for any bytes.
#include "data/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "data/added_tokens.h"
#include "data/bpe_builder.h"
#include "data/bpe_reader.h"
#include "data/bpe_tokenizer.h"
#include "data/stream_decoder.h"
#include "data/token_data.h"
#include "data/unicode.h"
#include "graph/error.h"

namespace cleave {
namespace {

using nlohmann::json;

std::string fixture(const std::string& name) {
  return std::string(CLEAVE_SOURCE_DIR) + "/tests/tokenizers/" + name;
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

const json& expected() {
  static const json all = json::parse(read(fixture("expected.json")));
  return all;
}

const std::vector<std::string> kFixtures = {"gpt2.json", "gpt4.json", "qwen2.json",
                                            "gpt2-vocab.json", "gpt2-merges.txt"};

TEST(Tokenizers, GiveTheReferencesTokens) {
  for (const std::string& name : kFixtures) {
    const auto tokenizer = load_tokenizer(fixture(name));
    const json& tokens = expected()["tokens"][name.substr(0, name.find_first_of(".-"))];
    const json& texts = expected()["texts"];
    ASSERT_GE(texts.size(), 100u);
    for (size_t t = 0; t < texts.size(); ++t) {
      const auto text = texts[t].get<std::string>();
      ASSERT_EQ(tokenizer->encode(text), tokens[t].get<std::vector<int32_t>>())
          << name << ": " << text;
      EXPECT_EQ(tokenizer->decode(tokens[t].get<std::vector<int32_t>>()), text);
    }
  }
}

TEST(PreTokenizer, CutsWhereTheReferenceDoes) {
  const std::map<std::string, SplitRule> rules = {
      {"gpt2", SplitRule::kGpt2}, {"gpt4", SplitRule::kGpt4}, {"qwen2", SplitRule::kQwen2}};
  for (const auto& [name, rule] : rules) {
    const json& texts = expected()["texts"];
    for (size_t t = 0; t < texts.size(); ++t) {
      const auto text = texts[t].get<std::string>();
      std::vector<size_t> pieces;
      for (size_t at = 0; at < text.size(); at += pieces.back()) {
        pieces.push_back(piece_end(rule, text, at) - at);
      }
      ASSERT_EQ(pieces, expected()["pieces"][name][t].get<std::vector<size_t>>()) << text;
    }
  }
}

TEST(Unicode, EveryCodePointHasTheReferencesClass) {
  uint64_t hash = 14695981039346656037ULL;
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    hash = (hash ^ static_cast<uint64_t>(class_of(code))) * 1099511628211ULL;
  }
  EXPECT_EQ(fmt::format("{:016x}", hash), expected()["classes"].get<std::string>());
  EXPECT_EQ(class_of(0x110000), CharClass::kOther);
  EXPECT_EQ(class_of(kNotUtf8), CharClass::kOther);
}

TEST(Unicode, CodePointsComeBackAndNothingElseIsOne) {
  size_t valid = 0;
  for (char32_t code = 0; code < 0x110000; ++code) {
    std::string text;
    append_utf8(text, code);
    const Character c = character_at(text + "x", 0);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    ASSERT_EQ(c.code, surrogate ? kNotUtf8 : code);
    ASSERT_EQ(c.bytes, surrogate ? 1 : text.size());
    valid += surrogate ? 0 : 1;
  }
  // Of all strings of two and of three bytes, just the code points of that length are characters.
  size_t two = 0, three = 0;
  for (int a = 0x80; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const std::string pair = {static_cast<char>(a), static_cast<char>(b)};
      two += character_at(pair, 0).code != kNotUtf8;
      for (int c = 0; c < 256; ++c) {
        three += character_at(pair + static_cast<char>(c), 0).bytes == 3;
      }
    }
  }
  EXPECT_EQ(two, 0x800u - 0x80u);
  EXPECT_EQ(three, 0x10000u - 0x800u - 0x800u);
  EXPECT_EQ(valid, 0x110000u - 0x800u);
}

std::string random_bytes(std::mt19937& random, size_t n) {
  std::string bytes;
  while (bytes.size() < n) {
    switch (random() % 4) {
      case 0: bytes += static_cast<char>(random()); break;
      case 1: append_utf8(bytes, random() % 0x110000); break;  // surrogates too
      case 2: bytes += "kasa 's <|endoftext|> 12\n"[random() % 24]; break;
      default: bytes.append(1 + random() % 40, "ae \n1"[random() % 5]);
    }
  }
  return bytes;
}

TEST(Tokenizers, AnyBytesComeBack) {
  std::mt19937 random(5);
  std::vector<std::string> names = kFixtures;
  names.push_back("");
  for (const std::string& name : names) {
    const auto tokenizer = load_tokenizer(name.empty() ? "" : fixture(name));
    for (int i = 0; i < 300; ++i) {
      const std::string bytes = random_bytes(random, random() % 300);
      const std::vector<int32_t> tokens = tokenizer->encode(bytes);
      ASSERT_EQ(tokenizer->decode(tokens), bytes);
      for (const int32_t t : tokens) ASSERT_LT(t, tokenizer->vocab_size());
    }
  }
}

// As the algorithm is described: while there is one, merge the leftmost of the strongest pairs.
std::vector<int32_t> merged_directly(const BpeDefinition& d, const std::string& piece) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t m = 0; m < d.merges.size(); ++m) ranks[{d.merges[m].left, d.merges[m].right}] = m;
  std::vector<int32_t> tokens;
  for (const char c : piece) tokens.push_back(d.byte_tokens[static_cast<uint8_t>(c)]);
  for (;;) {
    size_t best = SIZE_MAX, at = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      const auto found = ranks.find({tokens[i], tokens[i + 1]});
      if (found != ranks.end() && found->second < best) best = found->second, at = i;
    }
    if (best == SIZE_MAX) return tokens;
    tokens[at] = d.merges[best].result;
    tokens.erase(tokens.begin() + static_cast<int64_t>(at) + 1);
  }
}

// Merges in any order, also ones that no training would give: weaker parts of stronger tokens, the
// same pair twice, the same token made in two ways.
BpeDefinition random_definition(std::mt19937& random) {
  BpeBuilder builder("random");
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) {
    std::string spelling;
    append_utf8(spelling, spelling_of_byte(static_cast<uint8_t>(b)));
    builder.add_token(spelling, b);
    if (b >= 'a' && b <= 'd') tokens.push_back(spelling);
  }
  std::vector<std::pair<std::string, std::string>> merges;
  for (int64_t id = 256; merges.size() < 60;) {
    const std::string left = tokens[random() % tokens.size()],
                      right = tokens[random() % tokens.size()];
    if (left.size() + right.size() > 12) continue;
    merges.push_back({left, right});
    if (builder.has_token(left + right)) continue;
    builder.add_token(left + right, id++);
    tokens.push_back(left + right);
  }
  std::shuffle(merges.begin(), merges.end(), random);
  for (const auto& [left, right] : merges) builder.add_merge(left, right, "here");
  return std::move(builder).finish();
}

TEST(Bpe, MergesAsTheDirectImplementation) {
  std::mt19937 random(11);
  for (int d = 0; d < 60; ++d) {
    const BpeDefinition definition = random_definition(random);
    const BpeMerger merger(definition);
    for (int i = 0; i < 60; ++i) {
      std::string piece(1 + random() % (i % 3 == 0 ? 200 : 40), ' ');
      for (char& c : piece) c = static_cast<char>('a' + random() % 4);
      std::vector<int32_t> tokens;
      merger.encode(piece, tokens);
      ASSERT_EQ(tokens, merged_directly(definition, piece)) << piece;
    }
  }
}

TEST(Bpe, TrainedMergesAreTheDirectOnesInAnyText) {
  const BpeDefinition d = read_tokenizer_json("gpt2.json", read(fixture("gpt2.json")));
  const auto tokenizer = make_bpe_tokenizer(d);
  std::mt19937 random(12);
  for (int i = 0; i < 100; ++i) {
    std::string text = random_bytes(random, 200);
    std::replace(text.begin(), text.end(), '<', '-');  // no added token
    std::vector<int32_t> direct;
    for (size_t at = 0; at < text.size();) {
      const size_t end = piece_end(d.split, text, at);
      ASSERT_GT(end, at);
      for (const int32_t t : merged_directly(d, text.substr(at, end - at))) direct.push_back(t);
      at = end;
    }
    ASSERT_EQ(tokenizer->encode(text), direct);
  }
}

// A text longer than the cache, in which pieces push each other out.
TEST(Bpe, WhatIsRememberedIsWhatIsMerged) {
  const BpeDefinition d = read_tokenizer_json("qwen2.json", read(fixture("qwen2.json")));
  const auto tokenizer = make_bpe_tokenizer(d);
  std::mt19937 random(13);
  std::string text;
  std::vector<int32_t> direct;
  std::vector<std::string> words;
  for (int w = 0; w < 3000; ++w) {  // alike up to their last letters
    std::string word = " kasakasakasakasakasa";
    for (size_t n = 3; n > 0; --n) word += static_cast<char>('a' + random() % 26);
    words.push_back(random() % 2 == 0 ? word : " " + word.substr(13));
  }
  for (int w = 0; w < 3000; ++w) {
    std::string word = " ";
    for (size_t n = 1 + random() % 30; n > 0; --n) word += "aeioukst"[random() % 8];
    words.push_back(word);
  }
  for (int i = 0; i < 20000; ++i) {
    const std::string& word = words[random() % words.size()];
    text += word;
    for (const int32_t t : merged_directly(d, word)) direct.push_back(t);
  }
  size_t calls = 0, most = 0;
  std::vector<int32_t> given;
  tokenizer->encode(text, [&](std::span<const int32_t> tokens) {
    ++calls;
    most = std::max(most, tokens.size());
    given.insert(given.end(), tokens.begin(), tokens.end());
  });
  EXPECT_EQ(given, direct);
  EXPECT_GT(calls, 5u);
  EXPECT_LT(most, 10000u);
}

TEST(Bpe, LongPiecesTakeNoQuadraticTime) {
  const auto tokenizer = load_tokenizer(fixture("gpt2.json"));
  for (const char c : {'a', ' ', '\n', '-', '\xff', '\xe4'}) {
    const std::string text(500000, c);  // quadratic: an hour
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(AddedTokens, TheFirstAndLongestIsFound) {
  const AddedTokenFinder finder({{"ab", 1}, {"abcd", 2}, {"b", 3}, {"xyz", 4}, {"", 5}});
  const auto all = [&](std::string_view text) {
    std::string found;
    for (size_t at = 0;;) {
      const auto f = finder.find(text, at);
      if (f.bytes == 0) return found;
      found += fmt::format("{}@{} ", f.id, f.begin);
      at = f.begin + f.bytes;
    }
  };
  EXPECT_EQ(all("abcd abc b xyxyz a"), "2@0 1@5 3@9 4@13 ");
  EXPECT_EQ(all("xy"), "");
  EXPECT_EQ(AddedTokenFinder({}).find("abc", 0).bytes, 0u);
}

TEST(StreamDecoder, GivesWholeCharactersAndAllOfThem) {
  const auto tokenizer = load_tokenizer("bytes");
  const auto streamed = [&](const std::string& bytes) {
    StreamDecoder stream(tokenizer);
    std::string text;
    for (const char c : bytes) {
      const std::string some = stream.push(static_cast<uint8_t>(c));
      for (size_t at = 0; at < some.size();) {
        const Character whole = character_at(some, at);
        EXPECT_NE(whole.code, kNotUtf8);
        at += whole.bytes;
      }
      text += some;
    }
    return text + stream.finish();
  };
  const std::string good = "a\u00e9\u4f60\U0001F600.";
  EXPECT_EQ(streamed(good), good);
  StreamDecoder stream(tokenizer);
  for (const int32_t held : {0xF0, 0x9F, 0x98}) EXPECT_EQ(stream.push(held), "");
  EXPECT_EQ(stream.push(0x80), "\U0001F600");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push('a'), "\uFFFDa");
  EXPECT_EQ(stream.push(0xE0), "");
  EXPECT_EQ(stream.push(0x80), "\uFFFD\uFFFD");  // no character begins E0 80
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(streamed("\xff\x80z"), "\uFFFD\uFFFDz");
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) streamed(random_bytes(random, 50));
}

TEST(Tokenizers, AnIdOutsideTheVocabularyIsShownAsSuch) {
  for (const char* name : {"", "gpt4.json"}) {
    const auto tokenizer = load_tokenizer(*name ? fixture(name) : name);
    const auto size = static_cast<int32_t>(tokenizer->vocab_size());
    EXPECT_EQ(tokenizer->decode({{-1, 'a', size, INT32_MAX}}).size(),
              9 + tokenizer->decode({{'a'}}).size());
  }
}

class TokenizerFiles : public ::testing::Test {
 protected:
  TokenizerFiles() {
    folder_ = std::filesystem::temp_directory_path() /
              ("cleave_tokenizer_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  ~TokenizerFiles() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string file(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }
  // What is said when it is loaded, with the folder left out.
  std::string said_of(const std::string& tokenizer) const {
    std::string said = "no error";
    try {
      load_tokenizer(tokenizer);
    } catch (const Error& e) {
      said = e.what();
    }
    for (size_t at; (at = said.find(folder_.string() + "/")) != said.npos;) {
      said.erase(at, folder_.string().size() + 1);
    }
    EXPECT_EQ(said.find('\n'), said.npos) << said;
    return said;
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(TokenizerFiles, AreFoundByFolderAndByName) {
  const std::string vocab = read(fixture("gpt2-vocab.json")),
                    merges = read(fixture("gpt2-merges.txt"));
  file("pair/vocab.json", vocab), file("pair/merges.txt", merges);
  file("old/encoder.json", vocab), file("old/vocab.bpe", merges);
  file("one/tokenizer.json", read(fixture("gpt2.json")));
  file("named.json", read(fixture("gpt2.json")));
  std::string windows = merges;
  for (size_t at = 0; (at = windows.find('\n', at)) != windows.npos; at += 2)
    windows.replace(at, 1, "\r\n");
  file("crlf/my-vocab.json", vocab), file("crlf/my-merges.txt", windows);
  const auto wanted = load_tokenizer(fixture("gpt2.json"));
  const std::string text = "kasa the 's <|endoftext|>\n";
  for (const char* name :
       {"pair", "pair/", "pair/vocab.json", "pair/merges.txt", "old", "old/encoder.json",
        "old/vocab.bpe", "one", "one/tokenizer.json", "named.json", "crlf/my-vocab.json"}) {
    const auto tokenizer = load_tokenizer(path(name));
    EXPECT_EQ(tokenizer->encode(text), wanted->encode(text)) << name;
    EXPECT_EQ(tokenizer->vocab_size(), 600);
    EXPECT_EQ(tokenizer->fingerprint(), wanted->fingerprint()) << name;
  }
  EXPECT_NE(load_tokenizer(fixture("qwen2.json"))->fingerprint(), wanted->fingerprint());
}

TEST_F(TokenizerFiles, ATextIsEncodedWhenItIsOpened) {
  const std::string text = expected()["texts"][0].get<std::string>();
  const std::string data = file("text", text);
  for (const std::string& name : kFixtures) {
    const auto tokenizer = load_tokenizer(fixture(name));
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    const TokenData opened({data, "", fixture(name)}, 8, 0);
    EXPECT_EQ(opened.training(0, opened.training_tokens()), tokens);
    EXPECT_EQ(opened.format(), TextFormat::kEncoded);
    EXPECT_NO_THROW(opened.check_vocab(tokenizer->vocab_size()));
    try {
      opened.check_vocab(300);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(fmt::format("--set vocab={} ", tokenizer->vocab_size())),
                std::string::npos)
          << e.what();
    }
  }
  const auto print = [&](const std::string& name) {
    return TokenData({data, "", name.empty() ? "" : fixture(name)}, 4).fingerprint();
  };
  EXPECT_EQ(print("gpt2.json"), print("gpt2-merges.txt"));
  EXPECT_NE(print("gpt2.json"), print("gpt4.json"));
  EXPECT_NE(print("gpt2.json"), print(""));
}

TEST_F(TokenizerFiles, SaysWhatIsWrongWithATokenizerJson) {
  const json good = json::parse(read(fixture("gpt4.json")));
  const auto expect = [&](const std::string& part, const std::function<void(json&)>& change) {
    json bad = good;
    change(bad);
    const std::string said = said_of(file("t.json", bad.dump()));
    EXPECT_NE(said.find(part), std::string::npos) << said << "\nhas no " << part;
    EXPECT_LT(said.size(), 300u);
  };
  expect("no error", [](json&) {});
  expect("'t.json': model.type is \"WordPiece\", but only BPE is read",
         [](json& j) { j["model"]["type"] = "WordPiece"; });
  expect("normalizer is {\"type\":\"NFC\"}, but only none (null) is read", [](json& j) {
    j["normalizer"] = {{"type", "NFC"}};
  });
  expect("pre_tokenizer is null, but only ByteLevel", [](json& j) { j.erase("pre_tokenizer"); });
  expect("pre_tokenizer is {\"type\":\"Whitespace\"}", [](json& j) {
    j["pre_tokenizer"] = {{"type", "Whitespace"}};
  });
  expect("pre_tokenizer.pretokenizers is []",
         [](json& j) { j["pre_tokenizer"]["pretokenizers"] = json::array(); });
  expect("pretokenizers[0].pattern is {\"Regex\":\"\\\\w+\"}, but only the patterns of GPT-2",
         [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; });
  expect("pretokenizers[0].behavior is \"MergedWithNext\"",
         [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; });
  expect("pretokenizers[1].add_prefix_space is true, but only false is read",
         [](json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; });
  expect("pretokenizers[1].use_regex is true, but exactly one",
         [](json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; });
  expect("decoder is {\"type\":\"Metaspace\"}", [](json& j) {
    j["decoder"] = {{"type", "Metaspace"}};
  });
  expect("model.dropout is 0.1", [](json& j) { j["model"]["dropout"] = 0.1; });
  expect("model.byte_fallback is true", [](json& j) { j["model"]["byte_fallback"] = true; });
  expect("model.byte_fallback is 3, but must be true or false",
         [](json& j) { j["model"]["byte_fallback"] = 3; });
  expect("model.end_of_word_suffix is \"</w>\"",
         [](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  expect("model.vocab is null, but must be an object", [](json& j) { j["model"].erase("vocab"); });
  expect("the id of 'a' is \"x\"", [](json& j) { j["model"]["vocab"]["a"] = "x"; });
  expect("token 'a' has the id -1", [](json& j) { j["model"]["vocab"]["a"] = -1; });
  expect("has the id 99999999; ids are 0 to", [](json& j) { j["model"]["vocab"]["a"] = 99999999; });
  expect("and another one have the id 5", [](json& j) {
    for (auto& [spelling, id] : j["model"]["vocab"].items()) {
      if (id == 6) id = 5;
    }
  });
  expect("has no token 'a' for byte 97", [](json& j) {
    j["model"]["merges"] = json::array();
    j["model"]["vocab"].erase("a");
  });
  expect("model.merges is null, but must be a list", [](json& j) { j["model"].erase("merges"); });
  expect("'t.json' model.merges[1]: 'nothing' is no token of 't.json'", [](json& j) {
    j["model"]["merges"][1] = {"nothing", "a"};
  });
  expect("model.merges[2]: 'abc' are not two tokens",
         [](json& j) { j["model"]["merges"][2] = "abc"; });
  expect("model.merges[2] is 7, but must be", [](json& j) { j["model"]["merges"][2] = 7; });
  expect("added_tokens[0].lstrip is true", [](json& j) { j["added_tokens"][0]["lstrip"] = true; });
  expect("added_tokens[0].content is null", [](json& j) { j["added_tokens"][0].erase("content"); });
  expect("added_tokens[1].id is 1.5", [](json& j) { j["added_tokens"][1]["id"] = 1.5; });
  expect("the added token 'kas' has the id 7, but the vocabulary has another one", [](json& j) {
    for (json& t : j["added_tokens"]) {
      if (t["content"] == "kas") t["id"] = 7;
    }
  });
  expect("added_tokens[1] repeats \"<|endoftext|>\"",
         [](json& j) { j["added_tokens"][1]["content"] = "<|endoftext|>"; });
  expect("model is [], but must be an object", [](json& j) {
    j["model"] = json::array();
    j["x"] = {{"model", json::object()}};
  });

  const std::string text = good.dump();
  for (size_t n = 1; n < text.size(); n += 101) {
    EXPECT_NE(said_of(file("t.json", text.substr(0, n))), "no error");
  }
  EXPECT_NE(
      said_of(file("t.json", "{\"model\":{\"a\":" + std::string(50000, '['))).find("nested deeper"),
      std::string::npos);
  EXPECT_NE(said_of(file("t.json", "{\"model\":{\"dropout\":1e999}}")).find("too large"),
            std::string::npos);
  EXPECT_NE(said_of(file("t.json", "{\"model\":{}, \xff}")).find("byte 14 is wrong"),
            std::string::npos);
}

TEST_F(TokenizerFiles, SaysWhatIsWrongWithAPairOfFiles) {
  const std::string vocab = read(fixture("gpt2-vocab.json")),
                    merges = read(fixture("gpt2-merges.txt"));
  const auto said = [&](const std::string& v, const std::string& m) {
    file("vocab.json", v), file("merges.txt", m);
    return said_of(path("vocab.json"));
  };
  EXPECT_EQ(said(vocab, merges), "no error");
  EXPECT_EQ(
      said(vocab, merges + "a b c\n").find("'merges.txt' line 345: 'a b c' are not two tokens"),
      0u);
  EXPECT_NE(said(vocab, "a\n").find("'merges.txt' line 1: 'a' are not two"), std::string::npos);
  EXPECT_EQ(
      said(vocab, "#version: 0.2\nq zz\n"),
      "'merges.txt' line 2: 'zz' is no token of 'vocab.json'; the files do not belong together");
  EXPECT_EQ(said("[1]", merges), "'vocab.json': it is [1], but must be an object of ids");
  EXPECT_EQ(
      said("{\"a\":0}", "\n"),
      "'vocab.json' has no token 'Ā' for byte 0; a byte-level vocabulary has one for each byte");
  EXPECT_NE(said("{", merges).find("'vocab.json' is not JSON: byte 2"), std::string::npos);
  EXPECT_NE(said("", merges).find("the tokenizer 'vocab.json' is empty"), std::string::npos);
  file("vocab.json", vocab);
  std::filesystem::remove(path("merges.txt"));
  EXPECT_NE(
      said_of(path("vocab.json")).find("cannot read the tokenizer 'merges.txt': No such file"),
      std::string::npos);
  EXPECT_NE(said_of(path("nothing")).find("cannot read the tokenizer 'nothing': No such file"),
            std::string::npos);
  std::filesystem::create_directory(path("empty"));
  EXPECT_NE(said_of(path("empty")).find("the folder has no tokenizer.json"), std::string::npos);
  EXPECT_NE(said_of(file("x.model", "abc")).find("no tokenizer that is known"), std::string::npos);
  file("big.json", "");
  std::filesystem::resize_file(path("big.json"), (64 << 20) + 1);
  EXPECT_NE(said_of(path("big.json")).find("too many for a tokenizer"), std::string::npos);
}

}  // namespace
}  // namespace cleave
