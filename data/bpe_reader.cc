#include "data/bpe_reader.h"

#include <nlohmann/json.hpp>
#include <set>

#include "data/bpe_builder.h"
#include "graph/error.h"

namespace cleave {
namespace {

using nlohmann::json;

// A tokenizer is not nested deeply; a value that is would take much more memory than its text.
json parse_json(const std::string& path, std::string_view text) {
  const auto shallow = [&](int depth, json::parse_event_t, const json&) {
    if (depth > 32) fail("'{}' is no tokenizer: it is nested deeper than 32", path);
    return true;
  };
  try {
    return json::parse(text, shallow);
  } catch (const json::parse_error& e) {
    fail("'{}' is not JSON: byte {} is wrong; copy the file again", path, e.byte);
  } catch (const json::out_of_range&) {
    fail("'{}' is no tokenizer: it has a number that is too large", path);
  }
}

// A field of an object, which may be missing: then null.
const json& field(const json& object, const char* name) {
  static const json null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

// For messages: the start of a value's text, on one line.
std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

[[noreturn]] void refuse(const std::string& path, std::string_view field, const json& value,
                         std::string_view wanted) {
  fail("'{}': {} is {}, but {}", path, field, shown(value), wanted);
}

const std::string& text_of(const std::string& path, const std::string& field, const json& value) {
  if (!value.is_string()) refuse(path, field, value, "must be a string");
  return value.get_ref<const std::string&>();
}

bool flag_of(const std::string& path, const std::string& field, const json& value, bool missing) {
  if (value.is_null()) return missing;
  if (!value.is_boolean()) refuse(path, field, value, "must be true or false");
  return value.get<bool>();
}

int64_t id_of(const std::string& path, const std::string& field, const json& value) {
  if (!value.is_number_integer()) refuse(path, field, value, "must be a whole number");
  // A larger unsigned number becomes negative here, and is refused as that.
  return value.get<int64_t>();
}

void add_vocabulary(BpeBuilder& builder, const std::string& path, const json& vocab) {
  for (const auto& [spelling, id] : vocab.items()) {
    builder.add_token(spelling, id_of(path, "the id of '" + spelling.substr(0, 40) + "'", id));
  }
}

// "left right", as a line of merges.txt is.
void add_merge_line(BpeBuilder& builder, std::string_view line, const std::string& where) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos) {
    fail("{}: '{}' are not two tokens with a space between", where, line.substr(0, 40));
  }
  builder.add_merge(std::string(line.substr(0, space)), std::string(line.substr(space + 1)), where);
}

void add_merges_text(BpeBuilder& builder, const std::string& path, std::string_view text) {
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    add_merge_line(builder, line, fmt::format("'{}' line {}", path, number));
  }
}

// --- tokenizer.json ---

void read_model(BpeBuilder& builder, const std::string& path, const json& model) {
  if (!model.is_object()) refuse(path, "model", model, "must be an object");
  if (const json& type = field(model, "type"); !type.is_null() && type != "BPE") {
    refuse(path, "model.type", type, "only BPE is read");
  }
  if (const json& dropout = field(model, "dropout"); !dropout.is_null() && dropout != 0.0) {
    refuse(path, "model.dropout", dropout, "only none is read");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = field(model, name);
    if (!value.is_null() && value != "") {
      refuse(path, std::string("model.") + name, value, "a byte-level tokenizer has none");
    }
  }
  if (flag_of(path, "model.byte_fallback", field(model, "byte_fallback"), false)) {
    refuse(path, "model.byte_fallback", true, "a byte-level tokenizer has none");
  }
  builder.definition().whole_pieces =
      flag_of(path, "model.ignore_merges", field(model, "ignore_merges"), false);

  const json& vocab = field(model, "vocab");
  if (!vocab.is_object()) refuse(path, "model.vocab", vocab, "must be an object of ids");
  add_vocabulary(builder, path, vocab);
  const json& merges = field(model, "merges");
  if (!merges.is_array()) refuse(path, "model.merges", merges, "must be a list");
  for (size_t m = 0; m < merges.size(); ++m) {
    const json& merge = merges[m];
    const std::string where = fmt::format("'{}' model.merges[{}]", path, m);
    if (merge.is_string()) {
      add_merge_line(builder, merge.get_ref<const std::string&>(), where);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      builder.add_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), where);
    } else {
      refuse(path, fmt::format("model.merges[{}]", m), merge,
             "must be \"left right\" or [left, right]");
    }
  }
}

// Whether ByteLevel splits by GPT-2's pattern, after what would change the text was refused.
bool byte_level_splits(const std::string& path, const std::string& where, const json& level) {
  if (!level.is_object() || field(level, "type") != "ByteLevel") {
    refuse(path, where, level, "only ByteLevel, and Split before it, are read");
  }
  if (flag_of(path, where + ".add_prefix_space", field(level, "add_prefix_space"), true)) {
    refuse(path, where + ".add_prefix_space", true, "only false is read");
  }
  return flag_of(path, where + ".use_regex", field(level, "use_regex"), true);
}

