// Numbers as people read them.
#pragma once

#include <string>

namespace cleave {

std::string bytes_text(double bytes);      // "12.6 MiB"
std::string seconds_text(double seconds);  // "41.2 ms"
std::string percent_text(double share);    // "43.1 %"
std::string with_commas(double whole);     // "12,345"

}  // namespace cleave
