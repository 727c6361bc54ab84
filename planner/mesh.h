// The devices as named axes, and where a value lies on them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/signature.h"
#include "graph/types.h"

namespace cleave {

struct MeshAxis {
  std::string name;  // "dp"
  int64_t size = 1;
};

// Ranks are numbered with the last axis varying fastest.
struct Mesh {
  std::vector<MeshAxis> axes;

  int64_t size() const;                                  // number of devices
  std::vector<int64_t> coordinates(int64_t rank) const;  // one an axis
  // The ranks that differ from `rank` in this axis only, in the order of their coordinate.
  std::vector<int64_t> group(int64_t rank, size_t axis) const;
  std::string to_string() const;  // "dp 2 x tp 4"
};

// Where a value is on one mesh axis.
struct Placement {
  enum class Kind : uint8_t { kReplicate, kShard, kPartial };
  Kind kind = Kind::kReplicate;
  int8_t atom = -1;                       // kShard: which atom of the value is split; see Layout
  Reduction reduction = Reduction::kSum;  // kPartial: how the parts combine

  static Placement replicate() { return {}; }
  static Placement shard(int atom) { return {Kind::kShard, static_cast<int8_t>(atom)}; }
  static Placement partial(Reduction r = Reduction::kSum) { return {Kind::kPartial, -1, r}; }
  bool is_shard() const { return kind == Kind::kShard; }
  bool is_partial() const { return kind == Kind::kPartial; }
  bool is_replicate() const { return kind == Kind::kReplicate; }
  bool operator==(const Placement&) const = default;
};
using Placements = std::vector<Placement>;  // one an axis

// A value's dimensions taken apart into atoms, the units that can be split: the dimension of a
// fused [3 * heads * head_size] projection has three, a plain dimension one. Seen with one
// dimension an atom, a tensor is still row-major, and a shard of an atom is a plain slice of it;
// when two axes split one atom, the earlier axis cuts first.
struct Layout {
  std::vector<int64_t> atoms;    // whole sizes, outermost first
  std::vector<int8_t> atom_dim;  // which dimension each atom belongs to, ascending
  Placements placements;         // one a mesh axis

  // Sizes of the atoms, and of the dimensions, of one shard. Every split must divide.
  std::vector<int64_t> local_atoms(const Mesh& mesh) const;
  Shape local_shape(const Mesh& mesh) const;
  Shape global_shape() const;
  // The atoms of each dimension.
  std::vector<std::vector<int64_t>> dims() const;
  void set_dims(const std::vector<std::vector<int64_t>>& dims);
  bool operator==(const Layout&) const = default;
};

// "replicate", "partial(sum)", "shard(1)"; a shard of one atom of several in its dimension is
// written with the atom in brackets: "shard(1: 3x[16]x64)".
std::string to_string(const Placement& placement, const Layout& layout);
// "dp=shard(0) tp=replicate"
std::string to_string(const Layout& layout, const Mesh& mesh);

}  // namespace cleave
