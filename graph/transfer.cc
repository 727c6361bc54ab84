#include "graph/transfer.h"

#include <cstring>

namespace cleave {
namespace {

// Row by row, elements as bytes: any element type.
void transfer_cpu(const KernelArgs& args) {
  const TensorView &in = args.in[0], &out = args.out[0];
  const auto element = static_cast<size_t>(size_of(in.dtype));
  const size_t rank = in.shape.size();
  const int64_t row = rank == 0 ? 1 : in.shape[rank - 1];
  const int64_t from_step = rank == 0 ? 1 : in.strides[rank - 1];
  const int64_t to_step = rank == 0 ? 1 : out.strides[rank - 1];
  Shape at(rank, 0);
  for (int64_t done = 0, from = 0, to = 0; done < in.numel(); done += row) {
    const std::byte* source = in.as<const std::byte>() + static_cast<size_t>(from) * element;
    std::byte* target = out.as<std::byte>() + static_cast<size_t>(to) * element;
    if (from_step == 1 && to_step == 1) {
      std::memcpy(target, source, static_cast<size_t>(row) * element);
    } else {
      for (int64_t i = 0; i < row; ++i) {
        std::memcpy(target + static_cast<size_t>(i * to_step) * element,
                    source + static_cast<size_t>(i * from_step) * element, element);
      }
    }
    for (size_t d = rank == 0 ? 0 : rank - 1; d-- > 0;) {
      from += in.strides[d];
      to += out.strides[d];
      if (++at[d] < in.shape[d]) break;
      from -= at[d] * in.strides[d];
      to -= at[d] * out.strides[d];
      at[d] = 0;
    }
  }
}

}  // namespace

constinit const OpDef transfer_op = {
    .name = "transfer",
    .factors = "...->...",
    .flops = no_flops,
    .linear = true,
    .transfer = true,
    .cpu = transfer_cpu,
};

}  // namespace cleave
