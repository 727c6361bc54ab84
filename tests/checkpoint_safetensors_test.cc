// Safetensors files: those of Hugging Face's library, our own, and everything that is none.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

using Safetensors = CheckpointTest;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// A file with this header and so many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
  return file + header + std::string(data_bytes, 'x');
}

std::string refusal(const std::string& file) {
  return error_of([&] { parse_safetensors(bytes_of(file)); });
}

// What the Python library safetensors 0.8.0 made of five tensors: serialize() of "b.weight"
// (float32
// [[1.5, -2], [3, 0.25]]), "a" (int32 [1, -1]), "z" (float64 0.5), "h" (bfloat16 [[1, -2, 0]]) and
// "mask" (bool [1, 0]), with the metadata {"format": "pt"}.
std::string golden() {
  std::string file = file_of(
      R"({"__metadata__":{"format":"pt"},"z":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
      R"("b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},)"
      R"("a":{"dtype":"I32","shape":[2],"data_offsets":[24,32]},)"
      R"("h":{"dtype":"BF16","shape":[1,3],"data_offsets":[32,38]},)"
      R"("mask":{"dtype":"BOOL","shape":[2],"data_offsets":[38,40]}} )",
      0);
  const unsigned char data[] = {0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe0, 0x3f,   // 0.5
                                0x00, 0x00, 0xc0, 0x3f, 0x00, 0x00, 0x00, 0xc0,   // 1.5 -2
                                0x00, 0x00, 0x40, 0x40, 0x00, 0x00, 0x80, 0x3e,   // 3 0.25
                                0x01, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff,   // 1 -1
                                0x80, 0x3f, 0x00, 0xc0, 0x00, 0x00, 0x01, 0x00};  // 1 -2 0, 1 0
  return file.append(reinterpret_cast<const char*>(data), sizeof data);
}

template <class T>
std::vector<T> numbers(const SafetensorsFile& file, const std::string& name) {
  const std::span<const std::byte> bytes = file.bytes(*file.find(name));
  std::vector<T> result(bytes.size() / sizeof(T));
  std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

TEST_F(Safetensors, ReadsWhatHuggingFacesLibraryWrites) {
  ASSERT_EQ(golden().size(), 368u);
  write_all(path("golden"), golden());
  const SafetensorsFile file(path("golden"));
  EXPECT_EQ(file.metadata(), (SafetensorsMetadata{{"format", "pt"}}));
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.find("z")->type, (TensorType{DType::kF64, {}}));
  EXPECT_EQ(file.find("b.weight")->type, (TensorType{DType::kF32, {2, 2}}));
  EXPECT_EQ(file.find("a")->type, (TensorType{DType::kI32, {2}}));
  EXPECT_EQ(file.find("h")->type, (TensorType{DType::kBF16, {1, 3}}));
  EXPECT_EQ(numbers<double>(file, "z"), std::vector<double>{0.5});
  EXPECT_EQ(numbers<float>(file, "b.weight"), (std::vector<float>{1.5, -2, 3, 0.25}));
  EXPECT_EQ(numbers<int32_t>(file, "a"), (std::vector<int32_t>{1, -1}));
  EXPECT_EQ(numbers<uint16_t>(file, "h"), (std::vector<uint16_t>{0x3f80, 0xc000, 0}));
  // Element types that Cleave has not are known, and refused by name when they are asked for.
  ASSERT_EQ(file.others().size(), 1u);
  EXPECT_EQ(file.others()[0].dtype, "BOOL");
  EXPECT_NE(error_of([&] { file.find("mask"); }).find("'mask' is BOOL"), std::string::npos);
  EXPECT_EQ(file.find("nothing"), nullptr);
}

TEST_F(Safetensors, WhatIsWrittenIsReadBackAndAligned) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    const Snapshot s = random_snapshot(1, seed);
    std::vector<TensorBytes> tensors;
    for (const SavedTensor& t : s.tensors) tensors.push_back({t.name, t.type, t.bytes});
    const SafetensorsMetadata metadata = {{"step", "7"}, {"ü\"\n", "\\"}};
    const FileDigest digest = write_safetensors(path("f"), tensors, metadata);
    const std::string text = read_all(path("f"));
    EXPECT_EQ(digest, (FileDigest{static_cast<int64_t>(text.size()), checksum_of(text)}));
    const SafetensorsFile file(path("f"));
    EXPECT_EQ(file.metadata(), metadata);
    ASSERT_EQ(file.tensors().size(), s.tensors.size());
    for (const SavedTensor& t : s.tensors) {
      const TensorInfo* info = file.find(t.name);
      ASSERT_NE(info, nullptr) << t.name;
      EXPECT_EQ(info->type, t.type);
      const auto bytes = file.bytes(*info);
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end()));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % size_of(t.type.dtype), 0u);
    }
  }
}

