// The table of built-in models, and --set.
#include "models/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <tuple>
#include <variant>

#include "graph/error.h"

namespace cleave {

namespace {

// --- The table -----------------------------------------------------------------------------------

// GPT-2 (Radford et al., 2019); 50257 tokens padded to 50304.
ModelConfig gpt(const char* family, const char* size, int64_t layers, int64_t hidden, int64_t heads,
                int64_t vocab = 50304, int64_t sequence = 1024) {
  return {.family = family,
          .size = size,
          .layers = layers,
          .hidden = hidden,
          .heads = heads,
          .vocab = vocab,
          .sequence = sequence,
          .tied = true};
}

// Llama 3.1 and 3.2 (Grattafiori et al., 2024), without their scaling of long-range frequencies.
ModelConfig llama(const char* size, int64_t layers, int64_t hidden, int64_t heads, int64_t ffn,
                  bool tied) {
  return {.family = "llama",
          .size = size,
          .layers = layers,
          .hidden = hidden,
          .heads = heads,
          .kv_heads = 8,
          .ffn = ffn,
          .vocab = 128256,
          .sequence = 8192,
          .theta = 500000,
          .tied = tied};
}

// Llama's first 7B (Touvron et al., 2023), with the sequence and eps of Llama 2's.
ModelConfig llama_7b() {
  return {.family = "llama",
          .size = "7b",
          .layers = 32,
          .hidden = 4096,
          .heads = 32,
          .ffn = 11008,
          .vocab = 32000,
          .sequence = 4096};
}

// Qwen2.5 (Qwen Team, 2024): Llama's layers, with biases of queries, keys and values. The sequence
// is that of most of its training.
ModelConfig qwen(const char* size, int64_t layers, int64_t hidden, int64_t heads, int64_t kv_heads,
                 int64_t ffn, int64_t vocab, bool tied) {
  return {.family = "qwen2.5",
          .size = size,
          .layers = layers,
          .hidden = hidden,
          .heads = heads,
          .kv_heads = kv_heads,
          .ffn = ffn,
          .vocab = vocab,
          .sequence = 4096,
          .theta = 1e6,
          .eps = 1e-6,
          .tied = tied,
          .qkv_bias = true};
}

// BERT (Devlin et al., 2018); 30522 tokens padded to 30592.
ModelConfig bert(const char* size, int64_t layers, int64_t hidden, int64_t heads) {
  return {.family = "bert",
          .size = size,
          .layers = layers,
          .hidden = hidden,
          .heads = heads,
          .vocab = 30592,
          .sequence = 512,
          .eps = 1e-12,
          .tied = true};
}

ModelConfig mlp(const char* size, int64_t layers, int64_t hidden, int64_t vocab, int64_t sequence) {
  return {.family = "mlp",
          .size = size,
          .layers = layers,
          .hidden = hidden,
          .vocab = vocab,
          .sequence = sequence};
}

// Mixtral 8x7B (Jiang et al., 2024), without a limit of capacity there.
ModelConfig mixtral_8x7b() {
  return {.family = "mixtral",
          .size = "8x7b",
          .layers = 32,
          .hidden = 4096,
          .heads = 32,
          .kv_heads = 8,
          .ffn = 14336,
          .vocab = 32000,
          .sequence = 4096,
          .theta = 1e6,
          .experts = 8,
          .top_k = 2,
          .capacity_factor = 1.25,
          .balance_loss = 0.02};
}

// DeepSeek-V3 (DeepSeek-AI, 2024): the main model, without the module that predicts a second token,
// without routing bias and groups of experts, and without a limit of capacity there.
ModelConfig deepseek_671b() {
  return {.family = "deepseek",
          .size = "671b",
          .layers = 61,
          .hidden = 7168,
          .heads = 128,
          .ffn = 18432,
          .vocab = 129280,
          .sequence = 4096,
          .theta = 10000,
          .eps = 1e-6,
          .experts = 256,
          .top_k = 8,
          .expert_ffn = 2048,
          .shared_experts = 1,
          .dense_layers = 3,
          .capacity_factor = 1.25,
          .route_scale = 2.5,
          .balance_loss = 1e-4,
          .q_rank = 1536,
          .kv_rank = 512,
          .head_width = 128,
          .rotary_width = 64,
          .value_width = 128};
}

// The tiny sizes read bytes, and train in seconds on one CPU core.
const std::vector<ModelConfig>& table() {
  static const std::vector<ModelConfig> models = {
      gpt("gpt2", "tiny", 4, 128, 4, 256, 64),
      gpt("gpt2", "124m", 12, 768, 12),
      gpt("gpt2", "355m", 24, 1024, 16),
      gpt("gpt2", "774m", 36, 1280, 20),
      gpt("gpt2", "1558m", 48, 1600, 25),
      // Megatron-LM's scaling study (Shoeybi et al., 2019, table 1).
      gpt("megatron", "1.2b", 40, 1536, 16, 51200),
      gpt("megatron", "2.5b", 54, 1920, 20, 51200),
      gpt("megatron", "4.2b", 64, 2304, 24, 51200),
      gpt("megatron", "8.3b", 72, 3072, 32, 51200),
      gpt("gpt3", "175b", 96, 12288, 96, 51200, 2048),
      {.family = "llama",
       .size = "tiny",
       .layers = 4,
       .hidden = 128,
       .heads = 4,
       .kv_heads = 2,
       .ffn = 384},
      llama("1b", 16, 2048, 32, 8192, true),
      llama("3b", 28, 3072, 24, 8192, true),
      llama_7b(),
      llama("8b", 32, 4096, 32, 14336, false),
      llama("70b", 80, 8192, 64, 28672, false),
      llama("405b", 126, 16384, 128, 53248, false),
      {.family = "qwen2.5",
       .size = "tiny",
       .layers = 4,
       .hidden = 128,
       .heads = 4,
       .kv_heads = 2,
       .ffn = 384,
       .eps = 1e-6,
       .tied = true,
       .qkv_bias = true},
      qwen("0.5b", 24, 896, 14, 2, 4864, 151936, true),
      qwen("1.5b", 28, 1536, 12, 2, 8960, 151936, true),
      qwen("3b", 36, 2048, 16, 2, 11008, 151936, true),
      qwen("7b", 28, 3584, 28, 4, 18944, 152064, false),
      {.family = "mixtral",
       .size = "tiny",
       .layers = 4,
       .hidden = 128,
       .heads = 4,
       .kv_heads = 2,
       .ffn = 256,
       .experts = 8,
       .top_k = 2,
       .balance_loss = 0.02},
      mixtral_8x7b(),
      {.family = "deepseek",
       .size = "tiny",
       .layers = 4,
       .hidden = 128,
       .heads = 4,
       .ffn = 384,
       .eps = 1e-6,
       .experts = 8,
       .top_k = 2,
       .expert_ffn = 128,
       .shared_experts = 1,
       .dense_layers = 1,
       .capacity_factor = 1.25,
       .balance_loss = 1e-3,
       .q_rank = 64,
       .kv_rank = 32,
       .head_width = 32,
       .rotary_width = 16,
       .value_width = 32},
      deepseek_671b(),
      bert("base", 12, 768, 12),
      bert("large", 24, 1024, 16),
      mlp("tiny", 4, 128, 256, 64),
      mlp("large", 24, 4096, 50304, 1024),
  };
  return models;
}

constexpr int64_t kMaxWidth = 1 << 24;

// --- Keys ----------------------------------------------------------------------------------------

// Families with numbers of their own, by bits.
enum Families : uint8_t {
  kGrouped = 1,  // of queries, which share keys and values: llama, qwen2.5, mixtral
  kLatent = 2,   // attention: deepseek
  kExperts = 4,  // mixtral, deepseek
  kHeads = 8,    // attention of any kind: all but mlp
  kEvery = 16,
};

uint8_t families_of(std::string_view name) {
  if (name == "mlp") return kEvery;
  if (name == "llama" || name == "qwen2.5") return kEvery | kHeads | kGrouped;
  if (name == "mixtral") return kEvery | kHeads | kGrouped | kExperts;
  if (name == "deepseek") return kEvery | kHeads | kLatent | kExperts;
  return kEvery | kHeads;
}

struct Field {
  std::string_view key;
  std::variant<int64_t ModelConfig::*, double ModelConfig::*, bool ModelConfig::*> member;
  int families;  // that read it
};

constexpr Field kFields[] = {
    {"layers", &ModelConfig::layers, kEvery},
    {"hidden", &ModelConfig::hidden, kEvery},
    {"heads", &ModelConfig::heads, kHeads},
    {"kv_heads", &ModelConfig::kv_heads, kGrouped},
    {"ffn", &ModelConfig::ffn, kEvery},
    {"vocab", &ModelConfig::vocab, kEvery},
    {"sequence", &ModelConfig::sequence, kEvery},
    {"batch", &ModelConfig::batch, kEvery},
    {"dropout", &ModelConfig::dropout, kEvery},
    {"theta", &ModelConfig::theta, kGrouped | kLatent},
    {"eps", &ModelConfig::eps, kEvery},
    {"tied", &ModelConfig::tied, kHeads},
    {"qkv_bias", &ModelConfig::qkv_bias, kGrouped},
    {"experts", &ModelConfig::experts, kExperts},
    {"top_k", &ModelConfig::top_k, kExperts},
    {"expert_ffn", &ModelConfig::expert_ffn, kExperts},
    {"shared_experts", &ModelConfig::shared_experts, kExperts},
    {"dense_layers", &ModelConfig::dense_layers, kExperts},
    {"capacity_factor", &ModelConfig::capacity_factor, kExperts},
    {"route_scale", &ModelConfig::route_scale, kExperts},
    {"balance_loss", &ModelConfig::balance_loss, kExperts},
    {"z_loss", &ModelConfig::z_loss, kExperts},
    {"q_rank", &ModelConfig::q_rank, kLatent},
    {"kv_rank", &ModelConfig::kv_rank, kLatent},
    {"head_width", &ModelConfig::head_width, kLatent},
    {"rotary_width", &ModelConfig::rotary_width, kLatent},
    {"value_width", &ModelConfig::value_width, kLatent},
};

// Whether the model reads the field: a user's own model may read any.
bool reads(const ModelConfig& config, const Field& field) {
  const bool built_in = std::any_of(table().begin(), table().end(), [&](const ModelConfig& model) {
    return model.family == config.family;
  });
  return !built_in || (families_of(config.family) & field.families) != 0;
}

template <class T>
T parse(std::string_view key, std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || text.empty()) {
    fail("--set {}={}: '{}' is not {}", key, text, text,
         std::is_same_v<T, int64_t> ? "a whole number" : "a number");
  }
  return value;
}

template <>
bool parse<bool>(std::string_view key, std::string_view text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  fail("--set {}={}: '{}' is not true or false", key, text, text);
}

}  // namespace

