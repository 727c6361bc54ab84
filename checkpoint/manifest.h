// The list of what a checkpoint's folder holds. It is written last: a folder with a sound manifest
// is a whole checkpoint. docs/checkpoint.md has the format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_io.h"
#include "graph/types.h"

namespace cleave {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kRunName = "run.json";
inline constexpr int64_t kLargestManifest = int64_t{16} << 20;  // bytes; 100,000 tensors

struct ManifestFile {
  std::string name;  // in the checkpoint's folder
  FileDigest digest;
};

struct ManifestTensor {
  std::string name;
  TensorType type;
  bool parameter = true;
  int32_t file = 0;  // index in files
};

struct Manifest {
  int64_t step = 0;
  std::string written;  // UTC: "2025-01-31T12:00:00Z"
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

// Its last line is the checksum of all lines before it, so that a manifest vouches for itself.
// Throws Error when a name is not UTF-8 or the text is longer than kLargestManifest.
std::string to_text(const Manifest& manifest);
// Throws Error when the text was changed since, is of another format or version, or does not say
// what a manifest must: names are unique, files are named without folders.
Manifest parse_manifest(std::string_view text);

// The line that ends a manifest whose lines so far are `text`.
std::string manifest_seal(std::string_view text);

}  // namespace cleave