SplitRule split_of(const std::string& path, const std::string& where, const json& split) {
  if (!split.is_object() || field(split, "type") != "Split") {
    refuse(path, where, split, "only ByteLevel, and Split before it, are read");
  }
  const json& behavior = field(split, "behavior");
  const bool invert = flag_of(path, where + ".invert", field(split, "invert"), false);
  // The patterns match every character, so that nothing is left between the matches.
  if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) {
    refuse(path, where + ".behavior", behavior, "only Isolated is read");
  }
  const json& pattern = field(split, "pattern");
  const json& regex = pattern.is_object() ? field(pattern, "Regex") : pattern;
  for (const SplitRule rule : {SplitRule::kGpt2, SplitRule::kGpt4, SplitRule::kQwen2}) {
    if (regex.is_string() && regex.get_ref<const std::string&>() == pattern_of(rule)) return rule;
  }
  refuse(path, where + ".pattern", pattern,
         "only the patterns of GPT-2, of GPT-4 and Llama 3, and of Qwen 2 are known");
}

SplitRule read_pre_tokenizer(const std::string& path, const json& pre) {
  const bool sequence = pre.is_object() && field(pre, "type") == "Sequence";
  if (!sequence) {
    if (byte_level_splits(path, "pre_tokenizer", pre)) return SplitRule::kGpt2;
    refuse(path, "pre_tokenizer.use_regex", false, "without a Split before it nothing would split");
  }
  const json& parts = field(pre, "pretokenizers");
  const std::string where = "pre_tokenizer.pretokenizers";
  if (!parts.is_array() || parts.empty() || parts.size() > 2) {
    refuse(path, where, parts, "only ByteLevel, and Split before it, are read");
  }
  const std::string last = fmt::format("{}[{}]", where, parts.size() - 1);
  const bool splits = byte_level_splits(path, last, parts.back());
  if (parts.size() == 1 && splits) return SplitRule::kGpt2;
  if (parts.size() == 1 || splits) {
    refuse(path, last + ".use_regex", splits, "exactly one of Split and ByteLevel must split");
  }
  return split_of(path, where + "[0]", parts[0]);
}

void read_added(BpeBuilder& builder, const std::string& path, const json& added) {
  if (added.is_null()) return;
  if (!added.is_array()) refuse(path, "added_tokens", added, "must be a list");
  std::set<std::string> seen;
  for (size_t a = 0; a < added.size(); ++a) {
    const std::string where = fmt::format("added_tokens[{}]", a);
    const json& token = added[a];
    if (!token.is_object()) refuse(path, where, token, "must be an object");
    for (const char* name : {"single_word", "lstrip", "rstrip"}) {
      if (flag_of(path, where + "." + name, field(token, name), false)) {
        refuse(path, where + "." + name, true, "only false is read");
      }
    }
    const std::string& content = text_of(path, where + ".content", field(token, "content"));
    if (!seen.insert(content).second) fail("'{}': {} repeats {}", path, where, shown(content));
    const bool special = flag_of(path, where + ".special", field(token, "special"), false);
    const bool normalized =
        flag_of(path, where + ".normalized", field(token, "normalized"), !special);
    builder.add_added({content, 0, normalized}, id_of(path, where + ".id", field(token, "id")));
  }
}

}  // namespace

BpeDefinition read_vocab_and_merges(const std::string& vocab_path, std::string_view vocab,
                                    const std::string& merges_path, std::string_view merges) {
  const json parsed = parse_json(vocab_path, vocab);
  if (!parsed.is_object()) refuse(vocab_path, "it", parsed, "must be an object of ids");
  BpeBuilder builder(vocab_path);
  add_vocabulary(builder, vocab_path, parsed);
  add_merges_text(builder, merges_path, merges);
  std::set<int32_t> made;
  for (const BpeMerge& m : builder.definition().merges) made.insert(m.result);
  for (const auto& [spelling, id] : parsed.items()) {
    if (spelling.size() < 5 || !spelling.starts_with("<|") || !spelling.ends_with("|>")) continue;
    const auto number = id.get<int64_t>();
    if (!made.contains(static_cast<int32_t>(number))) builder.add_added({spelling}, number);
  }
  return std::move(builder).finish();
}

// A vocabulary may have the token "model", but no object.
bool is_tokenizer_json(std::string_view text) {
  constexpr std::string_view kModel = "\"model\"", kBlank = " \t\r\n";
  for (size_t at = text.find(kModel); at != text.npos; at = text.find(kModel, at + 1)) {
    const size_t colon = text.find_first_not_of(kBlank, at + kModel.size());
    if (colon == text.npos || text[colon] != ':') continue;
    const size_t value = text.find_first_not_of(kBlank, colon + 1);
    if (value != text.npos && text[value] == '{') return true;
  }
  return false;
}

BpeDefinition read_tokenizer_json(const std::string& path, std::string_view text) {
  const json parsed = parse_json(path, text);
  if (!parsed.is_object() || !parsed.contains("model")) {
    fail("'{}' is no tokenizer.json: it has no field 'model'", path);
  }
  if (const json& normalizer = field(parsed, "normalizer"); !normalizer.is_null()) {
    refuse(path, "normalizer", normalizer, "only none (null) is read");
  }
  BpeBuilder builder(path);
  builder.definition().split = read_pre_tokenizer(path, field(parsed, "pre_tokenizer"));
  if (const json& decoder = field(parsed, "decoder");
      !decoder.is_null() && (!decoder.is_object() || field(decoder, "type") != "ByteLevel")) {
    refuse(path, "decoder", decoder, "only ByteLevel is read");
  }
  read_model(builder, path, parsed["model"]);
  read_added(builder, path, field(parsed, "added_tokens"));
  return std::move(builder).finish();
}

}  // namespace cleave
