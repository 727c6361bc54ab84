// Runs of the command that are killed at random moments and go on, as their user would have it.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace cleave::testing {

// Starts the command with its output thrown away.
inline pid_t start_cleave(std::string program, const std::vector<std::string>& arguments) {
  std::fflush(nullptr);  // what this process has still to write is not the child's
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  std::vector<char*> argv;
  argv.push_back(program.data());
  std::vector<std::string> copy = arguments;
  for (std::string& a : copy) argv.push_back(a.data());
  argv.push_back(nullptr);
  if (std::freopen("/dev/null", "w", stdout) == nullptr) ::_exit(126);
  ::execv(program.c_str(), argv.data());
  ::_exit(127);
}

// The exit status; 128 + the signal when it was killed.
inline int wait_for(pid_t pid) {
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

inline std::map<std::string, std::vector<std::byte>> checkpointed(const std::string& folder) {
  const Checkpoint c = open_checkpoint(folder);
  std::map<std::string, std::vector<std::byte>> all;
  for (const ManifestTensor& t : c.tensors()) {
    const auto bytes = c.bytes(t);
    all[t.name].assign(bytes.begin(), bytes.end());
  }
  return all;
}

// Kills runs that save after every step, at `kills` random moments, lets each go on until it is
// done, and compares the end with that of a run that nobody disturbed.
inline void kill_and_resume(const std::string& program, int kills, uint32_t seed) {
  namespace fs = std::filesystem;
  const fs::path folder =
      fs::temp_directory_path() / ("cleave_killed_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  std::ofstream data(folder / "data");
  for (int i = 0; i < 5000; ++i) data << static_cast<char>(i * 7 % 90 + 32);
  data.close();
  const auto command = [&](const std::string& out) -> std::vector<std::string> {
    return {"train",
            "gpt2:tiny",
            "--set",
            "layers=1",
            "hidden=64",
            "dropout=0.1",
            "--data",
            (folder / "data").string(),
            "--devices",
            "cpu:2",
            "--batch",
            "2",
            "--steps",
            "12",
            "--checkpoint-every",
            "1",
            "--keep",
            "2",
            "--out",
            out};
  };
  const auto timed = [&](const std::string& out) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(wait_for(start_cleave(program, command(out))), 0);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const double whole_seconds = timed((folder / "whole").string());
  const auto whole = checkpointed((folder / "whole/checkpoints").string());
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> moment(0, whole_seconds);
  int killed = 0, runs = 0, inside_a_save = 0;
  while (killed < kills) {
    const std::string out = (folder / fmt::format("run{}", runs++)).string();
    int status = -1;
    while (status != 0) {
      std::vector<std::string> arguments = command(out);
      // One that was killed before it made its folder begins anew.
      if (status != -1 && fs::exists(out)) arguments.emplace_back("--resume");
      const pid_t pid = start_cleave(program, arguments);
      // The last one of each run is left alone in the end.
      if (killed < kills) {
        std::this_thread::sleep_for(std::chrono::duration<double>(moment(random)));
        ::kill(pid, SIGKILL);
      }
      status = wait_for(pid);
      ASSERT_TRUE(status == 0 || status == 128 + SIGKILL) << status;
      killed += status != 0;
      if (status == 0 || !fs::exists(out + "/checkpoints")) continue;
      for (const auto& entry : fs::directory_iterator(out + "/checkpoints")) {
        inside_a_save += entry.path().filename().string().find(".partial") != std::string::npos;
      }
    }
    EXPECT_EQ(checkpointed(out + "/checkpoints"), whole) << out;
    fs::remove_all(out);
  }
  fmt::print(
      "killed {} times, {} of them within a save; {} runs ended as if nothing had happened\n",
      killed, inside_a_save, runs);
  fs::remove_all(folder);
}

}  // namespace cleave::testing
