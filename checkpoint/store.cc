#include "checkpoint/store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <set>

#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

// Names that no reader looks at: ".step-00000100.partial-1234", by process.
constexpr const char* kPartial = ".partial-";    // being written
constexpr const char* kRemoved = ".removed-";    // being removed
constexpr const char* kReplaced = ".replaced-";  // was in the place of one being written
constexpr const char* kLockName = ".lock";

std::string hidden(const std::string& name, const char* kind) {
  return fmt::format(".{}{}{}", name, kind, ::getpid());
}

[[noreturn]] void cannot(const char* what, const fs::path& path, int error) {
  const bool denied = error == EROFS || error == EACCES || error == EPERM;
  fail("cannot {} '{}': {}{}", what, printable(path.string()), std::strerror(error),
       denied ? "; use a folder you may write to" : "");
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) cannot("write", to, errno);
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// Tensors of one kind into files of at most `limit` bytes.
void write_tensors(const fs::path& folder, const fs::path& shown, const Snapshot& snapshot,
                   bool parameters, int64_t limit, Manifest& manifest) {
  std::vector<TensorBytes> tensors;
  int64_t bytes = 0;
  int count = 0;
  const auto flush = [&] {
    if (tensors.empty()) return;
    const std::string name =
        fmt::format("{}-{:05}.safetensors", parameters ? "weights" : "optimizer", ++count);
    FileWriter file((folder / name).string(), (shown / name).string());
    write_safetensors(file, tensors, {{"step", std::to_string(snapshot.step)}});
    for (const TensorBytes& t : tensors) {
      manifest.tensors.push_back(
          {std::string(t.name), t.type, parameters, static_cast<int32_t>(manifest.files.size())});
    }
    manifest.files.push_back({name, file.finish()});
    tensors.clear();
    bytes = 0;
  };
  for (const SavedTensor& t : snapshot.tensors) {
    if (t.parameter != parameters) continue;
    const auto size = static_cast<int64_t>(t.bytes.size());
    if (bytes + size > limit) flush();
    tensors.push_back({t.name, t.type, t.bytes});
    bytes += size;
  }
  flush();
}

// All files of a checkpoint, the manifest last, until the disk has them.
void write_files(const fs::path& folder, const fs::path& shown, const Snapshot& snapshot,
                 int64_t limit) {
  Manifest manifest;
  manifest.step = snapshot.step;
  manifest.written = now_utc();
  for (const bool parameters : {true, false}) {
    write_tensors(folder, shown, snapshot, parameters, limit, manifest);
  }
  FileWriter run((folder / kRunName).string(), (shown / kRunName).string());
  run.write(snapshot.run_json);
  manifest.files.push_back({kRunName, run.finish()});
  FileWriter last((folder / kManifestName).string(), (shown / kManifestName).string());
  last.write(to_text(manifest));
  last.finish();
  sync_folder(folder.string());
}

// Gives a written folder its name, in one step also when there is one of that name already: that
// one is then in `folder`, or gone.
void put_in_place(const fs::path& folder, const fs::path& final, const fs::path& replaced) {
  if (::rename(folder.c_str(), final.c_str()) == 0) return;
  if (errno != ENOTEMPTY && errno != EEXIST) cannot("write", final, errno);
  if (::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, final.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) cannot("write", final, errno);
  // A file system that cannot exchange. Between the two names the old one is found by
  // remove_leftovers() alone, which gives it its name back.
  rename_or_fail(final, replaced);
  rename_or_fail(folder, final);
}

}  // namespace

std::string step_folder_name(int64_t step) { return fmt::format("step-{:08}", step); }

std::optional<int64_t> step_of_folder_name(std::string_view name) {
  if (!name.starts_with("step-")) return std::nullopt;
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0 ||
      name != step_folder_name(step)) {
    return std::nullopt;
  }
  return step;
}

CheckpointStore::CheckpointStore(std::string folder, int64_t file_bytes)
    : folder_(std::move(folder)), file_bytes_(file_bytes) {}

void CheckpointStore::open_for_writing() {
  if (lock_.get() >= 0) return;
  std::error_code error;
  if (!fs::is_directory(folder_, error)) {
    if (fs::exists(folder_, error)) {
      fail("'{}' is a file; checkpoints need a folder", printable(folder_));
    }
    fs::create_directories(folder_, error);
    if (error) cannot("make the folder", folder_, error.value());
    sync_folder((fs::path(folder_) / "..").string());
  }
  const fs::path path = fs::path(folder_) / kLockName;
  while (true) {
    FileHandle lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    if (lock.get() < 0) cannot("write checkpoints into", folder_, errno);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) cannot("lock", path, errno);
      char owner[32] = {};
      const ssize_t n = ::pread(lock.get(), owner, sizeof owner - 1, 0);
      fail("another run (process {}) writes its checkpoints into '{}'; use another folder",
           n > 0 ? owner : "unknown", printable(folder_));
    }
    // Someone may have removed the file between the two calls; then this lock is nobody's.
    struct stat ours {
    }, there{};
    if (::fstat(lock.get(), &ours) != 0 || ::stat(path.c_str(), &there) != 0 ||
        ours.st_ino != there.st_ino || ours.st_dev != there.st_dev) {
      continue;
    }
    const std::string owner = std::to_string(::getpid());
    if (::ftruncate(lock.get(), 0) == 0) {
      // For the message above only: a full disk is met when there is something to save.
      [[maybe_unused]] const ssize_t n = ::pwrite(lock.get(), owner.data(), owner.size(), 0);
    }
    lock_ = std::move(lock);
    break;
  }
  remove_leftovers();
}

