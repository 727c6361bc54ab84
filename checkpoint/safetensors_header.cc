// The header of a safetensors file, as hostile as it may be.
#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "checkpoint/safetensors.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLargestHeader = 100'000'000;  // bytes; the format's own limit
constexpr size_t kLargestRank = 64;

struct ElementType {
  std::string_view name;
  int64_t bits;
  std::optional<DType> dtype;  // none: Cleave cannot compute with it
};

constexpr std::array<ElementType, 20> kElementTypes = {{
    {"F64", 64, DType::kF64},     {"F32", 32, DType::kF32},     {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},     {"F16", 16, std::nullopt},    {"I64", 64, std::nullopt},
    {"I16", 16, std::nullopt},    {"I8", 8, std::nullopt},      {"U64", 64, std::nullopt},
    {"U32", 32, std::nullopt},    {"U16", 16, std::nullopt},    {"U8", 8, std::nullopt},
    {"BOOL", 8, std::nullopt},    {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt}, {"F4", 4, std::nullopt},
}};

const ElementType& element_type(const std::string& name) {
  for (const ElementType& e : kElementTypes) {
    if (e.name == name) return e;
  }
  fail("unknown element type '{}'", printable(name));
}

std::string_view safetensors_name(DType dtype) {
  for (const ElementType& e : kElementTypes) {
    if (e.dtype == dtype) return e.name;
  }
  CLEAVE_ASSERT(false, "{} has no name in safetensors files", name_of(dtype));
  return {};
}

// One entry of the header, as it is read.
struct Entry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<Shape> shape;
  std::vector<int64_t> offsets;
};

// Takes the header as the parser finds it, so that nothing is built that the format does not have:
// no depth, no number and no repetition in the text makes it larger than the tensors in it.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  std::vector<Entry> entries;
  SafetensorsMetadata metadata;

  bool null() override { return misplaced("null"); }
  bool boolean(bool) override { return misplaced("true or false"); }
  bool number_float(double, const std::string&) override {
    return misplaced("a number that is no 64-bit integer");
  }
  bool number_integer(number_integer_t) override { return misplaced("a negative number"); }
  bool binary(binary_t&) override { return misplaced("binary data"); }

  bool number_unsigned(number_unsigned_t n) override {
    if (where_ != kShape && where_ != kOffsets) return misplaced("a number");
    if (n > INT64_MAX) return misplaced("a number above 2^63 - 1");
    std::vector<int64_t>& list = where_ == kShape ? *entry().shape : entry().offsets;
    if (list.size() >= (where_ == kShape ? kLargestRank : 2)) {
      fail("{}: '{}' has too many numbers", place(), key_);
    }
    list.push_back(static_cast<int64_t>(n));
    return true;
  }

  bool string(string_t& text) override {
    if (where_ == kMetadata) {
      metadata[key_] = std::move(text);
    } else if (where_ == kTensor && key_ == "dtype") {
      entry().dtype = std::move(text);
    } else {
      return misplaced("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == kStart) {
      where_ = kTop;
    } else if (where_ == kTop && key_ == "__metadata__") {
      where_ = kMetadata;
    } else if (where_ == kTop) {
      entries.push_back({std::move(key_), {}, {}, {}});
      where_ = kTensor;
    } else {
      return misplaced("an object");
    }
    return true;
  }

  bool key(string_t& key) override {
    key_ = std::move(key);
    if (where_ == kTop && key_ == "__metadata__") {
      if (has_metadata_) fail("the header has '__metadata__' twice");
      has_metadata_ = true;
    } else if (where_ == kMetadata && metadata.contains(key_)) {
      fail("the metadata has '{}' twice", printable(key_));
    } else if (where_ == kTensor) {
      const Entry& e = entry();
      if (key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
        fail("{}: unknown field '{}'", place(), printable(key_));
      }
      if (key_ == "dtype"   ? e.dtype.has_value()
          : key_ == "shape" ? e.shape.has_value()
                            : has_offsets_) {
        fail("{}: '{}' is there twice", place(), key_);
      }
    }
    return true;
  }

  bool end_object() override {
    if (where_ == kTensor) {
      const Entry& e = entry();
      const char* missing = !e.dtype                ? "dtype"
                            : !e.shape              ? "shape"
                            : e.offsets.size() != 2 ? "data_offsets"
                                                    : nullptr;
      if (missing != nullptr) fail("{}: '{}' is missing or incomplete", place(), missing);
      has_offsets_ = false;
    }
    where_ = where_ == kTop ? kEnd : kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (where_ == kTensor && key_ == "shape") {
      entry().shape.emplace();
      where_ = kShape;
    } else if (where_ == kTensor && key_ == "data_offsets") {
      has_offsets_ = true;
      where_ = kOffsets;
    } else {
      return misplaced("a list");
    }
    return true;
  }

  bool end_array() override {
    where_ = kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    fail("the header is not JSON, at its byte {}", position);
  }

 private:
  enum Where { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  Entry& entry() { return entries.back(); }
  std::string place() const { return fmt::format("tensor '{}'", printable(entries.back().name)); }
  bool misplaced(const char* what) const {
    if (where_ == kStart) fail("the header is {} and not an object", what);
    if (where_ == kTop) fail("the header's '{}' is {}", printable(key_), what);
    if (where_ == kMetadata) {
      fail("the metadata's '{}' is {} and not a string", printable(key_), what);
    }
    fail("{}: {} in '{}'", place(), what, key_);
  }

  Where where_ = kStart;
  std::string key_;
  bool has_metadata_ = false, has_offsets_ = false;
};

// Bits of a tensor; none when they are more than 64 bits can count.
std::optional<int64_t> bits_of(const Shape& shape, int64_t bits_of_element) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t bits = bits_of_element;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  return bits;
}

