#include "data/token_files.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string_view>

#include "data/llmc_shard.h"
#include "data/mapped_file.h"
#include "data/megatron_index.h"
#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWhat = "the data", kAdvice = "name a text or token files";

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Path with another ending; the ending must be there.
std::string with_ending(const std::string& path, std::string_view from, std::string_view to) {
  return path.substr(0, path.size() - from.size()) + std::string(to);
}

// One file, and what the user says it is.
struct Named {
  std::string path;
  std::string says;  // "text", "uint16", "uint32" or nothing
};

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  const int status = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (status == GLOB_NOSPACE) fail("--data {}: too many files", pattern);
  std::sort(paths.begin(), paths.end());
  // A pattern that takes both files of Megatron's means the pair once.
  const std::set<std::string> all(paths.begin(), paths.end());
  std::erase_if(paths, [&](const std::string& p) {
    return p.ends_with(".idx") && all.contains(with_ending(p, ".idx", ".bin"));
  });
  if (paths.empty()) fail("cannot read the data '{}': no file matches the pattern", pattern);
  return paths;
}

void add_files(std::vector<Named>& files, const std::string& element) {
  std::string path = element, says;
  if (!exists(path)) {
    for (const std::string_view word : {"text", "uint16", "uint32"}) {
      if (!path.starts_with(word) || path.substr(word.size(), 1) != ":") continue;
      says = word;
      path = path.substr(word.size() + 1);
      break;
    }
  }
  if (path.find_first_of("*?[") == std::string::npos || exists(path)) {
    files.push_back({path, says});
    return;
  }
  for (const std::string& match : matches(path)) files.push_back({match, says});
}

std::vector<Named> files_of(const std::string& paths) {
  std::vector<Named> files;
  if (exists(paths)) return {{paths, ""}};
  for (size_t begin = 0; begin <= paths.size();) {
    const size_t end = std::min(paths.find(',', begin), paths.size());
    if (end == begin) fail("the data '{}': a name is empty; write FILE or FILE,FILE,...", paths);
    add_files(files, paths.substr(begin, end - begin));
    begin = end + 1;
  }
  return files;
}

// One file as a text of its own.
struct OpenFile {
  TokenPiece piece;
  TextFormat format = TextFormat::kBytes;
  int64_t vocab = 0;
};

TokenPiece piece_of(TokenType type, std::shared_ptr<const MappedFile> file, size_t offset) {
  const std::span<const std::byte> bytes = file->bytes().subspan(offset);
  const std::string path = file->path();
  return {type, bytes, path, static_cast<int64_t>(offset), std::move(file)};
}

int64_t known_vocab(const Tokenizer& tokenizer) {
  return tokenizer.name() == "bytes" ? 0 : tokenizer.vocab_size();
}

OpenFile open_megatron(const std::string& bin, const std::string& idx, const Tokenizer& tokenizer) {
  const MappedFile index_file(idx, kWhat, kAdvice);
  const MegatronIndex index = read_megatron_index(idx, index_file.bytes());
  auto file = std::make_shared<const MappedFile>(bin, kWhat, kAdvice);
  const auto width = static_cast<int64_t>(bytes_of(index.type));
  const auto held = static_cast<int64_t>(file->bytes().size());
  if (index.tokens * width != held) {
    fail(
        "'{}' has {} bytes, but the sequences in '{}' have {}: {} tokens of {} bytes; the files do "
        "not belong together or one was cut, copy both again",
        bin, held, idx, index.tokens * width, index.tokens, width);
  }
  return {piece_of(index.type, std::move(file), 0), TextFormat::kMegatron, known_vocab(tokenizer)};
}

OpenFile open_raw(std::shared_ptr<const MappedFile> file, const std::string& says,
                  const Tokenizer& tokenizer) {
  const TokenType type = says == "uint16" ? TokenType::kUint16 : TokenType::kUint32;
  const size_t size = file->bytes().size();
  if (size % bytes_of(type) != 0) {
    fail("'{}' has {} bytes, which are no whole number of {} tokens", file->path(), size, says);
  }
  return {piece_of(type, std::move(file), 0), TextFormat::kRaw, known_vocab(tokenizer)};
}

