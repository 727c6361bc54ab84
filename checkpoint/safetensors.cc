#include "checkpoint/safetensors.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "graph/error.h"

namespace cleave {

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  const FileHandle file = open_to_read(path);
  const size_t size = static_cast<size_t>(size_of_file(file, path));
  if (size > 0) {
    void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (at == MAP_FAILED) fail("cannot map '{}': {}", printable(path), std::strerror(errno));
    file_ = {static_cast<const std::byte*>(at), size};
  }
  try {
    header_ = parse_safetensors(file_);
  } catch (const Error& e) {
    if (size > 0) ::munmap(const_cast<std::byte*>(file_.data()), size);
    fail("'{}': {}", printable(path), e.what());
  }
  by_name_.resize(header_.tensors.size());
  std::iota(by_name_.begin(), by_name_.end(), 0);
  std::sort(by_name_.begin(), by_name_.end(), [&](int32_t a, int32_t b) {
    return tensors()[static_cast<size_t>(a)].name < tensors()[static_cast<size_t>(b)].name;
  });
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, {})),
      header_(std::move(other.header_)),
      by_name_(std::move(other.by_name_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(header_, other.header_);
  std::swap(by_name_, other.by_name_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (!file_.empty()) ::munmap(const_cast<std::byte*>(file_.data()), file_.size());
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](int32_t i, std::string_view wanted) {
                                     return tensors()[static_cast<size_t>(i)].name < wanted;
                                   });
  if (at != by_name_.end() && tensors()[static_cast<size_t>(*at)].name == name) {
    return &tensors()[static_cast<size_t>(*at)];
  }
  for (const OtherTensor& other : others()) {
    if (other.name == name) {
      fail("'{}': tensor '{}' is {}; Cleave reads F64, F32, BF16 and I32", printable(path_),
           printable(name), other.dtype);
    }
  }
  return nullptr;
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorInfo& tensor) const {
  const std::span<const std::byte> data = file_.subspan(static_cast<size_t>(header_.data_begin));
  CLEAVE_ASSERT(tensor.begin >= 0 && tensor.begin <= tensor.end &&
                    static_cast<size_t>(tensor.end) <= data.size(),
                "'{}' is no tensor of {}", tensor.name, path_);
  return data.subspan(static_cast<size_t>(tensor.begin),
                      static_cast<size_t>(tensor.end - tensor.begin));
}

FileDigest write_safetensors(const std::string& path, std::span<const TensorBytes> tensors,
                             const SafetensorsMetadata& metadata) {
  AtomicFile file(path);
  write_safetensors(file.writer(), tensors, metadata);
  return file.commit();
}

}  // namespace cleave
