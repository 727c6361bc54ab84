#include "planner/mesh.h"

#include "graph/error.h"

namespace cleave {

int64_t Mesh::size() const {
  int64_t n = 1;
  for (const MeshAxis& a : axes) n *= a.size;
  return n;
}

std::vector<int64_t> Mesh::coordinates(int64_t rank) const {
  std::vector<int64_t> c(axes.size());
  for (size_t a = axes.size(); a-- > 0; rank /= axes[a].size) c[a] = rank % axes[a].size;
  return c;
}

std::vector<int64_t> Mesh::group(int64_t rank, size_t axis) const {
  int64_t stride = 1;
  for (size_t a = axes.size() - 1; a > axis; --a) stride *= axes[a].size;
  const int64_t first = rank - coordinates(rank)[axis] * stride;
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < axes[axis].size; ++i) ranks.push_back(first + i * stride);
  return ranks;
}

std::string Mesh::to_string() const {
  std::string text;
  for (const MeshAxis& a : axes) {
    text += fmt::format("{}{} {}", text.empty() ? "" : " x ", a.name, a.size);
  }
  return text.empty() ? "1 device" : text;
}

std::vector<int64_t> Layout::local_atoms(const Mesh& mesh) const {
  std::vector<int64_t> sizes = atoms;
  for (size_t a = 0; a < placements.size(); ++a) {
    if (!placements[a].is_shard()) continue;
    int64_t& size = sizes[static_cast<size_t>(placements[a].atom)];
    CLEAVE_ASSERT(size % mesh.axes[a].size == 0, "{} does not divide by axis {} of {}", size,
                  mesh.axes[a].name, mesh.axes[a].size);
    size /= mesh.axes[a].size;
  }
  return sizes;
}

namespace {

Shape dims_of(const std::vector<int64_t>& sizes, const std::vector<int8_t>& atom_dim) {
  Shape shape(atom_dim.empty() ? 0 : static_cast<size_t>(atom_dim.back()) + 1, 1);
  for (size_t i = 0; i < sizes.size(); ++i) shape[static_cast<size_t>(atom_dim[i])] *= sizes[i];
  return shape;
}

}  // namespace

Shape Layout::local_shape(const Mesh& mesh) const { return dims_of(local_atoms(mesh), atom_dim); }
Shape Layout::global_shape() const { return dims_of(atoms, atom_dim); }

std::vector<std::vector<int64_t>> Layout::dims() const {
  std::vector<std::vector<int64_t>> dims;
  for (size_t a = 0; a < atoms.size(); ++a) {
    dims.resize(static_cast<size_t>(atom_dim[a]) + 1);
    dims.back().push_back(atoms[a]);
  }
  return dims;
}

void Layout::set_dims(const std::vector<std::vector<int64_t>>& dims) {
  atoms.clear();
  atom_dim.clear();
  for (size_t d = 0; d < dims.size(); ++d) {
    atoms.insert(atoms.end(), dims[d].begin(), dims[d].end());
    atom_dim.insert(atom_dim.end(), dims[d].size(), static_cast<int8_t>(d));
  }
}

std::string to_string(const Placement& placement, const Layout& layout) {
  if (placement.is_replicate()) return "replicate";
  if (placement.is_partial()) return fmt::format("partial({})", name_of(placement.reduction));
  const int8_t dim = layout.atom_dim[static_cast<size_t>(placement.atom)];
  std::string parts;
  int count = 0;
  for (size_t i = 0; i < layout.atoms.size(); ++i) {
    if (layout.atom_dim[i] != dim) continue;
    const bool chosen = static_cast<int>(i) == placement.atom;
    parts += fmt::format("{}{}{}{}", count++ > 0 ? "x" : "", chosen ? "[" : "", layout.atoms[i],
                         chosen ? "]" : "");
  }
  return count == 1 ? fmt::format("shard({})", dim) : fmt::format("shard({}: {})", dim, parts);
}

std::string to_string(const Layout& layout, const Mesh& mesh) {
  std::string text;
  for (size_t a = 0; a < mesh.axes.size(); ++a) {
    text += fmt::format("{}{}={}", a > 0 ? " " : "", mesh.axes[a].name,
                        cleave::to_string(layout.placements[a], layout));
  }
  return text;
}

}  // namespace cleave
