// Files as checkpoints need them: written through to the disk, read with their checksum, and every
// error one line that names the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace cleave {

// A file descriptor, closed with its owner.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int fd) : fd_(fd) {}
  FileHandle(FileHandle&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileHandle& operator=(FileHandle&& other) noexcept;
  ~FileHandle();
  int get() const { return fd_; }  // -1: none

 private:
  int fd_ = -1;
};

// What a file holds: its size, and the XXH128 of its bytes as 32 hexadecimal digits, as the program
// xxh128sum prints it.
struct FileDigest {
  int64_t bytes = 0;
  std::string checksum;
  bool operator==(const FileDigest&) const = default;
};

// The XXH128 of what was added, in any pieces.
class Checksum {
 public:
  Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;
  ~Checksum();
  void add(std::span<const std::byte> bytes);
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string checksum_of(std::string_view text);

// Writes one file from its start to its end.
class FileWriter {
 public:
  // A new file: Error when there is one already, or none can be made. Errors name it as `shown`,
  // the name that it will have in the end; empty: as `path`.
  explicit FileWriter(const std::string& path, std::string shown = "");
  // A file that someone else opened and will close; `path` is for errors.
  FileWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  // Sets aside room for all of the file, where the file system can: a full disk is met at once, and
  // others are written faster. Then so many bytes must be written.
  void reserve(int64_t bytes);
  // Throws Error when the disk is full, ...; the file is then of no use.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Until the disk itself has all of it. Nothing may be written afterwards.
  FileDigest finish();

 private:
  FileHandle own_;
  int fd_ = -1;
  std::string path_;
  Checksum checksum_;
  int64_t written_ = 0, flushed_ = 0, reserved_ = -1;
};

// Of a regular file; anything else is an Error.
FileHandle open_to_read(const std::string& path);
int64_t size_of_file(const FileHandle& file, const std::string& path);
// Reads the whole file, from the disk or what the system keeps of it in memory.
FileDigest digest_of(const FileHandle& file, const std::string& path);
// The whole file; Error when it has more than `limit` bytes.
std::string read_text(const std::string& path, int64_t limit);

// Makes the names in a folder as durable as the files themselves.
void sync_folder(const std::string& path);

// Writes a file beside `path` and gives it that name when it is complete, so that `path` is at any
// moment what it was or what it becomes. A link stays a link; only regular files are replaced.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  ~AtomicFile();  // without commit(): nothing was written
  FileWriter& writer() { return *writer_; }
  FileDigest commit();

 private:
  std::string path_, temporary_;
  std::unique_ptr<FileWriter> writer_;
  bool committed_ = false;
};

// A name out of a file, fit for one line of an error: control characters escaped, long ones cut.
std::string printable(std::string_view name);

}  // namespace cleave
