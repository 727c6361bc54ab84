#include "cli/run_folder.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

namespace cleave {

namespace fs = std::filesystem;

std::string checkpoints_in(const std::string& path) {
  std::error_code error;
  const std::string inside = path + "/checkpoints";
  return fs::is_directory(inside, error) ? inside : path;
}

bool lies_in(const std::string& path, const std::string& folder) {
  std::error_code error, other;
  const fs::path inner = fs::canonical(path, error), outer = fs::canonical(folder, other);
  if (error || other) return false;
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace cleave
