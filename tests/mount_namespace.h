// Processes that may mount file systems which nobody else sees: full disks and read-only folders.
#pragma once

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "tests/checkpoint_temporary.h"

namespace cleave {

// Runs `body` in a process of its own; what it returned, and "killed" if it did not return.
inline std::string in_child(const std::function<std::string()>& body) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  std::fflush(nullptr);  // what this process has still to write is not the child's
  const pid_t child = ::fork();
  if (child == 0) {
    std::string result;
    try {
      result = body();
    } catch (const std::exception& e) {
      result = e.what();
    }
    [[maybe_unused]] const ssize_t n = ::write(ends[1], result.data(), result.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string result;
  char piece[512];
  for (ssize_t n; (n = ::read(ends[0], piece, sizeof piece)) > 0;) {
    result.append(piece, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? result : "killed";
}

// A name space of this process alone, in which it may mount; whether there is one.
inline bool may_mount() {
  const std::string uid = fmt::format("0 {} 1", ::getuid()),
                    gid = fmt::format("0 {} 1", ::getgid());
  if (::unshare(CLONE_NEWNS) != 0) {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
    write_all("/proc/self/setgroups", "deny");
    write_all("/proc/self/uid_map", uid);
    write_all("/proc/self/gid_map", gid);
  }
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

// A disk of `size`, such as "2m", in the place of a folder; whether it is there.
inline bool mount_small_disk(const std::string& folder, const std::string& size) {
  return may_mount() && ::mount("none", folder.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
}

// Makes what is below a folder read-only; whether it is.
inline bool mount_read_only(const std::string& folder) {
  return may_mount() && ::mount(folder.c_str(), folder.c_str(), nullptr, MS_BIND, nullptr) == 0 &&
         ::mount(nullptr, folder.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) == 0;
}

}  // namespace cleave
