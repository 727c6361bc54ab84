// Every kind of mistake in a program is refused, with a message that names it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "executor/typing.h"
#include "kernels/ops.h"
#include "tests/executor_builder.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

// A program on a mesh of 2 x 2 with an instruction of every kind and a rule of every kind.
ProgramBuilder valid() {
  using enum InstrKind;
  ProgramBuilder b({{"u", 2}, {"v", 2}});
  const TensorId x = b.source(SourceKind::kData, "x", {{8}, {16}}, {cut(0), kWhole});
  const TensorId w1 = b.source(SourceKind::kParameter, "w1", {{32}, {16}}, {kWhole, cut(0)});
  const TensorId w2 = b.source(SourceKind::kParameter, "w2", {{16}, {32}}, {kWhole, cut(1)});
  const TensorId count = b.source(SourceKind::kState, "count", {}, {kWhole, kWhole}, DType::kI32);
  const TensorId fused = b.source(SourceKind::kData, "fused", {{8}, {2, 6}}, {kWhole, cut(2)});

  // Columns, then rows: a partial sum, which a linear op passes on.
  const TensorId h = b.tensor("h", {{8}, {32}}, {cut(0), cut(1)});
  b.compute(ops::matmul, "bk,nk->bn", {x, w1}, {h}, {by('b'), by('n')});
  const TensorId y = b.tensor("y", {{8}, {16}}, {cut(0), kPart});
  b.compute(ops::matmul, "bk,nk->bn", {h, w2}, {y}, {by('b'), by('k')});
  const TensorId s = b.tensor("s", {{8}, {16}}, {cut(0), kPart});
  b.compute(ops::scale, "bn->bn", {y}, {s}, {by('b'), kPassPartial}, {{"value", 2.0}});
  const TensorId mx = b.tensor("mx", {{8}}, {cut(0), Placement::partial(Reduction::kMax)});
  b.compute(ops::max, "bn->b|n:max", {h}, {mx}, {by('b'), by('n')});
  const TensorId mx_all = b.tensor("mx_all", {{8}}, {cut(0), kWhole});
  b.move(kAllReduce, 1, {mx}, {mx_all}, Reduction::kMax);

  // Every way to move a tensor.
  const TensorId z = b.tensor("z", {{8}, {16}}, {cut(0), kWhole});
  b.move(kAllReduce, 1, {s}, {z});
  const TensorId scattered = b.tensor("scattered", {{8}, {16}}, {cut(0), cut(1)});
  b.move(kReduceScatter, 1, {s}, {scattered});
  const TensorId gathered = b.tensor("gathered", {{8}, {16}}, {cut(0), kWhole});
  b.move(kAllGather, 1, {scattered}, {gathered});
  const TensorId swapped = b.tensor("swapped", {{8}, {16}}, {cut(0), cut(0)});
  b.move(kAllToAll, 1, {scattered}, {swapped});
  const TensorId sliced = b.tensor("sliced", {{8}, {16}}, {cut(0), cut(0)});
  b.move(kSlice, 1, {z}, {sliced});
  const TensorId both = b.tensor("both", {{8}, {16}}, {cut(0), cut(0)});
  b.compute(ops::add, "bn,bn->bn", {swapped, sliced}, {both}, {by('b'), by('b')});
  const TensorId masked = b.tensor("masked", {{8}, {16}}, {cut(0), kPart});
  b.move(kMask, 1, {z}, {masked});
  const TensorId q = b.tensor("q", {{8}, {16}}, {cut(0), kPart});
  b.compute(ops::add, "bn,bn->bn", {masked, s}, {q}, {by('b'), kPassPartial});
  const TensorId q_all = b.over("q_all", q);
  b.placement("q_all", 1) = kWhole;
  b.move(kAllReduce, 1, {q}, {q_all});
  const TensorId copied = b.tensor("copied", {{8}, {16}}, {cut(0), cut(0)});
  b.move(kCopy, -1, {both}, {copied});

  // Views, one of them of a strided shard.
  const TensorId turned = b.tensor("turned", {{16}, {8}}, {cut(1), kWhole});
  b.view(ops::transpose, "bn->nb", z, turned, {by('b'), kNone});
  const TensorId apart = b.tensor("apart", {{8}, {2}, {6}}, {kWhole, cut(2)});
  b.view(ops::reshape, "a(bc)->abc", fused, apart, {kNone, by('c')});
  const TensorId turned_sum = b.tensor("turned_sum", {{16}}, {kPart, kWhole});
  b.compute(ops::sum, "nb->n", {turned}, {turned_sum}, {by('b'), kNone});

  const TensorId loss = b.tensor("loss", {}, {kPart, kWhole});
  b.compute(ops::sum, "bn->", {q_all}, {loss}, {by('b'), kNone});
  const TensorId loss_all = b.tensor("loss_all", {}, {kWhole, kWhole});
  b.move(kAllReduce, 0, {loss}, {loss_all});
  b.output("loss", loss_all);

  const TensorId next = b.over("next", w1);
  b.compute(ops::scale, "nk->nk", {w1}, {next}, {kNone, by('n')}, {{"value", 0.5}});
  b.source_named("w1").final = next;
  const TensorId counted = b.over("counted", count);
  b.compute(ops::increment, "->", {count}, {counted}, {kNone, kNone});
  b.source_named("count").final = counted;
  return b;
}

