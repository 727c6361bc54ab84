// Published runs of Megatron-LM, and the model that they ran: GPT with attention taken apart into
// products, softmax and dropout, as before there were fused kernels.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "models/trace.h"
#include "planner/cluster.h"
#include "tracer/nn.h"

namespace cleave {

inline constexpr int64_t kSequence = 2048, kVocabulary = 51200;

struct Row {
  const char* name;
  int year;  // of the paper
  int64_t layers, hidden, heads, tp, pp, chunks, micro, batch, gpus;
  double published;  // 2021: TFLOP/s a GPU; 2022: seconds an iteration
};

// Narayanan et al. 2021 (table 1), Korthikanti et al. 2022 (table 5).
inline constexpr Row kRows[] = {
    {"1.7B", 2021, 24, 2304, 24, 1, 1, 1, 16, 512, 32, 137},
    {"7.5B", 2021, 36, 4096, 32, 4, 1, 1, 16, 512, 128, 142},
    {"39.1B", 2021, 48, 8192, 64, 8, 2, 1, 4, 1536, 512, 138},
    {"145.6B", 2021, 80, 12288, 96, 8, 8, 2, 2, 2304, 1536, 148},
    {"1008B", 2021, 128, 25600, 160, 8, 64, 1, 1, 3072, 3072, 163},
    {"22B", 2022, 48, 6144, 64, 8, 1, 1, 4, 4, 8, 1.10},
    {"175B", 2022, 96, 12288, 96, 8, 8, 3, 1, 64, 64, 13.75},
    {"530B", 2022, 105, 20480, 128, 8, 35, 3, 1, 280, 280, 37.83},
    {"1T", 2022, 128, 25600, 160, 8, 64, 1, 1, 512, 512, 71.49},
};

// Of one iteration; the papers' own counts (2021 counts the recomputed forward).
inline double paper_flops(const Row& r) {
  const double b = static_cast<double>(r.batch), s = kSequence, v = kVocabulary;
  const double l = static_cast<double>(r.layers), h = static_cast<double>(r.hidden);
  return r.year == 2021 ? 96 * b * s * l * h * h * (1 + s / (6 * h) + v / (16 * l * h))
                        : 72 * b * s * l * h * h * (1 + s / (6 * h) + v / (12 * h * l));
}

inline double published_seconds(const Row& r) {
  if (r.year == 2022) return r.published;
  return paper_flops(r) / (static_cast<double>(r.gpus) * r.published * 1e12);
}

// GPT whose attention is products, softmax and dropout. The scope "core" is what selective
// recomputation computes again.
inline Tensor gpt(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding wte("wte", c.vocab, c.hidden);
  const Tensor wpe = parameter("wpe.weight", {c.sequence, c.hidden}, normal(kDeviation));
  Tensor x = Dropout("dropout", c.dropout)(wte(tokens) + wpe);
  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("h.{}", i));
    const LayerNorm ln_1("ln_1", c.hidden), ln_2("ln_2", c.hidden);
    const Linear qkv("qkv", c.hidden, 3 * c.hidden), proj("proj", c.hidden, c.hidden);
    const Mlp mlp("mlp", c.hidden, 4 * c.hidden, c.dropout);
    const std::vector<Tensor> p =
        qkv(ln_1(x)).reshape({c.batch, c.sequence, 3, c.heads, -1}).unbind(2);  // [b, s, h, e]
    Tensor mixed;
    {
      const Scope core("core");
      const Tensor scores = contract(p[0], p[1], "bshe,bthe->bhst");
      const Tensor weights = Dropout("weights", c.dropout)(softmax(scores));
      mixed = contract(weights, p[2], "bhst,bthe->bshe");
    }
    x = x + Dropout("dropout", c.dropout)(proj(mixed.flatten(2)));
    x = x + mlp(ln_2(x));
  }
  x = LayerNorm("ln_f", c.hidden)(x);
  const Tensor head =
      c.tied ? wte.weight : parameter("head.weight", {c.vocab, c.hidden}, normal(kDeviation));
  return cross_entropy(linear(x, head).to(DType::kF32), targets);  // as those runs did
}

inline ModelConfig config_of(const Row& row, int64_t layers, int64_t batch) {
  ModelConfig c;
  c.layers = layers;
  c.hidden = row.hidden, c.heads = row.heads, c.vocab = kVocabulary;
  c.sequence = kSequence, c.batch = batch;
  c.dropout = 0.1;
  c.tied = row.pp == 1;
  return c;
}

inline Cluster cluster_of(const Row& row) {
  return parse_cluster(fmt::format("{}x8xa100", (row.gpus + 7) / 8));
}

}  // namespace cleave
