// libFuzzer: token files, from the headers of llm.c's shards and Megatron's indices up to a batch.
// The first byte chooses how the rest is taken.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "data/llmc_shard.h"
#include "data/megatron_index.h"
#include "data/token_data.h"
#include "graph/error.h"

namespace cleave {
namespace {

// A folder of this process in memory, gone at its end.
class Folder {
 public:
  Folder() : path_("/dev/shm/cleave_fuzz_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string write(const char* name, std::string_view bytes) const {
    std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }
  void remove(const char* name) const { std::filesystem::remove(path_ + "/" + name); }

 private:
  std::string path_;
};

// A header of llm.c's has 1,024 bytes, most of them without a meaning: these are left out of the
// input.
std::string shard_of(std::string_view input) {
  std::string file(input.substr(0, 12));
  if (file.size() < 12) return file;
  file.resize(kLlmcHeaderBytes);
  return file.append(input.substr(12));
}

void use(const std::string& path) {
  const TokenData data({path}, 3);
  data.fingerprint();
  const auto tokens = data.training(0, data.training_tokens());
  if (tokens.size() != static_cast<size_t>(data.training_tokens())) std::abort();
  data.check_vocab(50257);
  for (const Targets targets : {Targets::kNextToken, Targets::kMaskedTokens}) {
    const BatchOptions options{.batch = 2, .vocab = 50257, .targets = targets};
    const Batch batch = data.training_batch(5, options);
    if (data.validation_batches(2) > 0) data.validation_batch(0, options);
    for (const int32_t t : batch.tokens) {
      if (t < 0 || t >= 50257) std::abort();
    }
  }
}

}  // namespace
}  // namespace cleave

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cleave;
  static const Folder folder;
  if (size < 3) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  folder.remove("x.idx");
  try {
    switch (data[0] % 4) {
      case 0: use(folder.write("x.bin", shard_of(rest))); break;
      case 1: use(folder.write("x.bin", rest)); break;
      case 2: {
        const std::span<const std::byte> file = std::as_bytes(std::span(rest));
        read_megatron_index("x.idx", file);
        break;
      }
      default: {
        const size_t cut = std::min<size_t>(static_cast<uint8_t>(rest[0]), rest.size() - 1);
        folder.write("x.idx", rest.substr(1, cut));
        use(folder.write("x.bin", rest.substr(1 + cut)));
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
