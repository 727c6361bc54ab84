#include "cli/scorers.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "cli/command.h"
#include "cli/planning.h"
#include "executor/lower.h"
#include "graph/error.h"
#include "models/next_token.h"
#include "planner/dimensions.h"

namespace cleave {
namespace {

constexpr int64_t kShortest = 16;  // tokens: below, time is not spent on tokens

bool same_attrs(const Attrs& a, const Attrs& b, int64_t full, int64_t shorter) {
  if (a.items().size() != b.items().size()) return false;
  for (size_t i = 0; i < a.items().size(); ++i) {
    const auto& [name, value] = a.items()[i];
    const auto& [other_name, other] = b.items()[i];
    if (name != other_name) return false;
    const bool size = name.size() == 1 && value == AttrValue(full) && other == AttrValue(shorter);
    if (value != other && !size) return false;
  }
  return true;
}

// Whether this dimension of a source is the data's sequence, index by index.
bool is_sequence(const Dimensions& dims, Value v, size_t dim) {
  int atoms = 0;
  bool sequence = false;
  for (const ValueAtom& atom : dims.values[static_cast<size_t>(v)]) {
    if (static_cast<size_t>(atom.dim) != dim) continue;
    ++atoms;
    sequence = atom.dimension_class >= 0 &&
               dims.classes[static_cast<size_t>(atom.dimension_class)].role == "sequence";
  }
  return atoms == 1 && sequence;
}

// The first entries of a tensor along every dimension.
std::vector<std::byte> first_entries(std::span<const std::byte> whole, const TensorType& type,
                                     const Shape& first) {
  const Shape strides = contiguous_strides(type.shape);
  const int64_t element = size_of(type.dtype);
  std::vector<std::byte> part(static_cast<size_t>(numel(first) * element));
  Shape index(first.size(), 0);
  for (int64_t i = 0; i < numel(first); ++i) {
    int64_t at = 0;
    for (size_t d = 0; d < index.size(); ++d) at += index[d] * strides[d];
    std::memcpy(part.data() + i * element, whole.data() + at * element,
                static_cast<size_t>(element));
    for (size_t d = index.size(); d-- > 0 && ++index[d] == first[d];) index[d] = 0;
  }
  return part;
}

void expect_samples_divide(const std::string& mesh, int64_t samples) {
  if (mesh.empty()) return;
  const MeshRequest request = parse_mesh(mesh);
  for (size_t a = 0; a < request.sizes.size(); ++a) {
    const int64_t size = request.sizes[a];
    if (request.roles[a] != AxisRole::kData || samples % size == 0) continue;
    fail("--mesh dp={}: {} not divide by it; try --samples {}", size,
         samples == 1 ? "1 sample does" : fmt::format("{} samples do", samples),
         (samples / size + 1) * size);
  }
}

}  // namespace

bool differs_by_length_only(const Graph& a, const Graph& b, int64_t full, int64_t shorter) {
  if (a.nodes().size() != b.nodes().size() || a.sources().size() != b.sources().size()) {
    return false;
  }
  const Dimensions dims = find_dimensions(a);
  for (size_t s = 0; s < a.sources().size(); ++s) {
    const Source &x = a.sources()[s], &y = b.sources()[s];
    const TensorType &long_type = a.type(x.value), &short_type = b.type(y.value);
    if (x.name != y.name || x.kind != y.kind || x.value != y.value ||
        long_type.dtype != short_type.dtype || long_type.shape.size() != short_type.shape.size()) {
      return false;
    }
    for (size_t d = 0; d < long_type.shape.size(); ++d) {
      if (long_type.shape[d] == short_type.shape[d]) continue;
      if (long_type.shape[d] != full || short_type.shape[d] != shorter) return false;
      if (!is_sequence(dims, x.value, d)) return false;
    }
  }
  for (size_t n = 0; n < a.nodes().size(); ++n) {
    const Node &x = a.nodes()[n], &y = b.nodes()[n];
    if (x.op != y.op || x.signature != y.signature || x.inputs != y.inputs ||
        x.outputs != y.outputs || x.writes != y.writes ||
        !same_attrs(x.attrs, y.attrs, full, shorter)) {
      return false;
    }
    for (size_t f = 0; f < x.extents.size(); ++f) {
      const bool size = x.extents[f] == full && y.extents[f] == shorter;
      if (x.extents[f] != y.extents[f] && !size) return false;
    }
  }
  return true;
}

Scorers::Scorers(ModelSpec spec, const UserModel* user, const Cluster& devices, std::string mesh,
                 WeightSource weights)
    : user_(user), devices_(devices), mesh_request_(std::move(mesh)), weights_(std::move(weights)) {
  expect_samples_divide(mesh_request_, spec.batch);
  spec.training = false;
  model_ = trace_model(std::move(spec), user_);
  if (model_.objective == Objective::kMaskedTokens) {
    fail("{} predicts masked tokens, not the next one; it cannot generate text", model_.spec.name);
  }
  model_.graph = next_token_graph(model_.graph);
  for (const Source& s : model_.graph.sources()) {
    if (s.kind != SourceKind::kData) weights_(s.name, model_.graph.type(s.value));
  }
}

int64_t Scorers::vocab() const {
  return model_.graph.type(model_.graph.outputs()[0].value).shape[1];
}

TracedModel Scorers::traced(int64_t length) const {
  ModelSpec spec = model_.spec;
  spec.set.push_back(fmt::format("sequence={}", length));
  TracedModel model = trace_model(std::move(spec), user_);
  model.graph = next_token_graph(model.graph);
  return model;
}

void Scorers::build(const TracedModel& model) {
  scorer_.reset();  // its memory first
  const PlannerOptions options = planner_options(model.graph, mesh_request_, "");
  const PlanResult found = find_plan(model.graph, devices_, options);
  if (!found.plan) throw_no_plan(model.spec.name, model.graph, devices_, options, found);
  mesh_ = found.plan->mesh;
  scorer_ = std::make_unique<Scorer>(lower(model.graph, *found.plan));
  for (const Source& s : model.graph.sources()) {
    if (s.kind == SourceKind::kData) continue;
    const TensorType& whole = model_.graph.type(model_.graph.source_named(s.name)->value);
    const Shape& shape = model.graph.type(s.value).shape;
    const std::span<const std::byte> bytes = weights_(s.name, whole);
    if (shape == whole.shape) {
      scorer_->runtime().write_source(s.name, bytes);
    } else {
      scorer_->runtime().write_source(s.name, first_entries(bytes, whole, shape));
    }
  }
}

Scorer& Scorers::at_least(int64_t tokens) {
  const int64_t full = model_.config.sequence;
  if (scorer_ && scorer_->length() >= std::min(tokens, full)) return *scorer_;
  const auto length =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(tokens, kShortest))));
  if (may_be_shorter_ && length < full) {
    const TracedModel shorter = traced(length);
    may_be_shorter_ = differs_by_length_only(model_.graph, shorter.graph, full, length);
    if (may_be_shorter_) {
      build(shorter);
      return *scorer_;
    }
  }
  build(model_);
  return *scorer_;
}

}  // namespace cleave
