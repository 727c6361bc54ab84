// What the machine has besides BLAS, which blas_doctor.cc examines.
#include "cli/doctor.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/blas_doctor.h"
#include "cli/format.h"

namespace cleave {
namespace {

using Status = Finding::Status;

// --- Small probes --------------------------------------------------------------------------------

// What a program prints, without its last newline; empty when it cannot be run or fails.
std::string output_of(const char* command) {
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return {};
  std::string text;
  std::array<char, 256> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
  if (pclose(pipe) != 0) return {};
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

// The first word of a file of the kernel's; empty when there is none.
std::string first_word(const char* path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// The number in a text; 0 when it is none ("max").
double number_in(const std::string& text) {
  double number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

// A library that is loaded for as long as the object lives.
class Library {
 public:
  explicit Library(const char* name) : handle_(dlopen(name, RTLD_LAZY | RTLD_LOCAL)) {}
  ~Library() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool loaded() const { return handle_ != nullptr; }
  // Null when it has no such function.
  template <class Function>
  Function* function(const char* name) const {
    return handle_ == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle_, name));
  }

 private:
  void* handle_;
};

// --- One finding each ----------------------------------------------------------------------------

Finding build() {
  Finding f{"cleave", Status::kOk, {}, {}, {}};
  constexpr std::string_view kType = CLEAVE_BUILD_TYPE;
#ifdef __clang__
  constexpr std::string_view kCompiler = "clang++ " __clang_version__;
#else
  constexpr std::string_view kCompiler = "g++ " __VERSION__;
#endif
  f.detail = fmt::format("{}, {} build by {}", CLEAVE_VERSION, kType, kCompiler);
  if (kType == "Debug") {
    f.status = Status::kWarning;
    f.cost = "not optimised: kernels and planner are many times slower";
    f.fix = "cmake --preset release && cmake --build --preset release";
  }
  return f;
}

// Processors that this process may use at once.
double usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  double cores = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && period > 0) cores = std::min(cores, quota / period);
  return cores;
}

Finding cores() {
  const double usable = usable_cores();
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const int devices = std::max(1, static_cast<int>(usable));
  Finding f{"cores", Status::kOk, {}, {}, {}};
  f.detail = fmt::format("{:g} of {} usable: up to --devices cpu:{} each device has its own",
                         usable, online, devices);
  return f;
}

// Bytes that this process may use; `limited`: by a control group rather than by the machine.
double usable_memory(bool& limited) {
  double available = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("MemAvailable:")) continue;
    available = 1024 * number_in(line.substr(line.find_first_of("0123456789")));
  }
  const double limit = number_in(first_word("/sys/fs/cgroup/memory.max"));
  limited = limit > 0 && limit < available;
  return limited ? limit - number_in(first_word("/sys/fs/cgroup/memory.current")) : available;
}

Finding memory() {
  bool limited = false;
  const double bytes = usable_memory(limited);
  const int devices = std::max(1, static_cast<int>(usable_cores()));
  Finding f{"memory", Status::kOk, {}, {}, {}};
  f.detail = fmt::format("{} available{}, {} for each of {} devices", bytes_text(bytes),
                         limited ? " (a control group's limit)" : "", bytes_text(bytes / devices),
                         devices);
  if (bytes < 1073741824.0) {
    f.status = Status::kWarning;
    f.cost = "models beyond the tiny ones will not fit";
  }
  return f;
}

Finding dot() {
  const std::string version = output_of("dot -V 2>&1");
  if (!version.empty()) return {"Graphviz dot", Status::kOk, version, {}, {}};
  return {"Graphviz dot", Status::kMissing, "not in PATH",
          "cleave view writes .dot files but no .svg", "apt-get install graphviz"};
}

#ifdef CLEAVE_CUDA
constexpr bool kForGpus = true;
#else
constexpr bool kForGpus = false;
#endif
#ifdef CLEAVE_CUDNN
constexpr bool kWithCudnn = true;
#else
constexpr bool kWithCudnn = false;
#endif

Finding cuda_toolkit() {
  constexpr std::string_view kVersion = CLEAVE_CUDA_TOOLKIT;
  if (kForGpus) {
    return {"CUDA toolkit",
            Status::kOk,
            fmt::format("{} when built: kernels for H100 and H200", kVersion),
            {},
            {}};
  }
  return {"CUDA toolkit", Status::kMissing, "not used when cleave was built",
          "cleave trains on CPU threads only", "install a CUDA toolkit 13 and build again"};
}

struct Gpus {
  bool driver = false;
  int error = 0;  // of the driver's
  int count = 0;
  int version = 0;   // of CUDA: 13000 is 13.0
  std::string name;  // of the first
  size_t bytes = 0;
};

// Through the driver itself, which needs no toolkit.
Gpus find_gpus() {
  const Library driver("libcuda.so.1");
  const auto init = driver.function<int(unsigned)>("cuInit");
  const auto version_of = driver.function<int(int*)>("cuDriverGetVersion");
  const auto count_of = driver.function<int(int*)>("cuDeviceGetCount");
  const auto name = driver.function<int(char*, int, int)>("cuDeviceGetName");
  const auto memory_of = driver.function<int(size_t*, int)>("cuDeviceTotalMem_v2");
  Gpus gpus;
  gpus.driver = init != nullptr && version_of != nullptr && count_of != nullptr &&
                name != nullptr && memory_of != nullptr;
  if (!gpus.driver) return gpus;
  gpus.error = init(0);
  if (gpus.error != 0 || count_of(&gpus.count) != 0 || gpus.count == 0) return gpus;
  version_of(&gpus.version);
  std::array<char, 128> model{};
  name(model.data(), static_cast<int>(model.size()) - 1, 0);
  gpus.name = model.data();
  memory_of(&gpus.bytes, 0);
  return gpus;
}

