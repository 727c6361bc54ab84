// Updates of parameters that lie as their bf16 and the rest of their bits, beside those of whole
// ones.
#pragma once

#include <bit>
#include <string>
#include <vector>

#include "graph/bf16_rest.h"
#include "graph/half.h"
#include "tests/kernels_plain.h"

namespace cleave {

// The same update of the same parameter, an f32, in two.
inline Application in_two(Application a) {
  HostTensor& p = a.in[0];
  HostTensor rest{{DType::kI16, p.type.shape}, Numbers(p.numbers.size())};
  p.type.dtype = DType::kBF16;
  for (size_t i = 0; i < p.numbers.size(); ++i) {
    const Bf16AndRest both =
        bf16_and_rest(std::bit_cast<uint32_t>(static_cast<float>(p.numbers[i])));
    p.numbers[i] = bf16_number(both.bf16);
    rest.numbers[i] = both.rest;
  }
  a.in.push_back(std::move(rest));
  SignatureParts factors = a.signature->parts();
  factors.inputs.push_back(factors.inputs[0]);
  factors.outputs.push_back(factors.outputs[0]);
  a.signature = &Signature::get(factors);
  a.attrs.set("rest", int64_t{1});
  return a;
}

// The results with the parameter whole again, and without its rest.
inline std::vector<HostTensor> in_one(std::vector<HostTensor> results) {
  HostTensor& p = results[0];
  const HostTensor& rest = results.back();
  p.type.dtype = DType::kF32;
  for (size_t i = 0; i < p.numbers.size(); ++i) {
    const Bf16AndRest both{bf16_bits(p.numbers[i]), static_cast<int16_t>(rest.numbers[i])};
    p.numbers[i] = static_cast<double>(std::bit_cast<float>(f32_bits(both)));
  }
  results.pop_back();
  return results;
}

// AdamW or SGD of an f32, with gradients and moments of these types; moments of bf16 are rounded
// stochastically.
inline Application random_update(bool adam, const Shape& shape, DType gradient, DType moments,
                                 double clip = 0.5) {
  const std::string d = std::string("abc").substr(0, shape.size());
  Attrs attrs = {{"weight_decay", 0.1}};
  std::vector<HostTensor> in = {random_tensor(DType::kF32, shape, 1),
                                random_tensor(gradient, shape, 2),
                                random_tensor(moments, shape, 3)};
  std::string factors = d + "," + d + "," + d, results = d + "," + d;
  if (adam) {
    in.push_back(random_tensor(moments, shape, 4, 0, 1));
    attrs.set("beta1", 0.9), attrs.set("beta2", 0.95), attrs.set("eps", 1e-8);
    factors += "," + d, results += "," + d;
  } else {
    attrs.set("momentum", 0.9);
  }
  in.push_back(tensor(DType::kF32, {}, {0.01}));
  in.push_back(tensor(DType::kF32, {}, {clip}));
  factors += ",,";
  const bool rounds = moments == DType::kBF16;
  if (adam || rounds) {
    in.push_back({{DType::kI32, {}}, {7}});
    factors += ",";
  }
  std::string notes;
  if (rounds) {
    attrs.set("name", std::string("update.w"));
    for (const char letter : d)
      notes += std::string(notes.empty() ? "|" : ",") + letter + ":indexed";
  }
  return application(adam ? ops::adamw : ops::sgd, std::move(in), factors + "->" + results + notes,
                     std::move(attrs));
}

// Outputs in the memory of the inputs that they renew.
inline std::vector<std::pair<size_t, size_t>> in_place_of(const Application& a) {
  std::vector<std::pair<size_t, size_t>> places = {{0, 0}, {1, 2}};
  if (a.op == &ops::adamw) places.emplace_back(2, 3);
  if (a.attrs.has("rest")) places.emplace_back(places.size(), a.in.size() - 1);
  return places;
}

}  // namespace cleave