void check_size(const Entry& e) {
  const int64_t begin = e.offsets[0], end = e.offsets[1];
  const std::optional<int64_t> bits = bits_of(*e.shape, element_type(*e.dtype).bits);
  if (!bits) fail("tensor '{}': its shape is too large", printable(e.name));
  if (*bits % 8 != 0) fail("tensor '{}' ends within a byte", printable(e.name));
  if (end < begin || end - begin != *bits / 8) {
    fail("tensor '{}': {} of {} has {} bytes, and not those from {} to {}", printable(e.name),
         to_string(*e.shape), *e.dtype, *bits / 8, begin, end);
  }
}

// Entries in the order of their names; none is there twice.
void check_names(const std::vector<Entry>& entries) {
  std::vector<const std::string*> names;
  for (const Entry& e : entries) names.push_back(&e.name);
  std::sort(names.begin(), names.end(), [](const auto* a, const auto* b) { return *a < *b; });
  const auto twice = std::adjacent_find(names.begin(), names.end(),
                                        [](const auto* a, const auto* b) { return *a == *b; });
  if (twice != names.end()) fail("tensor '{}' is there twice", printable(**twice));
}

// The entries, sorted as they lie in the data section, fill it.
void check_layout(const std::vector<Entry>& entries, int64_t data_bytes) {
  int64_t at = 0, needed = 0;
  for (const Entry& e : entries) needed = std::max(needed, e.offsets[1]);
  if (needed > data_bytes) {
    fail("cut off: its tensors have {} bytes, and {} are there", needed, data_bytes);
  }
  const Entry* previous = nullptr;
  for (const Entry& e : entries) {
    if (e.offsets[0] < at) {
      fail("tensors '{}' and '{}' overlap", printable(previous->name), printable(e.name));
    }
    if (e.offsets[0] > at) {
      fail("{} bytes before tensor '{}' belong to no tensor", e.offsets[0] - at, printable(e.name));
    }
    at = e.offsets[1];
    previous = &e;
  }
  if (at != data_bytes) fail("{} bytes after the last tensor", data_bytes - at);
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file) {
  if (file.size() < 8) fail("no safetensors file: {} bytes", file.size());
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<uint64_t>(file[i]);
  if (length > kLargestHeader) {
    fail("no safetensors file: a header of {} bytes, more than the {} that one can have", length,
         kLargestHeader);
  }
  if (length > file.size() - 8) {
    fail("cut off: a header of {} bytes, and {} are there", length, file.size() - 8);
  }
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  // The format asks for it, and so no byte order mark and no blank may come first.
  if (length == 0 || *text != '{') fail("no safetensors file: its header is not JSON");

  HeaderReader reader;
  const bool read = Json::sax_parse(text, text + length, &reader);
  CLEAVE_ASSERT(read, "the header's reader stopped without an error");
  std::vector<Entry>& entries = reader.entries;
  check_names(entries);
  for (const Entry& e : entries) check_size(e);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  check_layout(entries, static_cast<int64_t>(file.size() - 8 - length));

  SafetensorsHeader header;
  header.metadata = std::move(reader.metadata);
  header.data_begin = static_cast<int64_t>(8 + length);
  for (Entry& e : entries) {
    const ElementType& type = element_type(*e.dtype);
    const int64_t begin = e.offsets[0], end = e.offsets[1];
    if (type.dtype) {
      header.tensors.push_back({std::move(e.name), {*type.dtype, std::move(*e.shape)}, begin, end});
    } else {
      header.others.push_back(
          {std::move(e.name), std::move(*e.dtype), std::move(*e.shape), begin, end});
    }
  }
  return header;
}

