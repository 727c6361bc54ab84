#include "executor/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/crc.hpp>
#include <charconv>
#include <chrono>
#include <filesystem>

#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";

// The fields that are written, by their numbers in TensorFlow's event.proto and summary.proto.
enum Field : uint32_t {
  kWallTime = 1,     // of Event: double, seconds since 1970
  kStep = 2,         // of Event: int64
  kFileVersion = 3,  // of Event: string, in the first one only
  kSummary = 5,      // of Event: message
  kSessionLog = 7,   // of Event: message
  kStatus = 1,       // of SessionLog: enum
  kValue = 1,        // of Summary: message, repeated
  kTag = 1,          // of Value: string
  kSimpleValue = 2,  // of Value: float
};
constexpr uint64_t kSessionStart = 1;

// The last three bits of a field's key.
enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <class T>
void put_fixed(std::string& to, T bits) {  // little-endian
  for (size_t i = 0; i < sizeof(T); ++i) to += static_cast<char>(bits >> (8 * i));
}

void put_varint(std::string& to, uint64_t n) {
  for (; n >= 0x80; n >>= 7) to += static_cast<char>(n | 0x80);
  to += static_cast<char>(n);
}

void put_key(std::string& to, Field field, Wire wire) { put_varint(to, field << 3 | wire); }

void put_integer(std::string& to, Field field, uint64_t n) {
  put_key(to, field, kVarint);
  put_varint(to, n);
}

void put_bytes(std::string& to, Field field, std::string_view bytes) {
  put_key(to, field, kBytes);
  put_varint(to, bytes.size());
  to += bytes;
}

std::string event_now(int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, kWallTime, kFixed64);
  put_fixed(event, std::bit_cast<uint64_t>(now.count()));
  put_integer(event, kStep, static_cast<uint64_t>(step));
  return event;
}

// Seconds since 1970, but later than in the name of any event file of the folder.
int64_t next_time(const std::string& folder) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  int64_t time = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t other = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), other);
    if (other < 9'999'999'999) time = std::max(time, other + 1);
  }
  return time;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0 || name[0] == 0) return "localhost";
  return name.data();
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return std::rotr(static_cast<uint32_t>(crc.checksum()), 15) + 0xa282ead8;
}

EventWriter::EventWriter(const std::string& folder, int64_t first_step)
    : path_(fmt::format("{}/{}{:010}.{}.{}", folder, kPrefix, next_time(folder), host_name(),
                        getpid())),
      file_(path_, std::ios::binary | std::ios::trunc) {
  if (!file_) fail("cannot write '{}'; name a folder that can be written", path_);
  std::string version = event_now(0);
  put_bytes(version, kFileVersion, "brain.Event:2");
  record(version);
  std::string session, start = event_now(first_step);
  put_integer(session, kStatus, kSessionStart);
  put_bytes(start, kSessionLog, session);
  record(start);
}

void EventWriter::write(int64_t step, std::span<const Scalar> scalars) {
  std::string summary;
  for (const Scalar& s : scalars) {
    std::string value;
    put_bytes(value, kTag, s.tag);
    put_key(value, kSimpleValue, kFixed32);
    put_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(s.value)));
    put_bytes(summary, kValue, value);
  }
  std::string event = event_now(step);
  put_bytes(event, kSummary, summary);
  record(event);
}

void EventWriter::record(const std::string& message) {
  std::string framed, length;
  put_fixed(length, static_cast<uint64_t>(message.size()));
  framed = length;
  put_fixed(framed, masked_crc32c(length));
  framed += message;
  put_fixed(framed, masked_crc32c(message));
  file_ << framed << std::flush;
  if (!file_) fail("cannot write '{}' any more; is the disk full?", path_);
}

}  // namespace cleave