bool is_model(std::string_view name) {
  return std::any_of(table().begin(), table().end(),
                     [&](const ModelConfig& model) { return model.name() == name; });
}

ModelConfig model_named(std::string_view name) {
  for (const ModelConfig& model : table()) {
    if (model.name() == name) return model;
  }
  const std::string_view family = name.substr(0, name.find(':'));
  std::vector<std::string> sizes;
  for (const ModelConfig& model : table()) {
    if (model.family == family) sizes.push_back(model.name());
  }
  if (sizes.empty()) sizes = model_names();
  fail("there is no model '{}'; there are {}", name, fmt::join(sizes, ", "));
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const ModelConfig& model : table()) names.push_back(model.name());
  return names;
}

void set_value(ModelConfig& config, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) {
    fail("--set {}: write key=value, for example layers=4", assignment);
  }
  const std::string_view key = assignment.substr(0, equals);
  const std::string_view text = assignment.substr(equals + 1);
  const auto refuse = [&](std::string_view problem) {
    std::vector<std::string_view> keys;
    for (const Field& field : kFields) {
      if (reads(config, field)) keys.push_back(field.key);
    }
    fail("--set {}: {} '{}'; the keys are {}", assignment, problem, key, fmt::join(keys, ", "));
  };
  for (const Field& field : kFields) {
    if (field.key != key) continue;
    if (!reads(config, field)) refuse(fmt::format("{} has no", config.name()));
    const auto assign = [&](auto member) {
      config.*member = parse<std::remove_reference_t<decltype(config.*member)>>(key, text);
    };
    std::visit(assign, field.member);
    return;
  }
  refuse("there is no key");
}

