#include "checkpoint/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPiece = size_t{1} << 20;         // hashed and written while it is in the cache
constexpr int64_t kFlushEvery = int64_t{1} << 25;  // bytes after which the disk is set to work

[[noreturn]] void cannot(const char* what, const std::string& path, int error) {
  const char* hint = "";
  if (error == ENOSPC || error == EDQUOT) hint = "; free some space or use another folder";
  if (error == EROFS || error == EACCES || error == EPERM) hint = "; use a folder you may write to";
  fail("cannot {} '{}': {}{}", what, printable(path), std::strerror(error), hint);
}

}  // namespace

FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileHandle::~FileHandle() {
  if (fd_ >= 0) ::close(fd_);
}

FileWriter::FileWriter(const std::string& path, std::string shown)
    : path_(shown.empty() ? path : std::move(shown)) {
  own_ = FileHandle(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  fd_ = own_.get();
  if (fd_ < 0) cannot("write", path_, errno);
}

void FileWriter::reserve(int64_t bytes) {
  if (bytes == 0) return;
  reserved_ = bytes;
  while (::fallocate(fd_, 0, 0, bytes) != 0) {
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) cannot("write", path_, errno);
    if (errno != EINTR) return;  // it cannot
  }
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), kPiece));
    checksum_.add(piece);
    for (size_t done = 0; done < piece.size();) {
      const ssize_t n = ::write(fd_, piece.data() + done, piece.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) cannot("write", path_, n < 0 ? errno : ENOSPC);
      done += static_cast<size_t>(n);
    }
    written_ += static_cast<int64_t>(piece.size());
    bytes = bytes.subspan(piece.size());
    if (written_ - flushed_ >= kFlushEvery) {
      // The disk writes while the next pieces are made; fsync then has little left to wait for.
      // Where this does nothing, fsync does all.
      ::sync_file_range(fd_, flushed_, written_ - flushed_, SYNC_FILE_RANGE_WRITE);
      flushed_ = written_;
    }
  }
}

FileDigest FileWriter::finish() {
  CLEAVE_ASSERT(reserved_ < 0 || reserved_ == written_,
                "'{}': {} bytes were to be written, {} were", path_, reserved_, written_);
  while (::fsync(fd_) != 0) {
    // Pipes and devices have nothing to sync.
    if (errno == EINVAL || errno == EROFS) break;
    if (errno != EINTR) cannot("write", path_, errno);
  }
  own_ = FileHandle();
  return {written_, checksum_.hex()};
}

FileHandle open_to_read(const std::string& path) {
  // Not waiting: opening a pipe would.
  FileHandle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) cannot("read", path, errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) cannot("read", path, errno);
  if (!S_ISREG(status.st_mode)) {
    fail("'{}' is {}, not a file", printable(path),
         S_ISDIR(status.st_mode) ? "a folder" : "a device or a pipe");
  }
  return file;
}

int64_t size_of_file(const FileHandle& file, const std::string& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) cannot("read", path, errno);
  return status.st_size;
}

FileDigest digest_of(const FileHandle& file, const std::string& path) {
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Checksum checksum;
  std::vector<std::byte> piece(kPiece);
  int64_t at = 0;
  while (true) {
    const ssize_t n = ::pread(file.get(), piece.data(), piece.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) cannot("read", path, errno);
    if (n == 0) break;
    checksum.add(std::span(piece).first(static_cast<size_t>(n)));
    at += n;
  }
  return {at, checksum.hex()};
}

std::string read_text(const std::string& path, int64_t limit) {
  const FileHandle file = open_to_read(path);
  const int64_t size = size_of_file(file, path);
  if (size > limit) fail("'{}': {} bytes, more than {} can be", printable(path), size, limit);
  std::string text(static_cast<size_t>(size), '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t n =
        ::pread(file.get(), text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) cannot("read", path, errno);
    if (n == 0) text.resize(done);
    done += static_cast<size_t>(n);
  }
  return text;
}

void sync_folder(const std::string& path) {
  const FileHandle folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) cannot("write", path, errno);
  while (::fsync(folder.get()) != 0) {
    if (errno == EINVAL || errno == EROFS) return;  // the file system needs none
    if (errno != EINTR) cannot("write", path, errno);
  }
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  std::error_code error;
  const fs::file_status status = fs::status(path_, error);
  if (fs::is_directory(status)) fail("'{}' is a folder, not a file", printable(path_));
  if (fs::exists(status)) {
    if (!fs::is_regular_file(status)) fail("'{}' is no regular file", printable(path_));
    path_ = fs::canonical(path_, error).string();
  }
  static std::atomic<int> count = 0;  // of this process
  const fs::path whole(path_);
  temporary_ = (whole.parent_path() /
                fmt::format(".{}.partial-{}-{}", whole.filename().string(), ::getpid(), count++))
                   .string();
  ::unlink(temporary_.c_str());  // of a killed process that had our number
  writer_ = std::make_unique<FileWriter>(temporary_, path_);
}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

FileDigest AtomicFile::commit() {
  FileDigest digest = writer_->finish();
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) cannot("write", path_, errno);
  committed_ = true;
  const fs::path folder = fs::path(path_).parent_path();
  sync_folder(folder.empty() ? "." : folder.string());
  return digest;
}

std::string printable(std::string_view name) {
  constexpr size_t kMost = 300;
  std::string text;
  for (char c : name.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    text += byte < 0x20 || byte == 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return name.size() > kMost ? text + "..." : text;
}

}  // namespace cleave