TEST_F(Safetensors, WritingKeepsTheOldFileUntilTheNewOneIsWhole) {
  const SavedTensor a{"a", {DType::kF32, {2}}, std::vector<std::byte>(8), true};
  const TensorBytes good{a.name, a.type, a.bytes};
  write_safetensors(path("f"), std::span(&good, 1));
  const std::string before = read_all(path("f"));
  for (const char* name : {"__metadata__", "\xff"}) {
    const TensorBytes bad{name, a.type, a.bytes};
    EXPECT_NE(error_of([&] { write_safetensors(path("f"), std::span(&bad, 1)); }), "") << name;
  }
  const std::vector<TensorBytes> twice = {good, good};
  EXPECT_NE(error_of([&] { write_safetensors(path("f"), twice); }).find("two tensors"),
            std::string::npos);
  EXPECT_EQ(read_all(path("f")), before);
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    EXPECT_EQ(entry.path().filename(), "f");
    ++files;
  }
  EXPECT_EQ(files, 1u);
  // What is no file of ours stays what it is.
  std::filesystem::create_directory(path("d"));
  std::filesystem::create_symlink("f", path("link"));
  EXPECT_NE(error_of([&] { write_safetensors(path("d"), std::span(&good, 1)); }), "");
  EXPECT_NE(error_of([&] { write_safetensors("/dev/null", std::span(&good, 1)); }), "");
  write_safetensors(path("link"), std::span(&good, 1), {{"new", "1"}});
  EXPECT_TRUE(std::filesystem::is_symlink(path("link")));
  EXPECT_NE(read_all(path("f")), before);
}

struct Bad {
  const char* header;
  size_t data_bytes;
  const char* says;
};

TEST_F(Safetensors, WhatIsNoSafetensorsFileIsRefusedByName) {
  const std::vector<Bad> bad = {
      {"", 0, "its header is not JSON"},
      {"[]", 0, "its header is not JSON"},
      {" {}", 0, "its header is not JSON"},
      {"\xEF\xBB\xBF{}", 0, "its header is not JSON"},
      {"{", 0, "not JSON, at its byte"},
      {"{}}", 0, "not JSON, at its byte"},
      {"{\"\xff\":{}}", 0, "not JSON, at its byte"},
      {"{}", 1, "1 bytes after the last tensor"},
      {R"({"a":1})", 0, "'a' is a number"},
      {R"({"a":null})", 0, "'a' is null"},
      {R"({"a":[]})", 0, "'a' is a list"},
      {R"({"a":"b"})", 0, "'a' is a string"},
      {R"({"a":{}})", 0, "tensor 'a': 'dtype' is missing"},
      {R"({"a":{"dtype":"F32","shape":[]}})", 0, "'data_offsets' is missing"},
      {R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0]}})", 0, "'data_offsets' is missing or"},
      {R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,1,2]}})", 0, "too many numbers"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "'shape' is missing"},
      {R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]}})", 4, "an object in 'shape'"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "a list in 'shape'"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "a negative number"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "no 64-bit integer"},
      {R"({"a":{"dtype":"F32","shape":[1e30],"data_offsets":[0,4]}})", 4, "no 64-bit integer"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4, "64-bit"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4, "2^63"},
      {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}})", 4, "true or false"},
      {R"({"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", 4, "a string in 'shape'"},
      {R"({"a":{"dtype":7,"shape":[],"data_offsets":[0,4]}})", 4, "a number in 'dtype'"},
      {R"({"a":{"dtype":"Q8","shape":[],"data_offsets":[0,4]}})", 4, "element type 'Q8'"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8, "has 4 bytes, and not"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "has 4 bytes, and not"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "ends within a byte"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0,
       "its shape is too large"},
      {R"({"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,0]}})", 0, "large"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "cut off"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "4 bytes before tensor 'a'"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "tensors 'a' and 'b' overlap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12, "4 bytes before tensor 'b'"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "tensor 'a' is there twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4, "twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}})", 4,
       "twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown field 'x'"},
      {R"({"__metadata__":{"a":1}})", 0, "metadata's 'a' is a number"},
      {R"({"__metadata__":{"a":{}}})", 0, "metadata's 'a' is an object"},
      {R"({"__metadata__":[]})", 0, "'__metadata__' is a list"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "metadata has 'a' twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "'__metadata__' twice"},
  };
  for (const Bad& b : bad) {
    const std::string error = refusal(file_of(b.header, b.data_bytes));
    EXPECT_NE(error.find(b.says), std::string::npos) << b.header << "\n" << error;
    // A reader of files says which.
    write_all(path("f"), file_of(b.header, b.data_bytes));
    EXPECT_TRUE(error_of([&] { SafetensorsFile{path("f")}; }).starts_with("'" + path("f") + "': "));
  }
  // Control characters in names do not reach the terminal.
  EXPECT_NE(refusal(file_of(R"({"a\n\u001b[31m":{}})", 0)).find("'a\\x0a\\x1b[31m'"),
            std::string::npos);
  EXPECT_NE(error_of([&] { SafetensorsFile{path("missing")}; }).find("No such file"),
            std::string::npos);
  EXPECT_NE(error_of([&] { SafetensorsFile{path("")}; }).find("is a folder"), std::string::npos);
  EXPECT_NE(error_of([&] { SafetensorsFile{"/dev/zero"}; }).find("a device"), std::string::npos);
}

