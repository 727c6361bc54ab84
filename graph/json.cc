#include "graph/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

// On one line; bytes that are not UTF-8 become U+FFFD.
std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// --- Writing -------------------------------------------------------------------------------------

Json to_json(const TensorType& type) {
  return {{"dtype", name_of(type.dtype)}, {"shape", type.shape}};
}

Json to_json(const AttrValue& value) {
  // JSON has no infinities.
  if (const double* x = std::get_if<double>(&value); x != nullptr && !std::isfinite(*x)) {
    return {{"real", fmt::format("{}", *x)}};
  }
  return std::visit([](const auto& x) { return Json(x); }, value);
}

Json to_json(const SourceRecord& r) {
  Json json = {{"kind", name_of(r.source.kind)},
               {"name", r.source.name},
               {"value", r.source.value},
               {"type", to_json(r.type)}};
  if (!r.source.roles.empty()) json["roles"] = r.source.roles;
  if (r.source.kind != SourceKind::kData || r.source.init != Init{}) {
    json["init"] = {{"kind", name_of(r.source.init.kind)}, {"a", r.source.init.a}};
  }
  if (r.source.final != kNoValue) json["final"] = r.source.final;
  return json;
}

Json to_json(const NodeRecord& r) {
  Json json = {{"op", r.op}, {"factors", r.factors}, {"in", r.inputs}, {"out", r.outputs}};
  for (const TensorType& type : r.types) json["types"].push_back(to_json(type));
  for (const auto& [name, value] : r.attrs.items()) json["attrs"][name] = to_json(value);
  for (Value v : r.writes) json["writes"].push_back(v == kNoValue ? Json() : Json(v));
  json["phase"] = name_of(r.phase);
  if (r.follows != kNoNode) json["follows"] = r.follows;
  if (!r.scope.empty()) json["scope"] = r.scope;
  if (!r.file.empty()) {
    json["file"] = r.file;
    json["line"] = r.line;
  }
  return json;
}

// --- Reading -------------------------------------------------------------------------------------

// Stops before the library meets what it has no limit for: it copies values by recursion, and finds
// the keys of an object one after the other.
void check_nesting(std::string_view text) {
  constexpr size_t kDepth = 100, kKeys = 1000;
  std::vector<size_t> keys;  // of the objects that are open; a list has none
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        for (++i; i < text.size() && text[i] != '"'; ++i) i += text[i] == '\\';
        break;
      case '{':
      case '[':
        keys.push_back(0);
        if (keys.size() > kDepth) fail("not JSON that is read here: more than {} deep", kDepth);
        break;
      case '}':
      case ']':
        if (!keys.empty()) keys.pop_back();
        break;
      case ':':
        if (!keys.empty() && ++keys.back() > kKeys) {
          fail("not JSON that is read here: an object has more than {} keys", kKeys);
        }
        break;
      default: break;
    }
  }
}

// An object whose keys are all known. Each `read` names what is wrong with its key.
class Reader {
 public:
  Reader(const Json& json, std::initializer_list<std::string_view> keys) : json_(json) {
    if (!json.is_object()) fail("not an object");
    for (const auto& [key, value] : json.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) fail("unknown key '{}'", key);
    }
  }

  const Json* find(const char* key) const {
    const auto at = json_.find(key);
    return at == json_.end() ? nullptr : &*at;
  }
  const Json& at(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) fail("'{}' is missing", key);
    return *value;
  }
  std::string text(const char* key) const {
    if (!at(key).is_string()) fail("'{}' is not a string", key);
    return at(key).get<std::string>();
  }
  int32_t integer(const char* key) const {
    return static_cast<int32_t>(integer(at(key), key, INT32_MIN, INT32_MAX));
  }
  const Json& list(const char* key) const {
    if (!at(key).is_array()) fail("'{}' is not a list", key);
    return at(key);
  }
  std::vector<Value> values(const char* key) const {
    std::vector<Value> result;
    for (const Json& v : list(key)) result.push_back(value(v, key));
    return result;
  }

  static int64_t integer(const Json& json, const char* key, int64_t low, int64_t high) {
    if (!json.is_number_integer()) fail("'{}' holds something else than an integer", key);
    const bool huge = json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX;
    if (huge || json.get<int64_t>() < low || json.get<int64_t>() > high) {
      fail("'{}' holds a number out of range", key);
    }
    return json.get<int64_t>();
  }
  static Value value(const Json& json, const char* key) {
    return static_cast<Value>(integer(json, key, 0, INT32_MAX));
  }

 private:
  const Json& json_;
};

