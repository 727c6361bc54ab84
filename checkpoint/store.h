// A folder of checkpoints: each is written beside the others and appears whole or not at all, also
// when the program or the machine stops in the middle.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/file_io.h"
#include "checkpoint/snapshot.h"

namespace cleave {

// What can be told without reading all of a checkpoint.
struct CheckpointInfo {
  std::string path;
  int64_t step = 0;
  int64_t bytes = 0;       // of all files
  std::string written;     // UTC: "2025-01-31T12:00:00Z"; empty when not complete
  int64_t parameters = 0;  // numbers in its parameters
  int64_t tensors = 0;     // states included
  bool complete = false;   // the manifest is sound, its files are there in their full length
  std::string why_not;     // when not complete: one line
};

// One store writes into a folder at a time; any number may read. Methods that are const may be
// called while another thread writes.
class CheckpointStore {
 public:
  // Touches nothing yet; the folder need not exist. A file of tensors gets no more than
  // `file_bytes`, unless one tensor alone has more.
  explicit CheckpointStore(std::string folder, int64_t file_bytes = 2'000'000'000);

  const std::string& folder() const { return folder_; }

  // Makes the folder, claims it until this object goes and removes what killed writers left.
  // write() does so itself; call it first to meet mistakes before hours of work. Throws Error when
  // the folder cannot be written to or another store has claimed it.
  void open_for_writing();

  // When it returns, the checkpoint is on the disk and the newest of its step; before, everything
  // is as it was. Throws Error when the disk is full, ...; nothing is left behind then. Returns the
  // checkpoint's folder.
  std::string write(const Snapshot& snapshot);

  // Removes all but the newest k complete ones, and what is not complete among the removed; 0: all
  // are kept. Never removes the newest complete one.
  void keep(int64_t k);

  // Renames all of a later step to "step-...aside", where nothing finds or removes them: a run that
  // goes on from an older step is not to be continued from another run's future. Returns their new
  // paths.
  std::vector<std::string> set_aside_after(int64_t step);

  // Newest first, by step. Reads manifests only. Empty when the folder is or does not exist.
  std::vector<CheckpointInfo> list() const;

  // The newest checkpoint that is sound to the last byte; none: nothing. What is wrong with newer
  // ones is added to `problems`, one line each that begins with the file.
  std::optional<Checkpoint> latest(std::vector<std::string>& problems) const;

 private:
  void remove_leftovers();
  void remove(const std::string& name);

  std::string folder_;
  int64_t file_bytes_;
  FileHandle lock_;
};

// "step-00000100", and the other way round; nothing for any other name.
std::string step_folder_name(int64_t step);
std::optional<int64_t> step_of_folder_name(std::string_view name);

}  // namespace cleave
