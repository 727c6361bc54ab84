// Numbers for TensorBoard: an event file is a sequence of records, each a length, a message and
// their checksums. The message is protobuf; scalars need five fields of it, so they are encoded
// here and there is no protobuf to install, to generate code with, or to agree with on a version.
#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

namespace cleave {

struct Scalar {
  std::string_view tag;  // "train/loss"; what is before the slash groups the charts
  double value = 0;      // written as float
};

// Owns one file, events.out.tfevents.<time>.<host>.<pid>.
class EventWriter {
 public:
  // Begins a new file in the folder, which must exist; its name sorts behind those that are there,
  // because TensorBoard reads them in that order. Of what they hold, first_step and later steps are
  // void from now on: TensorBoard drops them. Throws Error when the file cannot be written.
  EventWriter(const std::string& folder, int64_t first_step);

  // One event, now, which is in the file when the call returns. Throws Error when it is not.
  void write(int64_t step, std::span<const Scalar> scalars);

  const std::string& path() const { return path_; }

 private:
  void record(const std::string& message);

  std::string path_;
  std::ofstream file_;
};

// Of the polynomial 0x1EDC6F41 (Castagnoli), rotated and shifted as records of this format want it.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace cleave
