// One checkpoint on the disk: opened, checked, read, exported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "graph/types.h"

namespace cleave {

// A checkpoint whose files were all read and found as they were written. Its files stay mapped,
// also after others have removed them, as long as it lives.
class Checkpoint {
 public:
  // Reads every byte of the folder's files once. What is wrong is added to `problems`, one line
  // each that begins with the file; without any the checkpoint may be used.
  Checkpoint(const std::string& folder, std::vector<std::string>& problems);

  const std::string& path() const { return path_; }  // of its folder
  int64_t step() const { return manifest_.step; }
  const std::string& run_json() const { return run_json_; }
  int64_t bytes() const;  // of all files
  const std::vector<ManifestTensor>& tensors() const { return manifest_.tensors; }

  const ManifestTensor* find(std::string_view name) const;  // null: there is none
  std::span<const std::byte> bytes(const ManifestTensor& tensor) const;
  // Throws Error, naming both, when there is no such tensor or it has another type.
  std::span<const std::byte> bytes(std::string_view name, const TensorType& type) const;

 private:
  std::string path_;
  Manifest manifest_;
  std::string run_json_;
  std::map<int32_t, SafetensorsFile> files_;  // by index in the manifest
  std::map<std::string, int32_t, std::less<>> by_name_;
};

// Whether a folder is one step's checkpoint, by its name or its manifest, and not a store.
bool is_step_folder(const std::string& path);

// The manifest of a checkpoint's folder; all its files must be there in their full length. Reads no
// more than the manifest. Throws Error, beginning with the file.
Manifest read_manifest(const std::string& folder);

// A step's folder, or a store's: then its newest sound checkpoint. Throws Error when there is none,
// in one line: what is wrong with the one asked for or the newest, and which older one is sound.
// What was passed over is added to `problems`.
Checkpoint open_checkpoint(const std::string& path, std::vector<std::string>* problems = nullptr);

// The newest sound checkpoint beside a step's folder that is older than it. Reads every byte of
// those that it tries.
std::optional<std::string> newest_sound_before(const std::string& folder);

// Every problem of a step's folder, or of all in a store's, one line each; empty: sound. Reads
// every byte. Throws Error when `path` is neither.
std::vector<std::string> verify(const std::string& path);

// The parameters alone in one safetensors file, under their own names. `out_file` is replaced when
// the new one is complete. Returns its size in bytes.
int64_t export_weights(const Checkpoint& checkpoint, const std::string& out_file);
// The same of a path as open_checkpoint takes it.
void export_weights(const std::string& path, const std::string& out_file);

}  // namespace cleave