Finding gpu() {
  const Gpus gpus = find_gpus();
  const std::string_view cost = "cleave trains on CPU threads only";
  if (!gpus.driver) {
    return {"GPU", Status::kMissing, "no NVIDIA driver (libcuda.so.1)", std::string(cost), {}};
  }
  if (gpus.name.empty()) {
    return {"GPU",
            Status::kMissing,
            gpus.error != 0 ? fmt::format("the driver finds none (error {})", gpus.error) : "none",
            std::string(cost),
            {}};
  }
  return {"GPU",
          Status::kOk,
          fmt::format("{} x {}, {}; driver for CUDA {}.{}{}", gpus.count, gpus.name,
                      bytes_text(static_cast<double>(gpus.bytes)), gpus.version / 1000,
                      gpus.version % 1000 / 10,
                      kForGpus ? "" : "; not used: cleave was built without CUDA"),
          {},
          {}};
}

// A library that only tells its version.
struct VersionedLibrary {
  const char *name, *file, *use, *cost, *fix;  // use: ", for what"
  std::string (*version)(const Library&);
};

Finding library(const VersionedLibrary& l) {
  const Library loaded(l.file);
  if (!loaded.loaded()) {
    return {l.name, Status::kMissing, fmt::format("no {}", l.file), l.cost, l.fix};
  }
  return {l.name, Status::kOk, l.version(loaded) + l.use, {}, {}};
}

std::string nccl_version(const Library& l) {
  const auto get = l.function<int(int*)>("ncclGetVersion");
  int v = 0;
  if (get == nullptr || get(&v) != 0) return "version unknown";
  return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

std::string cudnn_version(const Library& l) {
  const auto get = l.function<size_t()>("cudnnGetVersion");
  if (get == nullptr) return "version unknown";
  const size_t v = get();
  return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

Finding mpi() {
  std::string version = output_of("mpirun --version 2>/dev/null");
  version = version.substr(0, version.find('\n'));
  if (!version.empty()) {
    return {"MPI", Status::kOk, version + ", not used yet: one process runs all devices", {}, {}};
  }
  return {"MPI", Status::kMissing, "no mpirun in PATH", "nothing yet: one process runs all devices",
          "apt-get install openmpi-bin libopenmpi-dev"};
}

Finding onnx() {
  constexpr std::string_view kVersion = CLEAVE_ONNX;
  if (!kVersion.empty()) {
    return {"ONNX", Status::kOk, fmt::format("{} when built; not used yet", kVersion), {}, {}};
  }
  return {"ONNX", Status::kMissing, "not found when cleave was built",
          "nothing yet: models are written in C++", "apt-get install libonnx-dev"};
}

// Whether files can be written in a folder, and how much fits.
Finding folder(const std::string& name, const std::filesystem::path& path) {
  Finding f{name, Status::kOk, path.string(), {}, {}};
  std::string pattern = (path / "cleave-doctor-XXXXXX").string();
  const int file = mkstemp(pattern.data());
  const bool written = file >= 0 && write(file, "x", 1) == 1;
  if (file >= 0) {
    close(file);
    unlink(pattern.c_str());
  }
  struct statvfs disk {};
  if (statvfs(path.c_str(), &disk) == 0) {
    const double bytes = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    f.detail = fmt::format("{}, {} free", f.detail, bytes_text(bytes));
  }
  if (!written) {
    f.status = Status::kWarning;
    f.cost = "cannot be written: give -o and --out another folder";
  }
  return f;
}

Finding terminal() {
  Finding f{
      "terminal", Status::kOk, "stdout is a file or a pipe: no colour, no progress bar", {}, {}};
  if (isatty(STDOUT_FILENO) == 0) return f;
  winsize size{};
  ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
  f.detail = fmt::format("{} columns{}", size.ws_col,
                         std::getenv("NO_COLOR") != nullptr ? ", NO_COLOR is set" : "");
  return f;
}

}  // namespace

std::string_view name_of(Finding::Status status) {
  switch (status) {
    case Status::kOk: return "ok";
    case Status::kMissing: return "missing";
    case Status::kWarning: return "warning";
    case Status::kBroken: return "broken";
  }
  return "?";
}

std::string first_gpu() { return kForGpus ? find_gpus().name : std::string(); }

MachineReport examine_machine() {
  MachineReport report;
  report.matrix_product_rate = matrix_product_rate();
  std::vector<Finding>& all = report.findings;
  all.push_back(build());
  for (Finding& f : examine_blas(report.matrix_product_rate)) all.push_back(std::move(f));
  std::error_code ignored;
  all.insert(all.end(), {cores(), memory(), dot(), cuda_toolkit(), gpu()});
  all.push_back(library({"NCCL", "libnccl.so.2", ", not used yet: one GPU trains alone",
                         "nothing yet: one GPU trains alone",
                         "apt-get install libnccl2 (from NVIDIA's repository)", nccl_version}));
  all.push_back(
      library({"cuDNN", "libcudnn.so.9",
               kWithCudnn ? ", for attention that Cleave's own kernels do not take"
                          : ", not used: its frontend was not there when cleave was built",
               kForGpus ? "attention on a GPU that Cleave's own kernels do not take is slow"
                        : "nothing: cleave was built without CUDA",
               "scripts/setup.sh gpu, and build again", cudnn_version}));
  all.insert(all.end(), {mpi(), onnx()});
  all.push_back(folder("this folder", std::filesystem::current_path(ignored)));
  all.push_back(folder("temporary files", std::filesystem::temp_directory_path(ignored)));
  all.push_back(terminal());
  return report;
}

}  // namespace cleave
