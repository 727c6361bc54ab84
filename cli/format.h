// Tables and files as text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graph/number_text.h"

namespace cleave {

std::string cut(const std::string& text, size_t width);  // at most so many characters; "…" inside

// Whether stdout is a terminal that shows colours.
bool colours_wanted();

// "3.5GB", "512 MiB", "1e9" in bytes. Throws Error, naming `option`, on anything else.
double parse_bytes(std::string_view text, std::string_view option);

// Columns as wide as their widest cell. A header that begins with '>' aligns its column right; the
// last column is never padded.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() == 1; }
  // `colour`: a bold header.
  std::string to_string(bool colour = false) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// A file's whole text, and the other way round. Throw Error when it cannot be read or written.
std::string read_file(const std::string& path);
void write_file(const std::string& path, std::string_view text);

}  // namespace cleave
