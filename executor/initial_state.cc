#include "executor/initial_state.h"

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

template <class T, class As>
void fill(const ProgramSource& source, const ProgramTensor& tensor, const Shard& shard,
          uint64_t seed, std::byte* bytes, const As& as) {
  T* const data = reinterpret_cast<T*>(bytes);
  const uint64_t stream = stream_of(source.name);
  for_each_run(tensor.layout, shard, [&](int64_t whole, int64_t part, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      data[part + i] = as(value_at(source.init, seed, stream, whole + i));
    }
  });
}

}  // namespace

double initial_value(const Init& init, uint64_t seed, std::string_view name, int64_t index) {
  return value_at(init, seed, stream_of(name), index);
}

void fill_initial(const ProgramSource& source, const ProgramTensor& tensor, const Mesh& mesh,
                  const std::vector<int64_t>& coordinates, uint64_t seed, std::byte* data) {
  const Shard shard = shard_of(tensor.layout, mesh, coordinates);
  const auto as = [&]<class T>(T, const auto& converted) {
    fill<T>(source, tensor, shard, seed, data, converted);
  };
  switch (tensor.dtype) {
    case DType::kF64: return as(double{}, [](double x) { return x; });
    case DType::kF32: return as(float{}, [](double x) { return static_cast<float>(x); });
    case DType::kBF16: return as(uint16_t{}, bf16_bits);
    case DType::kF16: return as(uint16_t{}, f16_bits);
    case DType::kI32: return as(int32_t{}, [](double x) { return static_cast<int32_t>(x); });
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      fail("{}: {} has no initial value; quantize makes it", source.name, name_of(tensor.dtype));
  }
}

}  // namespace cleave
