#include "cli/model_spec.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <utility>

#include "cli/command.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr std::array<std::pair<std::string_view, DType>, 4> kPrecisions = {
    {{"fp32", DType::kF32}, {"fp64", DType::kF64}, {"bf16", DType::kBF16}, {"fp16", DType::kF16}}};

}  // namespace

ModelConfig config_of(ModelSpec& spec, const UserModel* user) {
  std::error_code error;
  if (user == nullptr && !is_model(spec.name) && std::filesystem::exists(spec.name, error)) {
    fail("'{}' is a file, and this takes a model, as gpt2:tiny; cleave train runs a plan's file",
         spec.name);
  }
  ModelConfig config = user != nullptr ? user->defaults : model_named(spec.name);
  if (user != nullptr && config.family.empty()) config.family = user->name;
  for (const std::string& assignment : spec.set) set_value(config, assignment);
  if (spec.batch < 0) fail("--batch {}: write at least 1", spec.batch);
  if (spec.batch > 0) config.batch = spec.batch;
  spec.batch = config.batch;
  return config;
}

std::string_view precision_name(DType dtype) {
  for (const auto& [name, type] : kPrecisions) {
    if (type == dtype) return name;
  }
  CLEAVE_ASSERT(false, "{} is no precision", name_of(dtype));
  return {};
}

DType precision_named(std::string_view name) {
  for (const auto& [known, type] : kPrecisions) {
    if (known == name) return type;
  }
  fail("there is no precision '{}'; write fp32, fp64, bf16 or fp16", name);
}

OptimizerOptions::Kind optimizer_named(std::string_view name) {
  if (name == "adamw") return OptimizerOptions::Kind::kAdamW;
  if (name == "sgd") return OptimizerOptions::Kind::kSgd;
  fail("there is no optimizer '{}'; write adamw or sgd", name);
}

std::string_view name_of(OptimizerOptions::Kind kind) {
  return kind == OptimizerOptions::Kind::kAdamW ? "adamw" : "sgd";
}

namespace {

// What the parameters, and so moments that are not asked for otherwise, are stored in.
DType parameters_in(DType precision) { return is_half(precision) ? DType::kF32 : precision; }

}  // namespace

std::optional<DType> moments_named(std::string_view name, DType precision) {
  if (name.empty()) return std::nullopt;
  const DType own = parameters_in(precision);
  const DType moments = precision_named(name);
  if (moments == own) return std::nullopt;
  if (moments == DType::kBF16) return moments;
  fail("--moments {}: beside --precision {} they are {} when it is left out, or bf16", name,
       precision_name(precision), precision_name(own));
}

std::string_view moments_name(const ModelSpec& spec) {
  return precision_name(spec.optimizer.moments.value_or(parameters_in(spec.dtype)));
}

ModelSpec spec_of(const ModelArguments& arguments, DType precision) {
  ModelSpec spec;
  spec.name = arguments.model;
  if (spec.name.empty()) {
    if (arguments.user == nullptr) fail("name a model: {}", fmt::join(model_names(), ", "));
    spec.name = arguments.user->name;
  }
  spec.set = arguments.set;
  spec.batch = arguments.batch;
  for (const std::string& set : spec.set) {
    if (spec.batch > 0 && set.starts_with("batch=")) {
      fail("--batch {} and --set {}: write one of them", spec.batch, set);
    }
  }
  spec.dtype = arguments.precision.empty() ? precision : precision_named(arguments.precision);
  spec.training = !arguments.forward;
  spec.optimizer.micro_batches = std::max<int64_t>(arguments.accumulate, 1);
  if (!arguments.optimizer.empty()) spec.optimizer.kind = optimizer_named(arguments.optimizer);
  spec.optimizer.moments = moments_named(arguments.moments, spec.dtype);
  if (!spec.training && spec.optimizer.moments) {
    fail("--moments {}: a forward alone has none", arguments.moments);
  }
  return spec;
}

TracedModel trace_model(ModelSpec spec, const UserModel* user) {
  TracedModel model;
  if (user != nullptr && spec.name != user->name) user = nullptr;
  model.config = config_of(spec, user);
  TraceOptions options{spec.dtype, spec.training, spec.optimizer};
  options.optimizer.limits = true;  // whether any is set is for the run to say
  if (user != nullptr) {
    check(model.config);
    model.graph = trace(user->name, model.config, user->loss, options);
  } else {
    model.graph = trace(model.config, options);
    model.objective = objective_of(model.config);
  }
  model.spec = std::move(spec);
  return model;
}

std::string describe(const TracedModel& model) {
  const ModelSpec& s = model.spec;
  const int64_t micro_batches = model.graph.micro_batches;
  return fmt::format("{}{}{}, batch {}{} x {} tokens, {}, {}{}", s.name, s.set.empty() ? "" : " ",
                     fmt::join(s.set, " "),
                     micro_batches > 1 ? fmt::format("{} x ", micro_batches) : "",
                     model.config.batch, model.config.sequence, precision_name(s.dtype),
                     s.training ? name_of(s.optimizer.kind) : std::string_view("forward only"),
                     s.training && s.optimizer.moments ? " with moments in bf16" : "");
}

}  // namespace cleave
