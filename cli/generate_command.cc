// cleave generate
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/run_folder.h"
#include "cli/scorers.h"
#include "data/stream_decoder.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

void check_arguments(const GenerateArguments& a) {
  if (!a.prompt.empty() && !a.prompt_file.empty()) {
    fail("--prompt and --prompt-file: write one of them");
  }
  if (!a.devices.starts_with("cpu:")) {
    fail("--devices {}: generate runs on cpu:N only", a.devices);
  }
}

// What was trained, with as many samples as batch.
ModelSpec spec_of_job(const GenerateArguments& a, const Checkpoint& checkpoint,
                      const TrainedJob& job) {
  ModelSpec spec = job.model;
  const bool own = a.user != nullptr && a.user->name == spec.name;
  if (!own && !is_model(spec.name)) {
    fail(
        "checkpoint '{}' is of the model '{}', which is not built in; generate with the program "
        "that trained it",
        checkpoint.path(), spec.name);
  }
  if (is_half(spec.dtype)) {
    fail("checkpoint '{}' is of a run in {}, which CPU devices do not compute", checkpoint.path(),
         precision_name(spec.dtype));
  }
  spec.batch = a.samples;
  return spec;
}

// The token that ends a text, by the names that it has in known vocabularies; -1: there is none.
int32_t end_of_text(const Tokenizer& tokenizer) {
  for (const std::string_view name : {"<|endoftext|>", "<|end_of_text|>", "</s>"}) {
    for (int64_t t = 0; t < tokenizer.vocab_size(); ++t) {
      if (tokenizer.bytes_of(static_cast<int32_t>(t)) == name) return static_cast<int32_t>(t);
    }
  }
  return -1;
}

std::vector<int32_t> prompt_tokens(const std::string& prompt, const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens = tokenizer.encode(prompt);
  if (!tokens.empty()) return tokens;
  const int32_t end = end_of_text(tokenizer);
  if (end < 0) {
    fail(
        "the prompt is empty, and the tokenizer '{}' has no end-of-text token to start from; "
        "write --prompt TEXT or --prompt-file FILE",
        tokenizer.name());
  }
  return {end};
}

// The tokenizer of the run is a path as it was then.
std::shared_ptr<const Tokenizer> tokenizer_of(const GenerateArguments& a, const TrainedJob& job) {
  if (!a.tokenizer.empty()) return load_tokenizer(a.tokenizer);
  try {
    return load_tokenizer(job.tokenizer);
  } catch (const Error& e) {
    fail("the tokenizer that the model was trained with: {}; name it with --tokenizer PATH",
         e.what());
  }
}

// Only tokens that both know are drawn.
int64_t common_vocab(const Tokenizer& tokenizer, int64_t model) {
  const int64_t tokens = tokenizer.vocab_size();
  // A model of bytes may know a part of them, such as ASCII.
  if (tokens > model && tokenizer.name() != "bytes") {
    fail(
        "the tokenizer '{}' has {} tokens, but the model knows {}; name the one it was trained "
        "with: --tokenizer PATH",
        tokenizer.name(), tokens, model);
  }
  return std::min(tokens, model);
}

double per_second(const Generated& generated) {
  return static_cast<double>(generated.tokens) / generated.seconds;
}

void write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// Valid UTF-8, whatever the tokens are.
std::string text_of(const std::shared_ptr<const Tokenizer>& tokenizer,
                    std::span<const int32_t> tokens) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t token : tokens) text += decoder.push(token);
  return text += decoder.finish();
}

std::string json_text(const GenerateArguments& a, const Checkpoint& checkpoint,
                      const std::string& model, const std::shared_ptr<const Tokenizer>& tokenizer,
                      const std::vector<int32_t>& prompt, const Generated& generated) {
  Json samples = Json::array();
  for (size_t s = 0; s < generated.samples.size(); ++s) {
    samples.push_back({{"text", text_of(tokenizer, generated.samples[s])},
                       {"tokens", generated.samples[s]},
                       {"ended", static_cast<bool>(generated.ended[s])}});
  }
  const Json json = {{"checkpoint", checkpoint.path()},
                     {"step", checkpoint.step()},
                     {"model", model},
                     {"prompt", text_of(tokenizer, prompt)},
                     {"prompt_tokens", prompt},
                     {"temperature", a.temperature},
                     {"top_k", a.top_k},
                     {"top_p", a.top_p},
                     {"seed", a.seed},
                     {"samples", samples},
                     {"tokens_per_second", per_second(generated)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

void generate_command(const GenerateArguments& a) {
  check_arguments(a);
  GenerateOptions options;
  options.tokens = a.tokens;
  options.sampling.temperature = a.temperature;
  options.sampling.top_k = a.top_k;
  options.sampling.top_p = a.top_p;
  options.sampling.seed = static_cast<uint64_t>(a.seed);
  check(options.sampling);
  const Cluster devices = parse_cluster(a.devices, ops::find);
  const std::string prompt = a.prompt_file.empty() ? a.prompt : read_file(a.prompt_file);

  std::vector<std::string> problems;
  const Checkpoint checkpoint = open_checkpoint(checkpoints_in(a.checkpoint), &problems);
  for (const std::string& p : problems) fmt::print(stderr, "cleave: passed over: {}\n", p);
  const TrainedJob job = job_in_checkpoint(checkpoint.path(), checkpoint.run_json());
  const auto tokenizer = tokenizer_of(a, job);
  const std::vector<int32_t> tokens = prompt_tokens(prompt, *tokenizer);

  Scorers scorers(
      spec_of_job(a, checkpoint, job), a.user, devices, a.mesh,
      [&](std::string_view name, const TensorType& type) { return checkpoint.bytes(name, type); });
  const std::string& model = scorers.model().spec.name;
  check_prompt(tokens, scorers.vocab());
  options.sampling.vocab = common_vocab(*tokenizer, scorers.vocab());
  options.end = end_of_text(*tokenizer);
  scorers.at_least(static_cast<int64_t>(tokens.size()));  // what fails, fails before text is out

  const bool stream = !a.json && a.samples == 1;
  StreamDecoder decoder(tokenizer);
  const auto show = [&](int32_t token) {
    if (stream) write(decoder.push(token));
  };
  const std::vector<int32_t> shown = prompt.empty() ? std::vector<int32_t>() : tokens;
  for (const int32_t token : shown) show(token);
  const Generated generated =
      generate([&](int64_t n) -> Scorer& { return scorers.at_least(n); }, tokens, options,
               [&](int64_t, int32_t token) { show(token); });
  if (stream) {
    write(decoder.finish() + "\n");
  } else if (a.json) {
    write(json_text(a, checkpoint, model, tokenizer, shown, generated) + "\n");
  } else {
    for (size_t s = 0; s < generated.samples.size(); ++s) {
      std::vector<int32_t> all = shown;
      all.insert(all.end(), generated.samples[s].begin(), generated.samples[s].end());
      write(
          fmt::format("--- sample {} of {} ---\n{}\n", s + 1, a.samples, text_of(tokenizer, all)));
    }
  }
  const Mesh& mesh = scorers.mesh();
  fmt::print(stderr, "{} tokens in {}: {:.1f} tokens/s on {}, step {} of {}\n", generated.tokens,
             seconds_text(generated.seconds), per_second(generated),
             mesh.size() == 1 ? "one device" : "mesh " + mesh.to_string(), checkpoint.step(),
             model);
}

}  // namespace cleave
