// Chains on the GPU: their kernels are generated for the shapes and types at hand.
#include "graph/error.h"
#include "graph/philox.h"
#include "kernels/cuda/chain_text.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/loops.h"

namespace cleave {

ChainLoops chain_loops(const KernelArgs& args) {
  const Chain chain = chain_of(args.attrs);
  ChainLoops loops;
  for (const Extent& e : args.extents) loops.sizes.push_back(e.local);
  std::vector<DType> in, out;
  for (size_t i = 0; i < args.in.size(); ++i) {
    in.push_back(args.in[i].dtype);
    loops.in.push_back({in.back(), args.in[i].data, in_strides(args, i)});
  }
  for (size_t r = 0; r < args.out.size(); ++r) {
    out.push_back(args.out[r].dtype);
    loops.out.push_back({out.back(), args.out[r].data, out_strides(args, r)});
  }
  const std::optional<ChainPlan> plan = plan_of(chain, args.signature, loops.sizes);
  CLEAVE_ASSERT(plan, "no one kernel does '{}'", args.attrs.text("parts"));
  loops.plan = *plan;
  loops.nodes = nodes_of(chain, args.signature, loops.sizes, in, out);
  for (const ChainMask& mask : loops.nodes.masks) {
    for (const int8_t axis : mask.axes) {
      const Extent& e = args.extents[static_cast<size_t>(axis)];
      CLEAVE_ASSERT(e.local == e.global, "dropout in a chain is of whole tensors");
    }
  }
  return loops;
}

void chain_cuda(const KernelArgs& args) {
  for (const TensorView& t : args.out) {
    if (t.numel() == 0) return;
  }
  const ChainLoops loops = chain_loops(args);
  std::vector<void*> pointers;
  for (const LoopOperand& o : loops.in) pointers.push_back(o.data);
  for (const LoopOperand& o : loops.out) pointers.push_back(o.data);
  pointers.push_back(args.workspace);
  std::vector<uint64_t> numbers;
  if (!loops.nodes.masks.empty()) numbers.push_back(args.seed);
  for (const ChainMask& mask : loops.nodes.masks) numbers.push_back(stream_of(mask.name));
  std::vector<void*> arguments;
  for (void*& p : pointers) arguments.push_back(&p);
  for (uint64_t& n : numbers) arguments.push_back(&n);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  for (const ChainKernel& kernel : chain_kernels(loops)) {
    cuda_check(cudaLaunchKernel(
        args.device->generated().kernel(kernel.text, stream),
        dim3(static_cast<unsigned>(kernel.across), static_cast<unsigned>(kernel.down)),
        dim3(static_cast<unsigned>(kernel.block)), arguments.data(), 0, stream));
  }
}

}  // namespace cleave