TensorType type_from(const Json& json) {
  const Reader reader(json, {"dtype", "shape"});
  TensorType type{dtype_named(reader.text("dtype")), {}};
  for (const Json& size : reader.list("shape")) {
    type.shape.push_back(Reader::integer(size, "shape", 1, INT64_MAX));
  }
  return type;
}

AttrValue attr_from(const Json& json, const std::string& name) {
  if (json.is_string()) return json.get<std::string>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_array()) {
    std::vector<int64_t> list;
    for (const Json& x : json) {
      list.push_back(Reader::integer(x, name.c_str(), INT64_MIN, INT64_MAX));
    }
    return list;
  }
  if (json.is_object()) {
    const std::string text = Reader(json, {"real"}).text("real");
    for (double x : {HUGE_VAL, -HUGE_VAL, std::nan(""), -std::nan("")}) {
      if (text == fmt::format("{}", x)) return x;
    }
    fail("'{}' is not a number", text);
  }
  return Reader::integer(json, name.c_str(), INT64_MIN, INT64_MAX);
}

SourceRecord source_from(const Json& json) {
  const Reader reader(json, {"kind", "name", "value", "type", "roles", "init", "final"});
  SourceRecord r;
  r.source.kind = source_kind_named(reader.text("kind"));
  r.source.name = reader.text("name");
  r.source.value = Reader::value(reader.at("value"), "value");
  r.type = type_from(reader.at("type"));
  if (reader.find("roles") != nullptr) {
    for (const Json& role : reader.list("roles")) {
      if (!role.is_string()) fail("'roles' holds something else than a string");
      r.source.roles.push_back(role.get<std::string>());
    }
  }
  if (r.source.kind != SourceKind::kData || reader.find("init") != nullptr) {
    const Reader init(reader.at("init"), {"kind", "a"});
    r.source.init.kind = init_named(init.text("kind"));
    if (!init.at("a").is_number()) fail("'a' is not a number");
    r.source.init.a = init.at("a").get<double>();
  }
  if (reader.find("final") != nullptr) r.source.final = Reader::value(reader.at("final"), "final");
  return r;
}

NodeRecord node_from(const Json& json) {
  const Reader reader(json, {"op", "factors", "in", "out", "types", "attrs", "writes", "phase",
                             "follows", "scope", "file", "line"});
  NodeRecord r;
  r.op = reader.text("op");
  r.factors = reader.text("factors");
  r.inputs = reader.values("in");
  r.outputs = reader.values("out");
  for (const Json& type : reader.list("types")) r.types.push_back(type_from(type));
  if (const Json* attrs = reader.find("attrs")) {
    if (!attrs->is_object()) fail("'attrs' is not an object");
    for (const auto& [name, value] : attrs->items()) r.attrs.set(name, attr_from(value, name));
  }
  if (reader.find("writes") != nullptr) {
    for (const Json& v : reader.list("writes")) {
      r.writes.push_back(v.is_null() ? kNoValue : Reader::value(v, "writes"));
    }
  }
  r.phase = phase_named(reader.text("phase"));
  if (reader.find("follows") != nullptr) r.follows = reader.integer("follows");
  if (reader.find("scope") != nullptr) r.scope = reader.text("scope");
  if (reader.find("file") != nullptr) {
    r.file = reader.text("file");
    r.line = reader.integer("line");
  }
  return r;
}

