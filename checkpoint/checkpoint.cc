#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <thread>

#include "checkpoint/store.h"
#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

std::string join(const std::string& folder, const std::string& name) {
  return (fs::path(folder) / name).string();
}

bool is_tensor_file(const std::string& name) { return name.ends_with(".safetensors"); }

Manifest parsed_manifest(const std::string& folder) {
  const std::string path = join(folder, kManifestName);
  std::error_code error;
  if (!fs::exists(path, error)) {
    fail("'{}': there is no {}, so this is no whole checkpoint", printable(folder), kManifestName);
  }
  const std::string text = read_text(path, kLargestManifest);
  Manifest manifest;
  try {
    manifest = parse_manifest(text);
  } catch (const Error& e) {
    fail("'{}': {}", printable(path), e.what());
  }
  const std::optional<int64_t> step = step_of_folder_name(fs::path(folder).filename().string());
  if (step && *step != manifest.step) {
    fail("'{}': of step {}, and its folder is named after step {}", printable(path), manifest.step,
         *step);
  }
  return manifest;
}

// Calls `check` and adds the message of an Error to `problems`; whether there was none.
template <class Check>
bool passes(std::vector<std::string>& problems, const Check& check) {
  try {
    check();
    return true;
  } catch (const Error& e) {
    problems.emplace_back(e.what());
    return false;
  }
}

void check_length(const std::string& path, int64_t expected) {
  std::error_code error;
  if (!fs::exists(path, error)) fail("'{}': missing", printable(path));
  const int64_t bytes = size_of_file(open_to_read(path), path);
  if (bytes < expected) {
    fail("'{}': cut off, {} of its {} bytes are there", printable(path), bytes, expected);
  }
  if (bytes > expected) {
    fail("'{}': {} bytes, and {} were written", printable(path), bytes, expected);
  }
}

void check_bytes(const std::string& path, const FileDigest& expected) {
  check_length(path, expected.bytes);
  if (digest_of(open_to_read(path), path) != expected) {
    fail("'{}': damaged, its bytes are not those that were written (another XXH128)",
         printable(path));
  }
}

// Calls `work` with each number below `count`, on so many threads. The first exception comes
// through.
void in_parallel(size_t count, size_t threads, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  const auto worker = [&] {
    for (size_t i; (i = next++) < count;) work(i);
  };
  std::vector<std::future<void>> others;
  for (size_t t = 1; t < std::min(count, threads); ++t)
    others.push_back(std::async(std::launch::async, worker));
  worker();
  for (std::future<void>& other : others) other.get();
}

// Whether what a file of tensors says is what the manifest says of it.
void check_tensors(const SafetensorsFile& file, const Manifest& manifest, int32_t index) {
  size_t listed = 0;
  for (const ManifestTensor& t : manifest.tensors) {
    if (t.file != index) continue;
    ++listed;
    const TensorInfo* found = file.find(t.name);
    if (found == nullptr) fail("'{}': no tensor '{}'", file.path(), printable(t.name));
    if (found->type != t.type) {
      fail("'{}': '{}' is {}, and the manifest says {}", file.path(), printable(t.name),
           to_string(found->type), to_string(t.type));
    }
  }
  if (listed != file.tensors().size() + file.others().size()) {
    fail("'{}': holds tensors that the manifest does not list", file.path());
  }
}

// Throws Error unless there is such a folder.
void expect_folder(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) fail("there is no checkpoint '{}'", printable(path));
  if (!fs::is_directory(status)) {
    fail("'{}' is a file; a checkpoint is a folder", printable(path));
  }
}

}  // namespace

Checkpoint::Checkpoint(const std::string& folder, std::vector<std::string>& problems)
    : path_(folder) {
  if (!passes(problems, [&] { manifest_ = parsed_manifest(folder); })) return;
  // Large files are read side by side, since one core may be slower than the disk; problems keep
  // the files' order.
  const bool large = bytes() > (int64_t{64} << 20);
  const size_t threads = large ? std::min(4u, std::thread::hardware_concurrency()) : 1;
  const size_t count = manifest_.files.size();
  std::vector<std::vector<std::string>> found(count);
  std::vector<std::optional<SafetensorsFile>> opened(count);
  in_parallel(count, threads, [&](size_t i) {
    const ManifestFile& file = manifest_.files[i];
    const std::string path = join(folder, file.name);
    passes(found[i], [&] {
      check_bytes(path, file.digest);
      if (file.name == kRunName) run_json_ = read_text(path, file.digest.bytes);
      if (!is_tensor_file(file.name)) return;
      opened[i].emplace(path);
      check_tensors(*opened[i], manifest_, static_cast<int32_t>(i));
    });
  });
  for (size_t i = 0; i < count; ++i) {
    problems.insert(problems.end(), found[i].begin(), found[i].end());
    if (opened[i]) files_.emplace(static_cast<int32_t>(i), std::move(*opened[i]));
  }
  passes(problems, [&] {
    const std::string manifest = printable(join(folder, kManifestName));
    if (std::none_of(manifest_.files.begin(), manifest_.files.end(),
                     [](const ManifestFile& f) { return f.name == kRunName; })) {
      fail("'{}': lists no {}", manifest, kRunName);
    }
    for (const ManifestTensor& t : manifest_.tensors) {
      const std::string& name = manifest_.files[static_cast<size_t>(t.file)].name;
      if (!is_tensor_file(name)) {
        fail("'{}': tensor '{}' is in '{}', which is no file of tensors", manifest,
             printable(t.name), printable(name));
      }
    }
  });
  for (size_t i = 0; i < tensors().size(); ++i) {
    by_name_.emplace(tensors()[i].name, static_cast<int32_t>(i));
  }
}

