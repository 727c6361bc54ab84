#!/usr/bin/env python3
"""The training step of `build/benchmarks/train_step MODEL --gpu h100 --precision bf16` in PyTorch on the
same GPU: torch.compile, SDPA, autocast to bf16 over fp32 weights, fused AdamW, clipping, random tokens.
Prints the median of the timed steps, tokens/s and the most memory that was allocated."""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from pytorch_step import Gpt2, Llama, make_optimizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=["gpt2", "llama"], required=True)
    for name in ["layers", "hidden", "heads", "kv-heads", "ffn", "vocab", "sequence", "batch"]:
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--tied", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    c = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device("cuda")

    model = (Gpt2 if c.family == "gpt2" else Llama)(c)
    for p in model.parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.02)
    parameters = list(model.parameters())
    optimizer, optimizer_name = make_optimizer(parameters)
    stream = torch.randint(c.vocab, (c.batch * c.sequence + 1,))
    tokens, targets = stream[:-1].view(c.batch, -1), stream[1:]

    @torch.compile
    def loss_of(tokens, targets):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            scores = model(tokens).flatten(0, 1)
        return F.cross_entropy(scores, targets)

    def step():
        begin = time.perf_counter()
        loss = loss_of(tokens, targets)
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
