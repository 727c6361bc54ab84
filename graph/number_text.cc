#include "graph/number_text.h"

#include <fmt/format.h>

#include <array>

namespace cleave {
namespace {

// Three digits that count: "1.23", "12.3", "123".
std::string three_digits(double x) {
  const int decimals = x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}", x, decimals);
}

}  // namespace

std::string bytes_text(double bytes) {
  static constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < kUnits.size()) bytes /= 1024, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes)
                   : fmt::format("{} {}", three_digits(bytes), kUnits[unit]);
}

std::string seconds_text(double seconds) {
  if (seconds >= 0.9995) return three_digits(seconds) + " s";
  if (seconds >= 0.9995e-3) return three_digits(1e3 * seconds) + " ms";
  return three_digits(1e6 * seconds) + " us";
}

std::string percent_text(double share) { return fmt::format("{:.1f} %", 100 * share); }

std::string with_commas(double whole) {
  std::string digits = fmt::format("{:.0f}", whole);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

}  // namespace cleave