std::string refusal(const Program& program) {
  try {
    check(program);
  } catch (const InternalError& e) {
    return e.what();
  }
  return "accepted";
}

struct Mistake {
  const char* name;
  std::function<void(ProgramBuilder&)> make;
  const char* message;  // part of it
};

void PrintTo(const Mistake& mistake, std::ostream* out) { *out << mistake.message; }

// Gives a tensor another layout, and the memory for it.
void relayout(ProgramBuilder& b, const std::string& name, Placements placements) {
  ProgramTensor& t = b.at(name);
  t.layout.placements = std::move(placements);
  t.geometry = {0, t.layout.local_shape(b.program.mesh), {}};
  t.geometry.strides = contiguous_strides(t.geometry.shape);
  Buffer& buffer = b.program.buffers[static_cast<size_t>(t.buffer)];
  buffer.bytes = std::max(buffer.bytes, numel(t.geometry.shape) * size_of(t.dtype));
}

void swap_instrs(ProgramBuilder& b, const std::string& x, const std::string& y) {
  std::swap(b.making(x), b.making(y));
}

// Appends an element-by-element op that reads `from`.
void read_at_end(ProgramBuilder& b, const std::string& from, std::vector<Split> splits) {
  const ProgramTensor t = b.at(from);
  std::vector<std::vector<int64_t>> dims(t.geometry.shape.size());
  for (size_t i = 0; i < t.layout.atoms.size(); ++i) {
    dims[static_cast<size_t>(t.layout.atom_dim[i])].push_back(t.layout.atoms[i]);
  }
  const TensorId out = b.tensor("late", dims, t.layout.placements);
  b.compute(ops::neg, "ab->ab", {b.id(from)}, {out}, std::move(splits));
}

