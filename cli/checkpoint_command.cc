// cleave checkpoint ls, verify and export
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/store.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/run_folder.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// Paths need not be UTF-8, JSON must be.
void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

std::string counted(size_t n, const char* what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}

// "2025-01-31T12:00:00Z" as people write it.
std::string time_text(std::string written) {
  std::replace(written.begin(), written.end(), 'T', ' ');
  return written.substr(0, written.find('Z'));
}

// What stands after the path that an error begins with, for lines that already name the path.
std::string without_path(const std::string& problem, const std::string& path) {
  const std::string start = "'" + path + "': ", inside = "'" + path + "/";
  if (problem.starts_with(start)) return problem.substr(start.size());
  if (problem.starts_with(inside)) return "'" + problem.substr(inside.size());
  return problem;
}

// A run's folder stands for what it has saved.
CheckpointArguments with_folder(CheckpointArguments a) {
  a.path = checkpoints_in(a.path);
  return a;
}

void list_checkpoints(const CheckpointArguments& a) {
  const std::vector<CheckpointInfo> all = CheckpointStore(a.path).list();
  if (a.json) {
    Json list = Json::array();
    for (const CheckpointInfo& c : all) {
      Json entry = {{"step", c.step}, {"path", c.path}, {"complete", c.complete}};
      if (c.complete) {
        entry["written"] = c.written;
        entry["bytes"] = c.bytes;
        entry["parameters"] = c.parameters;
        entry["tensors"] = c.tensors;
      } else {
        entry["why_not"] = c.why_not;
      }
      list.push_back(std::move(entry));
    }
    print_json({{"path", a.path}, {"checkpoints", list}});
    return;
  }
  if (all.empty()) {
    fmt::print("no checkpoints in {}\n", a.path);
    return;
  }
  Table table({">step", "written (UTC)", ">size", ">parameters", ">tensors", "state"});
  int64_t bytes = 0;
  for (const CheckpointInfo& c : all) {
    bytes += c.bytes;
    const std::string step = std::to_string(c.step);
    if (c.complete) {
      table.add({step, printable(time_text(c.written)), bytes_text(static_cast<double>(c.bytes)),
                 with_commas(static_cast<double>(c.parameters)), std::to_string(c.tensors),
                 "complete"});
    } else {
      table.add({step, "-", "-", "-", "-", "damaged: " + without_path(c.why_not, c.path)});
    }
  }
  fmt::print("{}: {}, {}\n{}", a.path, counted(all.size(), "checkpoint"),
             bytes_text(static_cast<double>(bytes)), table.to_string());
  const size_t damaged = static_cast<size_t>(
      std::count_if(all.begin(), all.end(), [](const auto& c) { return !c.complete; }));
  fmt::print("Lengths were compared, bytes were not: cleave checkpoint verify {} does that{}.\n",
             a.path, damaged > 0 ? ", and names every damage" : "");
}

struct Row {
  std::string name, type, kind, file;
  Shape shape;
  int64_t bytes = 0;
};

// Of one step or one file: `heading` is what people read first.
void print_tensors(const CheckpointArguments& a, const std::string& heading,
                   const std::vector<Row>& rows, const Json& about) {
  if (a.json) {
    Json json = {{"path", a.path}};
    json.update(about);
    json["tensors"] = Json::array();
    for (const Row& r : rows) {
      Json entry = {{"name", r.name}, {"dtype", r.type}, {"shape", r.shape}, {"bytes", r.bytes}};
      if (!r.kind.empty()) entry["kind"] = r.kind;
      if (!r.file.empty()) entry["file"] = r.file;
      json["tensors"].push_back(std::move(entry));
    }
    print_json(json);
    return;
  }
  Table table({"tensor", "type", ">size", "", ""});
  for (const Row& r : rows) {
    table.add({printable(r.name), r.type + to_string(r.shape),
               bytes_text(static_cast<double>(r.bytes)), r.kind, r.file});
  }
  fmt::print("{}\n{}", heading, table.to_string());
}

void list_step(const CheckpointArguments& a) {
  const Manifest manifest = read_manifest(a.path);
  std::vector<Row> rows;
  for (const ManifestTensor& t : manifest.tensors) {
    rows.push_back({t.name, std::string(name_of(t.type.dtype)), t.parameter ? "parameter" : "state",
                    manifest.files[static_cast<size_t>(t.file)].name, t.type.shape,
                    numel(t.type.shape) * size_of(t.type.dtype)});
  }
  print_tensors(a,
                fmt::format("{}: step {}, written {} UTC, {}", a.path, manifest.step,
                            printable(time_text(manifest.written)), counted(rows.size(), "tensor")),
                rows, {{"step", manifest.step}, {"written", manifest.written}});
}

