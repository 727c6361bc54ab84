#include "data/tokenizer.h"

#include <array>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> all;
  encode(text, [&](std::span<const int32_t> tokens) {
    all.insert(all.end(), tokens.begin(), tokens.end());
  });
  return all;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) {
    const std::string_view bytes = bytes_of(token);
    text += bytes.empty() ? "\uFFFD" : bytes;
  }
  return text;
}

namespace {

class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() {
    for (size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<char>(i);
  }
  void encode(std::string_view text, const Sink& sink) const override {
    std::vector<int32_t> tokens;
    for (size_t at = 0; at < text.size(); at += 4096) {
      tokens.clear();
      for (const char c : text.substr(at, 4096)) tokens.push_back(static_cast<uint8_t>(c));
      sink(tokens);
    }
  }
  std::string_view bytes_of(int32_t token) const override {
    if (token < 0 || token >= vocab_size()) return {};
    return {bytes_.data() + token, 1};
  }
  int64_t vocab_size() const override { return 256; }
  const std::string& name() const override { return name_; }
  uint64_t fingerprint() const override { return stream_of(name_); }

 private:
  const std::string name_ = "bytes";
  std::array<char, 256> bytes_{};
};

}  // namespace

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& path) {
  if (path.empty() || path == "bytes") return std::make_shared<const ByteTokenizer>();
  fail("--tokenizer {}: only bytes so far", path);
}

}  // namespace cleave
