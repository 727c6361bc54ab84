#!/usr/bin/env python3
"""The training step of `build/benchmarks/train_step MODEL --gpu h100 --precision bf16` in PyTorch on the
same GPU: torch.compile, SDPA, autocast to bf16 over fp32 weights, the residual stream in bf16 too, fused
AdamW, clipping, random tokens. Prints the median of the timed steps, tokens/s and the most memory that was
allocated."""

import argparse
import statistics
import sys
import time

try:
    import torch
except ModuleNotFoundError:
    sys.exit("pytorch_gpu_step.py: this Python has no torch: name one that has, or pip install torch numpy")
from torch import nn

from pytorch_models import add_options, loss_of, make_model, make_optimizer, random_tokens


def main():
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.set_defaults(tied=1, stream="bf16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    c = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device("cuda")

    model = make_model(c)
    parameters = list(model.parameters())
    optimizer, optimizer_name = make_optimizer(parameters)
    tokens, targets = random_tokens(c)

    @torch.compile
    def forward(tokens, targets):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result = model(tokens)
        return loss_of(result, targets)

    def step():
        begin = time.perf_counter()
        loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - begin

    for _ in range(c.warm_up):
        step()
    seconds = statistics.median(step() for _ in range(c.steps))
    print(f"PyTorch {torch.__version__} compile, {optimizer_name}: median {1e3 * seconds:.1f} ms, "
          f"{c.batch * c.sequence / seconds:.0f} tokens/s, "
          f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
