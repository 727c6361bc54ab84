// What `cleave bench` prints.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/benching.h"
#include "cli/format.h"
#include "executor/fuse.h"
#include "executor/prediction.h"
#include "executor/typing.h"

namespace cleave {
namespace {

// Whether the cluster's rates are those of the device that ran it.
bool limits_known(const PreparedBench& p) { return p.info.peak.flops > 0; }

// Communication waits for others, which is at no rate.
bool has_limit(const ClassShare& c) { return c.kernels != KernelClass::kCommunication; }

std::string milliseconds(double seconds) { return fmt::format("{:.3f} ms", seconds * 1e3); }

std::string flops_text(double rate) {
  return rate < 1e12 ? fmt::format("{:.1f} GFLOP/s", rate / 1e9)
                     : fmt::format("{:.1f} TFLOP/s", rate / 1e12);
}

std::string instr_text(const Program& program, int32_t instr, std::string_view none) {
  if (instr < 0) return std::string(none);
  const Instr& i = program.instrs[static_cast<size_t>(instr)];
  return i.where.empty() ? std::string(name_of(i)) : fmt::format("{} ({})", name_of(i), i.where);
}

// The share of the model's own work at the devices' peak: of attention that masks nothing, and of
// what is not masked.
double full_mfu(const PreparedBench& p, double seconds) {
  return limits_known(p) ? p.info.work.full / seconds / p.info.peak.flops : 0;
}

class Report {
 public:
  Report(const PreparedBench& prepared, const BenchResult& result, bool colour)
      : p_(prepared), r_(result), colour_(colour) {}

  std::string text() {
    head();
    text_ += "\n" + classes();
    gaps();
    return std::move(text_);
  }

 private:
  void line(std::string_view name, const std::string& value) {
    const std::string first = fmt::format("{:<10}", name);
    text_ += (colour_ ? "\033[1m" + first + "\033[0m" : first) + value + '\n';
  }

  void head() {
    const double seconds = r_.median_seconds();
    const auto [least, most] = std::minmax_element(r_.seconds.begin(), r_.seconds.end());
    line("model", describe(p_.model));
    line("on", fmt::format("{}, {}", p_.plan.cluster.spec, p_.place()));
    const std::string fused = fusions_text(p_.program());
    if (!fused.empty()) line("fused", fused);
    const Prediction& predicted = p_.plan.predicted;
    line("predicted", fmt::format("{}, {} a device", milliseconds(predicted.step_seconds),
                                  bytes_text(static_cast<double>(predicted.peak_bytes))));
    const std::string beyond = beyond_prediction(predicted.step_seconds, seconds);
    line("step", fmt::format("{}{}, the median of {} ({:.3f} to {:.3f})", milliseconds(seconds),
                             beyond.empty() ? "" : " (" + beyond + ")", r_.seconds.size(),
                             *least * 1e3, *most * 1e3));
    line("tokens/s", with_commas(p_.info.tokens_per_second(seconds)));
    line("MFU",
         limits_known(p_)
             ? fmt::format("{:.1f} % (attention as if it masked nothing), {:.1f} % (causal); "
                           "of {}: {}",
                           100 * full_mfu(p_, seconds), 100 * p_.info.mfu(seconds),
                           flops_text(p_.info.peak.flops), p_.info.peak.basis)
             : fmt::format("not known: {}", p_.info.peak.basis));
    line("memory",
         fmt::format("{} a device ({})", bytes_text(static_cast<double>(p_.info.arena_bytes)),
                     beyond_prediction(predicted.peak_bytes, p_.info.arena_bytes)));
  }

