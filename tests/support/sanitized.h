// CLEAVE_SANITIZED is defined in builds with a sanitizer, which slow our own loops many times over,
// and what libraries do not at all: times mean nothing there.
#pragma once

#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CLEAVE_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CLEAVE_SANITIZED
#endif

namespace cleave {

// Of `n` cases that are drawn alike, how many a test looks at: a sanitizer has seen their code
// after a fifth.
template <class N>
constexpr N drawn(N n) {
#ifdef CLEAVE_SANITIZED
  return (n + 4) / 5;
#else
  return n;
#endif
}

}  // namespace cleave