void CheckpointStore::remove_leftovers() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    names.push_back(entry.path().filename().string());
  }
  for (const std::string& name : names) {
    if (!name.starts_with(".step-")) continue;
    const fs::path path = fs::path(folder_) / name;
    const size_t replaced = name.find(kReplaced);
    if (replaced != std::string::npos) {
      const fs::path original = fs::path(folder_) / name.substr(1, replaced - 1);
      if (!fs::exists(original, error)) {
        rename_or_fail(path, original);
        continue;
      }
    } else if (name.find(kPartial) == std::string::npos &&
               name.find(kRemoved) == std::string::npos) {
      continue;
    }
    fs::remove_all(path, error);
  }
}

std::string CheckpointStore::write(const Snapshot& snapshot) {
  CLEAVE_ASSERT(snapshot.step >= 0, "a checkpoint of step {}", snapshot.step);
  std::set<std::string_view> names;
  for (const SavedTensor& t : snapshot.tensors) {
    CLEAVE_ASSERT(names.insert(t.name).second, "two tensors are named '{}'", t.name);
  }
  open_for_writing();
  const std::string name = step_folder_name(snapshot.step);
  const fs::path folder(folder_);
  const fs::path partial = folder / hidden(name, kPartial), final = folder / name;
  const fs::path replaced = folder / hidden(name, kReplaced);
  std::error_code error;
  fs::remove_all(partial, error);
  try {
    if (::mkdir(partial.c_str(), 0777) != 0) cannot("write", final, errno);
    write_files(partial, final, snapshot, file_bytes_);
    put_in_place(partial, final, replaced);
    sync_folder(folder_);
  } catch (...) {
    fs::remove_all(partial, error);
    if (fs::exists(replaced, error) && !fs::exists(final, error)) {
      fs::rename(replaced, final, error);
    }
    throw;
  }
  fs::remove_all(partial, error);
  fs::remove_all(replaced, error);
  return final.string();
}

// By another name first, so that no half of it is ever seen.
void CheckpointStore::remove(const std::string& name) {
  const fs::path path = fs::path(folder_) / name;
  const fs::path removed = fs::path(folder_) / hidden(name, kRemoved);
  std::error_code error;
  fs::remove_all(removed, error);
  rename_or_fail(path, removed);
  sync_folder(folder_);
  fs::remove_all(removed, error);
  if (error) cannot("remove", path, error.value());
}

void CheckpointStore::keep(int64_t k) {
  CLEAVE_ASSERT(k >= 0, "keep({})", k);
  if (k == 0) return;
  open_for_writing();
  int64_t complete = 0;
  for (const CheckpointInfo& info : list()) {
    if (complete == k) {
      remove(step_folder_name(info.step));
    } else {
      complete += info.complete;
    }
  }
}

std::vector<std::string> CheckpointStore::set_aside_after(int64_t step) {
  open_for_writing();
  std::vector<std::string> paths;
  for (const CheckpointInfo& info : list()) {
    if (info.step <= step) break;
    std::string aside;
    std::error_code error;
    int n = 0;
    do {
      aside = fmt::format("{}.aside-{}", info.path, ++n);
    } while (fs::exists(aside, error));
    rename_or_fail(info.path, aside);
    paths.push_back(std::move(aside));
  }
  if (!paths.empty()) sync_folder(folder_);
  return paths;
}

std::vector<CheckpointInfo> CheckpointStore::list() const {
  std::vector<CheckpointInfo> all;
  std::error_code error;
  if (!fs::exists(folder_, error)) return all;
  fs::directory_iterator entries(folder_, error);
  if (error) cannot("read", folder_, error.value());
  for (const auto& entry : entries) {
    const std::optional<int64_t> step = step_of_folder_name(entry.path().filename().string());
    if (!step) continue;
    CheckpointInfo info;
    info.path = entry.path().string();
    info.step = *step;
    try {
      const Manifest manifest = read_manifest(info.path);
      for (const ManifestFile& f : manifest.files) info.bytes += f.digest.bytes;
      for (const ManifestTensor& t : manifest.tensors) {
        info.parameters += t.parameter ? numel(t.type.shape) : 0;
      }
      info.tensors = static_cast<int64_t>(manifest.tensors.size());
      info.written = manifest.written;
      info.complete = true;
    } catch (const Error& e) {
      info.why_not = e.what();
    }
    all.push_back(std::move(info));
  }
  std::sort(all.begin(), all.end(),
            [](const CheckpointInfo& a, const CheckpointInfo& b) { return a.step > b.step; });
  return all;
}

std::optional<Checkpoint> CheckpointStore::latest(std::vector<std::string>& problems) const {
  for (const CheckpointInfo& info : list()) {
    std::vector<std::string> found;
    Checkpoint checkpoint(info.path, found);
    if (found.empty()) return checkpoint;
    problems.insert(problems.end(), found.begin(), found.end());
  }
  return std::nullopt;
}

}  // namespace cleave