  std::string classes() const {
    std::vector<std::string> header = {"kernels", ">runs", ">ms", ">share", ">achieved"};
    const bool limits = limits_known(p_);
    if (limits) header.push_back(">of limit");
    Table table(header);
    const double all = r_.recorded.seconds;
    double least = 0;
    for (const ClassShare& c : r_.classes) {
      least += c.least_seconds;
      const bool counted = has_limit(c);
      const std::string rate = !counted ? ""
                               : c.flops > 0
                                   ? flops_text(c.flops / c.seconds)
                                   : fmt::format("{:.0f} GB/s", c.bytes / c.seconds / 1e9);
      std::vector<std::string> row = {
          std::string(name_of(c.kernels)), with_commas(static_cast<double>(c.runs)),
          fmt::format("{:.3f}", c.seconds * 1e3), percent_text(c.seconds / all), rate};
      if (limits) row.push_back(counted ? percent_text(c.least_seconds / c.seconds) : "");
      table.add(row);
    }
    table.add({"nothing", "", fmt::format("{:.3f}", r_.gaps.seconds * 1e3),
               percent_text(r_.gaps.seconds / all)});
    std::vector<std::string> whole = {"the recorded step", "", fmt::format("{:.3f}", all * 1e3)};
    if (limits) whole.insert(whole.end(), {"", "", percent_text(least / all)});
    table.add(whole);
    return table.to_string(colour_);
  }

  void gaps() {
    const bool several = p_.program().ranks() > 1;
    Table table(several ? std::vector<std::string>{">gap", ">device", "after", "before"}
                        : std::vector<std::string>{">gap", "after", "before"});
    for (const Gap& g : r_.gaps.longest) {
      std::vector<std::string> row = {fmt::format("{:.1f} us", g.seconds * 1e6)};
      if (several) row.push_back(std::to_string(g.rank));
      row.push_back(instr_text(p_.program(), g.after, "the step's begin"));
      row.push_back(instr_text(p_.program(), g.before, "the step's end"));
      table.add(row);
    }
    if (!table.empty()) text_ += "\n" + table.to_string(colour_);
  }

  const PreparedBench& p_;
  const BenchResult& r_;
  const bool colour_;
  std::string text_;
};

}  // namespace

std::string bench_report(const PreparedBench& prepared, const BenchResult& result, bool colour) {
  return Report(prepared, result, colour).text();
}

std::string bench_json(const PreparedBench& p, const BenchResult& r) {
  const double seconds = r.median_seconds();
  nlohmann::ordered_json json = {
      {"model", describe(p.model)},
      {"devices", p.plan.cluster.spec},
      {"step_seconds", seconds},
      {"steps_seconds", r.seconds},
      {"predicted_seconds", p.plan.predicted.step_seconds},
      {"tokens_per_second", p.info.tokens_per_second(seconds)},
      {"arena_bytes", p.program().arena_bytes},
      {"allocated_bytes", p.info.arena_bytes},
      {"predicted_bytes", p.plan.predicted.peak_bytes},
  };
  if (limits_known(p)) {
    json["mfu_full"] = full_mfu(p, seconds);
    json["mfu_causal"] = p.info.mfu(seconds);
    json["peak_flops"] = p.info.peak.flops;
  }
  json["fusions"] = nlohmann::ordered_json::object();
  for (size_t f = 0; f < p.program().fusions.size(); ++f) {
    json["fusions"][std::string(fusions()[f].name)] = p.program().fusions[f];
  }
  json["recorded_seconds"] = r.recorded.seconds;
  json["idle_seconds"] = r.gaps.seconds;
  using Json = nlohmann::ordered_json;
  for (const ClassShare& c : r.classes) {
    const bool limit = limits_known(p) && has_limit(c);
    json["kernels"].push_back({{"class", name_of(c.kernels)},
                               {"runs", c.runs},
                               {"seconds", c.seconds},
                               {"least_seconds", limit ? Json(c.least_seconds) : Json()},
                               {"flops", c.flops},
                               {"bytes", c.bytes}});
  }
  for (const Gap& g : r.gaps.longest) {
    json["gaps"].push_back({{"seconds", g.seconds},
                            {"device", g.rank},
                            {"after", instr_text(p.program(), g.after, "")},
                            {"before", instr_text(p.program(), g.before, "")}});
  }
  return json.dump(2) + "\n";
}

std::string ops_table(const Program& program, const StepResult& step, bool colour) {
  Table table({"op", ">runs", ">ms", ">share"});
  double all = 0;
  for (const OpShare& o : op_shares(program, step)) all += o.seconds;
  for (const OpShare& o : op_shares(program, step)) {
    table.add({o.name, with_commas(static_cast<double>(o.runs)),
               fmt::format("{:.3f}", o.seconds * 1e3), percent_text(o.seconds / all)});
  }
  table.add({"all, of one rank", "", fmt::format("{:.3f}", all * 1e3), ""});
  return table.to_string(colour);
}

}  // namespace cleave
