// The table of built-in models, and --set.
#include "models/config.h"

#include <fmt/ranges.h>

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
      llama("8b", 32, 4096, 32, 14336, false),
      llama("70b", 80, 8192, 64, 28672, false),
      llama("405b", 126, 16384, 128, 53248, false),
      bert("base", 12, 768, 12),
      bert("large", 24, 1024, 16),
      mlp("tiny", 4, 128, 256, 64),
      mlp("large", 24, 4096, 50304, 1024),
  };
  return models;
}

// --- Keys ----------------------------------------------------------------------------------------

struct Field {
  std::string_view key;
  std::variant<int64_t ModelConfig::*, double ModelConfig::*, bool ModelConfig::*> member;
};

constexpr Field kFields[] = {
    {"layers", &ModelConfig::layers},     {"hidden", &ModelConfig::hidden},
    {"heads", &ModelConfig::heads},       {"kv_heads", &ModelConfig::kv_heads},
    {"ffn", &ModelConfig::ffn},           {"vocab", &ModelConfig::vocab},
    {"sequence", &ModelConfig::sequence}, {"batch", &ModelConfig::batch},
    {"dropout", &ModelConfig::dropout},   {"theta", &ModelConfig::theta},
    {"eps", &ModelConfig::eps},           {"tied", &ModelConfig::tied},
};

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
  for (const Field& field : kFields) {
    if (field.key != key) continue;
    const auto assign = [&](auto member) {
      config.*member = parse<std::remove_reference_t<decltype(config.*member)>>(key, text);
    };
    std::visit(assign, field.member);
    return;
  }
  std::vector<std::string_view> keys;
  for (const Field& field : kFields) keys.push_back(field.key);
  fail("--set {}: there is no key '{}'; the keys are {}", assignment, key, fmt::join(keys, ", "));
}

std::vector<std::string> values_of(const ModelConfig& config) {
  std::vector<std::string> values;
  for (const Field& field : kFields) {
    std::visit(
        [&](auto member) { values.push_back(fmt::format("{}={}", field.key, config.*member)); },
        field.member);
  }
  return values;
}

void check(const ModelConfig& config) {
  constexpr int64_t kMaxWidth = 1 << 24;
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
  if (c.hidden % c.heads != 0) {
    fail("{}: hidden={} is not a multiple of heads={}", c.name(), c.hidden, c.heads);
  }
  if (c.heads % c.num_kv_heads() != 0) {
    fail("{}: heads={} is not a multiple of kv_heads={}", c.name(), c.heads, c.num_kv_heads());
  }
  if (c.family == "llama" && c.head_size() % 2 != 0) {
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
