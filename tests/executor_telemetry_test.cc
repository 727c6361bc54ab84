// What a run tells: events by a reader of their own, metrics across a resumption, lines in columns,
// and the bar on a terminal and nowhere else.
#include "executor/telemetry.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "executor/log_line.h"
#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class TelemetryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) /
              (std::string("telemetry_") +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  TelemetryOptions options(bool resume = false) {
    TelemetryOptions o;
    o.out_dir = path("run");
    o.resume = resume;
    o.progress = Progress::kOff;
    o.lines = [this](const std::string& line) { lines_.push_back(line); };
    return o;
  }
  std::vector<Json> metrics() const {
    std::vector<Json> lines;
    std::ifstream file(path("run/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
    return lines;
  }
  // By name, without events.
  std::set<std::string> files_in(const std::string& folder) const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(path(folder))) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with("events.")) names.insert(name);
    }
    return names;
  }
  std::vector<fs::path> event_files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path("run"))) {
      if (entry.path().filename().string().starts_with("events.out.tfevents.")) {
        files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());
    return files;
  }

  fs::path folder_;
  std::vector<std::string> lines_;
};

// As from a file that cleave calibrate wrote.
Cluster measured_cluster() {
  Cluster cluster = parse_cluster("cpu:4");
  cluster.spec = "box.toml";
  cluster.description = "[device]";
  return cluster;
}

RunInfo info_of(int64_t steps, int64_t first_step = 1) {
  RunInfo info;
  info.steps = steps;
  info.first_step = first_step;
  info.tokens_per_step = 512;
  info.work = {1e9, 1.25e9};
  info.peak = cpu_peak(measured_cluster(), 4, DType::kF32, 2);
  info.arena_bytes = 3 << 20;
  return info;
}

// What a step's numbers are is a function of the step alone, so that a resumed run repeats them.
StepRecord record_of(int64_t step, const RunInfo& info) {
  StepRecord r;
  r.step = step;
  r.loss = 5.0 / static_cast<double>(step) + 0.1;
  r.grad_norm = 1 / std::sqrt(static_cast<double>(step));
  r.lr = 1e-3 * static_cast<double>(step);
  r.seconds = 0.04 + 1e-3 * static_cast<double>(step % 7);
  r.tokens_per_second = info.tokens_per_second(r.seconds);
  r.mfu = info.mfu(r.seconds);
  if (step % 5 == 0) r.skipped = step % 2 == 0 ? "loss spike" : "overflow";
  return r;
}

// --- Events, by a reader that shares nothing with the writer -------------------------------------

// Bit by bit, from the reversed polynomial.
uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
  }
  return ~crc;
}
uint32_t mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

template <class T>
T take(std::string_view& from) {
  T value{};
  if (from.size() < sizeof(T)) throw std::runtime_error("cut off");
  std::memcpy(&value, from.data(), sizeof(T));
  from.remove_prefix(sizeof(T));
  return value;
}
std::string_view take(std::string_view& from, uint64_t bytes) {
  if (from.size() < bytes) throw std::runtime_error("cut off");
  const std::string_view head = from.substr(0, bytes);
  from.remove_prefix(bytes);
  return head;
}
uint64_t take_varint(std::string_view& from) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = take<uint8_t>(from);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("a varint without end");
}

struct Field {
  uint64_t number = 0, wire = 0, integer = 0;
  double real = 0;
  std::string_view bytes;
};

std::vector<Field> fields(std::string_view message) {
  std::vector<Field> list;
  while (!message.empty()) {
    const uint64_t key = take_varint(message);
    Field f{key >> 3, key & 7, 0, 0, {}};
    if (f.wire == 0) f.integer = take_varint(message);
    if (f.wire == 1) f.real = take<double>(message);
    if (f.wire == 2) f.bytes = take(message, take_varint(message));
    if (f.wire == 5) f.real = static_cast<double>(take<float>(message));
    if (f.wire != 0 && f.wire != 1 && f.wire != 2 && f.wire != 5) {
      throw std::runtime_error("no such wire type");
    }
    list.push_back(f);
  }
  return list;
}

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string version;
  uint64_t session = 0;  // 1: start
  std::map<std::string, double> scalars;
};

