#include "viz/render.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

namespace cleave {
namespace {

constexpr int kNoProgram = 127;  // as a shell says it

// Waits for the child; false when it was killed for being too slow.
bool wait_for(pid_t child, double seconds, int& status) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    const pid_t done = waitpid(child, &status, WNOHANG);
    if (done == child) return true;
    if (done < 0 && errno != EINTR) return true;  // status keeps saying that it failed
    if (Clock::now() >= end) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return false;
}

}  // namespace

Rendering render_svg(const std::string& dot_path, const std::string& svg_path, double time_limit) {
  // dot writes next to the result, so that a killed one leaves no half a picture.
  const std::string part = svg_path + ".part";
  std::array<const char*, 6> argv = {"dot", "-Tsvg", "-o", part.c_str(), dot_path.c_str(), nullptr};
  const pid_t child = fork();
  if (child < 0) return {false, fmt::format("cannot start dot: {}", std::strerror(errno))};
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);  // its warnings are not ours
    execvp(argv[0], const_cast<char* const*>(argv.data()));
    _exit(kNoProgram);
  }
  int status = 1;
  const bool in_time = wait_for(child, time_limit, status);
  std::error_code ignored;
  if (in_time && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    std::filesystem::rename(part, svg_path, ignored);
    if (!ignored) return {true, {}};
    return {false, fmt::format("cannot write '{}': {}", svg_path, ignored.message())};
  }
  std::filesystem::remove(part, ignored);
  if (!in_time) {
    return {false, fmt::format("dot took more than {:g} s and was stopped", time_limit)};
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoProgram) {
    return {false, "Graphviz's dot is not installed (apt install graphviz)"};
  }
  return {false, fmt::format("dot failed on {}", dot_path)};
}

}  // namespace cleave
