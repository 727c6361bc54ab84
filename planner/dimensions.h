// Which dimensions of different tensors are the same dimension: joined along the factors of every
// op, and taken apart into atoms where a compound factor says that a dimension is several in one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace cleave {

using ClassId = int32_t;

// One atom of a value's dimension or of a node's factor: the unit that can be split.
struct Atom {
  int64_t size = 1;
  ClassId dimension_class = -1;
};

struct ValueAtom : Atom {
  int8_t dim = 0;  // which dimension of the value it belongs to
};

// A dimension class: atoms that are one dimension of the model.
struct DimensionClass {
  int64_t size = 1;
  std::string name;  // "batch", "h.0.mlp.fc.weight[0]": a data role, else the first source with it
  std::string role;  // of data dimensions: "batch", "sequence"; empty otherwise
};

struct Dimensions {
  std::vector<std::vector<ValueAtom>> values;           // by value, outermost atom first
  std::vector<std::vector<std::vector<Atom>>> factors;  // by node, factor; outermost first
  std::vector<DimensionClass> classes;
  // By node, factor: a compound that contradicts another way of taking the same dimension apart;
  // such a factor cannot be split at that node.
  std::vector<std::vector<bool>> contradicts;

  ClassId class_with_role(const std::string& role) const;  // -1 when there is none
};

// Joins and takes apart the dimensions of a graph. Nodes that follow another share its factors'
// classes, letter by letter (a capital letter equals its small one).
Dimensions find_dimensions(const Graph& graph);

}  // namespace cleave