Event event_of(std::string_view message) {
  Event e;
  for (const Field& f : fields(message)) {
    if (f.number == 1 && f.wire == 1) e.wall_time = f.real;
    if (f.number == 2 && f.wire == 0) e.step = static_cast<int64_t>(f.integer);
    if (f.number == 3 && f.wire == 2) e.version = f.bytes;
    if (f.number == 7) e.session = fields(f.bytes).at(0).integer;
    if (f.number != 5) continue;
    for (const Field& value : fields(f.bytes)) {
      EXPECT_EQ(value.number, 1u);
      const std::vector<Field> parts = fields(value.bytes);
      EXPECT_EQ(parts.size(), 2u);
      e.scalars[std::string(parts[0].bytes)] = parts[1].real;
    }
  }
  return e;
}

// Throws when the framing or a checksum is wrong.
std::vector<Event> events_in(std::string_view file) {
  std::vector<Event> events;
  while (!file.empty()) {
    const std::string_view length_bytes = file.substr(0, 8);
    const auto length = take<uint64_t>(file);
    if (take<uint32_t>(file) != mask(crc32c(length_bytes))) throw std::runtime_error("length");
    const std::string_view message = take(file, length);
    if (take<uint32_t>(file) != mask(crc32c(message))) throw std::runtime_error("message");
    events.push_back(event_of(message));
  }
  return events;
}

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);            // the catalogue's check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720
  for (const std::string& s : {std::string(), std::string("a"), std::string(1000, '\xff')}) {
    EXPECT_EQ(masked_crc32c(s), mask(crc32c(s)));
  }
}

TEST_F(TelemetryTest, EventsReadBackByAnotherReader) {
  const RunInfo info = info_of(20);
  {
    Telemetry telemetry(options());
    telemetry.begin(info);
    for (int64_t s = 1; s <= 20; ++s) {
      telemetry.step(record_of(s, info));
      if (s % 10 == 0) telemetry.evaluation({s, 2.0 + static_cast<double>(s)});
    }
  }
  ASSERT_EQ(event_files().size(), 1u);
  const std::string name = event_files()[0].filename().string();
  EXPECT_TRUE(std::regex_match(name, std::regex(R"(events\.out\.tfevents\.\d{10}\..+\.\d+)")))
      << name;
  const std::string bytes = read(event_files()[0]);
  const std::vector<Event> events = events_in(bytes);
  ASSERT_EQ(events.size(), 2u + 20u + 2u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[1].session, 1u);
  EXPECT_EQ(events[1].step, 1);
  int64_t step = 0, evaluations = 0;
  double time = 0;
  for (const Event& e : events) {
    EXPECT_GE(e.wall_time, time);
    time = e.wall_time;
    if (e.scalars.contains("val/loss")) {
      EXPECT_EQ(e.scalars.at("val/loss"), 2.0 + static_cast<double>(e.step));
      ++evaluations;
    } else if (!e.scalars.empty()) {
      const StepRecord r = record_of(++step, info);
      EXPECT_EQ(e.step, step);
      EXPECT_EQ(e.scalars.at("train/loss"), static_cast<float>(r.loss));
      EXPECT_EQ(e.scalars.at("train/grad_norm"), static_cast<float>(r.grad_norm));
      EXPECT_EQ(e.scalars.at("train/lr"), static_cast<float>(r.lr));
      EXPECT_EQ(e.scalars.at("perf/tokens_per_second"), static_cast<float>(r.tokens_per_second));
      EXPECT_EQ(e.scalars.at("perf/mfu"), static_cast<float>(r.mfu));
      EXPECT_GT(e.scalars.at("memory/peak_bytes"), 1e5);
      EXPECT_EQ(e.scalars.size(), 6u);
    }
  }
  EXPECT_EQ(step, 20);
  EXPECT_EQ(evaluations, 2);
  EXPECT_NEAR(
      time,
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(),
      60);
  // The reader would notice: each flipped byte breaks the framing or a checksum.
  for (size_t at = 0; at < bytes.size(); at += 97) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_THROW(events_in(damaged), std::runtime_error) << at;
  }
}

TEST_F(TelemetryTest, LargeStepsAndOddNumbersAreWritten) {
  EventWriter writer(folder_.string(), 1);
  const int64_t step = int64_t{1} << 40;
  const std::vector<Scalar> odd = {
      {"a", std::nan("")}, {"b", -HUGE_VAL}, {"c", 1e300}, {"d", -0.0}};
  writer.write(step, odd);
  const Event e = events_in(read(writer.path())).at(2);
  EXPECT_EQ(e.step, step);
  EXPECT_TRUE(std::isnan(e.scalars.at("a")));
  EXPECT_EQ(e.scalars.at("b"), -HUGE_VAL);
  EXPECT_EQ(e.scalars.at("c"), HUGE_VAL);  // no float holds it
  EXPECT_TRUE(std::signbit(e.scalars.at("d")));
}

