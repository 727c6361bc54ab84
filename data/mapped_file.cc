#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "graph/error.h"

namespace cleave {

MappedFile::MappedFile(const std::string& path, std::string_view what, std::string_view advice)
    : path_(path) {
  // Without O_NONBLOCK a named pipe would be waited for.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail("cannot read {} '{}': {}; {}", what, path, std::strerror(errno), advice);
  struct stat status {};
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file);
    fail("cannot read {} '{}': it is {}; {}", what, path,
         S_ISDIR(status.st_mode) ? "a folder, not a file" : "not a file", advice);
  }
  size_ = static_cast<size_t>(status.st_size);
  void* mapped = nullptr;
  if (size_ > 0) mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  const int error = errno;
  ::close(file);
  if (mapped == MAP_FAILED) fail("cannot read {} '{}': {}", what, path, std::strerror(error));
  data_ = mapped;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace cleave
