#include "cli/blas_doctor.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cli/format.h"
#include "kernels/blas.h"

namespace cleave {
namespace {

using Status = Finding::Status;

constexpr std::string_view kRateKey = "\"matrix_product_rate\": ";

// What OpenBLAS says of itself; empty when BLAS is another library.
std::string openblas_says(const char* function) {
  const auto get = reinterpret_cast<char* (*)()>(dlsym(RTLD_DEFAULT, function));
  return get == nullptr ? std::string() : std::string(get());
}

// The file that matrix products come from.
std::string blas_file() {
  void* const function = dlsym(RTLD_DEFAULT, "cblas_sgemm");
  Dl_info info{};
  if (function == nullptr || dladdr(function, &info) == 0) return "linked into the program";
  return info.dli_fname;
}

constexpr std::array kVariables = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"};

// The rate of this program in an environment without the variables; 0 when it could not be run. A
// library reads its environment once, so this takes another process.
double rate_without_variables() {
  const std::string command = fmt::format("env -u {} /proc/{}/exe doctor --json 2>/dev/null",
                                          fmt::join(kVariables, " -u "), getpid());
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return 0;
  double rate = 0;
  std::array<char, 1024> line;
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) {
    const std::string_view text(line.data());
    const size_t at = text.find(kRateKey);
    if (at != std::string_view::npos) rate = std::atof(line.data() + at + kRateKey.size());
  }
  pclose(pipe);
  return rate;
}

}  // namespace

double matrix_product_rate() {
  constexpr int64_t kSize = 512;
  std::vector<float> a(kSize * kSize), b(kSize * kSize), c(kSize * kSize);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<float>(i % 7) - 3;
    b[i] = static_cast<float>(i % 5) - 2;
  }
  const auto multiply = [&] {
    gemm(kSize, kSize, kSize, 1.0F, {a.data(), kSize, 1}, {b.data(), kSize, 1}, 0.0F,
         {c.data(), kSize, 1});
  };
  multiply();  // starts the library
  using Clock = std::chrono::steady_clock;
  double best = HUGE_VAL;
  for (int i = 0; i < 10; ++i) {
    const auto start = Clock::now();
    multiply();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  // Small whole numbers: every order of summation gives the same.
  for (int64_t i = 0; i < kSize; i += 37) {
    for (int64_t j = 0; j < kSize; j += 41) {
      float sum = 0;
      for (int64_t k = 0; k < kSize; ++k) {
        sum += a[static_cast<size_t>(i * kSize + k)] * b[static_cast<size_t>(k * kSize + j)];
      }
      if (sum != c[static_cast<size_t>(i * kSize + j)]) return 0;
    }
  }
  return 2.0 * kSize * kSize * kSize / best;
}

std::vector<Finding> examine_blas(double rate) {
  const std::string config = openblas_says("openblas_get_config");
  const std::string core = openblas_says("openblas_get_corename");
  Finding blas{"BLAS", Status::kOk, {}, {}, {}};
  const std::string speed = fmt::format("{:.0f} GFLOP/s a core in fp32", rate / 1e9);
  if (rate == 0) {
    blas.status = Status::kBroken;
    blas.detail = blas_file();
    blas.cost = "its matrix products are wrong";
    blas.fix = "apt-get install --reinstall libopenblas0-pthread";
  } else if (config.empty()) {
    blas.status = Status::kWarning;
    blas.detail = fmt::format("{}: not OpenBLAS, {}", blas_file(), speed);
    blas.cost = "the reference BLAS is about thirty times slower";
    blas.fix = "apt-get install libopenblas-pthread-dev";
  } else {
    blas.detail = fmt::format("{}; {} kernels, {}", config, core, speed);
  }
  std::vector<Finding> findings = {blas};
  double without = 0;
  for (const char* variable : kVariables) {
    const char* value = std::getenv(variable);
    if (value == nullptr || rate == 0) continue;
    if (without == 0) without = rate_without_variables();
    Finding f{variable, Status::kWarning, fmt::format("set to {}", value), {}, {}};
    f.cost = without > 0 ? fmt::format("{:.0f} GFLOP/s a core instead of {:.0f} without it",
                                       rate / 1e9, without / 1e9)
                         : "overrides what OpenBLAS knows of this processor";
    f.fix = fmt::format("unset {}", variable);
    findings.push_back(std::move(f));
  }
  return findings;
}

}  // namespace cleave
