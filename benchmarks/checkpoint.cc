// How fast are checkpoints saved and loaded, beside plain files of the same size on the same disk?
//
//   cmake --preset release -DCLEAVE_BENCHMARKS=ON
//   cmake --build build --target benchmark_checkpoint
//   build/benchmarks/checkpoint FOLDER [REPEATS]    FOLDER: on the disk in question, 3.5 GB free
//
// What is saved has the tensors of GPT-2 124M with AdamW's two states: 1.49 GB. In each repetition
// every line is measured once, so that all meet the same disk; printed are medians, and the slowest
// and fastest.
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "benchmarks/benchmark.h"
#include "checkpoint/async_writer.h"
#include "checkpoint/store.h"
#include "graph/error.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPiece = size_t{1} << 20;

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Of this thread on its core, whatever else the machine does.
double core_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Numbers that no disk can compress.
Snapshot gpt2_snapshot() {
  std::vector<std::pair<std::string, Shape>> shapes = {{"wte", {50257, 768}}, {"wpe", {1024, 768}}};
  for (int l = 0; l < 12; ++l) {
    const std::string h = fmt::format("h.{}.", l);
    for (const char* norm : {"ln_1", "ln_2"}) {
      shapes.push_back({h + norm + ".weight", {768}});
      shapes.push_back({h + norm + ".bias", {768}});
    }
    const std::vector<std::pair<const char*, Shape>> products = {{"attn.qkv", {768, 2304}},
                                                                 {"attn.proj", {768, 768}},
                                                                 {"mlp.fc", {768, 3072}},
                                                                 {"mlp.proj", {3072, 768}}};
    for (const auto& [name, shape] : products) {
      shapes.push_back({h + name + ".weight", shape});
      shapes.push_back({h + name + ".bias", {shape[1]}});
    }
  }
  shapes.push_back({"ln_f.weight", {768}});
  shapes.push_back({"ln_f.bias", {768}});
  std::mt19937_64 random(1);
  Snapshot s{1, {}, "{}"};
  for (const char* kind : {"", ".m", ".v"}) {
    for (const auto& [name, shape] : shapes) {
      SavedTensor t{name + kind, {DType::kF32, shape}, {}, *kind == 0};
      t.bytes.resize(static_cast<size_t>(4 * numel(shape)));
      for (size_t i = 0; i < t.bytes.size(); i += 8) {
        const uint64_t word = random();
        std::memcpy(t.bytes.data() + i, &word, 8);
      }
      s.tensors.push_back(std::move(t));
    }
  }
  return s;
}

void plain_write(const std::string& path, const Snapshot& s) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd < 0) fail("cannot write '{}': {}", path, std::strerror(errno));
  for (const SavedTensor& t : s.tensors) {
    for (size_t i = 0; i < t.bytes.size(); i += kPiece) {
      const size_t n = std::min(kPiece, t.bytes.size() - i);
      if (::write(fd, t.bytes.data() + i, n) != static_cast<ssize_t>(n)) fail("disk full");
    }
  }
  if (::fsync(fd) != 0) fail("cannot sync '{}'", path);
  ::close(fd);
}

void plain_read(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);  // several times the speed on some disks
  std::vector<char> piece(kPiece);
  while (::read(fd, piece.data(), piece.size()) > 0) continue;
  ::close(fd);
}

// So that reading goes to the disk: by the system's switch, which only root has, or file by file.
const char* forget(const std::string& folder) {
  ::sync();
  if (std::ofstream("/proc/sys/vm/drop_caches") << "1" << std::flush) return "drop_caches";
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const int fd = ::open(entry.path().c_str(), O_RDONLY);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
  return "posix_fadvise";
}

// Every tensor into memory that is there already, as loading does.
void load(const std::string& folder, Snapshot& into) {
  const Checkpoint c = open_checkpoint(folder);
  for (SavedTensor& t : into.tensors) {
    const std::span<const std::byte> bytes = c.bytes(t.name, t.type);
    std::memcpy(t.bytes.data(), bytes.data(), bytes.size());
  }
}

struct Line {
  const char* what;
  std::vector<double> seconds;
};