// --- Metrics -------------------------------------------------------------------------------------

TEST_F(TelemetryTest, MetricsHoldEveryNumber) {
  const RunInfo info = info_of(6);
  Telemetry telemetry(options());
  telemetry.begin(info);
  for (int64_t s = 1; s <= 6; ++s) telemetry.step(record_of(s, info));
  telemetry.evaluation({6, 2.25});
  StepRecord bad = record_of(6, info);
  bad.loss = std::nan("");
  bad.grad_norm = HUGE_VAL;
  bad.skipped = "loss is nan";
  telemetry.step(bad);
  const std::vector<Json> lines = metrics();
  ASSERT_EQ(lines.size(), 8u);
  for (size_t i = 0; i < 6; ++i) {
    const StepRecord r = record_of(static_cast<int64_t>(i) + 1, info);
    EXPECT_EQ(lines[i]["step"], r.step);
    EXPECT_EQ(lines[i]["loss"].get<double>(), r.loss);
    EXPECT_EQ(lines[i]["grad_norm"].get<double>(), r.grad_norm);
    EXPECT_EQ(lines[i]["lr"].get<double>(), r.lr);
    EXPECT_EQ(lines[i]["step_seconds"].get<double>(), r.seconds);
    EXPECT_EQ(lines[i]["tokens_per_second"].get<double>(), r.tokens_per_second);
    EXPECT_EQ(lines[i]["mfu"].get<double>(), r.mfu);
    EXPECT_EQ(lines[i]["tokens"].get<double>(), 512.0 * static_cast<double>(r.step));
    EXPECT_EQ(lines[i].contains("skipped"), !r.skipped.empty());
  }
  EXPECT_EQ(lines[4]["skipped"], "overflow");
  EXPECT_EQ(lines[6], (Json{{"step", 6}, {"val_loss", 2.25}}));
  EXPECT_TRUE(lines[7]["loss"].is_null());
  EXPECT_TRUE(lines[7]["grad_norm"].is_null());
}

// A run that is stopped anywhere, also within a line, and goes on from its last checkpoint, leaves
// the same metrics as one that was not stopped; so do many stops.
TEST_F(TelemetryTest, ResumedRunsRepeatAndLoseNothing) {
  constexpr int64_t kSteps = 60, kEvery = 7;
  const auto run = [&](int64_t first, int64_t last, bool resume) {
    const RunInfo info = info_of(kSteps, first);
    Telemetry telemetry(options(resume));
    telemetry.begin(info);
    for (int64_t s = first; s <= last; ++s) {
      telemetry.step(record_of(s, info));
      if (s % 10 == 0) telemetry.evaluation({s, static_cast<double>(s)});
    }
  };
  run(1, kSteps, false);
  const std::string whole = read(path("run/metrics.jsonl"));
  std::mt19937 random(3);
  for (int trial = 0; trial < 20; ++trial) {
    fs::remove_all(path("run"));
    int64_t done = 0;  // checkpoints are behind every seventh step
    run(1, 1 + static_cast<int64_t>(random() % kSteps), false);
    for (bool finished = false; !finished;) {
      std::string text = read(path("run/metrics.jsonl"));
      const auto written = std::count(text.begin(), text.end(), '\n');
      if (random() % 2 == 0 && !text.empty()) {  // the last line is cut off
        text.resize(text.size() - 1 - random() % 20);
        std::ofstream(path("run/metrics.jsonl")) << text;
      }
      // Evaluations are lines too; a checkpoint is never ahead of the metrics.
      const int64_t steps = written - written / 11;
      done = std::max<int64_t>(0, (steps - 1) / kEvery * kEvery);
      const int64_t last =
          std::min<int64_t>(kSteps, done + 1 + static_cast<int64_t>(random() % 40));
      run(done + 1, last, true);
      finished = last == kSteps;
    }
    ASSERT_EQ(read(path("run/metrics.jsonl")), whole) << "trial " << trial;
    EXPECT_EQ(files_in("run"), (std::set<std::string>{"metrics.jsonl"}));  // no temporary
  }
}

