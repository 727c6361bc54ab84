// Whose fault it is: Error is the user's mistake, InternalError a bug of ours.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace cleave {

// The user's mistake. One line: what is wrong, where, what to do. The command exits with 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A bug of ours. The command exits with 2 and asks for a report.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

// Throws InternalError; called by CLEAVE_ASSERT only.
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line,
                                   const std::string& message);

}  // namespace cleave

// An invariant of ours, checked in every build. The message is a fmt string and its arguments.
#define CLEAVE_ASSERT(condition, ...)                                                       \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      ::cleave::assertion_failed(#condition, __FILE__, __LINE__, fmt::format(__VA_ARGS__)); \
    }                                                                                       \
  } while (false)
