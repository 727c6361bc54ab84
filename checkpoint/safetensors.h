// Files of named tensors in the safetensors format, which Hugging Face's libraries read and write:
// 8 bytes of length, a JSON header, the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_io.h"
#include "graph/types.h"

namespace cleave {

// A tensor of a file; its bytes are row-major and little-endian.
struct TensorInfo {
  std::string name;
  TensorType type;
  int64_t begin = 0, end = 0;  // bytes in the data section
};

// A tensor of an element type that Cleave has not, such as F16: known by name, not to be read.
struct OtherTensor {
  std::string name, dtype;
  Shape shape;
  int64_t begin = 0, end = 0;
};

using SafetensorsMetadata = std::map<std::string, std::string>;  // "__metadata__"

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // as they lie in the file
  std::vector<OtherTensor> others;  // likewise
  SafetensorsMetadata metadata;
  int64_t data_begin = 0;  // bytes from the start of the file to the data section
};

// Reads the header of a whole file's bytes. Everything in it is checked: names are unique, each
// tensor has as many bytes as its type and shape say, and tensors fill the data section without
// holes or overlaps. Throws Error otherwise. Memory is at most a few times the header's size.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file);

// A file, mapped into memory. It must not be cut while it is open: the system then ends a program
// that reads on.
class SafetensorsFile {
 public:
  // Throws Error, beginning with the path, when the file cannot be read or is not sound.
  explicit SafetensorsFile(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::vector<OtherTensor>& others() const { return header_.others; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }

  // Null when there is none. Throws Error when its element type is none of Cleave's.
  const TensorInfo* find(std::string_view name) const;
  // Valid as long as the file is open. In files of other programs not always aligned to the size of
  // an element.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;

 private:
  std::string path_;
  std::span<const std::byte> file_;
  SafetensorsHeader header_;
  std::vector<int32_t> by_name_;  // indexes of tensors(), in the order of their names
};

// What is to be written. `bytes` must be as many as the type says.
struct TensorBytes {
  std::string_view name;
  TensorType type;
  std::span<const std::byte> bytes;
};

// Writes a whole file: larger elements first, so that all are aligned, and otherwise in the given
// order. `file` must be at its start. Error when the disk is full, or a name is not UTF-8, given
// twice or "__metadata__".
void write_safetensors(FileWriter& file, std::span<const TensorBytes> tensors,
                       const SafetensorsMetadata& metadata = {});
// The same into `path`, which is replaced when the new file is complete and on the disk.
FileDigest write_safetensors(const std::string& path, std::span<const TensorBytes> tensors,
                             const SafetensorsMetadata& metadata = {});

}  // namespace cleave
