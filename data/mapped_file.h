// A file in memory, mapped and not copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace cleave {

// The bytes of a file for as long as the object lives. They are read from the disk when they are
// looked at; the file must not become shorter meanwhile.
class MappedFile {
 public:
  // Throws Error, naming the path, when it is not a regular file or cannot be read. `what` and
  // `advice` are the message's: "the data", "name a text or token files".
  MappedFile(const std::string& path, std::string_view what, std::string_view advice);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace cleave
