#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "data/added_tokens.h"
#include "data/piece_cache.h"
#include "graph/philox.h"

namespace cleave {
namespace {

constexpr size_t kFlush = 8192;  // tokens

std::vector<AddedToken> those(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> some = tokens;
  std::erase_if(some, [=](const AddedToken& t) { return t.normalized != normalized; });
  return some;
}

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeDefinition definition)
      : definition_(std::move(definition)),
        merger_(definition_),
        finders_{AddedTokenFinder(those(definition_.added, false)),
                 AddedTokenFinder(those(definition_.added, true))} {
    if (!definition_.whole_pieces) return;
    for (size_t id = 0; id < definition_.tokens.size(); ++id) {
      const BpeToken& token = definition_.tokens[id];
      if (token.is_piece) whole_pieces_.emplace(token.bytes, static_cast<int32_t>(id));
    }
  }

  void encode(std::string_view text, const Sink& sink) const override {
    Run run{&sink, {}, PieceCache(text.size())};
    run.tokens.reserve(std::min(kFlush + 64, text.size()));
    encode_from(0, text, run);
    if (!run.tokens.empty()) sink(run.tokens);
  }

  std::string_view bytes_of(int32_t token) const override {
    if (token < 0 || static_cast<size_t>(token) >= definition_.tokens.size()) return {};
    return definition_.tokens[static_cast<size_t>(token)].bytes;
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(definition_.tokens.size()); }
  const std::string& name() const override { return definition_.name; }

  uint64_t fingerprint() const override {
    std::string all;
    for (const BpeToken& t : definition_.tokens) {
      all += fmt_size(t.bytes) + t.bytes + (t.is_piece ? '1' : '0');
    }
    for (const BpeMerge& m : definition_.merges) {
      for (const int32_t id : {m.left, m.right, m.result}) all += std::to_string(id) + ' ';
    }
    for (const AddedToken& t : definition_.added) {
      all += fmt_size(t.content) + t.content + std::to_string(t.id) + (t.normalized ? 'n' : 'a');
    }
    all += pattern_of(definition_.split);
    all += definition_.whole_pieces ? '1' : '0';
    return stream_of(all);
  }

 private:
  // One call of encode.
  struct Run {
    const Sink* sink;
    std::vector<int32_t> tokens;  // not yet given away
    PieceCache cache;
  };

  static std::string fmt_size(const std::string& s) { return std::to_string(s.size()) + ':'; }

  // Takes out what finder `f` and those after it find; the text between two is a text of its own.
  void encode_from(size_t f, std::string_view text, Run& run) const {
    if (f == finders_.size()) {
      encode_pieces(text, run);
      return;
    }
    size_t at = 0;
    for (;;) {
      const AddedTokenFinder::Found found = finders_[f].find(text, at);
      if (found.bytes == 0) break;
      encode_from(f + 1, text.substr(at, found.begin - at), run);
      run.tokens.push_back(found.id);
      at = found.begin + found.bytes;
      flush_when_full(run);
    }
    encode_from(f + 1, text.substr(at), run);
  }

  void encode_pieces(std::string_view text, Run& run) const {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = piece_end(definition_.split, text, begin);
      encode_piece(text.substr(begin, end - begin), run);
      begin = end;
      flush_when_full(run);
    }
  }

  void encode_piece(std::string_view piece, Run& run) const {
    if (piece.size() > PieceCache::kMostBytes) {
      merge_piece(piece, run.tokens);
      return;
    }
    const PieceCache::Key key = PieceCache::key_of(piece);
    if (const std::span<const int32_t> known = run.cache.find(key); !known.empty()) {
      run.tokens.insert(run.tokens.end(), known.begin(), known.end());
      return;
    }
    const size_t before = run.tokens.size();
    merge_piece(piece, run.tokens);
    run.cache.put(key, std::span<const int32_t>(run.tokens).subspan(before));
  }

  void merge_piece(std::string_view piece, std::vector<int32_t>& tokens) const {
    if (definition_.whole_pieces) {
      if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
        tokens.push_back(whole->second);
        return;
      }
    }
    merger_.encode(piece, tokens);
  }

  static void flush_when_full(Run& run) {
    if (run.tokens.size() < kFlush) return;
    (*run.sink)(run.tokens);
    run.tokens.clear();
  }

  const BpeDefinition definition_;
  const BpeMerger merger_;
  const std::array<AddedTokenFinder, 2> finders_;
  std::unordered_map<std::string_view, int32_t> whole_pieces_;  // views of definition_
};

}  // namespace

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition) {
  return std::make_shared<const BpeTokenizer>(std::move(definition));
}

}  // namespace cleave
