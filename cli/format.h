// Tables and files as text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graph/number_text.h"

namespace cleave {

// At most so many characters; an ellipsis inside. What is cut may be what tells two rows apart:
// cells are widened or wrapped, and cut only where a name of the user's own would fill the screen.
std::string cut(const std::string& text, size_t width);
inline constexpr size_t kWidest = 64;  // characters of a cell

// The parts, with `between` between them, in lines of at most this width; a longer part has its
// own.
std::vector<std::string> wrapped(const std::vector<std::string>& parts, std::string_view between,
                                 size_t width);
// The same of text that has its parts between commas or semicolons.
std::vector<std::string> wrapped(std::string_view text, size_t width);

// Whether stdout is a terminal that shows colours.
bool colours_wanted();

// "3.5GB", "512 MiB", "1e9" in bytes. Throws Error, naming `option`, on anything else.
double parse_bytes(std::string_view text, std::string_view option);

// Columns as wide as their widest cell. A header that begins with '>' aligns its column right; the
// last column is never padded. A row may end early.
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
// Throws what write_file would throw now, as far as that is known before: for what takes long.
void expect_writable(const std::string& path);
// Throws Error when what is to be written would take the place of the other file, which is there,
// or is to be written, too. Either may be empty: none.
void expect_other_file(const std::string& written, const std::string& other);

}  // namespace cleave