void print(const std::vector<Line>& lines, double bytes) {
  fmt::print("{:34} {:>8} {:>6}   slowest .. fastest\n", "medians", "seconds", "GB/s");
  for (Line line : lines) {
    std::sort(line.seconds.begin(), line.seconds.end());
    const double median = line.seconds[line.seconds.size() / 2];
    fmt::print("{:34} {:8.3f} {:6.2f}   {:.2f} .. {:.2f}\n", line.what, median,
               bytes / 1e9 / median, bytes / 1e9 / line.seconds.back(),
               bytes / 1e9 / line.seconds.front());
  }
}

void measure_all(const std::string& folder, int repeats) {
  fs::create_directories(folder);
  const std::string plain = folder + "/plain", ours = folder + "/checkpoints";
  Snapshot snapshot = gpt2_snapshot();
  double bytes = 0;
  for (const SavedTensor& t : snapshot.tensors) bytes += static_cast<double>(t.bytes.size());
  double busy = 0;
  ::getloadavg(&busy, 1);
  utsname system{};
  ::uname(&system);
  fmt::print("{} tensors, {:.3f} GB; {} {}, {} cores, load average {:.0f}, {} repetitions\n",
             snapshot.tensors.size(), bytes / 1e9, system.sysname, system.release,
             std::thread::hardware_concurrency(), busy, repeats);

  Line checksum{"checksum (XXH128) in memory", {}}, copied{"snapshot: copy, buffers reused", {}},
      written{"disk: write + fsync", {}}, saved{"checkpoint: save", {}},
      cold{"disk: read, cold", {}}, loaded_cold{"checkpoint: verify + load, cold", {}},
      cached{"disk: read, cached", {}}, loaded{"checkpoint: verify + load, cached", {}};
  Line checksum_core{"  the same, seconds of its core", {}};
  const char* how = "";
  CheckpointStore store(ours);
  Snapshot copy = snapshot;
  for (int i = 0; i < repeats; ++i) {
    const auto measure = [](Line& line, const std::function<void()>& work) {
      line.seconds.push_back(seconds(work));
    };
    // Now one first, now the other: what the disk still has to do from one slows down the next.
    const auto measure_both = [&](Line& a, Line& b, const std::function<void()>& prepare,
                                  const std::function<void()>& work_a,
                                  const std::function<void()>& work_b) {
      for (const bool first : {true, false}) {
        prepare();
        first == (i % 2 == 0) ? measure(a, work_a) : measure(b, work_b);
      }
    };
    const double start = core_seconds();
    measure(checksum, [&] {
      Checksum sum;
      for (const SavedTensor& t : snapshot.tensors) sum.add(t.bytes);
      CLEAVE_ASSERT(sum.hex().size() == 32, "no checksum");
    });
    checksum_core.seconds.push_back(core_seconds() - start);
    measure(copied, [&] {
      for (size_t t = 0; t < copy.tensors.size(); ++t) {
        std::memcpy(copy.tensors[t].bytes.data(), snapshot.tensors[t].bytes.data(),
                    copy.tensors[t].bytes.size());
      }
    });
    fs::remove_all(plain);
    fs::remove_all(ours + "/step-00000001");
    measure_both(
        written, saved, ::sync, [&] { plain_write(plain, snapshot); },
        [&] { store.write(snapshot); });
    measure_both(
        cold, loaded_cold, [&] { how = forget(folder); }, [&] { plain_read(plain); },
        [&] { load(ours, copy); });
    plain_read(plain);
    load(ours, copy);
    measure_both(
        cached, loaded, [] {}, [&] { plain_read(plain); }, [&] { load(ours, copy); });
    CLEAVE_ASSERT(copy.tensors[0].bytes == snapshot.tensors[0].bytes, "other bytes came back");
  }
  const std::vector<Line> lines = {checksum, checksum_core, copied, written, saved,
                                   cold,     loaded_cold,   cached, loaded};
  fmt::print("cold: after {}\n", how);
  print(lines, bytes);

  // What is left of a save for the one who asks for it, when a thread writes.
  AsyncWriter writer(store, 1);
  const double submitted = seconds([&] { writer.submit(std::move(copy)); });
  writer.wait();
  fmt::print("in the background: submit() took {:.1f} us of the {:.2f} s that the save took\n",
             1e6 * submitted, writer.take_written().at(0).seconds);
  fs::remove_all(plain);
  fs::remove_all(ours);
}

int run(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: checkpoint FOLDER [REPEATS]\n");
    return 1;
  }
  measure_all(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 5);
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
