// The table of all ops, made from ops.def.
#include "kernels/ops.h"

namespace cleave::ops {

std::span<const OpDef* const> all() {
  static constexpr const OpDef* kAll[] = {
#define OP(name) &name,
#include "kernels/ops.def"
#undef OP
      &transfer_op,
  };
  return kAll;
}

const OpDef* find(std::string_view name) {
  for (const OpDef* op : all()) {
    if (op->name == name) return op;
  }
  return nullptr;
}

}  // namespace cleave::ops
