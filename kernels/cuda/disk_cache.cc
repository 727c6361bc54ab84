#include "kernels/cuda/disk_cache.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

namespace cleave {
namespace {

namespace fs = std::filesystem;

// FNV-1a.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ULL;
  return hash;
}

constexpr size_t kHashDigits = 16;
std::string hash_text(std::string_view text) { return fmt::format("{:016x}", hash_of(text)); }

}  // namespace

DiskCache::DiskCache(std::string_view kind) {
  const char* base = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (base != nullptr && *base != 0) {
    folder_ = fmt::format("{}/cleave/{}", base, kind);
  } else if (home != nullptr && *home != 0) {
    folder_ = fmt::format("{}/.cache/cleave/{}", home, kind);
  }
}

std::string DiskCache::path_of(const std::string& key) const {
  return fmt::format("{}/{}", folder_, hash_text(key));
}

// A file holds the key, a zero byte, the value's hash, and the value.
std::string DiskCache::find(const std::string& key) const {
  if (folder_.empty()) return "";
  std::ifstream file(path_of(key), std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  const size_t begin = key.size() + 1 + kHashDigits;
  if (all.size() <= begin || all.compare(0, key.size(), key) != 0 || all[key.size()] != 0) {
    return "";
  }
  std::string value = all.substr(begin);
  return all.compare(key.size() + 1, kHashDigits, hash_text(value)) == 0 ? value : "";
}

// Under another name first, so that nobody reads half of it. What is there and damaged is replaced.
std::string DiskCache::keep(const std::string& key, const std::string& value) const {
  if (folder_.empty()) return value;
  std::error_code error;
  fs::create_directories(folder_, error);
  const std::string path = path_of(key);
  const std::string part = fmt::format("{}.{:08x}", path, std::random_device()());
  std::ofstream file(part, std::ios::binary);
  file << key << '\0' << hash_text(value) << value;
  file.close();
  if (file) {
    fs::create_hard_link(part, path, error);
    if (error && find(key).empty()) fs::rename(part, path, error);
  }
  fs::remove(part, error);
  const std::string kept = find(key);
  return kept.empty() ? value : kept;
}

}  // namespace cleave
