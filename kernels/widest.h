// Loops compiled for several widths of vectors, of which the machine's widest runs.
#pragma once

namespace cleave {

// clang inlines no lambda into a function for other instructions, and sanitizers want plain code.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLEAVE_WIDEST 1
#else
#define CLEAVE_WIDEST 0
#endif

#if CLEAVE_WIDEST

enum class Vectors : unsigned char { kBaseline, kAvx2, kAvx512 };

// The widest that this machine has.
Vectors widest_vectors();

// Everything that `fn` calls and that can be inlined is compiled for these instructions.
template <class Fn>
[[gnu::target("avx2,fma,bmi2,avx512f,avx512vl,avx512dq,avx512bw,prefer-vector-width=512"),
  gnu::flatten, gnu::noinline]] void
with_avx512(const Fn& fn) {
  fn();
}
template <class Fn>
[[gnu::target("avx2,fma,bmi2"), gnu::flatten, gnu::noinline]] void with_avx2(const Fn& fn) {
  fn();
}
template <class Fn>
[[gnu::flatten, gnu::noinline]] void with_baseline(const Fn& fn) {
  fn();
}

// Calls fn() compiled for the machine's widest vectors. What does not belong into the loop should
// stay outside: it is compiled three times.
template <class Fn>
void widest(const Fn& fn) {
  switch (widest_vectors()) {
    case Vectors::kAvx512: return with_avx512(fn);
    case Vectors::kAvx2: return with_avx2(fn);
    case Vectors::kBaseline: return with_baseline(fn);
  }
}

#else

template <class Fn>
void widest(const Fn& fn) {
  fn();
}

#endif

}  // namespace cleave