// Where an entry stands: sources, nodes and outputs share one count.
std::string place_of(int32_t where, size_t sources, size_t nodes) {
  const size_t i = static_cast<size_t>(where);
  if (i < sources) return fmt::format("sources[{}]", i);
  if (i < sources + nodes) return fmt::format("nodes[{}]", i - sources);
  return fmt::format("outputs[{}]", i - sources - nodes);
}

GraphRecord record_from(const Json& json) {
  const Reader reader(json,
                      {"cleave_graph", "name", "micro_batches", "sources", "nodes", "outputs"});
  if (const int32_t version = reader.integer("cleave_graph"); version != kVersion) {
    fail("'cleave_graph' is {}, and this program reads {}", version, kVersion);
  }
  GraphRecord record;
  record.name = reader.text("name");
  if (const Json* n = reader.find("micro_batches")) {
    record.micro_batches = Reader::integer(*n, "micro_batches", 1, INT32_MAX);
  }
  const Json &sources = reader.list("sources"), &nodes = reader.list("nodes"),
             &outputs = reader.list("outputs");
  int32_t where = 0;
  try {
    for (const Json& j : sources) {
      record.sources.push_back(source_from(j));
      record.sources.back().where = where++;
    }
    for (const Json& j : nodes) {
      record.nodes.push_back(node_from(j));
      record.nodes.back().where = where++;
    }
    for (const Json& j : outputs) {
      const Reader output(j, {"name", "value"});
      record.outputs.push_back(
          {{output.text("name"), Reader::value(output.at("value"), "value")}, where++});
    }
  } catch (const Error& e) {
    fail("{}: {}", place_of(where, sources.size(), nodes.size()), e.what());
  }
  std::stable_sort(
      record.sources.begin(), record.sources.end(),
      [](const SourceRecord& a, const SourceRecord& b) { return a.source.value < b.source.value; });
  return record;
}

}  // namespace

Json parse_json(std::string_view text) {
  check_nesting(text);
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    const std::string what =
        e.what();  // "[json.exception.parse_error.101] parse error at line 2..."
    const size_t text_at = what.find("] ");
    fail("not JSON: {}; write the file again", what.substr(text_at == what.npos ? 0 : text_at + 2));
  }
}

Json to_json(const Graph& graph) {
  const GraphRecord record = to_record(graph);
  Json json = {{"cleave_graph", kVersion},
               {"name", record.name},
               {"sources", Json::array()},
               {"nodes", Json::array()},
               {"outputs", Json::array()}};
  if (record.micro_batches != 1) json["micro_batches"] = record.micro_batches;
  for (const SourceRecord& r : record.sources) json["sources"].push_back(to_json(r));
  for (const NodeRecord& r : record.nodes) json["nodes"].push_back(to_json(r));
  for (const OutputRecord& r : record.outputs) {
    json["outputs"].push_back({{"name", r.output.name}, {"value", r.output.value}});
  }
  return json;
}

Graph graph_from_json(const Json& json, OpLookup lookup) {
  const GraphRecord record = record_from(json);
  return build(record, lookup, [&](int32_t where) {
    return place_of(where, record.sources.size(), record.nodes.size());
  });
}

std::string to_json_text(const Graph& graph) {
  const Json json = to_json(graph);
  std::string text = "{";
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    text += fmt::format("{}\n  {}: ", first ? "" : ",", dump(key));
    first = false;
    if (!value.is_array() || value.empty()) {
      text += dump(value);
      continue;
    }
    for (size_t i = 0; i < value.size(); ++i) {
      text += fmt::format("{}\n    {}", i == 0 ? "[" : ",", dump(value[i]));
    }
    text += "\n  ]";
  }
  return text + "\n}\n";
}

Graph graph_from_json_text(std::string_view text, OpLookup lookup) {
  return graph_from_json(parse_json(text), lookup);
}

}  // namespace cleave
