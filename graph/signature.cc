#include "graph/signature.h"

#include <memory>
#include <mutex>
#include <unordered_map>

#include <fmt/ranges.h>

#include "graph/error.h"

namespace cleave {

std::string_view name_of(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum: return "sum";
    case Reduction::kMax: return "max";
    case Reduction::kLogSumExp: return "lse";
  }
  return "?";
}

Reduction reduction_named(std::string_view name) {
  for (Reduction r : {Reduction::kSum, Reduction::kMax, Reduction::kLogSumExp}) {
    if (name_of(r) == name) return r;
  }
  fail("unknown reduction '{}' (one of sum, max, lse)", name);
}

// Reads one factor string; the grammar has been checked by signature_mistake.
class SignatureParser {
 public:
  static std::unique_ptr<const Signature> parse(std::string_view text) {
    const char* mistake = signature_mistake(text);
    CLEAVE_ASSERT(mistake == nullptr, "factor string '{}': {}", text, mistake);
    CLEAVE_ASSERT(text.find("...") == std::string_view::npos, "'{}' is a template", text);
    auto s = std::make_unique<Signature>();
    s->text_ = text;
    const std::string_view body = text.substr(0, text.find('|'));
    const size_t arrow = body.find("->");
    s->inputs_ = operands(*s, body.substr(0, arrow));
    s->outputs_ = operands(*s, body.substr(arrow + 2));
    if (body.size() < text.size()) notes(*s, text.substr(body.size() + 1));
    s->product_roles_ = product_roles(*s);
    return s;
  }

 private:
  static int8_t intern_factor(Signature& s, char letter) {
    const int known = s.factor(letter);
    if (known >= 0) return static_cast<int8_t>(known);
    s.factors_.push_back({.letter = letter, .whole = letter >= 'A' && letter <= 'Z'});
    return static_cast<int8_t>(s.factors_.size() - 1);
  }

  static std::vector<OperandDims> operands(Signature& s, std::string_view text) {
    std::vector<OperandDims> result(1);
    bool compound = false;
    for (char c : text) {
      if (c == ',') {
        result.emplace_back();
      } else if (c == '(') {
        compound = true;
        result.back().emplace_back();
      } else if (c == ')') {
        compound = false;
      } else if (c == '1') {
        result.back().emplace_back();
      } else {
        if (!compound) result.back().emplace_back();
        result.back().back().push_back(intern_factor(s, c));
      }
    }
    return result;
  }

  static std::vector<ProductRole> product_roles(const Signature& s) {
    if (s.inputs_.size() < 2 || s.outputs_.empty()) return {};
    std::vector<ProductRole> roles;
    bool sums = false;
    for (size_t f = 0; f < s.factors_.size(); ++f) {
      const int factor = static_cast<int>(f);
      const bool a = Signature::carries(s.inputs_[0], factor);
      const bool b = Signature::carries(s.inputs_[1], factor);
      const bool c = Signature::carries(s.outputs_[0], factor);
      if (a + b + c < 2) return {};
      if (!c && s.factors_[f].reduction != Reduction::kSum) return {};
      sums |= !c;
      roles.push_back(!c   ? ProductRole::kInner
                      : !b ? ProductRole::kRows
                      : !a ? ProductRole::kColumns
                           : ProductRole::kBatch);
    }
    if (!sums) roles.clear();
    return roles;
  }

  static void notes(Signature& s, std::string_view text) {
    while (!text.empty()) {
      const std::string_view note = text.substr(0, text.find(','));
      CLEAVE_ASSERT(s.factor(note[0]) >= 0, "'{}': a note names an unknown factor", s.text_);
      Factor& f = s.factors_[static_cast<size_t>(s.factor(note[0]))];
      const std::string_view kind = note.substr(2);
      if (kind == "indexed") {
        f.indexed = true;
      } else {
        f.reduction = reduction_named(kind);
      }
      text.remove_prefix(std::min(text.size(), note.size() + 1));
    }
  }
};

const Signature& Signature::get(std::string_view text) {
  static std::mutex mutex;
  static std::unordered_map<std::string_view, std::unique_ptr<const Signature>> table;
  const std::lock_guard lock(mutex);
  const auto known = table.find(text);
  if (known != table.end()) return *known->second;
  auto parsed = SignatureParser::parse(text);
  const std::string_view key = parsed->text();  // the key lives in the object it names
  return *table.emplace(key, std::move(parsed)).first->second;
}

const Signature& Signature::get(const SignatureParts& parts) {
  return get(fmt::format("{}->{}{}{}", fmt::join(parts.inputs, ","), fmt::join(parts.outputs, ","),
                         parts.notes.empty() ? "" : "|", parts.notes));
}

SignatureParts Signature::parts() const {
  SignatureParts parts;
  for (const OperandDims& operand : inputs_) parts.inputs.push_back(operand_text(operand));
  for (const OperandDims& operand : outputs_) parts.outputs.push_back(operand_text(operand));
  const size_t bar = text_.find('|');
  if (bar != std::string::npos) parts.notes = text_.substr(bar + 1);
  return parts;
}

std::string Signature::operand_text(const OperandDims& operand) const {
  std::string text;
  for (const DimFactors& dim : operand) {
    if (dim.empty()) text += '1';
    if (dim.size() > 1) text += '(';
    for (int8_t f : dim) text += factors_[static_cast<size_t>(f)].letter;
    if (dim.size() > 1) text += ')';
  }
  return text;
}

int Signature::factor(char letter) const {
  for (size_t i = 0; i < factors_.size(); ++i) {
    if (factors_[i].letter == letter) return static_cast<int>(i);
  }
  return -1;
}

bool Signature::carries(const OperandDims& operand, int factor) {
  for (const DimFactors& dim : operand) {
    for (int8_t f : dim) {
      if (f == factor) return true;
    }
  }
  return false;
}

bool Signature::in_inputs(int factor) const {
  for (const OperandDims& operand : inputs_) {
    if (carries(operand, factor)) return true;
  }
  return false;
}

bool Signature::reduced_in(int factor, size_t output) const {
  return in_inputs(factor) && !carries(outputs_[output], factor);
}

}  // namespace cleave
