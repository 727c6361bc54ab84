#!/usr/bin/env python3
"""Trains in PyTorch on the CPU what `cleave train gpt2:tiny` trains with the same flags: the same
initial weights, the same batches in the same order, the same update and the same validation, so
that the two losses differ by rounding alone. ../gpt_curve.py runs both and compares.

The data's order is written here once more, after docs/data.md, so that it checks Cleave's. Weights,
model and optimizer are those of tests/pytorch/make_reference.py.

    python3 benchmarks/peers/gpt_curve.py --data FILE --steps 2000 --out run/pytorch

Needs numpy and PyTorch (1.13 or newer). Writes DIR/metrics.jsonl, in the lines of cleave train."""

import argparse
import json
import math
import os
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "pytorch"))
import make_reference as reference  # noqa: E402

VALIDATION_SHARE = 0.1


# --- The order of the data (docs/data.md) ---------------------------------------------------------

def uniform(seed, name, index):
    """Number `index` of a name's stream, in [0, 1)."""
    block = np.array([index // 4], np.uint64)
    word = reference.philox(seed, reference.stream_of(name), block)[index % 4]
    return int(word[0] >> np.uint64(8)) * 2.0**-24


def permutation(n, seed, stream):
    """Where 0, 1, ..., n - 1 go: six rounds of a Feistel network on the smallest even number of
    bits that holds n, repeated for what lands at n or above."""
    half = 1
    while 4**half < n:
        half += 1
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    x = np.arange(n, dtype=np.uint64)
    outside = np.ones(n, bool)
    while outside.any():
        y = x[outside]
        for number in range(6):
            left, right = y >> bits, y & mask
            draw = reference.philox(seed, stream, right ^ np.uint64(number << 56))[0]
            y = (right << bits) | (left ^ (draw & mask))
        x[outside] = y
        outside = x >= np.uint64(n)
    return x.astype(np.int64)


class Data:
    """The bytes of a file: the last tenth to validate on, the rest to train on."""

    def __init__(self, path, sequence, seed):
        self.bytes = np.fromfile(path, np.uint8).astype(np.int64)
        self.sequence, self.seed = sequence, seed
        total, least = len(self.bytes), sequence + 1
        if total < 2 * least:
            sys.exit(f"gpt_curve: '{path}' has {total} bytes; two sequences need {2 * least}")
        share = math.floor(VALIDATION_SHARE * total + 0.5)
        self.training_tokens = total - min(max(share, least), total - least)
        # One window is given up, so that the epochs can begin at different offsets.
        self.windows = max((self.training_tokens - 1) // sequence - 1, 1)
        self.validation_windows = (total - self.training_tokens - 1) // sequence
        self.epoch = -1

    def starts(self, samples):
        """The first token of each of these samples of the run, which are in one epoch's order."""
        result = []
        for sample in samples:
            epoch, number = divmod(sample, self.windows)
            if epoch != self.epoch:
                freedom = self.training_tokens - 1 - self.windows * self.sequence
                self.offset = int(uniform(self.seed, "data.offset", epoch) * (freedom + 1))
                stream = reference.stream_of("data.order") ^ (epoch * 0x9E3779B97F4A7C15 % 2**64)
                self.order = permutation(self.windows, self.seed, stream)
                self.epoch = epoch
            result.append(self.offset + int(self.order[number]) * self.sequence)
        return result

    def rows(self, starts):
        """Tokens and next tokens, each [batch, sequence]."""
        text = np.stack([self.bytes[s:s + self.sequence + 1] for s in starts])
        return torch.from_numpy(text[:, :-1].copy()), torch.from_numpy(text[:, 1:].copy())

    def training(self, step, batch):
        """`step` counts from 0."""
        return self.rows(self.starts(range(step * batch, (step + 1) * batch)))

    def validation(self, batch, most):
        """The windows in the text's order; the last batch is filled up from the first window on."""
        for b in range(min(-(-self.validation_windows // batch), most)):
            numbers = [i % self.validation_windows for i in range(b * batch, (b + 1) * batch)]
            yield self.rows([self.training_tokens + i * self.sequence for i in numbers])


# --- Training -------------------------------------------------------------------------------------

def loss_of(model, tokens, targets):
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def train(a, config, optimizer_options, write):
    dtype = dict(fp32=torch.float32, fp64=torch.float64)[a.precision]
    torch.set_default_dtype(dtype)
    data = Data(a.data, config["sequence"], a.seed)
    model = reference.Gpt2(**config)
    reference.draw_weights(model, config["layers"], a.seed)
    parameters = list(model.parameters())
    optimizer = reference.make_optimizer(parameters, optimizer_options)
    for step in range(1, a.steps + 1):
        begin = time.perf_counter()
        loss = loss_of(model, *data.training(step - 1, a.batch))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, a.clip if a.clip > 0 else math.inf)
        rate = reference.learning_rate(step, optimizer_options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        write(dict(step=step, loss=loss.item(), grad_norm=norm.item(), lr=rate,
                   step_seconds=time.perf_counter() - begin))
        if step == a.steps or a.eval_every > 0 and step % a.eval_every == 0:
            with torch.no_grad():
                losses = [loss_of(model, *rows).item()
                          for rows in data.validation(a.batch, a.eval_batches)]
            write(dict(step=step, val_loss=sum(losses) / len(losses)))


def config_of(assignments):
    """gpt2:tiny with these numbers changed."""
    config = dict(layers=4, hidden=128, heads=4, ffn=0, vocab=256, sequence=64)
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in config or not value.isdigit():
            sys.exit(f"gpt_curve: --set {assignment}: one of {', '.join(config)}, and its number")
        config[key] = int(value)
    config["ffn"] = config["ffn"] or 4 * config["hidden"]
    return config


def main():
    parser = argparse.ArgumentParser(description="The flags are those of cleave train.")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "fp64"], default="fp32")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--eval-batches", type=int, default=16)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    options = dict(reference.OPTIMIZER, lr=a.lr, min_lr=a.lr / 10, total_steps=a.steps,
                   warmup=min(100, a.steps // 10), weight_decay=a.weight_decay)

    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    part, path = out / "metrics.jsonl.part", out / "metrics.jsonl"
    with open(part, "w") as file:
        def write(line):
            file.write(json.dumps(line) + "\n")
            if "val_loss" in line:
                file.flush()
                print(f"step {line['step']}/{a.steps} | val loss {line['val_loss']:.4f}",
                      flush=True)
        train(a, config_of(a.set), options, write)
    os.replace(part, path)
    print(f"PyTorch {torch.__version__}, {a.precision}, {a.threads} threads: {path}")


if __name__ == "__main__":
    main()
