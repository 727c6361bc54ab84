// A line on a terminal that is drawn over and over: how far a run is.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace cleave {

enum class Progress : uint8_t { kAuto, kOn, kOff };  // auto: on a terminal

struct ProgressState {
  int64_t step = 0, steps = 1;
  double loss = 0;
  double tokens_per_second = 0;
  double seconds_left = 0;
};

// " 12/60 [=====>      ] loss 2.4187 | 12,345 tokens/s | 1:23 left" in at most `width` columns: the
// bar gives way first, then the last of its neighbours. Colour is by escape sequences, which take
// no columns.
std::string bar_text(const ProgressState& state, size_t width, bool colour);

// "0:07", "1:02:03", "2 d 3 h"
std::string duration_text(double seconds);

// Where a bar is drawn: stderr or stdout, whichever is a terminal; stderr always when it is on;
// null for none.
std::FILE* bar_terminal(Progress progress);

class ProgressBar {
 public:
  explicit ProgressBar(std::FILE* terminal);  // null: draws nothing
  ~ProgressBar() { erase(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws, unless it did less than a tenth of a second ago. As wide as the terminal is now.
  void draw(const ProgressState& state);
  // Draws again what was drawn last.
  void redraw();
  // Leaves the line empty, for something else to be written.
  void erase();
  // The same, and nothing is drawn from now on.
  void finish();

 private:
  void put(const std::string& text);

  std::FILE* terminal_;
  bool colour_ = false;
  bool drawn_ = false, any_ = false;
  ProgressState state_;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace cleave
