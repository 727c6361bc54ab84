// The reader of a checkpoint's manifest on any text: an Error, or a manifest that is written and
// read back the same.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "checkpoint/manifest.h"
#include "graph/error.h"

namespace {

void read(const std::string& text) {
  cleave::Manifest m;
  try {
    m = cleave::parse_manifest(text);
  } catch (const cleave::Error& e) {
    if (std::string(e.what()).find_first_of("\n\r\x1b") != std::string::npos) std::abort();
    return;
  }
  m.written.clear();  // written as it is, so it must not hold what JSON escapes
  const std::string again = cleave::to_text(m);
  if (cleave::to_text(cleave::parse_manifest(again)) != again) std::abort();
}

}  // namespace

// As it is when the first byte is even; else sealed, so that the text is reached.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  read(data[0] % 16 == 0 ? text : text + cleave::manifest_seal(text));
  return 0;
}