const std::vector<Mistake>& mistakes() {
  using B = ProgramBuilder;
  using enum InstrKind;
  static const std::vector<Mistake> list = {
      // Tensors by themselves.
      {"PlacementsMissing", [](B& b) { b.at("h").layout.placements.pop_back(); },
       "tensor h: 1 placements for 2 mesh axes"},
      {"AtomUnknown", [](B& b) { b.placement("h", 1) = cut(2); },
       "tensor h: axis v splits atom 2 of 2"},
      {"ShardDoesNotDivide", [](B& b) { b.at("h").layout.atoms[1] = 31; },
       "tensor h: 31 does not divide by axis v of 2"},
      {"SecondCutDoesNotDivide", [](B& b) { b.at("both").layout.atoms[0] = 6; },
       "tensor both: 3 does not divide by axis v of 2"},
      {"AtomsWithoutDimension",
       [](B& b) {
         b.at("h").layout.atom_dim = {0, 2};
       },
       "tensor h: its atoms 8x32 do not make up dimensions"},
      {"IntegerPartial", [](B& b) { b.placement("counted", 0) = kPart; },
       "tensor counted: partial results of type i32 on axis u"},
      {"MixedPartials", [](B& b) { b.placement("loss", 1) = Placement::partial(Reduction::kMax); },
       "tensor loss: it mixes partial results of kinds sum and max"},
      {"GeometryNotLocal", [](B& b) { b.at("h").geometry.shape[0] = 8; },
       "tensor h: its geometry has shape [8, 16], its layout [4, 16]"},
      {"OutsideBuffer", [](B& b) { b.at("h").geometry.offset = 1; },
       "tensor h: bytes 4 to 260 lie outside its buffer of 256"},
      {"NoBuffer", [](B& b) { b.at("h").buffer = 99; }, "tensor h: there is no buffer 99"},

      // Compute: operands, shapes, types.
      {"OperandMissing", [](B& b) { b.making("h").in.pop_back(); },
       "instruction 0 matmul(x): 'bk,nk->bn' does not have 1 operands and 1 results"},
      {"TensorUnknown", [](B& b) { b.making("h").in[1] = 999; },
       "instruction 0 matmul(x, ?): there is no tensor 999"},
      {"AtomsOfLetter",
       [](B& b) {
         b.making("h").letter_atoms[1] = {4, 4};
       },
       "dimension 1 of x has atoms 16, 'bk,nk->bn' needs 4x4"},
      {"AtomsOfCompound",
       [](B& b) {
         std::swap(b.at("fused").layout.atoms[1], b.at("fused").layout.atoms[2]);
         b.placement("fused", 1) = cut(1);
       },
       "dimension 1 of fused has atoms 6x2, 'a(bc)->abc' needs 2x6"},
      {"OneDimensionMore",
       [](B& b) {
         const TensorId out = b.tensor("out", {{8}}, {cut(0), kWhole});
         b.compute(ops::neg, "a->a", {b.id("x")}, {out}, {by('a'), kNone});
       },
       "neg(x): x has more dimensions than the 1 of 'a->a'"},
      {"ResultType", [](B& b) { b.at("h").dtype = DType::kI32; },
       "result h is i32[8, 32], the op gives f32[8, 32]"},

      // Compute: splits.
      {"SplitsMissing", [](B& b) { b.making("h").splits.pop_back(); },
       "it has 1 splits for 2 mesh axes"},
      {"LetterUnknown", [](B& b) { b.making("h").splits[1] = by('z'); },
       "axis v splits 'z', which 'bk,nk->bn' does not have"},
      {"LetterAtomUnknown", [](B& b) { b.making("h").splits[1] = by('n', 1); },
       "axis v splits atom 1 of 'n', which has 1"},
      {"FactorDoesNotDivide",
       [](B& b) {
         b.program.mesh.axes[1].size = 3;
         b.program.instrs.clear(), b.program.outputs.clear(), b.program.sources.clear();
         b.program.tensors.clear();
         const TensorId t = b.tensor("t", {{4}}, {kWhole, kWhole});
         const TensorId out = b.tensor("out", {{4}}, {kWhole, kWhole});
         b.compute(ops::neg, "a->a", {t}, {out}, {kNone, by('a')});
       },
       "4 of factor 'a' does not divide by axis v of 3"},
      {"WholeFactorSplit",
       [](B& b) {
         const TensorId out = b.tensor("soft", {{8}, {32}}, {cut(0), cut(1)});
         b.compute(ops::softmax, "bS->bS", {b.id("h")}, {out}, {by('b'), by('S')});
       },
       "softmax(h): axis v splits 'S', which is whole"},
      {"CarrierNotSharded", [](B& b) { b.making("h").splits[1] = by('k'); },
       "x is replicate on axis v, must be shard(1)"},
      {"OtherAtomSharded",
       [](B& b) {
         relayout(b, "w1", {kWhole, cut(1)}), relayout(b, "next", {kWhole, cut(1)});
       },
       "w1 is shard(1) on axis v, must be shard(0)"},
      {"LackingOperandSharded",
       [](B& b) {
         relayout(b, "w1", {cut(1), cut(0)}), relayout(b, "next", {cut(1), cut(0)});
       },
       "w1 is shard(1) on axis u, must be replicate"},
      {"ResultNotPartial", [](B& b) { b.placement("y", 1) = kWhole; },
       "y is replicate on axis v, must be partial(sum)"},
      {"ResultOfOtherReduction", [](B& b) { b.placement("mx", 1) = kPart; },
       "mx is partial(sum) on axis v, must be partial(max)"},
      {"ResultNotSharded",
       [](B& b) {
         relayout(b, "h", {cut(0), kWhole});
       },
       "h is replicate on axis v, must be shard(1)"},
      {"ShardWithoutSplit", [](B& b) { b.making("h").splits[0] = kNone; },
       "x is shard(0) on axis u, must be replicate"},
      {"WrongAtomOfStridedShard", [](B& b) { b.making("apart").splits[1] = by('b'); },
       "fused is shard(1: 2x[6]) on axis v, must be shard(1: [2]x6)"},
      {"PartialIntoNonlinear",
       [](B& b) {
         const TensorId out = b.tensor("bent", {{8}, {16}}, {cut(0), kPart});
         b.compute(ops::relu, "bn->bn", {b.id("s")}, {out}, {by('b'), kPassPartial});
       },
       "relu(s): partial sums on axis v enter relu, which is not linear"},
      {"PartialReadAsWhole", [](B& b) { b.making("s").splits[1] = kNone; },
       "y is partial(sum) on axis v, must be replicate"},
      {"PartialAndWholeAdded", [](B& b) { b.making("q").in[0] = b.id("z"); },
       "z is replicate on axis v, must be partial(sum)"},
      {"PartialMaximumIntoLinear",
       [](B& b) {
         const TensorId out = b.tensor("twice", {{8}}, {cut(0), kPart});
         b.compute(ops::neg, "b->b", {b.id("mx")}, {out}, {by('b'), kPassPartial});
       },
       "mx is partial(max) on axis v, must be partial(sum)"},
      {"PartialAndSplit",
       [](B& b) {
         b.making("s").splits[1] = {'n', 0, true};
       },
       "axis v both splits 'n' and passes partial sums"},
      {"PartialWithoutFloats",
       [](B& b) {
         const TensorId out = b.tensor("n", {}, {kWhole, kWhole}, DType::kI32);
         b.compute(ops::copy, "->", {b.id("count")}, {out}, {kNone, kPassPartial});
       },
       "no operand can be a partial sum on axis v"},

      // Collectives and copies.
      {"NotPairs", [](B& b) { b.making("z").in.push_back(b.id("y")); },
       "all-reduce(s, y): 2 operands and 1 results are not pairs"},
      {"NoAxis", [](B& b) { b.making("z").axis = 2; }, "there is no mesh axis 2"},
      {"MovedTypeDiffers", [](B& b) { b.at("swapped").dtype = DType::kI32; },
       "scattered (f32 8x16) and swapped (i32 8x16) are not the same value"},
      {"MovedAtomsDiffer",
       [](B& b) {
         b.at("copied").layout.atoms = {16, 8};
         b.at("copied").geometry = {0, {4, 8}, {8, 1}};
       },
       "both (f32 8x16) and copied (f32 16x8) are not the same value"},
      {"CollectiveChangesOtherAxis",
       [](B& b) {
         relayout(b, "z", {kWhole, kWhole});
       },
       "z is replicate on axis u, must be shard(0)"},
      {"AllReduceOfWhole",
       [](B& b) {
         const TensorId out = b.tensor("out", {{8}, {16}}, {cut(0), kWhole});
         b.move(kAllReduce, 1, {b.id("gathered")}, {out});
       },
       "gathered is replicate on axis v, must be partial(sum)"},
      {"AllReduceOfOtherKind", [](B& b) { b.making("mx_all").reduction = Reduction::kSum; },
       "mx is partial(max) on axis v, must be partial(sum)"},
      {"AllReduceToShard", [](B& b) { b.making("scattered").kind = kAllReduce; },
       "scattered is shard(1) on axis v, must be replicate"},
      {"GatherOfPartial", [](B& b) { b.making("gathered").in[0] = b.id("s"); },
       "s is partial(sum) on axis v, must be a shard"},
      {"GatherToShard", [](B& b) { b.making("swapped").kind = kAllGather; },
       "swapped is shard(0) on axis v, must be replicate"},
      {"ScatterOfShard", [](B& b) { b.making("swapped").kind = kReduceScatter; },
       "scattered is shard(1) on axis v, must be partial(sum)"},
      {"ScatterToWhole", [](B& b) { b.making("z").kind = kReduceScatter; },
       "z is replicate on axis v, must be a shard"},
      {"ScatterOfLogSumExp",
       [](B& b) {
         const Placement lse = Placement::partial(Reduction::kLogSumExp);
         b.placement("y", 1) = lse, b.placement("s", 1) = lse;
         b.program.instrs.clear(), b.program.sources.clear(), b.program.outputs.clear();
         b.move(kReduceScatter, 1, {b.id("s")}, {b.id("scattered")}, Reduction::kLogSumExp);
       },
       "a reduce-scatter takes sums or maxima, not lse"},
      {"AllToAllOfWhole", [](B& b) { b.making("sliced").kind = kAllToAll; },
       "z is replicate on axis v, must be a shard"},
      {"AllToAllOfOneAtom",
       [](B& b) {
         relayout(b, "swapped", {cut(0), cut(1)});
       },
       "scattered and swapped are split alike"},
      {"SliceOfShard", [](B& b) { b.making("swapped").kind = kSlice; },
       "scattered is shard(1) on axis v, must be replicate"},
      {"SliceToWhole",
       [](B& b) {
         relayout(b, "sliced", {cut(0), kWhole});
       },
       "sliced is replicate on axis v, must be a shard"},
      {"MaskOfPartial", [](B& b) { b.making("masked").in[0] = b.id("s"); },
       "s is partial(sum) on axis v, must be replicate"},
      {"MaskToWhole", [](B& b) { b.placement("masked", 1) = kWhole; },
       "masked is replicate on axis v, must be partial(sum)"},
      {"CopyToOtherPlacement",
       [](B& b) {
         relayout(b, "copied", {cut(0), cut(1)});
       },
       "copied is shard(1) on axis v, must be shard(0)"},
      {"GatherOfAtomThatLaterAxisSplits",
       [](B& b) {
         const TensorId out = b.tensor("out", {{8}, {16}}, {kWhole, cut(0)});
         b.move(kAllGather, 0, {b.id("both")}, {out});
       },
       "axis u moves an atom of both that the later axis v splits too"},
      {"SliceOfAtomThatLaterAxisSplits",
       [](B& b) {
         const TensorId out = b.tensor("out", {{32}, {16}}, {cut(0), cut(0)});
         b.move(kSlice, 0, {b.id("w1")}, {out});
       },
       "axis u moves an atom of out that the later axis v splits too"},
      {"CollectiveOfStrided",
       [](B& b) {
         b.at("scattered").geometry.strides = {16, 1};
         b.program.buffers[static_cast<size_t>(b.at("scattered").buffer)].bytes = 4096;
       },
       "scattered is not contiguous"},

      // Views and shared memory.
      {"ViewElsewhere",
       [](B& b) {
         b.at("turned").geometry.strides = {4, 1};
       },
       "transpose(z): turned does not lie where a view of z must"},
      {"ResultOverOtherOperand", [](B& b) { b.at("h").buffer = b.at("w1").buffer; },
       "matmul(x, w1): h cannot be written over w1"},
      {"OverlappingInPlace",
       [](B& b) {
         const TensorId out = b.over("shifted", b.id("z"));
         b.at("shifted").geometry.offset = 1;
         b.program.buffers[static_cast<size_t>(b.at("z").buffer)].bytes += 4;
         b.compute(ops::neg, "bn->bn", {b.id("z")}, {out}, {by('b'), kNone});
       },
       "neg(z): shifted cannot be written over z"},
      {"GatherInPlace",
       [](B& b) {
         b.at("gathered").buffer = b.at("scattered").buffer;
         b.program.buffers[static_cast<size_t>(b.at("scattered").buffer)].bytes = 4096;
       },
       "all-gather(scattered): gathered cannot be written over scattered"},
      {"WrittenWithStrideZero",
       [](B& b) {
         b.at("h").geometry.strides = {0, 1};
       },
       "h is written with stride 0"},
      {"ResultsOverlap",
       [](B& b) {
         const TensorId l = b.tensor("l", {{8}, {16}}, {cut(0), kWhole});
         const TensorId r = b.over("r", l);
         b.move(kAllReduce, 1, {b.id("y"), b.id("s")}, {l, r});
       },
       "results l and r overlap"},

      // Data flow.
      {"ReadBeforeWritten", [](B& b) { swap_instrs(b, "h", "y"); },
       "instruction 0 matmul(h, w2): h is read before it is written"},
      {"WrittenTwice", [](B& b) { b.program.instrs.push_back(b.making("z")); },
       "all-reduce(s): z is written twice"},
      {"ReadAfterOverwritten",
       [](B& b) {
         read_at_end(b, "w1", {kNone, by('a')});
       },
       "neg(w1): w1 is read after instruction 20 scale(w1) has overwritten it"},
      {"ReadAfterOverwrittenThroughView",
       [](B& b) {
         const TensorId out = b.over("z2", b.id("z"));
         b.compute(ops::neg, "bn->bn", {b.id("z")}, {out}, {by('b'), kNone});
         read_at_end(b, "turned", {by('b'), kNone});
       },
       "turned is read after instruction 22 neg(z) has overwritten it"},
      {"CollectiveOverwrites",
       [](B& b) {
         read_at_end(b, "q", {by('a'), kPassPartial});
       },
       "neg(q): q is read after instruction 13 all-reduce(q) has overwritten it"},

      // Sources and outputs.
      {"SourceNameTwice", [](B& b) { b.source_named("w2").name = "w1"; },
       "param w1: another source has this name"},
      {"SourcePartial", [](B& b) { b.placement("x", 1) = kPart; },
       "data x: a source cannot be a partial result"},
      {"SourceStrided",
       [](B& b) {
         b.at("x").geometry.strides = {1, 4};
       },
       "data x: a source must be contiguous"},
      {"SourcesShareBuffer", [](B& b) { b.at("fused").buffer = b.at("x").buffer; },
       "data fused: it shares memory with x"},
      {"StateNotPersistent",
       [](B& b) { b.program.buffers[static_cast<size_t>(b.at("w1").buffer)].persistent = false; },
       "param w1: its buffer must be persistent"},
      {"DataPersistent",
       [](B& b) { b.program.buffers[static_cast<size_t>(b.at("x").buffer)].persistent = true; },
       "data x: its buffer must not be persistent"},
      {"FinalMissing", [](B& b) { b.source_named("w2").final = -1; },
       "param w2: it has no final value"},
      {"FinalInOtherBuffer",
       [](B& b) {
         const TensorId out = b.tensor("out", {{32}, {16}}, {kWhole, cut(0)});
         b.making("next").out[0] = out;
         b.source_named("w1").final = out;
       },
       "param w1: it ends as out (buffer 24, "},
      {"FinalOfOtherLayout",
       [](B& b) {
         const TensorId out = b.over("out", b.id("w1"));
         relayout(b, "out", {kWhole, cut(1)});
         b.source_named("w1").final = out;
       },
       "u=replicate v=shard(1)), not where and as it began (buffer 1, u=replicate v=shard(0))"},
      {"FinalOverwritten", [](B& b) { b.source_named("w1").final = b.id("w1"); },
       "final value of param w1: w1 is read after"},
      {"FinalNeverWritten", [](B& b) { b.source_named("w2").final = b.over("w2b", b.id("w2")); },
       "final value of param w2: w2b is read before it is written"},
      {"OutputNotReplicated", [](B& b) { b.program.outputs[0].tensor = b.id("loss"); },
       "output loss: it is u=partial(sum) v=replicate, must be replicated"},
      {"OutputNeverWritten",
       [](B& b) {
         b.program.outputs[0].tensor = b.tensor("o", {}, {kWhole, kWhole});
       },
       "output loss: o is read before it is written"},

      // The arena.
      {"ArenaOverlap",
       [](B& b) {
         plan_memory(b.program);
         b.program.buffers[static_cast<size_t>(b.at("h").buffer)].offset =
             b.program.buffers[static_cast<size_t>(b.at("w2").buffer)].offset;
       },
       "are live together and overlap"},
      {"ArenaTooSmall",
       [](B& b) {
         plan_memory(b.program);
         b.program.memory[0].arena_bytes -= 64;
       },
       "is not aligned inside"},
      {"ArenaUnaligned",
       [](B& b) {
         plan_memory(b.program);
         b.program.buffers[static_cast<size_t>(b.at("x").buffer)].offset += 4;
       },
       "is not aligned inside"},
  };
  return list;
}