std::vector<std::string> values_of(const ModelConfig& config) {
  std::vector<std::string> values;
  for (const Field& field : kFields) {
    if (!reads(config, field)) continue;
    std::visit(
        [&](auto member) { values.push_back(fmt::format("{}={}", field.key, config.*member)); },
        field.member);
  }
  return values;
}

namespace {

// What a mixture of experts needs besides.
void check_experts(const ModelConfig& c) {
  constexpr int64_t kMaxExperts = 1 << 20;
  for (const auto& [key, value, least, most] :
       {std::tuple("experts", c.experts, int64_t{1}, kMaxExperts),
        std::tuple("top_k", c.top_k, int64_t{1}, c.experts),
        std::tuple("expert_ffn", c.expert_ffn, int64_t{0}, kMaxWidth),
        std::tuple("shared_experts", c.shared_experts, int64_t{0}, kMaxExperts),
        std::tuple("dense_layers", c.dense_layers, int64_t{0}, int64_t{10'000})}) {
    if (value < least || value > most) {
      fail("{}: {}={} must be at least {} and at most {}", c.name(), key, value, least, most);
    }
  }
  // Slots and rows of a sequence have 32-bit numbers.
  if (c.sequence > INT32_MAX / std::max(c.top_k, c.experts)) {
    fail("{}: sequence={} is too long for experts={}", c.name(), c.sequence, c.experts);
  }
  for (const auto& [key, value] :
       {std::pair("capacity_factor", c.capacity_factor), std::pair("balance_loss", c.balance_loss),
        std::pair("z_loss", c.z_loss)}) {
    if (!(value >= 0 && std::isfinite(value))) {
      fail("{}: {}={} must be at least 0", c.name(), key, value);
    }
  }
  if (!(c.route_scale > 0 && std::isfinite(c.route_scale))) {
    fail("{}: route_scale={} must be above 0", c.name(), c.route_scale);
  }
}

void check_latent_attention(const ModelConfig& c) {
  for (const auto& [key, value] :
       {std::pair("q_rank", c.q_rank), std::pair("kv_rank", c.kv_rank),
        std::pair("head_width", c.head_width), std::pair("rotary_width", c.rotary_width),
        std::pair("value_width", c.value_width)}) {
    if (value < 1 || value > kMaxWidth) {
      fail("{}: {}={} must be at least 1 and at most {}", c.name(), key, value, kMaxWidth);
    }
  }
  if (c.rotary_width % 2 != 0) {
    fail("{}: rotary_width={} must be even", c.name(), c.rotary_width);
  }
}

}  // namespace

void check(const ModelConfig& config) {
  const ModelConfig& c = config;
  for (const auto& [key, value] :
       {std::pair("layers", c.layers), std::pair("hidden", c.hidden), std::pair("heads", c.heads),
        std::pair("vocab", c.vocab), std::pair("sequence", c.sequence),
        std::pair("batch", c.batch)}) {
    if (value < 1) fail("{}: {}={} must be at least 1", c.name(), key, value);
  }
  // Indices of tokens are 32-bit, and a layer takes time and memory to trace; the rest is for sizes
  // that are products of these.
  for (const auto& [key, value, most] :
       {std::tuple("layers", c.layers, int64_t{10'000}), std::tuple("hidden", c.hidden, kMaxWidth),
        std::tuple("ffn", c.ffn, kMaxWidth), std::tuple("kv_heads", c.kv_heads, kMaxWidth),
        std::tuple("vocab", c.vocab, int64_t{INT32_MAX}),
        std::tuple("sequence", c.sequence, int64_t{INT32_MAX}),
        std::tuple("batch", c.batch, int64_t{INT32_MAX})}) {
    if (value > most) fail("{}: {}={} is above {}", c.name(), key, value, most);
  }
  if (c.kv_heads < 0 || c.ffn < 0) fail("{}: kv_heads and ffn must not be negative", c.name());
  const bool latent = c.family == "deepseek";
  const bool rotary = c.family == "llama" || c.family == "qwen2.5" || c.family == "mixtral";
  if (latent) check_latent_attention(c);
  if (latent || c.family == "mixtral") check_experts(c);
  if (!latent && c.hidden % c.heads != 0) {
    fail("{}: hidden={} is not a multiple of heads={}", c.name(), c.hidden, c.heads);
  }
  if (!latent && c.heads % c.num_kv_heads() != 0) {
    fail("{}: heads={} is not a multiple of kv_heads={}", c.name(), c.heads, c.num_kv_heads());
  }
  if (rotary && c.head_size() % 2 != 0) {
    fail("{}: rotary positions need an even head size, got {}", c.name(), c.head_size());
  }
  if (!(c.dropout >= 0 && c.dropout < 1)) {
    fail("{}: dropout={} must be at least 0 and below 1", c.name(), c.dropout);
  }
  if (!(c.theta > 1 && c.eps > 0 && std::isfinite(c.theta) && std::isfinite(c.eps))) {
    fail("{}: theta must be above 1 and eps above 0", c.name());
  }
}

}  // namespace cleave