TEST_F(Safetensors, ExtremesAreRead) {
  EXPECT_EQ(parse_safetensors(bytes_of(file_of("{}", 0))).tensors.size(), 0u);
  // Sizes of 0 make even the largest shape empty.
  const SafetensorsHeader empty = parse_safetensors(bytes_of(file_of(
      R"({"a":{"dtype":"F32","shape":[4611686018427387904,0,4],"data_offsets":[0,0]}})", 0)));
  EXPECT_EQ(empty.tensors.at(0).end, 0);
  EXPECT_EQ(refusal(file_of(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2)), "");
}

// The length of the header alone must not make the reader allocate, loop or read on.
TEST_F(Safetensors, LyingLengthsAreRefused) {
  for (int shift = 0; shift < 64; ++shift) {
    for (const uint64_t length : {uint64_t{1} << shift, (uint64_t{1} << shift) - 1}) {
      std::string file = file_of("{}", 100);
      for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i));
      EXPECT_NE(refusal(file), "") << length;
    }
  }
  std::string deep = "{\"a\":" + std::string(10'000'000, '[');
  EXPECT_NE(refusal(file_of(deep, 0)).find("'a' is a list"), std::string::npos);
  deep = "{";
  for (int i = 0; i < 1'000'000; ++i) deep += "\"a\":{";
  EXPECT_NE(refusal(file_of(deep, 0)).find("unknown field 'a'"), std::string::npos);
  std::string wide = "{\"a\":{\"shape\":[1";
  for (int i = 0; i < 1'000'000; ++i) wide += ",1";
  EXPECT_NE(refusal(file_of(wide + "]}}", 0)).find("too many numbers"), std::string::npos);
}

// Cut anywhere, the golden file is refused; with any bit flipped it is refused or read, and its
// tensors lie inside it.
TEST_F(Safetensors, EveryCutAndFlipOfAFileIsMet) {
  const std::string whole = golden();
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_NE(refusal(whole.substr(0, n)), "") << n;
  EXPECT_NE(refusal(whole + "x"), "");
  size_t refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string file = whole;
      file[i] = static_cast<char>(file[i] ^ 1 << bit);
      try {
        const SafetensorsHeader h = parse_safetensors(bytes_of(file));
        for (const TensorInfo& t : h.tensors) {
          EXPECT_LE(0, t.begin);
          EXPECT_EQ(t.end - t.begin, numel(t.type.shape) * size_of(t.type.dtype));
          EXPECT_LE(h.data_begin + t.end, static_cast<int64_t>(file.size()));
        }
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 8 * 200u);  // names, the metadata and the data may have any bytes
}

}  // namespace
}  // namespace cleave
