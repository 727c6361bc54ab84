// Input that is meant to break a reader: nesting, sizes whose products overflow, numbers that are
// none. Each is a mistake of the user's, told in one line, and found at once.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>

#include "cli/format.h"
#include "cli/model_spec.h"
#include "cli/plan_file.h"
#include "graph/error.h"
#include "graph/json.h"
#include "graph/text.h"
#include "kernels/ops.h"
#include "planner/plan_json.h"
#include "planner/planner.h"

namespace cleave {
namespace {

// Calls what must throw Error, within seconds; the message.
std::string mistake(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  std::string message = "nothing is thrown";
  try {
    call();
  } catch (const Error& e) {
    message = e.what();
  } catch (const std::exception& e) {
    message = std::string("not an Error: ") + e.what();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_LT(took.count(), 5) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

void expect_mistake(const std::string& part, const std::function<void()>& call) {
  const std::string message = mistake(call);
  EXPECT_NE(message.find(part), std::string::npos) << message.substr(0, 500) << "\nlacks " << part;
}

std::string repeated(const std::string& text, size_t times) {
  std::string result;
  for (size_t i = 0; i < times; ++i) result += text;
  return result;
}

void read_json(const std::string& text) { graph_from_json_text(text, ops::find); }
void read_text(const std::string& body) { graph_from_text("graph g\n" + body, ops::find); }

TEST(HostileJson, NestingIsBounded) {
  for (const char* open : {"[", "{\"a\":"}) {
    expect_mistake("deep", [&] { read_json(repeated(open, 1'000'000)); });
    expect_mistake("deep", [&] {
      spec_in_plan_file("plan.json",
                        "{\"format\": \"cleave-plan\", \"choices\": " + repeated(open, 1'000'000));
    });
  }
  // Brackets inside strings are no nesting.
  expect_mistake("unknown key", [] { read_json(R"({"a": "[[\"[[)" + repeated("[", 200) + "\"}"); });
}

TEST(HostileJson, KeysOfAnObjectAreBounded) {
  std::string text = "{\"a\": 1";
  for (int i = 0; i < 200'000; ++i) text += fmt::format(",\"k{}\":0", i);
  expect_mistake("more than 1000 keys", [&] { read_json(text + "}"); });
}

TEST(HostileJson, NumbersOutOfRangeAreNamed) {
  for (const char* n : {"1e300", "-1", "99999999999999999999", "1.5", "null"}) {
    expect_mistake("value", [&] {
      read_json(fmt::format(
          R"({{"cleave_graph": 1, "name": "g", "nodes": [], "outputs": [], "sources": [
             {{"kind": "data", "name": "x", "value": {}, "type": {{"dtype": "f32", "shape": []}}}}]}})",
          n));
    });
  }
  expect_mistake("not JSON", [] { read_json("[1e999]"); });
}

TEST(HostileText, SizesDoNotOverflow) {
  const std::string huge = "9223372036854775807";
  expect_mistake("more than 2^50 elements",
                 [&] { read_text(fmt::format("data %0 x: f32[{}, {}]", huge, huge)); });
  expect_mistake("more than 2^50 elements",
                 [&] { read_text("data %0 x: f32[4294967296, 4294967296]"); });
  const std::string scalar = "data %0 x: f32[]\nforward\n%1: f32[2, 2] = expand(%0) \"->ab\" ";
  for (const char* sizes : {"{a: -2, b: -2}", "{a: 0, b: 4}", "{a: 4611686018427387904, b: 1}"}) {
    expect_mistake("cannot have size", [&] { read_text(scalar + sizes); });
  }
  expect_mistake("2^50", [&] { read_text(scalar + "{a: 1125899906842624, b: 1125899906842624}"); });
  expect_mistake("more than a tensor can have", [&] {
    read_text(
        "data %0 x: f32[4]\nforward\n%1: f32[2, 2] = reshape(%0) \"(AB)->AB\" "
        "{A: 1125899906842624, B: 1125899906842624}");
  });
}

TEST(HostileText, SlicesDoNotOverflow) {
  const std::string slice = "data %0 x: f32[8]\nforward\n%1: f32[1] = slice(%0) \"X->Y\" ";
  const std::string unslice = "data %0 x: f32[3]\nforward\n%1: f32[8] = unslice(%0) \"Y->X\" ";
  read_text(slice + "{start: 0, step: 9223372036854775807, stop: 8, Y: 1}");  // one element
  expect_mistake("does not", [&] {
    read_text(slice + "{start: 0, step: 9223372036854775807, stop: 9223372036854775807, Y: 1}");
  });
  expect_mistake("do not fit",
                 [&] { read_text(unslice + "{start: 1, step: 9223372036854775807, X: 8}"); });
}

TEST(HostileSpec, SizesAreBounded) {
  for (const char* set :
       {"layers=1000000000", "layers=9223372036854775807", "hidden=9223372036854775807",
        "ffn=9223372036854775807", "vocab=9223372036854775807", "sequence=4611686018427387904",
        "batch=9223372036854775807", "kv_heads=9223372036854775807"}) {
    expect_mistake("is above", [&] {
      ModelConfig config = model_named("llama:tiny");
      set_value(config, set);
      check(config);
    });
  }
  // What is allowed by itself, but makes a tensor that is too large.
  expect_mistake("more than 2^50 elements", [] {
    ModelArguments a;
    a.model = "gpt2:tiny";
    a.set = {"vocab=2147483647", "sequence=2147483647", "layers=1"};
    trace_model(spec_of(a), nullptr);
  });
}

TEST(HostileSpec, NumbersThatAreNone) {
  for (const char* set : {"dropout=nan", "theta=nan", "theta=inf", "eps=nan", "eps=inf"}) {
    ModelConfig config = model_named("llama:tiny");
    set_value(config, set);
    EXPECT_THROW(check(config), Error) << set;
  }
  for (const char* size : {"nan", "inf", "1e308TB", "-1", "0", "1e-400"}) {
    expect_mistake("--memory", [&] { parse_bytes(size, "--memory"); });
  }
  expect_mistake("is not a size", [] { parse_mesh("9223372036854775807x9223372036854775807"); });
}

// A plan of a tiny model with one of its fields replaced.
void read_plan(const std::string& field, const std::string& value) {
  ModelArguments a;
  a.model = "mlp:tiny";
  a.set = {"layers=1", "hidden=8", "vocab=16", "sequence=4"};
  a.batch = 2;
  const TracedModel model = trace_model(spec_of(a), nullptr);
  PlannerOptions options;
  const PlanResult result = find_plan(model.graph, parse_cluster("cpu:2"), options);
  nlohmann::ordered_json json = parse_json(plan_file_text(model, *result.plan));
  json[nlohmann::ordered_json::json_pointer(field)] = nlohmann::ordered_json::parse(value);
  const std::string text = json.dump();
  load_plan("plan.json", text, spec_in_plan_file("plan.json", text), nullptr);
}

TEST(HostilePlan, NumbersAreChecked) {
  EXPECT_EQ(mistake([] { read_plan("/zero", "0"); }), "nothing is thrown");
  expect_mistake("whole number", [] { read_plan("/version", "1e300"); });
  expect_mistake("whole number", [] { read_plan("/choices/costing/0/price/2", "1e300"); });
  expect_mistake("whole number", [] { read_plan("/choices/nodes/0/0", "1e300"); });
  expect_mistake("whole number", [] { read_plan("/choices/nodes/0/0", "4294967296"); });
  expect_mistake("whole number", [] { read_plan("/model/batch", "1e300"); });
  expect_mistake("at most 4", [] {
    read_plan("/mesh", R"({"a": 1000000, "b": 1000000, "c": 1000000, "d": 1000000, "e": 1000000})");
  });
}

}  // namespace
}  // namespace cleave
