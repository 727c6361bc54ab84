#!/usr/bin/env python3
"""The chains of `build/benchmarks/chains` by torch.compile on the same GPU, in CUDA graphs. With --ours FILE,
what that program printed, prints the ratio of the medians beside each: above 1, ours is faster."""

import argparse
import statistics
import sys

try:
    import torch
except ModuleNotFoundError:
    sys.exit("pytorch_chains.py: this Python has no torch: name one that has, or pip install torch numpy")
from torch.nn import functional as F

ROWS, WIDTH = 8192, 4096


def softmax_mask(x, m):
    return (F.softmax(x * 0.7 + m, -1),)


def rms_residual(x, r, w):
    h = x + r
    return h, h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * w


def gated(a, b, w):
    return (torch.tanh(a) * torch.sigmoid(b + w) + a * 0.1,)


def smoothed(x):
    lse = torch.logsumexp(x.float(), -1)
    return ((lse + 1e-4 * lse.square() - x.float().mean(-1)).bfloat16(),)


def squashed(x):
    most = x.abs().amax(-1, keepdim=True) + 1e-6
    return (torch.tanh(x / most) * most,)


def columns(x, y):
    return ((x * y).sum(0),)


def bias_gelu(x, b):
    h = x + b
    return (0.5 * h * (1.0 + torch.tanh(0.7978845608 * (h + 0.044715 * h * h * h))),)


def modulated(x, scale, shift):
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    return (centred * rstd * (1.0 + scale) + shift,)


def gated_backward(gate, up, dy):
    s = torch.sigmoid(gate)
    dgate = dy * up * s * (1.0 + gate * (1.0 - s))
    return dgate, dy * gate * s, dgate.sum(0)


def squared_errors(x, y, w):
    return (((x - y).float().square() * w.float()).mean().bfloat16(),)


M, R, L = (ROWS, WIDTH), (WIDTH,), (4096, 32768)
CASES = [
    ("softmax of scores with a temperature and a mask", softmax_mask, [M, R]),
    ("residual and RMS norm by primitives", rms_residual, [M, M, R]),
    ("gated unit of tanh and sigmoid", gated, [M, M, R]),
    ("smoothed loss with z-loss of each row of logits", smoothed, [L]),
    ("rows by their largest magnitude, squashed", squashed, [M]),
    ("sum of products over columns", columns, [M, M]),
    ("bias and GELU by primitives", bias_gelu, [M, R]),
    ("layer norm by primitives, modulated", modulated, [M, R, R]),
    ("gated unit's backward with a bias gradient", gated_backward, [M, M, M]),
    ("weighted mean of squared errors", squared_errors, [M, M, R]),
]


def median_us(function, arguments, steps):
    compiled = torch.compile(function, fullgraph=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            compiled(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compiled(*arguments)
    for _ in range(3):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", help="what benchmarks/chains printed")
    parser.add_argument("--steps", type=int, default=60)
    c = parser.parse_args()
    ours = {}
    for line in open(c.ours) if c.ours else []:
        name, rest = line[:50].strip(), line[50:].split()
        if len(rest) > 1 and rest[1] == "us":
            ours[name] = float(rest[0])
    torch.set_default_device("cuda")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for name, function, shapes in CASES:
        torch.manual_seed(0)
        arguments = [torch.randn(s, dtype=torch.bfloat16) for s in shapes]
        made = sum(y.numel() for y in function(*arguments))
        us = median_us(function, arguments, c.steps)
        moved = 2e-6 * (sum(x.numel() for x in arguments) + made) / us
        ratio = f"  ours {us / ours[name]:.2f}x" if name in ours else ""
        print(f"{name:<50} {us:8.1f} us {moved:6.2f} TB/s{ratio}", flush=True)


if __name__ == "__main__":
    main()