TEST_F(TelemetryTest, ResumedEventsVoidWhatIsMadeAgain) {
  const auto run = [&](int64_t first, int64_t last, bool resume) {
    const RunInfo info = info_of(30, first);
    Telemetry telemetry(options(resume));
    telemetry.begin(info);
    for (int64_t s = first; s <= last; ++s) telemetry.step(record_of(s, info));
  };
  run(1, 20, false);
  run(11, 25, true);
  run(21, 30, true);
  const std::vector<fs::path> files = event_files();
  ASSERT_EQ(files.size(), 3u);  // also when all began within a second
  // As TensorBoard reads them: in the order of the names, a start makes later steps void.
  std::map<int64_t, int> times;
  std::vector<int64_t> starts;
  for (const fs::path& file : files) {
    for (const Event& e : events_in(read(file))) {
      if (e.session == 1) {
        starts.push_back(e.step);
        times.erase(times.lower_bound(e.step), times.end());
      }
      if (!e.scalars.empty()) ++times[e.step];
    }
  }
  EXPECT_EQ(starts, (std::vector<int64_t>{1, 11, 21}));
  ASSERT_EQ(times.size(), 30u);
  for (const auto& [step, n] : times) EXPECT_EQ(n, 1) << step;
}

TEST_F(TelemetryTest, WhatIsMissingIsSaid) {
  Telemetry telemetry(options(true));
  telemetry.begin(info_of(10, 5));
  EXPECT_NE(lines_.back().find("metrics.jsonl ends at step 0: the steps up to 4 are missing"),
            std::string::npos)
      << lines_.back();
  telemetry.step(record_of(5, info_of(10, 5)));
  EXPECT_EQ(metrics().at(0)["tokens"], 5 * 512);
}

