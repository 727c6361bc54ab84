#include "checkpoint/manifest.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "cleave-checkpoint";
constexpr int64_t kVersion = 1;
constexpr int kDepth = 5;  // of nesting: the shapes of tensors
constexpr std::string_view kSealKey = "  \"manifest_xxh128\": \"";
constexpr std::string_view kSealEnd = "\"\n}\n";
constexpr size_t kSealSize = kSealKey.size() + 32 + kSealEnd.size();

const Json& at(const Json& object, const char* key) {
  if (!object.is_object()) fail("'{}' is looked for in something that is no object", key);
  const auto found = object.find(key);
  if (found == object.end()) fail("'{}' is missing", key);
  return *found;
}

std::string text_at(const Json& object, const char* key) {
  const Json& value = at(object, key);
  if (!value.is_string()) fail("'{}' is not a string", key);
  return value.get<std::string>();
}

const Json& list_at(const Json& object, const char* key) {
  const Json& value = at(object, key);
  if (!value.is_array()) fail("'{}' is not a list", key);
  return value;
}

int64_t count_of(const Json& value, const char* key) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) {
    fail("'{}' holds something else than a count", key);
  }
  return value.get<int64_t>();
}

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

ManifestFile file_from(const Json& json) {
  ManifestFile file{text_at(json, "name"), {}};
  const std::string& name = file.name;
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    fail("'{}' cannot be the name of a file of a checkpoint", printable(name));
  }
  file.digest = {count_of(at(json, "bytes"), "bytes"), text_at(json, "xxh128")};
  if (file.digest.checksum.size() != 32 || !is_hex(file.digest.checksum)) {
    fail("'xxh128' of '{}' is no checksum", printable(name));
  }
  return file;
}

ManifestTensor tensor_from(const Json& json, const std::map<std::string, int32_t>& files) {
  ManifestTensor tensor;
  tensor.name = text_at(json, "name");
  tensor.type.dtype = dtype_named(text_at(json, "dtype"));
  int64_t bytes = size_of(tensor.type.dtype);
  for (const Json& size : list_at(json, "shape")) {
    tensor.type.shape.push_back(count_of(size, "shape"));
    if (__builtin_mul_overflow(bytes, tensor.type.shape.back(), &bytes)) {
      fail("tensor '{}': its shape is too large", printable(tensor.name));
    }
  }
  const std::string kind = text_at(json, "kind");
  if (kind != "parameter" && kind != "state") {
    fail("'kind' of '{}' is neither parameter nor state", printable(tensor.name));
  }
  tensor.parameter = kind == "parameter";
  const std::string file = text_at(json, "file");
  const auto found = files.find(file);
  if (found == files.end()) {
    fail("tensor '{}' is in '{}', which is not listed", printable(tensor.name), printable(file));
  }
  tensor.file = found->second;
  return tensor;
}

Manifest manifest_from(const Json& json) {
  if (!json.is_object() || !json.contains("format") || json["format"] != kFormat) {
    fail("not the manifest of a checkpoint");
  }
  const int64_t version = count_of(at(json, "version"), "version");
  if (version != kVersion) {
    fail(
        "format version {}, and this program reads {}; use the cleave that wrote it, or a newer "
        "one",
        version, kVersion);
  }
  Manifest manifest;
  manifest.step = count_of(at(json, "step"), "step");
  manifest.written = text_at(json, "written");
  std::map<std::string, int32_t> files;
  for (const Json& f : list_at(json, "files")) {
    manifest.files.push_back(file_from(f));
    const std::string& name = manifest.files.back().name;
    const auto index = static_cast<int32_t>(manifest.files.size() - 1);
    if (!files.emplace(name, index).second) fail("file '{}' is listed twice", printable(name));
  }
  std::set<std::string> names;
  for (const Json& t : list_at(json, "tensors")) {
    manifest.tensors.push_back(tensor_from(t, files));
    const std::string& name = manifest.tensors.back().name;
    if (!names.insert(name).second) fail("tensor '{}' is listed twice", printable(name));
  }
  return manifest;
}

}  // namespace

std::string manifest_seal(std::string_view text) {
  return fmt::format("{}{}{}", kSealKey, checksum_of(text), kSealEnd);
}

std::string to_text(const Manifest& m) {
  std::string text = fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"step\": {},\n  \"written\": \"{}\",\n",
      kFormat, kVersion, m.step, m.written);
  const auto list = [&](const char* key, const auto& items, const auto& to_json) {
    text += fmt::format("  \"{}\": [", key);
    const char* between = "\n    ";
    for (const auto& item : items) {
      text += between + to_json(item).dump();
      between = ",\n    ";
    }
    text += "\n  ],\n";
  };
  try {
    list("files", m.files, [](const ManifestFile& f) {
      return Json{{"name", f.name}, {"bytes", f.digest.bytes}, {"xxh128", f.digest.checksum}};
    });
    list("tensors", m.tensors, [&](const ManifestTensor& t) {
      return Json{{"name", t.name},
                  {"dtype", name_of(t.type.dtype)},
                  {"shape", t.type.shape},
                  {"kind", t.parameter ? "parameter" : "state"},
                  {"file", m.files[static_cast<size_t>(t.file)].name}};
    });
  } catch (const Json::exception&) {
    fail("a tensor's name is not UTF-8, which a checkpoint needs");
  }
  text += manifest_seal(text);
  if (static_cast<int64_t>(text.size()) > kLargestManifest) {
    fail("{} tensors are too many for one checkpoint", m.tensors.size());
  }
  return text;
}

Manifest parse_manifest(std::string_view text) {
  if (text.size() < kSealSize) fail("cut off: {} bytes", text.size());
  const std::string_view body = text.substr(0, text.size() - kSealSize);
  if (text.substr(body.size()) != manifest_seal(body)) {
    fail("changed or cut off since it was written: its own checksum does not match");
  }
  Json json;
  try {
    json = Json::parse(text, [](int depth, Json::parse_event_t, Json&) {
      if (depth > kDepth) fail("nested too deeply");
      return true;
    });
  } catch (const Json::exception&) {
    fail("not JSON");
  }
  return manifest_from(json);
}

}  // namespace cleave
