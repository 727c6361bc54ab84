// Where a shard's elements lie in the whole tensor, and copies between the two.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "graph/error.h"
#include "graph/op.h"
#include "planner/mesh.h"

namespace cleave {

// What a rank holds of a value, along each atom: [start, start + size) of the whole.
struct Shard {
  std::vector<int64_t> start, size;
};
Shard shard_of(const Layout& layout, const Mesh& mesh, const std::vector<int64_t>& coordinates);

inline constexpr size_t kMaxAtoms = 16;

// A box of elements inside a row-major tensor: the tensor's sizes, and where the box begins.
struct BoxPlace {
  std::span<const int64_t> sizes;
  std::span<const int64_t> start;
};

// Calls run(index in a, index in b, count) for every stretch of the box that is contiguous in both
// tensors, in row-major order.
template <class F>
void for_each_run(std::span<const int64_t> box, BoxPlace a, BoxPlace b, F&& run) {
  CLEAVE_ASSERT(box.size() <= kMaxAtoms, "a tensor of {} atoms", box.size());
  std::array<int64_t, kMaxAtoms> step_a{}, step_b{}, at{};
  int64_t count = 1, at_a = 0, at_b = 0, pitch_a = 1, pitch_b = 1;
  size_t dims = 0;      // the outer dimensions that are walked one by one
  bool merging = true;  // while all inner dimensions are whole in both tensors
  for (size_t d = box.size(); d-- > 0;) {
    if (box[d] == 0) return;
    at_a += a.start[d] * pitch_a;
    at_b += b.start[d] * pitch_b;
    if (merging) {
      count *= box[d];
      merging = box[d] == a.sizes[d] && box[d] == b.sizes[d];
      if (!merging) dims = d;
    }
    step_a[d] = pitch_a;
    step_b[d] = pitch_b;
    pitch_a *= a.sizes[d];
    pitch_b *= b.sizes[d];
  }
  while (true) {
    run(at_a, at_b, count);
    size_t d = dims;
    for (; d-- > 0;) {
      at_a += step_a[d];
      at_b += step_b[d];
      if (++at[d] < box[d]) break;
      at_a -= at[d] * step_a[d];
      at_b -= at[d] * step_b[d];
      at[d] = 0;
    }
    if (d == static_cast<size_t>(-1)) return;
  }
}

// The same between a whole tensor and one shard: run(whole index, shard index, count).
template <class F>
void for_each_run(const Layout& layout, const Shard& shard, F&& run) {
  const std::vector<int64_t> zeros(layout.atoms.size(), 0);
  for_each_run(shard.size, {layout.atoms, shard.start}, {shard.size, zeros}, run);
}

// A tensor seen with one dimension an atom: the same memory, more dimensions. `sizes`: the local
// sizes of the atoms.
Geometry by_atoms(const Geometry& geometry, const Layout& layout,
                  const std::vector<int64_t>& sizes);

// Copies elements of `element` bytes (2, 4 or 8) between strided tensors of one shape. Offsets are
// taken from the geometries; shapes must be equal.
void copy_strided(const Geometry& to, std::byte* to_base, const Geometry& from,
                  const std::byte* from_base, int64_t element);
void fill_zero(const Geometry& to, std::byte* to_base, int64_t element);

}  // namespace cleave
