"""Mixtral and DeepSeek in PyTorch, for make_reference.py: written from their papers, one expert
after the other, with Cleave's names for the weights."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def parameter(*shape):
    return nn.Parameter(torch.empty(*shape))


class Experts(nn.Module):
    """All experts of a layer: stacked weights, each expert a SwiGLU MLP."""

    def __init__(self, experts, hidden, ffn):
        super().__init__()
        self.gate = parameter(experts, ffn, hidden)
        self.up = parameter(experts, ffn, hidden)
        self.proj = parameter(experts, hidden, ffn)

    def forward(self, expert, x):
        inner = F.silu(x @ self.gate[expert].T) * (x @ self.up[expert].T)
        return inner @ self.proj[expert].T


class Router(nn.Module):
    def __init__(self, hidden, experts):
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)


class Moe(nn.Module):
    """Top-k experts of each token; with a capacity, a sequence's later tokens go without."""

    def __init__(self, mlp_class, hidden, ffn, experts, top_k, capacity_factor=0.0,
                 shared_experts=0, sigmoid=False, route_scale=1.0, **_):
        super().__init__()
        self.router = Router(hidden, experts)
        self.experts = Experts(experts, hidden, ffn)
        if shared_experts:
            self.shared = mlp_class(hidden, shared_experts * ffn)
        self.count, self.top_k, self.capacity_factor = experts, top_k, capacity_factor
        self.sigmoid, self.route_scale = sigmoid, route_scale

    def accepted(self, chosen):
        """Which choices of [b, s, k] find room: by position, then by wish."""
        if not self.capacity_factor:
            return torch.ones_like(chosen, dtype=torch.bool)
        b, s, k = chosen.shape
        capacity = math.ceil(self.capacity_factor * s * k / self.count)
        same = F.one_hot(chosen.reshape(b, s * k), self.count)  # [b, s * k, experts]
        before = (same.cumsum(dim=1) - same).gather(2, chosen.reshape(b, s * k, 1))
        return (before < capacity).view(b, s, k)

    def forward(self, x):
        b, s, d = x.shape
        logits = self.router.gate(x)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)
        best, chosen = scores.topk(self.top_k, dim=-1)
        weights = best / best.sum(dim=-1, keepdim=True) * self.route_scale
        weights = weights * self.accepted(chosen)
        y = torch.zeros_like(x)
        for expert in range(self.count):
            weight = (weights * (chosen == expert)).sum(dim=-1)  # [b, s]
            where = (chosen == expert).any(dim=-1)
            part = torch.zeros_like(x)
            part[where] = self.experts(expert, x[where])
            y = y + weight[..., None] * part
        if hasattr(self, "shared"):
            y = y + self.shared(x)
        # How unevenly each sequence loads the experts, and how large the router's logits are.
        load = F.one_hot(chosen.flatten(1), self.count).to(x.dtype).mean(dim=1)  # [b, experts]
        wanted = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=1)
        balance = self.count * (load * wanted).sum(dim=-1).mean()
        z = logits.logsumexp(dim=-1).square().mean()
        return y, balance, z


class LatentAttention(nn.Module):
    def __init__(self, norm_class, rotate, hidden, heads, q_rank, kv_rank, head_width,
                 rotary_width, value_width, theta):
        super().__init__()
        self.heads, self.theta, self.rotate = heads, theta, rotate
        self.widths = head_width, rotary_width, value_width
        self.kv_rank = kv_rank
        self.q_down = nn.Linear(hidden, q_rank, bias=False)
        self.q_norm = norm_class(q_rank, 1e-6)
        self.q_up = nn.Linear(q_rank, heads * (head_width + rotary_width), bias=False)
        self.kv_down = nn.Linear(hidden, kv_rank + rotary_width, bias=False)
        self.kv_norm = norm_class(kv_rank, 1e-6)
        self.kv_up = nn.Linear(kv_rank, heads * (head_width + value_width), bias=False)
        self.proj = nn.Linear(heads * value_width, hidden, bias=False)

    def forward(self, x):
        b, s, _ = x.shape
        head, rotary, value = self.widths
        q = self.q_up(self.q_norm(self.q_down(x))).view(b, s, self.heads, -1).transpose(1, 2)
        q_fixed, q_turned = q.split([head, rotary], dim=-1)
        latent, turned = self.kv_down(x).split([self.kv_rank, rotary], dim=-1)
        kv = self.kv_up(self.kv_norm(latent)).view(b, s, self.heads, -1).transpose(1, 2)
        k_fixed, v = kv.split([head, value], dim=-1)
        k_turned = self.rotate(turned[:, None], self.theta).expand(-1, self.heads, -1, -1)
        q = torch.cat([q_fixed, self.rotate(q_turned, self.theta)], dim=-1)
        k = torch.cat([k_fixed, k_turned], dim=-1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(head + rotary)
        future = torch.ones(s, s, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, s, -1))


class Block(nn.Module):
    def __init__(self, norm_class, hidden, eps, attn, mlp):
        super().__init__()
        self.attn_norm = norm_class(hidden, eps)
        self.attn = attn
        self.mlp_norm = norm_class(hidden, eps)
        self.mlp = mlp

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        y = self.mlp(self.mlp_norm(x))
        return (x + y, None, None) if torch.is_tensor(y) else (x + y[0], *y[1:])


class MixtureModel(nn.Module):
    """Blocks between an embedding and a head. Gives the logits, and what the routers add to the
    loss."""

    def __init__(self, norm_class, blocks, hidden, vocab, eps, balance_loss, z_loss):
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(blocks)
        self.norm = norm_class(hidden, eps)
        self.head = nn.Linear(hidden, vocab, bias=False)
        self.balance_loss, self.z_loss = balance_loss, z_loss

    def forward(self, tokens):
        x = self.embed(tokens)
        balances, zs = [], []
        for layer in self.layers:
            x, balance, z = layer(x)
            if balance is not None:
                balances.append(balance)
                zs.append(z)
        extra = self.balance_loss * sum(balances) / len(balances)
        return self.head(self.norm(x)), extra + self.z_loss * sum(zs) / len(zs)
