#include "data/megatron_index.h"

#include <cstring>
#include <limits>
#include <string_view>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
// magic, version (uint64), token type (uint8), sequences and documents (uint64 each)
constexpr size_t kVersionAt = 9, kTypeAt = 17, kSequencesAt = 18, kDocumentsAt = 26, kTablesAt = 34;

template <class T>
T value_at(std::span<const std::byte> file, size_t at) {
  T value;
  std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

TokenType type_of(const std::string& path, uint8_t code) {
  switch (code) {
    case 1: return TokenType::kUint8;
    case 3: return TokenType::kInt16;
    case 4: return TokenType::kInt32;
    case 8: return TokenType::kUint16;
    default:
      fail(
          "'{}': tokens of type {} (byte {}), but only 1 (uint8), 3 (int16), 4 (int32) and 8 "
          "(uint16) are read; preprocess the text again",
          path, code, kTypeAt);
  }
}

// Where the tables lie in the file.
struct Tables {
  size_t sizes = kTablesAt;  // int32[sequences]: tokens
  size_t pointers = 0;       // int64[sequences]: bytes into the .bin
  size_t documents = 0;      // int64[documents]: first sequences, and the end
};

Tables tables_of(const std::string& path, std::span<const std::byte> file) {
  const auto sequences = value_at<uint64_t>(file, kSequencesAt);
  const auto documents = value_at<uint64_t>(file, kDocumentsAt);
  // Each sequence takes 12 bytes and each document 8: larger counts would not fit, nor overflow.
  const size_t most = file.size();
  const bool fits = sequences <= most / 12 && documents <= most / 8;
  const uint64_t wanted = fits ? kTablesAt + sequences * 12 + documents * 8 : 0;
  if (!fits || wanted > file.size()) {
    fail(
        "'{}': {} sequences and {} documents (bytes {} and {}) need more than the file's {} "
        "bytes; it was cut or damaged, copy it again",
        path, sequences, documents, kSequencesAt, kDocumentsAt, file.size());
  }
  if (wanted + sequences == file.size() && sequences > 0) {
    fail(
        "'{}': an index of a multimodal data set (a table of modes follows byte {}), which is "
        "not read; preprocess the text alone",
        path, wanted);
  }
  if (wanted != file.size()) {
    fail("'{}': the tables end at byte {}, but the file has {}; it was damaged, copy it again",
         path, wanted, file.size());
  }
  return {kTablesAt, kTablesAt + sequences * 4, kTablesAt + sequences * 12};
}

// The sequences must tile the .bin, since it is read as one text. Returns its length in tokens.
int64_t tokens_of(const std::string& path, std::span<const std::byte> file, const Tables& tables,
                  int64_t sequences, int64_t width) {
  int64_t bytes = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const size_t size_at = tables.sizes + static_cast<size_t>(s) * 4;
    const size_t pointer_at = tables.pointers + static_cast<size_t>(s) * 8;
    const auto size = value_at<int32_t>(file, size_at);
    if (size < 0) fail("'{}': sequence {} has {} tokens (byte {})", path, s, size, size_at);
    if (const auto pointer = value_at<int64_t>(file, pointer_at); pointer != bytes) {
      fail(
          "'{}': sequence {} begins at byte {} of the .bin (byte {}), but the one before ends at "
          "{}; only sequences without gaps are read, preprocess the text again",
          path, s, pointer, pointer_at, bytes);
    }
    if (bytes > std::numeric_limits<int64_t>::max() - size * width) {
      fail("'{}': the sequences up to {} are longer than any file", path, s);
    }
    bytes += size * width;
  }
  return bytes / width;
}

void check_documents(const std::string& path, std::span<const std::byte> file, const Tables& tables,
                     int64_t documents, int64_t sequences) {
  int64_t before = 0;
  for (int64_t d = 0; d < documents; ++d) {
    const size_t at = tables.documents + static_cast<size_t>(d) * 8;
    const auto first = value_at<int64_t>(file, at);
    if (first < before || first > sequences) {
      fail(
          "'{}': document {} begins at sequence {} (byte {}), not between {} and {}; the index was "
          "damaged, copy it again",
          path, d, first, at, before, sequences);
    }
    before = first;
  }
}

}  // namespace

bool is_megatron_index(std::span<const std::byte> file) {
  return file.size() >= kMagic.size() &&
         std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

MegatronIndex read_megatron_index(const std::string& path, std::span<const std::byte> file) {
  if (!is_megatron_index(file)) {
    fail(
        "'{}' is not an index of Megatron's: it does not begin with MMIDIDX; preprocess the text "
        "again",
        path);
  }
  if (file.size() < kTablesAt) {
    fail("'{}': an index's header has {} bytes, but the file only {}; copy it again", path,
         kTablesAt, file.size());
  }
  if (const auto version = value_at<uint64_t>(file, kVersionAt); version != 1) {
    fail("'{}': an index of version {} (byte {}), and only 1 is known; preprocess the text again",
         path, version, kVersionAt);
  }
  MegatronIndex index;
  index.type = type_of(path, value_at<uint8_t>(file, kTypeAt));
  const Tables tables = tables_of(path, file);
  index.sequences = value_at<int64_t>(file, kSequencesAt);
  index.documents = value_at<int64_t>(file, kDocumentsAt);
  index.tokens =
      tokens_of(path, file, tables, index.sequences, static_cast<int64_t>(bytes_of(index.type)));
  check_documents(path, file, tables, index.documents, index.sequences);
  return index;
}

}  // namespace cleave
