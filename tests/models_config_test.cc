// The models' configuration: names, --set, and messages that say what to do.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "graph/error.h"
#include "graph/text.h"
#include "models/config.h"
#include "models/trace.h"

namespace cleave {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ModelConfig, NamesAreFound) {
  for (const std::string& name : model_names()) EXPECT_EQ(model_named(name).name(), name);
  const ModelConfig c = model_named("gpt3:175b");
  EXPECT_EQ(c.layers, 96);
  EXPECT_EQ(c.hidden, 12288);
  EXPECT_EQ(c.ffn_width(), 4 * 12288);
}

TEST(ModelConfig, EveryVocabularyIsPaddedAndEveryModelMakesSense) {
  for (const std::string& name : model_names()) {
    const ModelConfig c = model_named(name);
    EXPECT_EQ(c.vocab % 128, 0) << name;
    EXPECT_NO_THROW(check(c));
  }
}

TEST(ModelConfig, AnUnknownNameListsWhatThereIs) {
  const std::string family = message_of([] { model_named("gpt2:7b"); });
  EXPECT_NE(family.find("gpt2:1558m"), std::string::npos) << family;
  EXPECT_EQ(family.find("llama"), std::string::npos) << family;
  const std::string all = message_of([] { model_named("resnet"); });
  EXPECT_NE(all.find("llama:405b"), std::string::npos) << all;
}

TEST(ModelConfig, SetChangesEveryKey) {
  ModelConfig c = model_named("llama:tiny");
  for (const char* s :
       {"layers=7", "dropout=0.25", "tied=true", "theta=5e5", "kv_heads=1", "qkv_bias=true"}) {
    set_value(c, s);
  }
  EXPECT_EQ(c.layers, 7);
  EXPECT_EQ(c.dropout, 0.25);
  EXPECT_TRUE(c.tied);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_EQ(c.theta, 500000);
  EXPECT_EQ(c.num_kv_heads(), 1);
}

// Of every family, each key either changes what is computed, or is refused with those that do.
TEST(ModelConfig, AKeyThatAModelDoesNotReadIsRefused) {
  const std::vector<std::string> assignments = {
      "layers=3",         "hidden=192",     "heads=2",           "kv_heads=1",
      "ffn=320",          "vocab=384",      "sequence=32",       "batch=3",
      "dropout=0.25",     "theta=5e4",      "eps=1e-3",          "tied=true",
      "qkv_bias=true",    "experts=4",      "top_k=1",           "expert_ffn=96",
      "shared_experts=2", "dense_layers=2", "capacity_factor=2", "route_scale=2",
      "balance_loss=0.5", "z_loss=0.5",     "q_rank=48",         "kv_rank=16",
      "head_width=16",    "rotary_width=8", "value_width=16"};
  const auto text_with = [](ModelConfig c, const std::string& assignment) {
    c.tied = false, c.qkv_bias = false;
    if (!assignment.empty()) set_value(c, assignment);
    check(c);
    return to_text(trace(c, {}));
  };
  std::map<std::string, size_t> keys;  // by family
  for (const std::string& name : model_names()) {
    ModelConfig c = model_named(name);
    if (keys.contains(c.family)) continue;
    for (const char* small : {"layers=2", "hidden=128", "vocab=256", "sequence=64"})
      set_value(c, small);
    if (c.family != "mlp") set_value(c, "heads=4");
    const std::string own = text_with(c, "");
    for (const std::string& assignment : assignments) {
      const std::string refused = message_of([&] { set_value(c, assignment); });
      if (refused.empty()) {
        ++keys[c.family];
        EXPECT_NE(text_with(c, assignment), own) << name << " " << assignment;
      } else {
        const std::string key = assignment.substr(0, assignment.find('='));
        EXPECT_EQ(refused.find("--set " + assignment + ": " + name + " has no '" + key +
                               "'; the keys are layers, hidden, "),
                  0u)
            << refused;
      }
    }
    EXPECT_EQ(values_of(c).size(), keys[c.family]);
  }
  EXPECT_EQ(keys["gpt2"], 10u);
  EXPECT_EQ(keys["deepseek"], assignments.size() - 2);
  ModelConfig own = {.family = "a user's"};
  for (const std::string& assignment : assignments) EXPECT_NO_THROW(set_value(own, assignment));
}

TEST(ModelConfig, ValuesCanBeSetBack) {
  ModelConfig c = model_named("llama:70b");
  set_value(c, "dropout=0.1");
  ModelConfig copy = model_named("llama:tiny");
  for (const std::string& v : values_of(c)) set_value(copy, v);
  EXPECT_EQ(values_of(copy), values_of(c));
}

TEST(ModelConfig, WrongSettingsSayWhatIsRight) {
  ModelConfig c = model_named("gpt2:tiny");
  const auto set = [&](const char* text) { return message_of([&] { set_value(c, text); }); };
  EXPECT_NE(set("depth=3").find("layers, hidden, heads"), std::string::npos) << set("depth=3");
  EXPECT_NE(set("layers").find("key=value"), std::string::npos);
  EXPECT_NE(set("layers=two").find("'two' is not a whole number"), std::string::npos);
  EXPECT_NE(set("layers=4x").find("is not a whole number"), std::string::npos);
  EXPECT_NE(set("layers=").find("is not a whole number"), std::string::npos);
  EXPECT_NE(set("tied=maybe").find("is not true or false"), std::string::npos);
}

TEST(ModelConfig, NumbersThatMakeNoModelAreRefused) {
  const auto broken = [](const char* model, const char* text) {
    ModelConfig c = model_named(model);
    set_value(c, text);
    return message_of([&] { check(c); });
  };
  EXPECT_NE(broken("gpt2:tiny", "heads=3").find("hidden=128 is not a multiple of heads=3"),
            std::string::npos);
  EXPECT_NE(broken("llama:8b", "kv_heads=5").find("kv_heads=5"), std::string::npos);
  EXPECT_NE(broken("gpt2:tiny", "layers=0").find("layers=0"), std::string::npos);
  EXPECT_NE(broken("gpt2:tiny", "dropout=1").find("dropout=1"), std::string::npos);
  EXPECT_NE(broken("llama:tiny", "heads=128").find("even head size"), std::string::npos);
  EXPECT_NE(broken("mixtral:8x7b", "top_k=9").find("top_k=9 must be at least 1 and at most 8"),
            std::string::npos);
  EXPECT_NE(broken("mixtral:8x7b", "experts=0").find("experts=0"), std::string::npos);
  EXPECT_NE(broken("qwen2.5:7b", "heads=3584").find("even head size"), std::string::npos);
  EXPECT_NE(broken("mixtral:8x7b", "heads=4096").find("even head size"), std::string::npos);
  EXPECT_NE(broken("mixtral:8x7b", "capacity_factor=-1").find("capacity_factor=-1"),
            std::string::npos);
  EXPECT_NE(broken("mixtral:8x7b", "balance_loss=nan").find("balance_loss=nan"), std::string::npos);
  EXPECT_NE(broken("deepseek:671b", "route_scale=0").find("route_scale=0"), std::string::npos);
  EXPECT_NE(broken("deepseek:671b", "dense_layers=-1").find("dense_layers=-1"), std::string::npos);
  EXPECT_NE(broken("deepseek:671b", "rotary_width=7").find("rotary_width=7 must be even"),
            std::string::npos);
  EXPECT_NE(broken("deepseek:671b", "kv_rank=0").find("kv_rank=0"), std::string::npos);
  EXPECT_NE(broken("deepseek:671b", "sequence=100000000").find("too long"), std::string::npos);
}

}  // namespace
}  // namespace cleave
