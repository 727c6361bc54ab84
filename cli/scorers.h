// Programs of a model's next-token scores, planned for the devices and given a checkpoint's
// weights.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cli/model_spec.h"
#include "executor/generator.h"
#include "planner/cluster.h"
#include "planner/mesh.h"

namespace cleave {

// The whole tensor of this name and type, row-major. Throws Error when there is none.
using WeightSource =
    std::function<std::span<const std::byte>(std::string_view name, const TensorType& type)>;

// Whether the second graph is the first for shorter sequences: the same ops on the same values,
// where some sizes are `shorter` in place of `full`. Of parameters and states, only dimensions that
// are the sequence may be shorter; the entries that are left are then the first.
bool differs_by_length_only(const Graph& graph, const Graph& shorter_graph, int64_t full,
                            int64_t shorter);

// Texts that are much shorter than the model's sequence are given a program for shorter sequences,
// as long as such a program is the same model: windows grow by powers of two.
class Scorers {
 public:
  // `spec`: its batch is the number of samples. `mesh`: empty: chosen. Throws Error when the model
  // cannot generate text, or has other weights than `weights`. What is referred to must outlive it.
  Scorers(ModelSpec spec, const UserModel* user, const Cluster& devices, std::string mesh,
          WeightSource weights);

  // A scorer that sees at least so many tokens, or all that the model can see. It is gone when
  // another is asked for that is longer.
  Scorer& at_least(int64_t tokens);

  const TracedModel& model() const { return model_; }  // its graph: the next token's
  int64_t vocab() const;                               // tokens that have a score
  const Mesh& mesh() const { return mesh_; }           // of the newest scorer

 private:
  TracedModel traced(int64_t length) const;
  void build(const TracedModel& model);

  const UserModel* user_;
  const Cluster& devices_;
  std::string mesh_request_;
  WeightSource weights_;
  TracedModel model_;
  bool may_be_shorter_ = true;  // until a shorter program is found to be another model
  std::unique_ptr<Scorer> scorer_;
  Mesh mesh_;
};

}  // namespace cleave