namespace {

// The length, the JSON and blanks up to a multiple of 8 bytes.
std::string header_of(std::span<const TensorBytes* const> tensors,
                      const SafetensorsMetadata& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::string text;
  int64_t at = 0;
  try {
    text = json.dump();
    text.pop_back();
    // Each entry by itself: an ordered object looks through all of its keys for every new one.
    for (const TensorBytes* t : tensors) {
      const int64_t end = at + static_cast<int64_t>(t->bytes.size());
      const nlohmann::ordered_json entry = {{"dtype", safetensors_name(t->type.dtype)},
                                            {"shape", t->type.shape},
                                            {"data_offsets", {at, end}}};
      text +=
          fmt::format("{}{}:{}", text.size() > 1 ? "," : "", Json(t->name).dump(), entry.dump());
      at = end;
    }
  } catch (const Json::exception&) {
    fail("a tensor's name or the metadata is not UTF-8, which safetensors files need");
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kLargestHeader) fail("too many tensors for one safetensors file");
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) {
    length[i] = static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i) & 0xFF);
  }
  return length + text;
}

}  // namespace

void write_safetensors(FileWriter& file, std::span<const TensorBytes> tensors,
                       const SafetensorsMetadata& metadata) {
  std::vector<const TensorBytes*> order;
  std::vector<std::string_view> names;
  for (const TensorBytes& t : tensors) {
    CLEAVE_ASSERT(
        static_cast<int64_t>(t.bytes.size()) == numel(t.type.shape) * size_of(t.type.dtype),
        "'{}' has {} bytes, and its type is {}", t.name, t.bytes.size(), to_string(t.type));
    if (t.name == "__metadata__") fail("a tensor cannot be named __metadata__");
    order.push_back(&t);
    names.push_back(t.name);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) fail("two tensors are named '{}'", printable(*twice));
  std::stable_sort(order.begin(), order.end(), [](const TensorBytes* a, const TensorBytes* b) {
    return size_of(a->type.dtype) > size_of(b->type.dtype);
  });
  const std::string header = header_of(order, metadata);
  size_t bytes = header.size();
  for (const TensorBytes* t : order) bytes += t->bytes.size();
  file.reserve(static_cast<int64_t>(bytes));
  file.write(header);
  for (const TensorBytes* t : order) file.write(t->bytes);
}

}  // namespace cleave
