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
from torch.nn import functional as F


def split_heads(x, heads):
    """[b, s, heads * e] -> [b, heads, s, e]"""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


class GptBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(c.hidden), nn.LayerNorm(c.hidden)
        self.qkv = nn.Linear(c.hidden, 3 * c.hidden)
        self.attn_proj = nn.Linear(c.hidden, c.hidden)
        self.fc = nn.Linear(c.hidden, c.ffn)
        self.mlp_proj = nn.Linear(c.ffn, c.hidden)

    def forward(self, x):
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(self.ln_1(x)).chunk(3, dim=-1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(merge_heads(a))
        return x + self.mlp_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte = nn.Embedding(c.vocab, c.hidden)
        self.wpe = nn.Parameter(torch.empty(c.sequence, c.hidden))
        self.blocks = nn.ModuleList(GptBlock(c) for _ in range(c.layers))
        self.ln_f = nn.LayerNorm(c.hidden)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class LlamaBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads = c.heads, c.kv_heads
        e = c.hidden // c.heads
        self.attn_norm, self.mlp_norm = nn.RMSNorm(c.hidden), nn.RMSNorm(c.hidden)
        self.q = nn.Linear(c.hidden, c.heads * e, bias=False)
        self.k = nn.Linear(c.hidden, c.kv_heads * e, bias=False)
        self.v = nn.Linear(c.hidden, c.kv_heads * e, bias=False)
        self.attn_proj = nn.Linear(c.heads * e, c.hidden, bias=False)
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.mlp_proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x, cos, sin):
        def rotate(t):
            first, second = t.chunk(2, dim=-1)
            return t * cos + torch.cat((-second, first), dim=-1) * sin

        y = self.attn_norm(x)
        q = rotate(split_heads(self.q(y), self.heads))
        k = rotate(split_heads(self.k(y), self.kv_heads))
        v = split_heads(self.v(y), self.kv_heads)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.attn_proj(merge_heads(a))
        y = self.mlp_norm(x)
        return x + self.mlp_proj(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.blocks = nn.ModuleList(LlamaBlock(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight
        e = c.hidden // c.heads
        frequency = 500000.0 ** (-torch.arange(0, e, 2) / e)
        angle = torch.arange(c.sequence)[:, None] * frequency
        self.register_buffer("cos", torch.cat((angle, angle), dim=-1).cos())
        self.register_buffer("sin", torch.cat((angle, angle), dim=-1).sin())

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def make_optimizer(parameters):
    groups = [dict(params=[p for p in parameters if p.dim() >= 2], weight_decay=0.1),
              dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0)]
    options = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
    try:
        return torch.optim.AdamW(groups, fused=True, **options), "fused AdamW"
    except (TypeError, RuntimeError):
        return torch.optim.AdamW(groups, foreach=True, **options), "foreach AdamW"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=["gpt2", "llama"], required=True)
    for name in ["layers", "hidden", "heads", "kv-heads", "ffn", "vocab", "sequence", "batch"]:
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--tied", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", default="", help="a mode of torch.compile")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    c = parser.parse_args()
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)

    model = (Gpt2 if c.family == "gpt2" else Llama)(c)
    for p in model.parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.02)
    parameters = list(model.parameters())
    optimizer, optimizer_name = make_optimizer(parameters)
    stream = torch.randint(c.vocab, (c.batch * c.sequence + 1,))
    tokens, targets = stream[:-1].view(c.batch, -1), stream[1:]

    def loss_of(tokens, targets):
        return F.cross_entropy(model(tokens).flatten(0, 1), targets)

    forward = torch.compile(loss_of, mode=c.compile) if c.compile else loss_of

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
