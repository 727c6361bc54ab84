#!/usr/bin/env python3
"""One side of benchmarks/train_step.py: the same training step in PyTorch on the CPU.

Prints "ready ..." when it has warmed up, then reads a number from stdin, makes as many steps and
answers with the wall and processor seconds of each. A step: forward, backward, clipping, AdamW, the loss read."""

import argparse
import math
import sys
import time

import torch
from torch import nn

from pytorch_models import add_options, loss_of, make_model, make_optimizer, random_tokens


def main():
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", default="", help="a mode of torch.compile")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    c = parser.parse_args()
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)

    model = make_model(c)
    parameters = list(model.parameters())
    optimizer, optimizer_name = make_optimizer(parameters)
    tokens, targets = random_tokens(c)

    def forward(tokens, targets):
        return loss_of(model(tokens), targets)

    if c.compile:
        forward = torch.compile(forward, mode=c.compile)

    def step():
        begin, cpu = time.perf_counter(), time.process_time()
        loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        return time.perf_counter() - begin, time.process_time() - cpu, value

    first = step()[2]
    assert abs(first - math.log(c.vocab)) < 1.0, first
    for _ in range(c.warm_up - 1):
        step()
    mode = f"torch.compile {c.compile}" if c.compile else "eager"
    print("ready PyTorch", torch.__version__, mode, optimizer_name, flush=True)
    if c.profile:
        with torch.profiler.profile() as p:
            for _ in range(5):
                step()
        print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        return
    for line in sys.stdin:
        times = [step()[:2] for _ in range(int(line))]
        print(*(f"{wall:.6g} {cpu:.6g}" for wall, cpu in times), flush=True)


if __name__ == "__main__":
    main()
