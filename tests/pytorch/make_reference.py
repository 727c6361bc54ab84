#!/usr/bin/env python3
"""Trains a small GPT-2, Llama, Qwen2.5, Mixtral and DeepSeek in PyTorch on the CPU and writes the losses
down, for tests/models_pytorch_test.cc to compare with. The modules are written here from scratch; the
initial weights are drawn from Cleave's own counter-based generator, so both start from the same
bits.

    apt-get install python3-torch        # Debian 12: PyTorch 1.13
    /usr/bin/python3 tests/pytorch/make_reference.py [NAME ...]
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import experts

SEED = 42
STEPS = 10
OPTIMIZER = dict(lr=2e-3, min_lr=2e-4, warmup=3, total_steps=STEPS, beta1=0.9, beta2=0.95,
                 eps=1e-8, weight_decay=0.1, max_norm=1.0)


# --- Cleave's generator (graph/philox.h), in numpy ------------------------------------------------

def stream_of(name):
    """FNV-1a, 64 bits."""
    value = 14695981039346656037
    for byte in name.encode():
        value = ((value ^ byte) * 1099511628211) % 2**64
    return value


def philox(seed, stream, blocks):
    """Philox 4x32-10 of the counters (block, stream): four uint32 arrays."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    n = blocks.shape
    c = [blocks & low, blocks >> shift,
         np.full(n, stream % 2**32, np.uint64), np.full(n, stream >> 32, np.uint64)]
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k0), p1 & low,
             (p0 >> shift) ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def normal(seed, name, count):
    """The first `count` normal numbers of a name's stream, in float64 (Box-Muller)."""
    unit = [(word >> np.uint64(8)).astype(np.float64) * 2.0**-24
            for word in philox(seed, stream_of(name), np.arange((count + 1) // 2, dtype=np.uint64))]
    pairs = [np.sqrt(-2 * np.log(1 - unit[i])) * np.cos(2 * math.pi * unit[i + 1]) for i in (0, 2)]
    return np.stack(pairs, axis=1).reshape(-1)[:count]


def draw_weights(model, layers, seed=SEED):
    """Normal 0.02 as in GPT-2, smaller for what is added to the residual stream."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        residual = name.endswith(("attn.proj.weight", "mlp.proj.weight", "mlp.experts.proj",
                                  "mlp.shared.proj.weight"))
        deviation = 0.02 / math.sqrt(2 * layers) if residual else 0.02
        numbers = normal(seed, name, parameter.numel()) * deviation
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(numbers).view_as(parameter))


# --- Models ---------------------------------------------------------------------------------------

class GptAttention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x):
        b, s, d = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2)
                   for t in self.qkv(x).split(d, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        future = torch.ones(s, s, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, s, d))


class GptMlp(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.fc = nn.Linear(hidden, ffn)
        self.proj = nn.Linear(ffn, hidden)

    def forward(self, x):
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class GptBlock(nn.Module):
    def __init__(self, hidden, heads, ffn):
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden, eps=1e-5)
        self.attn = GptAttention(hidden, heads)
        self.ln_2 = nn.LayerNorm(hidden, eps=1e-5)
        self.mlp = GptMlp(hidden, ffn)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    def __init__(self, layers, hidden, heads, ffn, vocab, sequence, **_):
        super().__init__()
        self.wte = nn.Embedding(vocab, hidden)
        self.wpe = nn.Embedding(sequence, hidden)
        self.h = nn.ModuleList(GptBlock(hidden, heads, ffn) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden, eps=1e-5)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


class RmsNorm(nn.Module):
    def __init__(self, hidden, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


def rotate(x, theta):
    """Rotates the pairs (i, i + E/2) of x [b, h, s, E] by position * theta^(-2i/E)."""
    s, e = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, e, 2, dtype=torch.float64) / e)
    angle = torch.arange(s, dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class LlamaAttention(nn.Module):
    def __init__(self, hidden, heads, kv_heads, theta, qkv_bias=False):
        super().__init__()
        self.heads, self.kv_heads, self.theta = heads, kv_heads, theta
        self.head_size = hidden // heads
        self.q = nn.Linear(hidden, heads * self.head_size, bias=qkv_bias)
        self.k = nn.Linear(hidden, kv_heads * self.head_size, bias=qkv_bias)
        self.v = nn.Linear(hidden, kv_heads * self.head_size, bias=qkv_bias)
        self.proj = nn.Linear(heads * self.head_size, hidden, bias=False)

    def forward(self, x):
        b, s, d = x.shape
        q = self.q(x).view(b, s, self.heads, -1).transpose(1, 2)
        k = self.k(x).view(b, s, self.kv_heads, -1).transpose(1, 2)
        v = self.v(x).view(b, s, self.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, self.theta), rotate(k, self.theta)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_size)
        future = torch.ones(s, s, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, s, d))


class LlamaMlp(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x):
        return self.proj(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    def __init__(self, hidden, heads, kv_heads, ffn, theta, eps, qkv_bias):
        super().__init__()
        self.attn_norm = RmsNorm(hidden, eps)
        self.attn = LlamaAttention(hidden, heads, kv_heads, theta, qkv_bias)
        self.mlp_norm = RmsNorm(hidden, eps)
        self.mlp = LlamaMlp(hidden, ffn)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    def __init__(self, layers, hidden, heads, kv_heads, ffn, vocab, theta, eps=1e-5, tied=False,
                 qkv_bias=False, **_):
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(
            LlamaBlock(hidden, heads, kv_heads, ffn, theta, eps, qkv_bias) for _ in range(layers))
        self.norm = RmsNorm(hidden, eps)
        self.head = nn.Linear(hidden, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x)
        return self.head(self.norm(x))


class Mixtral(experts.MixtureModel):
    def __init__(self, layers, hidden, heads, kv_heads, ffn, vocab, theta, balance_loss, z_loss,
                 **kwargs):
        blocks = [experts.Block(RmsNorm, hidden, 1e-5,
                                LlamaAttention(hidden, heads, kv_heads, theta),
                                experts.Moe(LlamaMlp, hidden, ffn, **kwargs))
                  for _ in range(layers)]
        super().__init__(RmsNorm, blocks, hidden, vocab, 1e-5, balance_loss, z_loss)


class DeepSeek(experts.MixtureModel):
    def __init__(self, layers, hidden, heads, ffn, expert_ffn, vocab, theta, dense_layers, q_rank,
                 kv_rank, head_width, rotary_width, value_width, balance_loss, z_loss, **kwargs):
        blocks = []
        for i in range(layers):
            attention = experts.LatentAttention(RmsNorm, rotate, hidden, heads, q_rank, kv_rank,
                                                head_width, rotary_width, value_width, theta)
            mlp = (LlamaMlp(hidden, ffn) if i < dense_layers else
                   experts.Moe(LlamaMlp, hidden, expert_ffn, sigmoid=True, **kwargs))
            blocks.append(experts.Block(RmsNorm, hidden, 1e-6, attention, mlp))
        super().__init__(RmsNorm, blocks, hidden, vocab, 1e-6, balance_loss, z_loss)


# --- Training -------------------------------------------------------------------------------------

def token(i, vocab):
    """The i-th token of the data: squares, over and over, which a small model soon predicts."""
    return (i % 97) ** 2 % vocab


def batch_of(step, config):
    """Tokens and next tokens, each [batch, sequence]."""
    b, s = config["batch"], config["sequence"]
    i = np.arange(b * s, dtype=np.int64) + step * b * s
    tokens, targets = token(i, config["vocab"]), token(i + 1, config["vocab"])
    return torch.from_numpy(tokens).view(b, s), torch.from_numpy(targets).view(b, s)


def learning_rate(step, o=OPTIMIZER):
    """Linear warm-up, then half a cosine; `step` counts from 1."""
    if step <= o["warmup"]:
        return o["lr"] * step / o["warmup"]
    progress = min(1.0, (step - o["warmup"]) / (o["total_steps"] - o["warmup"]))
    return o["min_lr"] + 0.5 * (o["lr"] - o["min_lr"]) * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters, o=OPTIMIZER):
    """AdamW; norms and biases do not decay."""
    return torch.optim.AdamW(
        [dict(params=[p for p in parameters if p.dim() >= 2], weight_decay=o["weight_decay"]),
         dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0)],
        betas=(o["beta1"], o["beta2"]), eps=o["eps"])


def train(model_class, config, dtype):
    model = model_class(**config).to(dtype)
    draw_weights(model, config["layers"])
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters)
    losses, norms = [], []
    for step in range(STEPS):
        tokens, targets = batch_of(step, config)
        logits = model(tokens)
        extra = 0
        if isinstance(logits, tuple):
            logits, extra = logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + extra
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, OPTIMIZER["max_norm"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return dict(losses=losses, grad_norms=norms,
                parameters=sum(p.numel() for p in parameters))


def write_reference(name, model_class, config):
    if sys.argv[1:] and name not in sys.argv[1:]:
        return
    torch.set_default_dtype(torch.float32)
    path = pathlib.Path(__file__).with_name(f"{name}_reference.json")
    f32 = train(model_class, config, torch.float32)
    f64 = train(model_class, config, torch.float64)
    reference = dict(
        comment="Written by tests/pytorch/make_reference.py; read by models_pytorch_test.",
        torch=torch.__version__, seed=SEED, config=config, optimizer=OPTIMIZER, f32=f32, f64=f64)
    path.write_text(json.dumps(reference, indent=1) + "\n")
    print(path.name, f64["losses"][0], "->", f64["losses"][-1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shared = dict(layers=2, hidden=128, heads=4, vocab=256, sequence=64, batch=4)
    write_reference("gpt2", Gpt2, dict(shared, ffn=512))
    write_reference("llama", Llama, dict(shared, kv_heads=2, ffn=384, theta=10000.0))
    write_reference("qwen2.5", Llama, dict(shared, kv_heads=2, ffn=384, theta=1e6, eps=1e-6,
                                           tied=True, qkv_bias=True))
    write_reference("mixtral", Mixtral,
                    dict(shared, kv_heads=2, ffn=256, theta=10000.0, experts=8, top_k=2,
                         capacity_factor=0.0, route_scale=1.0, balance_loss=0.02, z_loss=0.001))
    write_reference("deepseek", DeepSeek,
                    dict(shared, layers=3, ffn=384, expert_ffn=128, theta=10000.0, dense_layers=1,
                         experts=8, top_k=2, shared_experts=1, capacity_factor=1.25,
                         route_scale=2.5, q_rank=64, kv_rank=32, head_width=32, rotary_width=16,
                         value_width=24, balance_loss=0.001, z_loss=0.0))