TEST_F(TelemetryTest, FoldersThatCannotBeUsed) {
  const auto error = [&](TelemetryOptions o) -> std::string {
    try {
      Telemetry t(std::move(o));
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  TelemetryOptions o = options();
  std::ofstream(path("file")) << "x";
  o.out_dir = path("file") + "/run";
  EXPECT_NE(error(o).find("cannot make the output folder"), std::string::npos);
  o.out_dir = path("taken");
  fs::create_directories(path("taken/metrics.jsonl"));
  EXPECT_NE(error(o).find("cannot write '" + path("taken/metrics.jsonl")), std::string::npos);
  {
    Telemetry telemetry(options());
    telemetry.begin(info_of(10));  // a run without a step may begin again
  }
  {
    Telemetry telemetry(options());
    telemetry.begin(info_of(10));
    telemetry.step(record_of(1, info_of(10)));
  }
  EXPECT_NE(error(options()).find("holds a run already; --resume"), std::string::npos);
  EXPECT_EQ(metrics().size(), 1u);  // and it is still there
  EXPECT_EQ(error(options(true)), "no error");
}

TEST_F(TelemetryTest, PutsFilesWholeAndWithoutAFolderNothing) {
  Telemetry telemetry(options());
  telemetry.put("config.toml", "a = 1\n");
  telemetry.put("config.toml", "a = 2\n");
  EXPECT_EQ(files_in("run"), (std::set<std::string>{"metrics.jsonl"}));  // the run may not begin
  telemetry.begin(info_of(3));
  EXPECT_EQ(read(path("run/config.toml")), "a = 2\n");
  EXPECT_EQ(files_in("run"), (std::set<std::string>{"config.toml", "metrics.jsonl"}));
  fs::create_directories(path("run/plan.json/x"));
  EXPECT_THROW(telemetry.put("plan.json", "{}"), Error);
  EXPECT_EQ(files_in("run").size(), 3u);
  {
    TelemetryOptions other = options();
    other.out_dir = path("a/b/c");
    Telemetry never_begun(other);
    EXPECT_TRUE(fs::exists(path("a/b/c/metrics.jsonl")));
  }
  EXPECT_FALSE(fs::exists(path("a")));
  TelemetryOptions none = options();
  none.out_dir.clear();
  Telemetry silent(none);
  silent.put("config.toml", "a = 3\n");
  silent.begin(info_of(3));
  silent.step(record_of(1, info_of(3)));
  EXPECT_EQ(event_files().size(), 1u);  // the first one's
}

// Files may not grow for some steps, as on a full disk: no line is lost, none is cut off.
TEST_F(TelemetryTest, AFullDiskDoesNotEndTheRun) {
  ::signal(SIGXFSZ, SIG_IGN);
  const RunInfo info = info_of(9);
  Telemetry telemetry(options());
  telemetry.begin(info);
  telemetry.step(record_of(1, info));
  const auto limit = [](rlim_t bytes) {
    const rlimit r = {bytes, RLIM_INFINITY};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &r), 0);
  };
  limit(fs::file_size(path("run/metrics.jsonl")) + 50);
  for (int64_t s = 2; s <= 4; ++s) telemetry.step(record_of(s, info));
  EXPECT_EQ(metrics().size(), 1u);
  limit(RLIM_INFINITY);
  telemetry.step(record_of(5, info));
  ASSERT_EQ(metrics().size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(metrics()[i]["step"], i + 1);
  int warnings = 0;
  for (const std::string& line : lines_) warnings += line.starts_with("warning: cannot write '");
  EXPECT_EQ(warnings, 2);  // of the metrics and the events, once each
}

// --- Lines ---------------------------------------------------------------------------------------

TEST_F(TelemetryTest, LinesStandInColumns) {
  const RunInfo info = info_of(1200);
  std::vector<StepRecord> records;
  for (const double scale : {1e-4, 0.03, 1.0, 20.0, 300.0}) {
    StepRecord r = record_of(static_cast<int64_t>(1 + 4 * scale), info);
    r.skipped.clear();
    r.loss = std::min(10.5, scale), r.grad_norm = scale, r.tokens_per_second = 3000 * scale;
    r.mfu = std::min(1.0, scale);
    records.push_back(r);
  }
  records.push_back(records.back());
  records.back().loss = records.back().grad_norm = std::nan("");
  const std::string first = log_line(records[0], info, 600 << 20);
  for (const StepRecord& r : records) {
    const std::string line = log_line(r, info, 20 << 20);
    EXPECT_EQ(line.size(), first.size()) << line;
    for (size_t i = 0; i < line.size(); ++i) EXPECT_EQ(line[i] == '|', first[i] == '|') << line;
  }
  StepRecord r = record_of(12, info);
  r.skipped = "loss spike";
  r.tokens_per_second = 12345;
  EXPECT_EQ(log_line(r, info, 512 << 20),
            "step   12/1200 | loss  0.5167 | grad norm    0.289 | lr 1.20e-02 |    12,345 tokens/s "
            "| MFU  11.1 % |  512 MiB | skipped: loss spike");
  EXPECT_EQ(log_line(EvaluationRecord{60, 2.3012}, info), "step   60/1200 | val loss  2.3012");
}

TEST_F(TelemetryTest, HeaderNamesThePeakAndItsOrigin) {
  const std::vector<std::string> lines = header_lines(info_of(60, 13));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0],
            "a step: 512 tokens, 1 GFLOP; memory: 3.00 MiB a device; a line ends with the "
            "process's peak");
  EXPECT_EQ(lines[1],
            "MFU: causal (full in brackets), of 200 GFLOP/s: 2 x 100 GFLOP/s, a device's f32 rate "
            "in box.toml; 4 devices share 2 cores here");
  EXPECT_EQ(cpu_peak(measured_cluster(), 1, DType::kF32, 8).flops, 1e11);
  EXPECT_EQ(cpu_peak(measured_cluster(), 4, DType::kF64, 8).flops, 2e11);
  EXPECT_GE(usable_cores(), 1);
}

// A preset's cores are not this machine's: nothing is divided by their rate.
TEST_F(TelemetryTest, PresetsHaveNoMfu) {
  RunInfo info = info_of(60);
  info.peak = cpu_peak(parse_cluster("cpu:4"), 4, DType::kF32, 2);
  EXPECT_EQ(info.peak.flops, 0);
  EXPECT_EQ(info.mfu(1e-3), 0);
  EXPECT_EQ(header_lines(info)[1],
            "predicted for cpu:4, a preset of 100 GFLOP/s a device, not this machine; 4 devices "
            "share 2 cores here; there is no MFU then: cleave calibrate measures the machine");
  EXPECT_EQ(log_line(record_of(1, info), info, 0).find("MFU"), std::string::npos);
}