int64_t Checkpoint::bytes() const {
  int64_t bytes = 0;
  for (const ManifestFile& f : manifest_.files) bytes += f.digest.bytes;
  return bytes;
}

const ManifestTensor* Checkpoint::find(std::string_view name) const {
  const auto at = by_name_.find(name);
  return at == by_name_.end() ? nullptr : &tensors()[static_cast<size_t>(at->second)];
}

std::span<const std::byte> Checkpoint::bytes(const ManifestTensor& tensor) const {
  const auto file = files_.find(tensor.file);
  CLEAVE_ASSERT(file != files_.end(), "checkpoint {} is not sound", path_);
  const TensorInfo* info = file->second.find(tensor.name);
  CLEAVE_ASSERT(info != nullptr, "'{}' is no tensor of checkpoint {}", tensor.name, path_);
  return file->second.bytes(*info);
}

std::span<const std::byte> Checkpoint::bytes(std::string_view name, const TensorType& type) const {
  const ManifestTensor* tensor = find(name);
  if (tensor == nullptr) {
    fail("checkpoint '{}' has no tensor '{}'; was it written by another model?", printable(path_),
         printable(name));
  }
  if (tensor->type != type) {
    fail("checkpoint '{}': '{}' is {}, and the model's is {}; use the settings it was trained with",
         printable(path_), printable(name), to_string(tensor->type), to_string(type));
  }
  return bytes(*tensor);
}

bool is_step_folder(const std::string& path) {
  std::error_code error;
  if (fs::exists(join(path, kManifestName), error)) return true;
  // Without links and a slash at the end, for its name.
  const fs::path whole = fs::canonical(path, error);
  return step_of_folder_name(whole.filename().string()).has_value();
}

Manifest read_manifest(const std::string& folder) {
  Manifest manifest = parsed_manifest(folder);
  for (const ManifestFile& f : manifest.files) {
    check_length(join(folder, f.name), f.digest.bytes);
  }
  return manifest;
}

std::optional<std::string> newest_sound_before(const std::string& folder) {
  std::error_code error;
  const fs::path whole = fs::canonical(folder, error);
  const std::optional<int64_t> step = step_of_folder_name(whole.filename().string());
  if (!step) return std::nullopt;
  // As the user wrote it, where that says which folder it is in.
  fs::path parent = fs::path(folder).parent_path();
  if (fs::path(folder).filename() != whole.filename()) parent = whole.parent_path();
  if (parent.empty()) parent = ".";
  for (const CheckpointInfo& info : CheckpointStore(parent.string()).list()) {
    if (info.step >= *step || !info.complete) continue;
    std::vector<std::string> problems;
    const Checkpoint older(info.path, problems);
    if (problems.empty()) return info.path;
  }
  return std::nullopt;
}

Checkpoint open_checkpoint(const std::string& path, std::vector<std::string>* problems) {
  expect_folder(path);
  std::vector<std::string> found;
  if (is_step_folder(path)) {
    Checkpoint checkpoint(path, found);
    if (found.empty()) return checkpoint;
    const std::optional<std::string> older = newest_sound_before(path);
    fail("{}{}; {}", found[0],
         found.size() > 1 ? fmt::format(" (and {} more problems)", found.size() - 1) : "",
         older ? fmt::format("'{}' is older and sound", *older)
               : "there is no older sound checkpoint beside it");
  }
  std::optional<Checkpoint> newest = CheckpointStore(path).latest(found);
  if (problems != nullptr) problems->insert(problems->end(), found.begin(), found.end());
  if (newest) return std::move(*newest);
  if (found.empty()) fail("there is no checkpoint in '{}'", printable(path));
  fail("no checkpoint in '{}' is sound; the newest: {}", printable(path), found[0]);
}

std::vector<std::string> verify(const std::string& path) {
  expect_folder(path);
  std::vector<std::string> problems;
  if (is_step_folder(path)) {
    const Checkpoint checkpoint(path, problems);
    return problems;
  }
  const std::vector<CheckpointInfo> all = CheckpointStore(path).list();
  if (all.empty()) fail("there is no checkpoint in '{}'", printable(path));
  for (const CheckpointInfo& info : all) const Checkpoint checkpoint(info.path, problems);
  return problems;
}

int64_t export_weights(const Checkpoint& checkpoint, const std::string& out_file) {
  std::vector<TensorBytes> tensors;
  for (const ManifestTensor& t : checkpoint.tensors()) {
    if (t.parameter) tensors.push_back({t.name, t.type, checkpoint.bytes(t)});
  }
  if (tensors.empty()) fail("checkpoint '{}' has no parameters", printable(checkpoint.path()));
  // Libraries refuse files whose metadata does not say for whom the tensors are laid out; "pt" is
  // row-major.
  const SafetensorsMetadata metadata = {{"format", "pt"},
                                        {"step", std::to_string(checkpoint.step())}};
  return write_safetensors(out_file, tensors, metadata).bytes;
}

void export_weights(const std::string& path, const std::string& out_file) {
  export_weights(open_checkpoint(path), out_file);
}

}  // namespace cleave
