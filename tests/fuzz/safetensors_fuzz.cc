// The reader of safetensors files on any bytes: an Error, or tensors that lie inside the file.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "checkpoint/safetensors.h"
#include "graph/error.h"

namespace {

void expect(bool condition) {
  if (!condition) std::abort();
}

void read(const std::string& file) {
  cleave::SafetensorsHeader h;
  try {
    h = cleave::parse_safetensors(std::as_bytes(std::span(file)));
  } catch (const cleave::Error& e) {
    expect(std::string(e.what()).find_first_of("\n\r\x1b") == std::string::npos);
    return;
  }
  int64_t bytes = 0;
  for (const cleave::TensorInfo& t : h.tensors) {
    bytes += t.end - t.begin;
    expect(t.end - t.begin == cleave::numel(t.type.shape) * cleave::size_of(t.type.dtype));
    expect(t.begin >= 0 && h.data_begin + t.end <= static_cast<int64_t>(file.size()));
  }
  for (const cleave::OtherTensor& t : h.others) bytes += t.end - t.begin;
  expect(h.data_begin + bytes == static_cast<int64_t>(file.size()));
}

}  // namespace

// The first byte says what the rest is: a whole file, or a header (the length before it is then
// made to fit, so that the text is reached at once) with as much data as the second byte says.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  if (data[0] % 4 == 0) {
    read(rest);
    return 0;
  }
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) {
    length[i] = static_cast<char>(static_cast<uint64_t>(rest.size()) >> (8 * i));
  }
  read(length + rest + std::string(data[1], 'x'));
  return 0;
}