TEST_F(TelemetryTest, LinesComeWhenDue) {
  const RunInfo info = info_of(23);
  TelemetryOptions o = options();
  o.log_every = 10;
  Telemetry telemetry(o);
  telemetry.begin(info);
  lines_.clear();
  for (int64_t s = 1; s <= 23; ++s) telemetry.step(record_of(s, info));
  std::vector<int64_t> steps;
  for (const std::string& line : lines_) steps.push_back(std::stoll(line.substr(5)));
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 10, 15, 20, 23}));  // each fifth was skipped
}

TEST_F(TelemetryTest, SummaryCountsWhatWasSkipped) {
  const RunInfo info = info_of(12, 7);
  {
    Telemetry before(options());
    before.begin(info_of(12));
    for (int64_t s = 1; s <= 6; ++s) before.step(record_of(s, info));
  }
  Telemetry telemetry(options(true));
  telemetry.begin(info);
  for (int64_t s = 7; s <= 12; ++s) telemetry.step(record_of(s, info));
  Plan plan;
  plan.mesh.axes = {{"a0", 2}};
  plan.predicted.step_seconds = 0.02;
  plan.predicted.tokens_per_second = 25600;
  plan.predicted.peak_bytes = 3 << 20;
  TrainResult result;
  result.median_seconds = 0.05;
  result.tokens_per_step = 512;
  result.arena_bytes = 3 << 20;
  telemetry.summary(result, plan);
  ASSERT_GE(lines_.size(), 3u);
  EXPECT_EQ(lines_[lines_.size() - 3],
            "predicted | 20.0 ms a step | 25,600 tokens/s | 3.00 MiB a device | no collectives");
  EXPECT_EQ(lines_[lines_.size() - 2],
            "measured  | 50.0 ms a step (median, +150.0 %) | 10,240 tokens/s | 3.00 MiB a device "
            "(exact) | no collectives | MFU 10.0 % (12.5 %)");
  EXPECT_EQ(lines_.back(), "skipped   | 2 of 12 updates: 1 loss spike, 1 overflow");
  const Json summary = metrics().back().at("summary");
  EXPECT_EQ(summary.at("skipped"), (Json{{"loss spike", 1}, {"overflow", 1}}));
  EXPECT_EQ(summary.at("measured").at("mfu"), 0.1);
}

// --- The bar -------------------------------------------------------------------------------------

TEST(ProgressBar, IsNeverWiderThanItsTerminal) {
  for (size_t width = 0; width <= 200; ++width) {
    for (const int64_t step : {1, 12, 59, 60}) {
      const ProgressState state{step, 60, 2.4187, 12345, 83};
      const std::string plain = bar_text(state, width, false);
      EXPECT_LE(plain.size(), width);
      const std::string colour = bar_text(state, width, true);
      EXPECT_EQ(std::regex_replace(colour, std::regex("\033\\[[0-9]*m"), ""), plain);
    }
  }
  EXPECT_EQ(bar_text({30, 60, 2.4187, 12345, 83}, 72, false),
            "30/60 [===========>          ] loss 2.4187 | 12,345 tokens/s | 1:23 left");
}

TEST(ProgressBar, Durations) {
  EXPECT_EQ(duration_text(6.6), "0:07");
  EXPECT_EQ(duration_text(3723), "1:02:03");
  EXPECT_EQ(duration_text(2 * 86400 + 3 * 3600), "2 d 3 h");
  EXPECT_EQ(duration_text(HUGE_VAL), "?");
  EXPECT_EQ(duration_text(std::nan("")), "?");
}

