#include "executor/shards.h"

#include <cstring>

namespace cleave {

Shard shard_of(const Layout& layout, const Mesh& mesh, const std::vector<int64_t>& coordinates) {
  Shard shard{std::vector<int64_t>(layout.atoms.size(), 0), layout.atoms};
  for (size_t a = 0; a < layout.placements.size(); ++a) {
    if (!layout.placements[a].is_shard()) continue;
    const auto atom = static_cast<size_t>(layout.placements[a].atom);
    shard.size[atom] /= mesh.axes[a].size;
    shard.start[atom] += coordinates[a] * shard.size[atom];
  }
  return shard;
}

Geometry by_atoms(const Geometry& geometry, const Layout& layout,
                  const std::vector<int64_t>& sizes) {
  Geometry result{geometry.offset, sizes, Shape(sizes.size())};
  int64_t inner = 1;  // product of the atoms to the right in the same dimension
  for (size_t i = sizes.size(); i-- > 0;) {
    const int8_t dim = layout.atom_dim[i];
    if (i + 1 < sizes.size() && layout.atom_dim[i + 1] != dim) inner = 1;
    result.strides[i] = geometry.strides[static_cast<size_t>(dim)] * inner;
    inner *= sizes[i];
  }
  return result;
}

namespace {

// Calls row(offset in a, offset in b) for every innermost row; a scalar is one row of one element.
template <class F>
void for_each_row(const Geometry& a, const Geometry& b, F&& row) {
  CLEAVE_ASSERT(a.shape == b.shape && a.shape.size() <= kMaxAtoms, "copy of {} to {}",
                to_string(b.shape), to_string(a.shape));
  if (numel(a.shape) == 0) return;
  std::array<int64_t, kMaxAtoms> at{};
  int64_t at_a = a.offset, at_b = b.offset;
  const size_t dims = a.shape.empty() ? 0 : a.shape.size() - 1;
  while (true) {
    row(at_a, at_b);
    size_t d = dims;
    for (; d-- > 0;) {
      at_a += a.strides[d];
      at_b += b.strides[d];
      if (++at[d] < a.shape[d]) break;
      at_a -= at[d] * a.strides[d];
      at_b -= at[d] * b.strides[d];
      at[d] = 0;
    }
    if (d == static_cast<size_t>(-1)) return;
  }
}

template <class T>
void copy_rows(const Geometry& to, T* to_base, const Geometry& from, const T* from_base) {
  const int64_t n = to.shape.empty() ? 1 : to.shape.back();
  const int64_t step_to = to.strides.empty() ? 1 : to.strides.back();
  const int64_t step_from = from.strides.empty() ? 1 : from.strides.back();
  for_each_row(to, from, [&](int64_t a, int64_t b) {
    T* x = to_base + a;
    const T* y = from_base + b;
    if (x == y && step_to == step_from) return;
    if (step_to == 1 && step_from == 1) {
      std::memcpy(x, y, static_cast<size_t>(n) * sizeof(T));
    } else {
      for (int64_t i = 0; i < n; ++i) x[i * step_to] = y[i * step_from];
    }
  });
}

template <class T>
void zero_rows(const Geometry& to, T* to_base) {
  const int64_t n = to.shape.empty() ? 1 : to.shape.back();
  const int64_t step = to.strides.empty() ? 1 : to.strides.back();
  for_each_row(to, to, [&](int64_t a, int64_t) {
    for (int64_t i = 0; i < n; ++i) to_base[a + i * step] = 0;
  });
}

template <class T>
T* as(std::byte* p) {
  return reinterpret_cast<T*>(p);
}
template <class T>
const T* as(const std::byte* p) {
  return reinterpret_cast<const T*>(p);
}

}  // namespace

void copy_strided(const Geometry& to, std::byte* to_base, const Geometry& from,
                  const std::byte* from_base, int64_t element) {
  switch (element) {
    case 2: return copy_rows(to, as<uint16_t>(to_base), from, as<uint16_t>(from_base));
    case 4: return copy_rows(to, as<uint32_t>(to_base), from, as<uint32_t>(from_base));
    case 8: return copy_rows(to, as<uint64_t>(to_base), from, as<uint64_t>(from_base));
    default: CLEAVE_ASSERT(false, "elements of {} bytes", element);
  }
}

void fill_zero(const Geometry& to, std::byte* to_base, int64_t element) {
  switch (element) {
    case 2: return zero_rows(to, as<uint16_t>(to_base));
    case 4: return zero_rows(to, as<uint32_t>(to_base));
    case 8: return zero_rows(to, as<uint64_t>(to_base));
    default: CLEAVE_ASSERT(false, "elements of {} bytes", element);
  }
}

}  // namespace cleave
