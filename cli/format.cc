#include "cli/format.h"

#include <unistd.h>  // isatty

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "graph/error.h"
#include "viz/text.h"

namespace cleave {
namespace {

// Characters, not bytes: continuation bytes of UTF-8 do not count.
size_t width_of(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string cut(const std::string& text, size_t width) { return shortened(text, width); }

std::vector<std::string> wrapped(const std::vector<std::string>& parts, std::string_view between,
                                 size_t width) {
  std::vector<std::string> lines;
  for (const std::string& p : parts) {
    if (lines.empty() || width_of(lines.back()) + width_of(between) + width_of(p) > width) {
      if (!lines.empty()) lines.back() += between.substr(0, between.find_last_not_of(' ') + 1);
      lines.push_back(p);
    } else {
      lines.back() += between;
      lines.back() += p;
    }
  }
  return lines;
}

std::vector<std::string> wrapped(std::string_view text, size_t width) {
  std::vector<std::string> parts;  // each with what ends it
  while (!text.empty()) {
    // "dp=4,tp=2" is one word.
    const size_t mark = std::min(text.find(", "), text.find("; "));
    const size_t end = mark == std::string_view::npos ? text.size() : mark + 1;
    parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(text.find_first_not_of(' ', end), text.size()));
  }
  return wrapped(parts, " ", width);
}

bool colours_wanted() {
  const char* terminal = std::getenv("TERM");
  const bool dumb = terminal == nullptr || std::string_view(terminal) == "dumb";
  return isatty(STDOUT_FILENO) == 1 && !dumb && std::getenv("NO_COLOR") == nullptr;
}

double parse_bytes(std::string_view text, std::string_view option) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  std::string unit(stop, end);
  std::erase(unit, ' ');
  static constexpr std::array<std::pair<std::string_view, double>, 12> kUnits = {
      {{"", 1},
       {"B", 1},
       {"kB", 1e3},
       {"KB", 1e3},
       {"MB", 1e6},
       {"GB", 1e9},
       {"TB", 1e12},
       {"KiB", 1024.0},
       {"MiB", 1048576.0},
       {"GiB", 1073741824.0},
       {"TiB", 1099511627776.0},
       {"G", 1e9}}};
  // No device has so little; "40" is meant in another unit.
  constexpr double kFewBytes = 1e6;
  if (error == std::errc() && unit.empty() && number > 0 && number < kFewBytes) {
    fail("{} {}: that is {} bytes; write a unit, as in {}GB, or {}B", option, text, text, text,
         text);
  }
  for (const auto& [name, factor] : kUnits) {
    if (error == std::errc() && name == unit && number > 0 && std::isfinite(number * factor)) {
      return number * factor;
    }
  }
  fail("{} {}: write a size such as 60GB, 512MiB, or none", option, text);
}

std::string Table::to_string(bool colour) const {
  std::vector<size_t> widths;
  std::vector<bool> right;
  for (const std::string& name : rows_[0]) right.push_back(name.starts_with('>'));
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width_of(row[c]));
  }
  for (size_t c = 0; c < right.size(); ++c) {
    // The mark is not printed.
    if (!right[c] || widths[c] != width_of(rows_[0][c])) continue;
    size_t widest = widths[c] - 1;
    for (size_t r = 1; r < rows_.size(); ++r) {
      if (c < rows_[r].size()) widest = std::max(widest, width_of(rows_[r][c]));
    }
    widths[c] = widest;
  }
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < rows_[r].size(); ++c) {
      std::string cell = rows_[r][c];
      const bool to_right = c < right.size() && right[c];
      if (r == 0 && to_right) cell.erase(0, 1);
      const std::string padding(widths[c] - width_of(cell), ' ');
      line += to_right ? padding + cell : cell + padding;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += r == 0 && colour ? "\033[1m" + line + "\033[0m\n" : line + '\n';
  }
  return text;
}

void expect_other_file(const std::string& written, const std::string& other) {
  if (written.empty() || other.empty()) return;
  std::error_code error;
  if (written != other && !std::filesystem::equivalent(written, other, error)) return;
  fail("'{}' would take the place of '{}': name another file", written, other);
}

std::string read_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) fail("'{}' is a folder, not a file", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read '{}': {}", path, std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

namespace {

// Beside the file, so that a full disk leaves the old one; but /dev/stdout is no file.
std::string written_first(const std::string& path) {
  if (path == "-") fail("cannot write '-': name a file; /dev/stdout is the terminal, or a pipe");
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    fail("cannot write '{}': it is a folder; name a file", path);
  }
  const bool special =
      std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored);
  return special ? path : path + ".part";
}

}  // namespace

void expect_writable(const std::string& path) {
  const std::string part = written_first(path);
  std::error_code ignored;
  const bool there = std::filesystem::exists(part, ignored);
  if (!std::ofstream(part, std::ios::binary | std::ios::app)) {
    fail("cannot write '{}': {}", path, std::strerror(errno));
  }
  if (!there) std::filesystem::remove(part, ignored);
}

void write_file(const std::string& path, std::string_view text) {
  const std::string part = written_first(path);
  const bool special = part == path;
  std::error_code ignored;
  std::ofstream file(part, std::ios::binary | std::ios::trunc);
  if (!file) fail("cannot write '{}': {}", path, std::strerror(errno));
  file << text << std::flush;
  const bool written = static_cast<bool>(file);
  file.close();
  if (!written || !file) {
    const std::string why = std::strerror(errno);
    if (!special) std::filesystem::remove(part, ignored);
    fail("cannot write '{}': {}; is the disk full?", path, why);
  }
  if (special) return;
  std::filesystem::rename(part, path, ignored);
  if (ignored) fail("cannot write '{}': {}", path, ignored.message());
}

}  // namespace cleave
