"""The models that PyTorch's side of the benchmarks trains, with their options, loss and optimizer."""

import torch
from torch import nn
from torch.nn import functional as F


def split_heads(x, heads):
    """[b, s, heads * e] -> [b, heads, s, e]"""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def as_stream(x, stream):
    """The residual stream is of the weights' type, under autocast too (f32), unless it is cast; in bf16
    it takes half of the memory and the traffic."""
    return x.bfloat16() if stream == "bf16" else x


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
        self.stream = c.stream
        self.wte = nn.Embedding(c.vocab, c.hidden)
        self.wpe = nn.Parameter(torch.empty(c.sequence, c.hidden))
        self.blocks = nn.ModuleList(GptBlock(c) for _ in range(c.layers))
        self.ln_f = nn.LayerNorm(c.hidden)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = as_stream(self.wte(tokens) + self.wpe, self.stream)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x)), None


class LlamaAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads = c.heads, c.kv_heads
        e = c.hidden // c.heads
        self.q = nn.Linear(c.hidden, c.heads * e, bias=bool(c.qkv_bias))
        self.k = nn.Linear(c.hidden, c.kv_heads * e, bias=bool(c.qkv_bias))
        self.v = nn.Linear(c.hidden, c.kv_heads * e, bias=bool(c.qkv_bias))
        self.proj = nn.Linear(c.heads * e, c.hidden, bias=False)

    def forward(self, x, cos, sin):
        def rotate(t):
            first, second = t.chunk(2, dim=-1)
            return t * cos + torch.cat((-second, first), dim=-1) * sin

        q = rotate(split_heads(self.q(x), self.heads))
        k = rotate(split_heads(self.k(x), self.kv_heads))
        v = split_heads(self.v(x), self.kv_heads)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.proj(merge_heads(a))


class LlamaMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x):
        return self.proj(F.silu(self.gate(x)) * self.up(x))


class Moe(nn.Module):
    """The best experts of each token, none of them limited: rows are sorted by their expert, and
    multiplied by groups. `products`: grouped (one call for all experts) or loop (one after the other).
    Also gives the balance of the experts, of each sequence by itself, as Cleave's mixtral does."""

    def __init__(self, c):
        super().__init__()
        self.experts, self.top_k, self.products = c.experts, c.top_k, c.expert_products
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(c.experts, c.ffn, c.hidden))
        self.up = nn.Parameter(torch.empty(c.experts, c.ffn, c.hidden))
        self.proj = nn.Parameter(torch.empty(c.experts, c.hidden, c.ffn))

    def mlp(self, x, counts):
        gate, up, proj = (w.to(x.dtype) for w in (self.gate, self.up, self.proj))
        if self.products == "grouped":
            ends = counts.cumsum(0).to(torch.int32)

            def product(rows, weights):
                return torch._grouped_mm(rows, weights.transpose(1, 2), offs=ends)

            return product(F.silu(product(x, gate)) * product(x, up), proj)
        parts = [F.linear(F.silu(F.linear(rows, gate[e])) * F.linear(rows, up[e]), proj[e])
                 for e, rows in enumerate(x.split(counts.tolist()))]
        return torch.cat(parts)

    def forward(self, x):
        b, s, d = x.shape
        logits = self.router(x)  # [b, s, experts]
        scores = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        best, chosen = scores.topk(self.top_k, dim=-1)
        weights = best / best.sum(dim=-1, keepdim=True)
        expert = chosen.flatten()
        order = expert.argsort(stable=True)
        loads = F.one_hot(chosen, self.experts).sum(dim=(1, 2))  # [b, experts]
        rows = x.to(logits.dtype).view(-1, d)[order // self.top_k]
        y = self.mlp(rows, loads.sum(dim=0))[order.argsort()].view(b, s, self.top_k, d)
        y = (y * weights[..., None].to(y.dtype)).sum(dim=2)
        share = loads.to(scores.dtype) / (s * self.top_k)
        return y, self.experts * (share * scores.mean(dim=1)).sum(dim=-1).mean()


class LlamaBlock(nn.Module):
    """Gives the residual stream, and where its MLP is a mixture of experts their balance."""

    def __init__(self, c):
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.RMSNorm(c.hidden, c.eps), nn.RMSNorm(c.hidden, c.eps)
        self.attn = LlamaAttention(c)
        self.mlp = Moe(c) if c.experts > 1 else LlamaMlp(c)

    def forward(self, x, cos, sin):
        x = x + self.attn(self.attn_norm(x), cos, sin)
        y = self.mlp(self.mlp_norm(x))
        return (x + y[0], y[1]) if isinstance(y, tuple) else (x + y, None)


class Llama(nn.Module):
    """Llama; with biases Qwen2.5, with experts Mixtral."""

    def __init__(self, c):
        super().__init__()
        self.stream = c.stream
        self.balance_loss = c.balance_loss
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(LlamaBlock(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.eps)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight
        e = c.hidden // c.heads
        frequency = c.theta ** (-torch.arange(0, e, 2) / e)
        angle = torch.arange(c.sequence)[:, None] * frequency
        self.register_buffer("cos", torch.cat((angle, angle), dim=-1).cos())
        self.register_buffer("sin", torch.cat((angle, angle), dim=-1).sin())

    def forward(self, tokens):
        x = as_stream(self.embed(tokens), self.stream)
        balances = []
        for block in self.layers:
            x, balance = block(x, self.cos, self.sin)
            if balance is not None:
                balances.append(balance)
        balance = self.balance_loss * sum(balances) / len(balances) if balances else None
        return self.head(self.norm(x)), balance


def make_optimizer(parameters):
    groups = [dict(params=[p for p in parameters if p.dim() >= 2], weight_decay=0.1),
              dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0)]
    options = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
    try:
        return torch.optim.AdamW(groups, fused=True, **options), "fused AdamW"
    except (TypeError, RuntimeError):
        return torch.optim.AdamW(groups, foreach=True, **options), "foreach AdamW"


def add_options(parser):
    parser.add_argument("--family", choices=["gpt2", "llama"], required=True)
    for name in ["layers", "hidden", "heads", "kv-heads", "ffn", "vocab", "sequence", "batch"]:
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--tied", type=int, default=0)
    parser.add_argument("--stream", choices=["weights", "bf16"], default="weights",
                        help="the residual stream: of the weights' type, or bf16")
    parser.add_argument("--qkv-bias", type=int, default=0, help="of llama, as Qwen2.5 has")
    parser.add_argument("--theta", type=float, default=500000.0)
    parser.add_argument("--eps", type=float, default=1e-5, help="of llama's norms")
    parser.add_argument("--experts", type=int, default=1, help="of llama, as Mixtral has")
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--balance-loss", type=float, default=0.02)
    parser.add_argument("--expert-products", choices=["grouped", "loop"], default="grouped")


def make_model(c):
    """With normal weights of deviation 0.02, biases as PyTorch draws them."""
    model = (Gpt2 if c.family == "gpt2" else Llama)(c)
    for p in model.parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.02)
    return model


def random_tokens(c):
    """Tokens [batch, sequence], and flat those that follow."""
    stream = torch.randint(c.vocab, (c.batch * c.sequence + 1,))
    return stream[:-1].view(c.batch, -1), stream[1:]


def loss_of(result, targets):
    """Of what a model gives: its scores, and what its experts' balance adds."""
    scores, balance = result
    loss = F.cross_entropy(scores.flatten(0, 1), targets)
    return loss if balance is None else loss + balance
