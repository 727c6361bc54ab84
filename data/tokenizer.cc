#include "data/tokenizer.h"

#include <array>
#include <filesystem>

#include "data/bpe_reader.h"
#include "data/bpe_tokenizer.h"
#include "data/mapped_file.h"
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

namespace fs = std::filesystem;

constexpr std::string_view kAdvice =
    "name a tokenizer.json, or a folder or file of vocab.json and merges.txt";
constexpr size_t kMostBytes = size_t{64} << 20;

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The text of a file; a view of what the file holds.
class TokenizerFile {
 public:
  explicit TokenizerFile(const std::string& path) : file_(path, "the tokenizer", kAdvice) {
    const size_t size = file_.bytes().size();
    if (size == 0) fail("the tokenizer '{}' is empty; {}", path, kAdvice);
    if (size > kMostBytes) {
      fail("'{}' has {} bytes, too many for a tokenizer (at most {}); {}", path, size, kMostBytes,
           kAdvice);
    }
  }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(file_.bytes().data()), file_.bytes().size()};
  }

 private:
  MappedFile file_;
};

// The two names that a vocabulary and its merges go by; others may stand in front of them.
struct FilePair {
  std::string_view vocab, merges;
};
constexpr FilePair kPairs[] = {{"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}};

BpeDefinition read_pair(const std::string& vocab, const std::string& merges) {
  const TokenizerFile v(vocab), m(merges);
  return read_vocab_and_merges(vocab, v.text(), merges, m.text());
}

BpeDefinition read_folder(const std::string& path) {
  const std::string start = path.ends_with('/') ? path : path + '/';
  if (const std::string file = start + "tokenizer.json"; exists(file)) {
    return read_tokenizer_json(file, TokenizerFile(file).text());
  }
  for (const FilePair& pair : kPairs) {
    const std::string vocab = start + std::string(pair.vocab);
    if (exists(vocab)) return read_pair(vocab, start + std::string(pair.merges));
  }
  fail(
      "cannot read the tokenizer '{}': the folder has no tokenizer.json, vocab.json or "
      "encoder.json; {}",
      path, kAdvice);
}

BpeDefinition read_file(const std::string& path) {
  for (const FilePair& pair : kPairs) {
    const auto beside = [&](std::string_view from, std::string_view to) {
      return path.substr(0, path.size() - from.size()) + std::string(to);
    };
    if (path.ends_with(pair.merges)) return read_pair(beside(pair.merges, pair.vocab), path);
    if (path.ends_with(pair.vocab)) return read_pair(path, beside(pair.vocab, pair.merges));
  }
  const TokenizerFile file(path);
  if (is_tokenizer_json(file.text())) return read_tokenizer_json(path, file.text());
  fail(
      "'{}' is no tokenizer that is known: it is no tokenizer.json, and its name does not end with "
      "vocab.json or merges.txt; {}",
      path, kAdvice);
}

}  // namespace

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& path) {
  if (path.empty() || path == "bytes") return std::make_shared<const ByteTokenizer>();
  std::error_code error;
  return make_bpe_tokenizer(fs::is_directory(path, error) ? read_folder(path) : read_file(path));
}

}  // namespace cleave
