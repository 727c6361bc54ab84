#include "executor/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "graph/number_text.h"

namespace cleave {
namespace {

constexpr size_t kShortest = 10, kLongest = 40;  // columns of the bar, with its brackets
constexpr auto kPause = std::chrono::milliseconds(100);
constexpr const char* kEraseLine = "\r\033[K";

size_t columns_of(std::FILE* terminal) {
  winsize size{};
  const bool told = ioctl(fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return told ? size.ws_col : 80;
}

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != 0;
}

bool is_dumb() {
  const char* term = std::getenv("TERM");
  return term != nullptr && std::string_view(term) == "dumb";
}

// "[=====>      ]", `width` columns
std::string drawing(double done, size_t width, bool colour) {
  const size_t inside = width - 2;
  const auto full = static_cast<size_t>(done * static_cast<double>(inside));
  std::string head(full, '=');
  if (full < inside) head += '>';
  const std::string rest(inside - head.size(), ' ');
  return colour ? "[\033[32m" + head + "\033[0m" + rest + "]" : "[" + head + rest + "]";
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 86400) return fmt::format("{} d {} h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string bar_text(const ProgressState& s, size_t width, bool colour) {
  const std::string last = std::to_string(s.steps);
  std::string before = fmt::format("{:>{}}/{}", s.step, last.size(), last);
  if (before.size() > width) return {};
  std::string behind;
  for (const std::string& part : {fmt::format(" loss {:.4f}", s.loss),
                                  fmt::format(" | {} tokens/s", with_commas(s.tokens_per_second)),
                                  fmt::format(" | {} left", duration_text(s.seconds_left))}) {
    if (before.size() + behind.size() + part.size() > width) break;
    behind += part;
  }
  const size_t room = width - before.size() - behind.size();
  if (room < kShortest + 1) return before + behind;
  const double done =
      static_cast<double>(s.step) / static_cast<double>(std::max<int64_t>(1, s.steps));
  return before + " " + drawing(std::clamp(done, 0.0, 1.0), std::min(room - 1, kLongest), colour) +
         behind;
}

std::FILE* bar_terminal(Progress progress) {
  if (progress == Progress::kOff) return nullptr;
  if (isatty(STDERR_FILENO) != 0 && !is_dumb()) return stderr;
  if (isatty(STDOUT_FILENO) != 0 && !is_dumb()) return stdout;
  return progress == Progress::kOn ? stderr : nullptr;
}

ProgressBar::ProgressBar(std::FILE* terminal) : terminal_(terminal) {
  colour_ =
      terminal != nullptr && isatty(fileno(terminal)) != 0 && !is_dumb() && !is_set("NO_COLOR");
}

void ProgressBar::put(const std::string& text) {
  std::fputs(text.c_str(), terminal_);
  std::fflush(terminal_);
}

void ProgressBar::draw(const ProgressState& state) {
  if (terminal_ == nullptr) return;
  const auto now = std::chrono::steady_clock::now();
  const bool soon = any_ && now - last_ < kPause && state.step < state.steps;
  state_ = state;
  if (soon) return;
  last_ = now;
  any_ = true;
  redraw();
}

void ProgressBar::redraw() {
  if (terminal_ == nullptr || !any_) return;
  // The last column is left free: filled, it would move the cursor to the next line.
  put(kEraseLine + bar_text(state_, columns_of(terminal_) - 1, colour_));
  drawn_ = true;
}

void ProgressBar::erase() {
  if (terminal_ == nullptr || !drawn_) return;
  put(kEraseLine);
  drawn_ = false;
}

void ProgressBar::finish() {
  erase();
  terminal_ = nullptr;
}

}  // namespace cleave
