// libFuzzer: the readers of tokenizer files, and a text through whatever they accept. The first
// byte chooses what the rest is.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "data/bpe_builder.h"
#include "data/bpe_reader.h"
#include "data/bpe_tokenizer.h"
#include "data/stream_decoder.h"
#include "data/unicode.h"
#include "graph/error.h"

namespace cleave {
namespace {

std::string spelling(uint8_t byte) {
  std::string text;
  append_utf8(text, spelling_of_byte(byte));
  return text;
}

// The byte 1 stands for the entries of all bytes, ids 0 to 255, which chance does not find.
std::string with_alphabet(std::string_view text) {
  const size_t at = text.find('\1');
  if (at == std::string_view::npos) return std::string(text);
  std::string all(text.substr(0, at));
  for (int b = 0; b < 256; ++b) {
    const std::string s = spelling(static_cast<uint8_t>(b));
    all += (b > 0 ? ",\"" : "\"") + std::string(s == "\"" || s == "\\" ? "\\" : "") + s +
           "\":" + std::to_string(b);
  }
  return all.append(text.substr(at + 1));
}

void expect(bool condition) {
  if (!condition) std::abort();
}

// Whatever the vocabulary is, the bytes come back, and a stream is valid UTF-8.
void round_trip(BpeDefinition definition, std::string_view text) {
  const std::shared_ptr<const Tokenizer> tokenizer = make_bpe_tokenizer(std::move(definition));
  const std::vector<int32_t> tokens = tokenizer->encode(text);
  expect(tokenizer->decode(tokens) == text);
  expect(tokenizer->fingerprint() == tokenizer->fingerprint());
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const int32_t t : tokens) streamed += stream.push(t);
  streamed += stream.finish();
  for (size_t at = 0; at < streamed.size();) {
    const Character c = character_at(streamed, at);
    expect(c.code != kNotUtf8);
    at += c.bytes;
  }
  tokenizer->decode({{-1, INT32_MAX, static_cast<int32_t>(tokenizer->vocab_size())}});
}

// Merges of two tokens so far, named by two bytes each, and tokens that are looked for.
BpeDefinition made_of(std::string_view numbers, std::string_view added, uint8_t how) {
  BpeBuilder builder("made");
  std::vector<std::string> tokens;
  const auto add = [&](const std::string& s) {
    if (builder.has_token(s)) return;
    builder.add_token(s, static_cast<int64_t>(tokens.size()));
    tokens.push_back(s);
  };
  for (int b = 0; b < 256; ++b) add(spelling(static_cast<uint8_t>(b)));
  for (size_t i = 0; i + 1 < numbers.size() && i < 400; i += 2) {
    const std::string left = tokens[static_cast<uint8_t>(numbers[i]) % tokens.size()];
    const std::string right = tokens[tokens.size() - 1 - static_cast<uint8_t>(numbers[i + 1])];
    if (left.size() + right.size() > 200) continue;
    add(left + right);
    builder.add_merge(left, right, "here");
  }
  builder.definition().split = static_cast<SplitRule>(how % 3);
  builder.definition().whole_pieces = how % 2 == 1;
  for (size_t i = 0; i < added.size() && i < 30; i += 3) {
    const std::string content(added.substr(i, 1 + i % 4));
    if (!builder.has_token(content)) {
      builder.add_added({content, 0, i % 2 == 1}, 1000 + static_cast<int64_t>(i));
    }
  }
  return std::move(builder).finish();
}

}  // namespace
}  // namespace cleave

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cleave;
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t cut = std::min(rest.find('\0'), rest.size());
  const std::string_view first = rest.substr(0, cut);
  const std::string_view second = cut < rest.size() ? rest.substr(cut + 1) : "";
  try {
    const std::string text = with_alphabet(first);
    switch (data[0] % 4) {
      case 0:
        is_tokenizer_json(text);
        round_trip(read_tokenizer_json("tokenizer.json", text), second);
        break;
      case 1:
        round_trip(read_vocab_and_merges("vocab.json", text, "merges.txt", second), rest);
        break;
      case 2:
        round_trip(read_vocab_and_merges("vocab.json", with_alphabet("{\1}"), "merges.txt", first),
                   second);
        break;
      default: round_trip(made_of(first, first.substr(first.size() / 2), data[0] / 4), second);
    }
  } catch (const Error&) {
  }
  return 0;
}
