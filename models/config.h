// What a built-in model is made of: a family, a size, and the numbers that a user may change.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cleave {

// The same fields for every family; those that a family does not read cannot be set.
struct ModelConfig {
  std::string family = {};  // "gpt2"
  std::string size = {};    // "124m"
  int64_t layers = 1;
  int64_t hidden = 1;  // width of the residual stream
  int64_t heads = 1;   // query heads
  int64_t kv_heads =
      0;                // key and value heads, each shared by heads / kv_heads; 0: as many as heads
  int64_t ffn = 0;      // inner width of the MLP; 0: 4 * hidden
  int64_t vocab = 256;  // padded to a multiple of 128, so that it splits
  int64_t sequence = 64;  // tokens in a sequence, and learned positions
  int64_t batch = 8;      // sequences in a step, over all devices
  double dropout = 0;
  double theta = 10000;   // base of the rotary frequencies
  double eps = 1e-5;      // of the norms
  bool tied = false;      // the head shares the embedding's table
  bool qkv_bias = false;  // of grouped queries, keys and values, where they are apart

  // Mixtures of experts.
  int64_t experts = 1;         // that a token is routed among
  int64_t top_k = 1;           // of them that a token goes to
  int64_t expert_ffn = 0;      // inner width of an expert; 0: as ffn
  int64_t shared_experts = 0;  // that every token goes to
  int64_t dense_layers = 0;    // the first so many layers have an MLP of width ffn instead
  double capacity_factor = 0;  // an expert's share of a sequence's tokens, at most; 0: no limit
  double route_scale = 1;      // of the weights of a token's experts
  double balance_loss = 0;     // weight in the loss of the experts' balance
  double z_loss = 0;           // and of the routers' log-sum-exps

  // Latent attention.
  int64_t q_rank = 1, kv_rank = 1;
  int64_t head_width = 1, rotary_width = 2, value_width = 1;  // of one head

  int64_t num_kv_heads() const { return kv_heads > 0 ? kv_heads : heads; }
  int64_t ffn_width() const { return ffn > 0 ? ffn : 4 * hidden; }
  int64_t expert_width() const { return expert_ffn > 0 ? expert_ffn : ffn_width(); }
  int64_t head_size() const { return hidden / heads; }
  std::string name() const { return size.empty() ? family : family + ":" + size; }
};

// The built-in model named "family:size". Throws Error listing what there is.
ModelConfig model_named(std::string_view name);
// Every built-in "family:size", in the table's order.
std::vector<std::string> model_names();
bool is_model(std::string_view name);  // whether it is one of these

// Applies "key=value", as in `--set layers=4`. Throws Error, listing the model's keys, when there
// is no such key or the model does not read it. A user's own model may read any.
void set_value(ModelConfig& config, std::string_view assignment);
// "layers=12", "hidden=768", ...: every key of the model with its value.
std::vector<std::string> values_of(const ModelConfig& config);
// Throws Error when the numbers do not make a model (heads that do not divide the width).
void check(const ModelConfig& config);

}  // namespace cleave
