#include "executor/initial_state.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "executor/shards.h"
#include "graph/error.h"
#include "graph/half.h"
#include "graph/philox.h"

namespace cleave {
namespace {

double value_at(const Init& init, uint64_t seed, uint64_t stream, int64_t index) {
  const auto i = static_cast<uint64_t>(index);
  switch (init.kind) {
    case Init::Kind::kConstant: return init.a;
    case Init::Kind::kNormal: return init.a * normal_at(seed, stream, i);
    case Init::Kind::kUniform: return init.a * (2 * uniform_at(seed, stream, i) - 1);
  }
  return 0;
}

// Elements [begin, end) of the shard; as(i): that with index i in the whole tensor.
template <class T, class As>
void fill(const Layout& layout, const Shard& shard, std::byte* bytes, int64_t begin, int64_t end,
          const As& as) {
  T* const data = reinterpret_cast<T*>(bytes);
  for_each_run(layout, shard, [&](int64_t whole, int64_t part, int64_t n) {
    const int64_t last = std::min(n, end - part);
    for (int64_t i = std::max<int64_t>(begin - part, 0); i < last; ++i) {
      data[part + i] = as(whole + i);
    }
  });
}

// Of a piece of all shards.
constexpr int64_t kPiece = 1 << 18;

void fill_piece(const InitialShard& of, const Mesh& mesh, const std::vector<int64_t>& coordinates,
                uint64_t seed, int64_t begin, int64_t end) {
  const Layout& layout = of.tensor.layout;
  const Shard shard = shard_of(layout, mesh, coordinates);
  const uint64_t stream = stream_of(of.source.name);
  const auto as = [&]<class T>(T, const auto& converted) {
    fill<T>(layout, shard, of.data, begin, end,
            [&](int64_t i) { return converted(value_at(of.source.init, seed, stream, i)); });
  };
  switch (of.tensor.dtype) {
    case DType::kF64: return as(double{}, [](double x) { return x; });
    case DType::kF32: return as(float{}, [](double x) { return static_cast<float>(x); });
    case DType::kBF16: return as(uint16_t{}, bf16_bits);
    case DType::kF16: return as(uint16_t{}, f16_bits);
    case DType::kI32: return as(int32_t{}, [](double x) { return static_cast<int32_t>(x); });
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      fail("{}: {} has no initial value; quantize makes it", of.source.name,
           name_of(of.tensor.dtype));
  }
}

}  // namespace

double initial_value(const Init& init, uint64_t seed, std::string_view name, int64_t index) {
  return value_at(init, seed, stream_of(name), index);
}

void fill_initial(const InitialShard& shard, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed) {
  fill_piece(shard, mesh, coordinates, seed, 0, INT64_MAX);
}

void fill_initial(std::span<const InitialShard> shards, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed) {
  struct Piece {
    size_t shard;
    int64_t begin;
  };
  std::vector<Piece> pieces;
  for (size_t s = 0; s < shards.size(); ++s) {
    const int64_t elements = numel(shards[s].tensor.layout.local_shape(mesh));
    for (int64_t begin = 0; begin < elements; begin += kPiece) pieces.push_back({s, begin});
  }
  std::atomic<size_t> next = 0;
  const auto draw = [&] {
    for (size_t p; (p = next++) < pieces.size();) {
      const auto [s, begin] = pieces[p];
      fill_piece(shards[s], mesh, coordinates, seed, begin, begin + kPiece);
    }
  };
  std::vector<std::jthread> team;
  for (unsigned t = 1; t < std::thread::hardware_concurrency(); ++t) team.emplace_back(draw);
  draw();
}

bool is_zero(const Init& init) { return init.kind == Init::Kind::kConstant && init.a == 0; }

}  // namespace cleave
