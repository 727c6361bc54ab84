#include "executor/initial_state.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <thread>

#include "executor/shards.h"
#include "graph/bf16_rest.h"
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

// Calls put(element, whole) for elements [begin, end) of the shard, each with its index in the
// whole tensor.
template <class Put>
void for_each_of(const Layout& layout, const Shard& shard, int64_t begin, int64_t end,
                 const Put& put) {
  for_each_run(layout, shard, [&](int64_t whole, int64_t part, int64_t n) {
    const int64_t last = std::min(n, end - part);
    for (int64_t i = std::max<int64_t>(begin - part, 0); i < last; ++i) put(part + i, whole + i);
  });
}

// Of a piece of all shards.
constexpr int64_t kPiece = 1 << 18;

void fill_piece(const InitialShard& of, const Mesh& mesh, const std::vector<int64_t>& coordinates,
                uint64_t seed, int64_t begin, int64_t end) {
  const Layout& layout = of.tensor.layout;
  const Shard shard = shard_of(layout, mesh, coordinates);
  const uint64_t stream = stream_of(of.source.name);
  const auto value = [&](int64_t whole) { return value_at(of.source.init, seed, stream, whole); };
  if (of.source.narrow) {
    auto* const narrow = reinterpret_cast<uint16_t*>(of.data);
    auto* const rest = reinterpret_cast<int16_t*>(of.rest);
    for_each_of(layout, shard, begin, end, [&](int64_t i, int64_t whole) {
      const Bf16AndRest both =
          bf16_and_rest(std::bit_cast<uint32_t>(static_cast<float>(value(whole))));
      narrow[i] = both.bf16;
      if (rest != nullptr) rest[i] = both.rest;
    });
    return;
  }
  const auto as = [&]<class T>(T, const auto& converted) {
    T* const data = reinterpret_cast<T*>(of.data);
    for_each_of(layout, shard, begin, end,
                [&](int64_t i, int64_t whole) { data[i] = converted(value(whole)); });
  };
  switch (of.tensor.dtype) {
    case DType::kF64: return as(double{}, [](double x) { return x; });
    case DType::kF32: return as(float{}, [](double x) { return static_cast<float>(x); });
    case DType::kBF16: return as(uint16_t{}, bf16_bits);
    case DType::kF16: return as(uint16_t{}, f16_bits);
    case DType::kI32: return as(int32_t{}, [](double x) { return static_cast<int32_t>(x); });
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16:
      fail("{}: {} has no initial value by itself", of.source.name, name_of(of.tensor.dtype));
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