TEST(ExecutorCheck, AcceptsAValidProgram) {
  ProgramBuilder b = valid();
  EXPECT_EQ(refusal(b.program), "accepted");
  plan_memory(b.program);
  EXPECT_EQ(refusal(b.program), "accepted");
}

class ExecutorMistake : public ::testing::TestWithParam<Mistake> {};

TEST_P(ExecutorMistake, IsRefused) {
  ProgramBuilder b = valid();
  GetParam().make(b);
  const std::string message = refusal(b.program);
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(All, ExecutorMistake, ::testing::ValuesIn(mistakes()),
                         [](const auto& info) { return std::string(info.param.name); });

// A write to one part of a buffer leaves tensors in other parts readable.
TEST(ExecutorCheck, DisjointPartsOfABufferAreIndependent) {
  ProgramBuilder b({{"u", 2}});
  const TensorId x = b.source(SourceKind::kData, "x", {{4}, {4}}, {kWhole});
  const TensorId l = b.tensor("l", {{4}, {4}}, {kWhole});
  const TensorId r = b.over("r", l);
  b.at("r").geometry.offset = 16;
  b.program.buffers[static_cast<size_t>(b.at("l").buffer)].bytes = 128;
  b.compute(ops::neg, "ab->ab", {x}, {l}, {kNone});
  b.compute(ops::neg, "ab->ab", {x}, {r}, {kNone});
  const TensorId out = b.tensor("out", {{4}, {4}}, {kWhole});
  b.compute(ops::add, "ab,ab->ab", {l, r}, {out}, {kNone});
  EXPECT_EQ(refusal(b.program), "accepted");
  b.at("r").geometry.offset = 15;
  EXPECT_NE(refusal(b.program).find("l is read after"), std::string::npos);
}

// Writing through a slice may read other parts of the same buffer, but not what it writes.
TEST(ExecutorCheck, WriteSliceInPlace) {
  const auto program = [](int64_t start) {
    ProgramBuilder b({{"u", 2}});
    const TensorId x = b.source(SourceKind::kState, "x", {{8}, {4}}, {cut(1)});
    const TensorId part = b.tensor("part", {{2}, {4}}, {cut(1)});
    b.view(ops::slice, "Xc->Yc", x, part, {by('c')},
           {{"start", int64_t{0}}, {"stop", int64_t{2}}, {"step", int64_t{1}}, {"Y", int64_t{2}}});
    const TensorId next = b.over("next", x);
    b.compute(ops::write_slice, "Xc,Yc->Xc", {x, part}, {next}, {by('c')},
              {{"start", start}, {"stop", start + 2}, {"step", int64_t{1}}});
    b.source_named("x").final = next;
    return b.program;
  };
  EXPECT_EQ(refusal(program(2)), "accepted");
  EXPECT_NE(refusal(program(1)).find("next cannot be written over part"), std::string::npos);
}

// Where a shard of one factor lies, cut by several axes in several atoms, against plain counting.
TEST(ExecutorExtents, CutsFollowTheAtoms) {
  Mesh mesh{{{"u", 2}, {"v", 3}, {"w", 2}}};
  Instr instr;
  instr.signature = &Signature::get("a->a");
  instr.letter_atoms = {{4, 6, 5}};
  instr.splits = {{'a', 1, false}, {'a', 1, false}, {'a', 0, false}};
  for (int64_t rank = 0; rank < mesh.size(); ++rank) {
    const auto c = mesh.coordinates(rank);
    std::vector<int64_t> want;
    for (int64_t i = 0; i < 4 * 6 * 5; ++i) {
      const int64_t outer = i / 30, middle = i / 5 % 6;
      if (outer / 2 == c[2] && middle / 3 == c[0] && middle % 3 == c[1]) want.push_back(i);
    }
    const Extent e = local_extents(instr, mesh, c)[0];
    EXPECT_EQ(e.positions(), want) << rank;
    EXPECT_EQ(e.global, 120);
    EXPECT_EQ(e.local, local_sizes(instr, mesh)[0]);
  }
}

TEST(ExecutorText, OneLineAnInstruction) {
  ProgramBuilder b = valid();
  plan_memory(b.program);
  const std::string text = to_text(b.program);
  for (const char* line :
       {"mesh u 2 x v 2\n", "param w1: w1 f32[16, 16] u=replicate v=shard(0)\n",
        "   0 matmul bk,nk->bn [u: b, v: n]: x f32[4, 16] u=shard(0) v=replicate, w1 ",
        " scale bn->bn [u: b, v: partial]: y ", " all-reduce over v: ",
        " transpose bn->nb [u: b] view: ", "output loss: loss_all f32[]", "final w1: next\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

}  // namespace
}  // namespace cleave