// What a child process writes to stdout and stderr, which are `fd`'s; the parent reads `from`.
std::string output_of_child(int from, int fd, const std::function<void()>& child) {
  std::fflush(nullptr);  // what this process has still to write is not the child's
  const pid_t pid = fork();
  if (pid == 0) {
    close(from);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
    child();
    std::fflush(stdout);
    _exit(0);
  }
  close(fd);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(from, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  close(from);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(status, 0);
  return text;
}

// 30 steps of a run, every tenth a line; the whole takes longer than the bar's pauses.
void telling_run(Progress progress) {
  TelemetryOptions o;
  o.log_every = 10;
  o.progress = progress;
  Telemetry telemetry(o);
  const RunInfo info = info_of(30);
  telemetry.begin(info);
  for (int64_t s = 1; s <= 30; ++s) {
    StepRecord r = record_of(s, info);
    r.skipped.clear();
    telemetry.step(r);
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
  }
  Plan plan;
  TrainResult result;
  telemetry.summary(result, plan);
}

std::string on_a_terminal(unsigned short columns, Progress progress) {
  int master = -1, slave = -1;
  winsize size{};
  size.ws_col = columns, size.ws_row = 24;
  EXPECT_EQ(openpty(&master, &slave, nullptr, nullptr, &size), 0);
  return output_of_child(master, slave, [&] { telling_run(progress); });
}

// What a terminal that wraps nowhere shows in the end, and everything that stood in its last line.
struct Screen {
  std::vector<std::string> lines = {""};
  std::vector<std::string> drawn;  // what was in a line when it was erased
};

Screen shown(const std::string& text) {
  Screen screen;
  size_t column = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    std::string& line = screen.lines.back();
    if (text[i] == '\r') {
      column = 0;
    } else if (text[i] == '\n') {
      screen.lines.emplace_back();
      column = 0;
    } else if (text.compare(i, 3, "\033[K") == 0) {
      if (!line.empty()) screen.drawn.push_back(line);
      line.resize(std::min(line.size(), column));
      i += 2;
    } else if (text.compare(i, 2, "\033[") == 0) {
      i = text.find('m', i);
    } else {
      line.resize(std::max(line.size(), column + 1), ' ');
      line[column++] = text[i];
    }
  }
  return screen;
}

void without_variables() {
  unsetenv("NO_COLOR");
  setenv("TERM", "xterm", 1);
}

TEST(ProgressBar, OnATerminalItStandsBelowTheLines) {
  without_variables();
  for (const unsigned short columns : {100, 40}) {
    const std::string text = on_a_terminal(columns, Progress::kAuto);
    const Screen screen = shown(text);
    // Two of the header, three steps, two of the summary, and nothing of the bar is left.
    ASSERT_EQ(screen.lines.size(), 8u) << text;
    EXPECT_EQ(screen.lines.back(), "");
    EXPECT_TRUE(screen.lines[2].starts_with("step 10/30 |")) << screen.lines[2];
    EXPECT_TRUE(screen.lines[4].starts_with("step 30/30 |"));
    EXPECT_TRUE(screen.lines[6].starts_with("measured  |"));
    EXPECT_GE(screen.drawn.size(), 4u);
    size_t bars = 0;
    for (const std::string& bar : screen.drawn) {
      EXPECT_LT(bar.size(), columns) << bar;
      EXPECT_TRUE(std::regex_search(bar, std::regex(R"(^ ?\d+/30 )"))) << bar;
      bars += bar.find('[') != std::string::npos;
      if (columns == 100) {
        EXPECT_TRUE(std::regex_search(
            bar, std::regex(R"(loss [\d.]+ \| [\d,]+ tokens/s \| \d+:\d\d left$)")))
            << bar;
      }
    }
    // A narrow one has room for the numbers only.
    EXPECT_EQ(bars > 0, columns == 100);
    EXPECT_EQ(text.find("\033[32m") != std::string::npos, columns == 100);
  }
}

TEST(ProgressBar, NoColorIsRespected) {
  without_variables();
  setenv("NO_COLOR", "1", 1);
  const std::string text = on_a_terminal(100, Progress::kAuto);
  EXPECT_EQ(text.find("\033[3"), std::string::npos);
  EXPECT_NE(text.find("=>"), std::string::npos);
  unsetenv("NO_COLOR");
}

TEST(ProgressBar, OffAndDumbTerminalsHaveNone) {
  without_variables();
  EXPECT_EQ(on_a_terminal(100, Progress::kOff).find('\033'), std::string::npos);
  setenv("TERM", "dumb", 1);
  EXPECT_EQ(on_a_terminal(100, Progress::kAuto).find('\033'), std::string::npos);
  without_variables();
}

TEST(ProgressBar, NothingOfItGoesIntoAPipe) {
  without_variables();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const std::string text = output_of_child(ends[0], ends[1], [] { telling_run(Progress::kAuto); });
  EXPECT_EQ(text.find_first_of("\r\033"), std::string::npos) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 7);
  // Unless it is asked for.
  ASSERT_EQ(pipe(ends), 0);
  const std::string asked = output_of_child(ends[0], ends[1], [] { telling_run(Progress::kOn); });
  EXPECT_NE(asked.find('\r'), std::string::npos);
  EXPECT_EQ(asked.find("\033[3"), std::string::npos);  // but without colour
}

}  // namespace
}  // namespace cleave