// Tokens as small as they can be.
template <class T>
TokenPiece encoded(const MappedFile& file, const Tokenizer& tokenizer, TokenType type) {
  auto tokens = std::make_shared<std::vector<T>>();
  const std::span<const std::byte> bytes = file.bytes();
  tokenizer.encode({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                   [&](std::span<const int32_t> some) {
                     for (const int32_t t : some) tokens->push_back(static_cast<T>(t));
                   });
  const auto all = std::as_bytes(std::span<const T>(*tokens));
  return {type, all, file.path(), 0, std::move(tokens)};
}

OpenFile open_plain(std::shared_ptr<const MappedFile> file, bool surely_text,
                    const Tokenizer& tokenizer) {
  const auto start = file->bytes().first(std::min<size_t>(file->bytes().size(), 65536));
  const auto zero = std::find(start.begin(), start.end(), std::byte{0});
  if (!surely_text && zero != start.end()) {
    fail(
        "'{}' is no text (byte {} is zero) and no token file that is known; write uint16:{} for "
        "tokens without a header, text:{} to take its bytes all the same",
        file->path(), zero - start.begin(), file->path(), file->path());
  }
  if (tokenizer.name() == "bytes") {
    return {piece_of(TokenType::kUint8, std::move(file), 0), TextFormat::kBytes, 256};
  }
  const int64_t vocab = tokenizer.vocab_size();
  return {vocab <= 65536 ? encoded<uint16_t>(*file, tokenizer, TokenType::kUint16)
                         : encoded<int32_t>(*file, tokenizer, TokenType::kInt32),
          TextFormat::kEncoded, vocab};
}

OpenFile open_file(const Named& named, const Tokenizer& tokenizer) {
  const std::string& path = named.path;
  if (named.says.empty() && path.ends_with(".bin") && exists(with_ending(path, ".bin", ".idx"))) {
    return open_megatron(path, with_ending(path, ".bin", ".idx"), tokenizer);
  }
  if (named.says.empty() && !exists(path) && exists(path + ".idx")) {
    return open_megatron(path + ".bin", path + ".idx", tokenizer);
  }
  auto file = std::make_shared<const MappedFile>(path, kWhat, kAdvice);
  if (file->bytes().empty()) {
    fail("the data '{}' are empty; name a text or token files", path);
  }
  if (named.says == "uint16" || named.says == "uint32") {
    return open_raw(std::move(file), named.says, tokenizer);
  }
  if (named.says.empty() && is_megatron_index(file->bytes())) {
    if (!path.ends_with(".idx")) {
      fail("'{}' is an index of Megatron's; name it NAME.idx and its tokens NAME.bin", path);
    }
    return open_megatron(with_ending(path, ".idx", ".bin"), path, tokenizer);
  }
  if (named.says.empty() && is_llmc_shard(file->bytes())) {
    const LlmcShard shard = read_llmc_header(path, file->bytes());
    return {piece_of(shard.type, std::move(file), kLlmcHeaderBytes), TextFormat::kLlmc,
            shard.vocab};
  }
  return open_plain(std::move(file), named.says == "text", tokenizer);
}

std::string_view words_for(const OpenFile& file) {
  switch (file.format) {
    case TextFormat::kBytes:
    case TextFormat::kEncoded: return "a text";
    case TextFormat::kLlmc:
      return file.piece.type == TokenType::kUint16 ? "a GPT-2 shard of llm.c's"
                                                   : "a Llama-3 shard of llm.c's";
    case TextFormat::kMegatron: return "a token file of Megatron's";
    case TextFormat::kRaw: return "tokens without a header";
  }
  return "";
}

}  // namespace

OpenText open_text(const std::string& paths, const Tokenizer& tokenizer) {
  std::vector<TokenPiece> pieces;
  std::optional<OpenFile> first;
  for (const Named& named : files_of(paths)) {
    OpenFile file = open_file(named, tokenizer);
    if (file.piece.bytes.empty()) fail("the data '{}' hold no tokens", file.piece.path);
    if (first && (file.format != first->format || file.vocab != first->vocab)) {
      fail("'{}' is {}, but '{}' is {}; only files of one kind are one text", file.piece.path,
           words_for(file), first->piece.path, words_for(*first));
    }
    if (!first) first = file;
    pieces.push_back(std::move(file.piece));
  }
  return {TokenText(std::move(pieces)), first->format, first->vocab};
}

}  // namespace cleave