void list_file(const CheckpointArguments& a) {
  const SafetensorsFile file(a.path);
  std::vector<Row> rows;
  for (const TensorInfo& t : file.tensors()) {
    rows.push_back(
        {t.name, std::string(name_of(t.type.dtype)), "", "", t.type.shape, t.end - t.begin});
  }
  for (const OtherTensor& t : file.others()) {
    rows.push_back(
        {t.name, t.dtype, "", "not an element type of Cleave's", t.shape, t.end - t.begin});
  }
  std::string heading = fmt::format("{}: {}", a.path, counted(rows.size(), "tensor"));
  for (const auto& [key, value] : file.metadata()) {
    heading += fmt::format(", {}: {}", printable(key), printable(value));
  }
  print_tensors(a, heading, rows, {{"metadata", file.metadata()}});
}

struct Verdict {
  std::string path;
  std::optional<int64_t> step;
  std::vector<std::string> problems;
};

// Of one step, or of each in a folder, newest first.
std::vector<Verdict> verdicts(const std::string& path) {
  std::vector<Verdict> result;
  if (is_step_folder(path)) {
    return {{path, step_of_folder_name(fs::path(path).filename().string()), verify(path)}};
  }
  for (const CheckpointInfo& c : CheckpointStore(path).list()) {
    result.push_back({c.path, c.step, verify(c.path)});
  }
  return result;
}

}  // namespace

void checkpoint_ls_command(const CheckpointArguments& written) {
  const CheckpointArguments a = with_folder(written);
  std::error_code error;
  const fs::file_status status = fs::status(a.path, error);
  if (!fs::exists(status)) fail("there is no file or folder '{}'", a.path);
  if (!fs::is_directory(status)) return list_file(a);
  is_step_folder(a.path) ? list_step(a) : list_checkpoints(a);
}

void checkpoint_verify_command(const CheckpointArguments& written) {
  const CheckpointArguments a = with_folder(written);
  std::error_code error;
  if (!fs::is_directory(a.path, error)) verify(a.path);  // says what it is instead
  const std::vector<Verdict> all = verdicts(a.path);
  if (all.empty()) fail("there is no checkpoint in '{}'", a.path);
  std::optional<std::string> sound;
  size_t damaged = 0;
  Json list = Json::array();
  for (const Verdict& v : all) {
    if (v.problems.empty() && !sound) sound = v.path;
    damaged += !v.problems.empty();
    Json entry = {{"path", v.path}, {"sound", v.problems.empty()}, {"problems", v.problems}};
    if (v.step) entry["step"] = *v.step;
    list.push_back(std::move(entry));
    if (a.json) continue;
    fmt::print("{}: {}\n", v.path,
               v.problems.empty() ? "sound" : counted(v.problems.size(), "problem"));
    for (const std::string& p : v.problems) fmt::print("  {}\n", without_path(p, v.path));
  }
  if (!sound) sound = newest_sound_before(a.path);
  if (a.json) {
    print_json({{"path", a.path},
                {"sound", damaged == 0},
                {"newest_sound", sound ? Json(*sound) : Json()},
                {"checkpoints", list}});
  }
  if (damaged == 0) return;
  if (is_step_folder(a.path)) {
    fail("'{}' is damaged; {}", a.path,
         sound ? fmt::format("'{}' is older and sound", *sound) : "there is no older sound one");
  }
  fail("{} of the {} in '{}' {} damaged; {}", damaged, counted(all.size(), "checkpoint"), a.path,
       damaged == 1 ? "is" : "are",
       sound ? fmt::format("the newest sound one is '{}'", *sound) : "none is sound");
}

void checkpoint_export_command(const CheckpointArguments& written) {
  const CheckpointArguments a = with_folder(written);
  std::vector<std::string> passed_over;
  const Checkpoint checkpoint = open_checkpoint(a.path, &passed_over);
  const int64_t bytes = export_weights(checkpoint, a.out);
  for (const std::string& p : passed_over) fmt::print("passed over: {}\n", p);
  fmt::print("{}: the weights of step {}, {}\n", a.out, checkpoint.step(),
             bytes_text(static_cast<double>(bytes)));
}

}  // namespace cleave
