#include "executor/cpu_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <new>
#include <optional>
#include <utility>

#include "executor/initial_state.h"
#include "executor/memory_layout.h"
#include "executor/narrow_source.h"
#include "executor/rank_threads.h"
#include "executor/run_info.h"
#include "executor/shards.h"
#include "executor/thread_communicator.h"
#include "executor/typing.h"
#include "graph/error.h"
#include "graph/thread_team.h"

namespace cleave {
namespace {

// One rank's memory; every byte starts as 0xff, which as a float is NaN. Large ones ask for huge
// pages: a step walks through all of it.
class Arena {
 public:
  explicit Arena(int64_t bytes) : bytes_(static_cast<size_t>(std::max<int64_t>(bytes, 1))) {
    data_ = static_cast<std::byte*>(::operator new(bytes_, kAlignment));
#ifdef MADV_HUGEPAGE
    ::madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: it may fail
#endif
    std::memset(data_, 0xff, bytes_);
  }
  ~Arena() { ::operator delete(data_, kAlignment); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{2 << 20};  // a huge page's
  size_t bytes_;
  std::byte* data_;
};

// A copy between two tensors of the same local shape.
struct LocalCopy {
  Geometry to, from;
  std::byte *to_base, *from_base;  // of the buffers
  int64_t element;                 // bytes
  bool zero = false;               // write zeros instead
};

// An instruction with everything looked up for one rank.
struct Step {
  const Instr* instr = nullptr;
  std::vector<TensorView> in, out;            // compute
  std::vector<Extent> extents;                // compute
  std::vector<CollectiveTensor> collectives;  // collectives
  std::vector<LocalCopy> copies;              // slice, mask, copy
  std::vector<TensorView> messages;           // send, receive: the one tensor
};

using Clock = std::chrono::steady_clock;

// What all ranks are given for a step's micro-batches: whole tensors, by micro-batch and source.
using StepData = std::vector<std::vector<std::vector<std::byte>>>;

double element_as_double(const TensorView& t, int64_t offset) {
  switch (t.dtype) {
    case DType::kF64: return t.as<double>()[offset];
    case DType::kF32: return t.as<float>()[offset];
    case DType::kI32: return t.as<int32_t>()[offset];
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16: break;
  }
  fail("an output in {} cannot be read", name_of(t.dtype));
}

// The elements in row-major order.
std::vector<double> values_of(const TensorView& t) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(t.numel()));
  Shape at(t.shape.size(), 0);
  for (int64_t i = 0, offset = 0; i < t.numel(); ++i) {
    values.push_back(element_as_double(t, offset));
    for (size_t d = at.size(); d-- > 0;) {
      offset += t.strides[d];
      if (++at[d] < t.shape[d]) break;
      offset -= at[d] * t.strides[d];
      at[d] = 0;
    }
  }
  return values;
}

int64_t count_nonfinite(const TensorView& t) {
  if (!is_float(t.dtype)) return 0;
  const std::vector<double> values = values_of(t);
  return std::count_if(values.begin(), values.end(), [](double x) { return !std::isfinite(x); });
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// One rank: its memory, its end of the communicator, its steps.
class Rank {
 public:
  Rank(const Program& program, ThreadWorld& world, int64_t rank, const RunOptions& options)
      : p_(program),
        rank_(rank),
        stage_(static_cast<int32_t>(rank / program.mesh.size())),
        coordinates_(program.mesh.coordinates(rank % program.mesh.size())),
        memory_(program.memory[static_cast<size_t>(stage_)]),
        options_(options),
        arena_(memory_.arena_bytes),
        host_(memory_.host_bytes),
        communicator_(world, rank),
        team_(threads_of(program, options)),
        order_(step_order(program, stage_)),
        seconds_(program.instrs.size(), 0) {
    for (PartRun run : order_) {
      const int32_t slots = once_a_step(run.part) ? 1 : slots_of(p_, run.chunk);
      auto& by_slot = steps_[{run.part, run.chunk}];
      if (!by_slot.empty()) continue;
      by_slot.resize(static_cast<size_t>(slots));
      for (int32_t slot = 0; slot < slots; ++slot) {
        run.micro_batch = slot;
        for (const Instr& instr : program.instrs) {
          if (runs(p_, run, instr) && !is_view(program, instr))
            by_slot[static_cast<size_t>(slot)].push_back(resolve(instr, slot));
        }
      }
    }
  }

  // Runs the micro-batches [first, last) of a step with their data, and what begins and ends it.
  // `begun`: when the step did.
  void run(int64_t first, int64_t last, const StepData& data, Clock::time_point begun) {
    if (first == 0) {
      communicator_.reset_counts();
      nonfinite_ = {};
      runs_.clear();
      begun_ = begun;
      for (const ProgramSource& s : p_.sources) {
        if (s.kind == SourceKind::kAccumulator && p_.stage_of(s.chunk) == stage_)
          clear(p_.tensor(s.tensor));
      }
    }
    for (const PartRun& run : order_) {
      const bool now = run.part == Part::kBegin ? first == 0
                       : run.part == Part::kUpdate
                           ? last == p_.micro_batches()
                           : run.micro_batch >= first && run.micro_batch < last;
      if (now) run_part(run, data);
    }
    communicator_.synchronize();
  }

  // Fills this rank's part of a source of one micro-batch from the whole.
  void scatter(const ProgramTensor& t, std::span<const std::byte> whole,
               int64_t micro_batch) const {
    const int64_t element = size_of(t.dtype);
    const Shard shard = shard_of(t.layout, p_.mesh, coordinates_);
    std::byte* to_base = data(t, micro_batch);
    for_each_run(t.layout, shard, [&](int64_t from, int64_t to, int64_t n) {
      std::memcpy(to_base + to * element, whole.data() + from * element,
                  static_cast<size_t>(n * element));
    });
  }

  // The first result of this step that was not finite, though the operands were.
  struct Nonfinite {
    // Earlier where one can have caused the other: by part, chunk in the part's direction, and
    // instruction. Micro-batches do not meet before the update.
    std::array<int64_t, 3> when = {};
    std::string text;  // empty: none yet
  };
  const Nonfinite& nonfinite() const { return nonfinite_; }
  void set_watched(bool on) { watched_ = on; }
  void set_recorded(bool on) { recorded_ = on; }
  const std::vector<InstrRun>& recording() const { return runs_; }  // of this step, when recorded
  const std::vector<double>& seconds() const { return seconds_; }

  std::byte* data(const ProgramTensor& t, int64_t micro_batch = 0) const {
    return buffer(t, micro_batch) + t.geometry.offset * size_of(t.dtype);
  }
  TensorView view(TensorId id, int64_t micro_batch = 0) const {
    const ProgramTensor& t = p_.tensor(id);
    return {numel(t.geometry.shape) == 0 ? nullptr : data(t, micro_batch), t.dtype,
            t.geometry.shape, t.geometry.strides};
  }
  const std::vector<int64_t>& coordinates() const { return coordinates_; }
  int32_t stage() const { return stage_; }
  const Communicator& communicator() const { return communicator_; }

 private:
  std::byte* buffer(const ProgramTensor& t, int64_t micro_batch) const {
    const Buffer& b = p_.buffers[static_cast<size_t>(t.buffer)];
    return (b.host ? host_ : arena_).data() + b.offset_of(micro_batch);
  }

  void run_part(const PartRun& run, const StepData& data) {
    if (run.part == Part::kForward || run.part == Part::kUpdate) fill(run, data);
    const auto& by_slot = steps_.at({run.part, run.chunk});
    for (const Step& step : by_slot[static_cast<size_t>(run.micro_batch) % by_slot.size()]) {
      try {
        if (options_.time_instructions || recorded_) {
          timed(step, run);
        } else {
          execute(step, run);
        }
      } catch (const Error& e) {
        throw Error(place(step) + e.what());
      } catch (const InternalError& e) {
        throw InternalError(place(step) + e.what());
      }
      if (watched_ && nonfinite_.text.empty()) watch(step);
    }
  }

  void fill(const PartRun& run, const StepData& data) const {
    for (size_t i = 0; i < p_.sources.size(); ++i) {
      const ProgramSource& s = p_.sources[i];
      if (s.kind != SourceKind::kData || s.part != run.part) continue;
      const bool here =
          run.part == Part::kUpdate ? p_.stage_of(s.chunk) == stage_ : s.chunk == run.chunk;
      if (here) {
        scatter(p_.tensor(s.tensor), data[static_cast<size_t>(run.micro_batch)][i],
                run.micro_batch);
      }
    }
  }

  void clear(const ProgramTensor& t) const {
    std::memset(data(t), 0, static_cast<size_t>(numel(t.geometry.shape) * size_of(t.dtype)));
  }

  void watch(const Step& step) {
    if (step.instr->kind != InstrKind::kCompute) return;
    for (const TensorView& out : step.out) {
      const int64_t bad = count_nonfinite(out);
      if (bad == 0) continue;
      nonfinite_.when = when(*step.instr);
      nonfinite_.text = fmt::format("{} at {} makes {} of {} numbers NaN or infinite",
                                    step.instr->op->name, step.instr->where, bad, out.numel());
      for (size_t i = 0; i < step.in.size(); ++i) {
        // An operand that was overwritten cannot be looked at any more.
        if (step.in[i].data == out.data || count_nonfinite(step.in[i]) == 0) continue;
        nonfinite_.text += fmt::format("; its operand {} ({}) held some", i + 1,
                                       p_.tensor(step.instr->in[i]).name);
        break;
      }
      return;
    }
  }

  std::array<int64_t, 3> when(const Instr& instr) const {
    const bool backward = instr.part == Part::kBackward || instr.part == Part::kWeightGradient;
    const auto part = static_cast<int64_t>(backward ? Part::kBackward : instr.part);
    if (once_a_step(instr.part)) return {part, 0, instr.node};
    return {part, backward ? -instr.chunk : instr.chunk, &instr - p_.instrs.data()};
  }

  std::string place(const Step& step) const {
    const auto index = static_cast<size_t>(step.instr - p_.instrs.data());
    return fmt::format("rank {}, {}: ", rank_, describe_instr(p_, index));
  }

  Step resolve(const Instr& instr, int64_t slot) const {
    Step step;
    step.instr = &instr;
    if (instr.kind == InstrKind::kCompute) {
      if (instr.op->cpu == nullptr) fail("op {} has no kernel for the CPU", instr.op->name);
      for (TensorId t : instr.in) step.in.push_back(view(t, slot));
      for (TensorId t : instr.out) step.out.push_back(view(t, slot));
      step.extents = local_extents(instr, p_.mesh, coordinates_);
      return step;
    }
    if (instr.kind == InstrKind::kSend || instr.kind == InstrKind::kReceive) {
      step.messages = {view(instr.kind == InstrKind::kSend ? instr.in[0] : instr.out[0], slot)};
      return step;
    }
    for (size_t i = 0; i < instr.in.size(); ++i) {
      if (is_collective(instr.kind)) {
        CollectiveTensor t = collective_tensor(p_, instr, i);
        t.in = data(p_.tensor(instr.in[i]), slot);
        t.out = data(p_.tensor(instr.out[i]), slot);
        step.collectives.push_back(t);
      } else {
        step.copies.push_back(
            resolve_copy(instr, p_.tensor(instr.in[i]), p_.tensor(instr.out[i]), slot));
      }
    }
    return step;
  }

  LocalCopy resolve_copy(const Instr& instr, const ProgramTensor& in, const ProgramTensor& out,
                         int64_t slot) const {
    LocalCopy copy{out.geometry, in.geometry, buffer(out, slot), buffer(in, slot),
                   size_of(in.dtype)};
    if (instr.kind == InstrKind::kCopy) return copy;
    const auto axis = static_cast<size_t>(instr.axis);
    if (instr.kind == InstrKind::kMask) {
      copy.zero = coordinates_[axis] != 0;
      return copy;
    }
    // A slice: the operand seen by atoms, from where this rank's part begins.
    const auto sizes = out.layout.local_atoms(p_.mesh);
    const auto atom = static_cast<size_t>(out.layout.placements[axis].atom);
    copy.to = by_atoms(out.geometry, out.layout, sizes);
    copy.from = by_atoms(in.geometry, in.layout, in.layout.local_atoms(p_.mesh));
    copy.from.offset += coordinates_[axis] * sizes[atom] * copy.from.strides[atom];
    copy.from.shape = sizes;
    return copy;
  }

  static int threads_of(const Program& program, const RunOptions& options) {
    if (options.threads > 0) return options.threads;
    return static_cast<int>(std::max<int64_t>(1, usable_cores() / program.ranks()));
  }

  void timed(const Step& step, const PartRun& run) {
    const auto begin = Clock::now();
    execute(step, run);
    const std::chrono::duration<double> passed = Clock::now() - begin, before = begin - begun_;
    const auto index = step.instr - p_.instrs.data();
    seconds_[static_cast<size_t>(index)] += passed.count();
    if (!recorded_) return;
    runs_.push_back({static_cast<int32_t>(index), once_a_step(run.part) ? 0 : run.micro_batch,
                     before.count(), passed.count()});
  }

  // Messages are packed: as many bytes as the tensor has elements.
  void exchange(const Step& step, const PartRun& run) {
    const Instr& instr = *step.instr;
    const TensorView& t = step.messages[0];
    const bool send = instr.kind == InstrKind::kSend;
    const int64_t other = p_.stage_of(instr.peer) * p_.mesh.size() + rank_ % p_.mesh.size();
    const Message message{.to = send ? other : rank_,
                          .from = send ? rank_ : other,
                          .transfer = instr.node,
                          .micro_batch = once_a_step(run.part) ? 0 : run.micro_batch};
    const int64_t element = size_of(t.dtype);
    const auto bytes = static_cast<size_t>(t.numel() * element);
    std::byte* data = static_cast<std::byte*>(t.data);
    if (!t.contiguous()) {
      packed_.resize(bytes);
      data = packed_.data();
    }
    const Geometry packed{0, t.shape, contiguous_strides(t.shape)}, lies{0, t.shape, t.strides};
    if (!send) {
      communicator_.receive(message, {data, bytes});
      if (!t.contiguous())
        copy_strided(lies, static_cast<std::byte*>(t.data), packed, data, element);
      return;
    }
    if (!t.contiguous())
      copy_strided(packed, data, lies, static_cast<const std::byte*>(t.data), element);
    communicator_.send(message, {data, bytes});
  }

  void execute(const Step& step, const PartRun& run) {
    const Instr& instr = *step.instr;
    if (!step.messages.empty()) {
      exchange(step, run);
    } else if (instr.kind == InstrKind::kCompute) {
      // The workspace lies at the top of the arena.
      const int64_t scratch = (memory_.workspace_bytes + kArenaAlignment - 1) / kArenaAlignment;
      void* workspace = arena_.data() + memory_.arena_bytes - scratch * kArenaAlignment;
      instr.op->cpu({.signature = *instr.signature,
                     .attrs = instr.attrs,
                     .in = step.in,
                     .out = step.out,
                     .extents = step.extents,
                     .workspace = workspace,
                     .seed = options_.seed,
                     .team = &team_});
    } else if (is_collective(instr.kind)) {
      communicator_.run(instr.kind, instr.axis, instr.reduction, step.collectives);
    } else {
      for (const LocalCopy& c : step.copies) {
        if (c.zero) {
          fill_zero(c.to, c.to_base, c.element);
        } else {
          copy_strided(c.to, c.to_base, c.from, c.from_base, c.element);
        }
      }
    }
  }

  const Program& p_;
  const int64_t rank_;
  const int32_t stage_;
  const std::vector<int64_t> coordinates_;  // on the stage's mesh
  const StageMemory memory_;
  const RunOptions options_;
  Arena arena_, host_;  // the device's memory, and the host's part
  ThreadCommunicator communicator_;
  ThreadTeam team_;
  const std::vector<PartRun> order_;
  std::vector<double> seconds_;  // by instruction
  // By part and chunk as in the order, then by slot.
  std::map<std::pair<Part, int32_t>, std::vector<std::vector<Step>>> steps_;
  std::vector<std::byte> packed_;  // a message
  bool watched_ = false, recorded_ = false;
  Nonfinite nonfinite_;
  std::vector<InstrRun> runs_;
  Clock::time_point begun_;
};

// Whether the counts are those promised. Sums of bytes over three ranks are not exact.
bool as_promised(const std::vector<CollectiveCount>& got,
                 const std::vector<CollectiveCount>& want) {
  return std::equal(got.begin(), got.end(), want.begin(), want.end(),
                    [](const CollectiveCount& a, const CollectiveCount& b) {
                      return a.kind == b.kind && a.axis == b.axis && a.count == b.count &&
                             std::abs(a.bytes - b.bytes) <= 1e-9 * b.bytes;
                    });
}

}  // namespace

struct CpuRuntime::Impl {
  Impl(Program p, RunOptions o)
      : program(std::move(p)), options(o), world(program.mesh, program.stages()) {}

  size_t index_of(std::string_view name) const {
    for (size_t s = 0; s < program.sources.size(); ++s) {
      if (program.sources[s].name == name) return s;
    }
    fail("the program has no source '{}'", name);
  }

  const ProgramTensor& tensor_of(size_t source) const {
    return program.tensor(program.sources[source].tensor);
  }

  TensorType type_of(size_t source) const { return outer_type(program, program.sources[source]); }

  size_t kept(std::string_view name) const {
    const size_t s = index_of(name);
    CLEAVE_ASSERT(!program.sources[s].is_rest, "'{}' is not seen from outside", name);
    if (program.sources[s].kind == SourceKind::kData) {
      fail("'{}' is data, not kept from step to step", name);
    }
    return s;
  }

  void need_sound() const {
    if (!failure.empty()) throw InternalError("an earlier step has failed: " + failure);
  }

  // The sources of this name: data may be fed to several chunks.
  std::vector<size_t> all_of(std::string_view name) const {
    std::vector<size_t> found;
    for (size_t s = 0; s < program.sources.size(); ++s) {
      if (program.sources[s].name == name) found.push_back(s);
    }
    return found;
  }

  void check_size(size_t source, std::span<const std::byte> whole) const {
    const int64_t bytes = numel(type_of(source).shape) * size_of(type_of(source).dtype);
    if (static_cast<int64_t>(whole.size()) != bytes) {
      fail("'{}' is {} of {} bytes, got {}", program.sources[source].name,
           to_string(type_of(source)), bytes, whole.size());
    }
  }

  bool holds(const Rank& rank, size_t source) const {
    return program.stage_of(program.sources[source].chunk) == rank.stage();
  }

  void write(size_t source, std::span<const std::byte> whole) {
    need_sound();
    check_size(source, whole);
    const ProgramSource& s = program.sources[source];
    if (!s.narrow) return scatter(source, whole);
    const NarrowBytes parts = split_f32s(whole);
    scatter(source, parts.narrow);
    if (s.rest >= 0) scatter(static_cast<size_t>(s.rest), parts.rest);
  }

  void read(size_t source, std::vector<std::byte>& whole) const {
    need_sound();
    const ProgramSource& s = program.sources[source];
    if (!s.narrow) return gather(source, whole);
    if (s.rest < 0) fail("'{}' is kept in bf16 alone here", s.name);
    NarrowBytes parts;
    gather(source, parts.narrow);
    gather(static_cast<size_t>(s.rest), parts.rest);
    join_f32s(parts, whole);
  }

  // Gives every rank its part, as the program keeps it.
  void scatter(size_t source, std::span<const std::byte> whole) {
    for (const auto& rank : ranks) {
      if (holds(*rank, source)) rank->scatter(tensor_of(source), whole, 0);
    }
    filled[source] = true;
  }

  // Keeps the data of the micro-batch that comes next.
  void keep(std::string_view name, std::span<const std::byte> whole) {
    need_sound();
    for (size_t source : all_of(name)) {
      check_size(source, whole);
      std::vector<std::byte>& kept = data[static_cast<size_t>(given)][source];
      kept.assign(whole.begin(), whole.end());
      filled[source] = true;
    }
  }

  void gather(size_t source, std::vector<std::byte>& whole) const {
    const ProgramSource& s = program.sources[source];
    if (!filled[source]) fail("{} '{}' has no value yet", name_of(s.kind), s.name);
    const ProgramTensor& t = tensor_of(source);
    const int64_t element = size_of(t.dtype);
    whole.resize(static_cast<size_t>(numel(t.layout.atoms) * element));
    for (size_t r = 0; r < ranks.size(); ++r) {
      if (!holds(*ranks[r], source)) continue;
      const std::vector<int64_t>& c = ranks[r]->coordinates();
      // The first rank that holds a part gives it, the others are compared with it.
      bool first = true;
      for (size_t a = 0; a < c.size(); ++a) {
        first &= c[a] == 0 || t.layout.placements[a].is_shard();
      }
      const std::byte* part = ranks[r]->data(t);
      for_each_run(
          t.layout, shard_of(t.layout, program.mesh, c), [&](int64_t at, int64_t from, int64_t n) {
            std::byte* to = whole.data() + at * element;
            const auto bytes = static_cast<size_t>(n * element);
            if (first) {
              std::memcpy(to, part + from * element, bytes);
            } else if (std::memcmp(to, part + from * element, bytes) != 0) {
              throw InternalError(fmt::format(
                  "rank {} holds other bits of '{}' than the first rank with its part", r, s.name));
            }
          });
    }
  }

  void run_on_ranks(const std::function<void(int64_t)>& work) {
    need_sound();
    try {
      threads->run(work);
    } catch (const std::exception& e) {
      failure = e.what();
      throw;
    }
  }

  // Takes the data that were set as those of the next micro-batch, and runs what can be run of the
  // step so far. `last`: of the step's micro-batches.
  void pass(bool last);

  Program program;
  const RunOptions options;
  ThreadWorld world;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<bool> filled;  // by source; of data: for the next micro-batch
  StepData data;
  std::vector<std::vector<CollectiveCount>> promised;  // by stage
  int64_t given = 0, run = 0;            // micro-batches of this step: with their data, run
  double seconds = 0;                    // that they took
  Clock::time_point begun;               // this step
  std::deque<StepResult> results;        // of steps that are not finished
  std::string failure;                   // what the first failed step said
  std::unique_ptr<RankThreads> threads;  // last: they stop before what they use is gone
};

CpuRuntime::CpuRuntime(Program program, RunOptions options)
    : impl_(std::make_unique<Impl>(std::move(program), options)) {
  Program& p = impl_->program;
  if (p.arena_bytes == 0) plan_memory(p);
  if (options.check) check(p);
  for (int32_t s = 0; s < p.stages(); ++s) impl_->promised.push_back(count_collectives(p, s));
  impl_->filled.assign(p.sources.size(), false);
  impl_->data.assign(static_cast<size_t>(p.micro_batches()),
                     std::vector<std::vector<std::byte>>(p.sources.size()));
  impl_->ranks.resize(static_cast<size_t>(p.ranks()));
  impl_->threads = std::make_unique<RankThreads>(p.ranks(), [w = &impl_->world] { w->abort(); });
  // Each rank makes its own memory, which the system then puts near the rank's core.
  impl_->run_on_ranks([this](int64_t r) {
    impl_->ranks[static_cast<size_t>(r)] =
        std::make_unique<Rank>(impl_->program, impl_->world, r, impl_->options);
  });
}

CpuRuntime::~CpuRuntime() = default;

const std::vector<double>& CpuRuntime::instruction_seconds(int64_t rank) const {
  return impl_->ranks[static_cast<size_t>(rank)]->seconds();
}

const Program& CpuRuntime::program() const { return impl_->program; }

TensorType CpuRuntime::source_type(std::string_view name) const {
  return impl_->type_of(impl_->index_of(name));
}

void CpuRuntime::initialize() {
  const Program& p = impl_->program;
  impl_->run_on_ranks([&](int64_t r) {
    const Rank& rank = *impl_->ranks[static_cast<size_t>(r)];
    for (const ProgramSource& s : p.sources) {
      if (s.kind == SourceKind::kData || s.is_rest || p.stage_of(s.chunk) != rank.stage()) continue;
      const ProgramTensor& t = p.tensor(s.tensor);
      std::byte* const rest =
          s.rest < 0 ? nullptr : rank.data(impl_->tensor_of(static_cast<size_t>(s.rest)));
      fill_initial({s, t, rank.data(t), rest}, p.mesh, rank.coordinates(), impl_->options.seed);
    }
  });
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (p.sources[s].kind != SourceKind::kData) impl_->filled[s] = true;
  }
}

void CpuRuntime::set_data(std::string_view name, std::span<const std::byte> whole) {
  const size_t s = impl_->index_of(name);
  if (impl_->program.sources[s].kind != SourceKind::kData) fail("'{}' is not data", name);
  impl_->keep(name, whole);
}

void CpuRuntime::read_source(std::string_view name, std::vector<std::byte>& whole) const {
  impl_->read(impl_->kept(name), whole);
}

void CpuRuntime::write_source(std::string_view name, std::span<const std::byte> whole) {
  impl_->write(impl_->kept(name), whole);
}

void CpuRuntime::Impl::pass(bool last) {
  const Program& p = program;
  need_sound();
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (filled[s] || p.sources[s].kind == SourceKind::kAccumulator) continue;
    const bool is_data = p.sources[s].kind == SourceKind::kData;
    fail("{} '{}' has no value{}", name_of(p.sources[s].kind), p.sources[s].name,
         is_data ? " for this step" : ": initialize it");
  }
  CLEAVE_ASSERT(last == (given + 1 == p.micro_batches()), "pass {} of {} micro-batches {} the step",
                given + 1, p.micro_batches(), last ? "ends" : "does not end");
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (p.sources[s].kind == SourceKind::kData) filled[s] = false;
  }
  ++given;
  if (!last && p.stages() > 1) return;
  const auto begin = Clock::now();
  if (run == 0) begun = begin;
  run_on_ranks([&](int64_t r) { ranks[static_cast<size_t>(r)]->run(run, given, data, begun); });
  const auto end = Clock::now();
  seconds += std::chrono::duration<double>(end - begin).count();
  run = given;
  if (last) given = run = 0;
}

void CpuRuntime::accumulate() { impl_->pass(false); }

void CpuRuntime::watch(bool on) {
  for (const auto& rank : impl_->ranks) rank->set_watched(on);
}

void CpuRuntime::record(bool on) {
  for (const auto& rank : impl_->ranks) rank->set_recorded(on);
}

StepResult CpuRuntime::finish() {
  CLEAVE_ASSERT(!impl_->results.empty(), "no step was started");
  StepResult result = std::move(impl_->results.front());
  impl_->results.pop_front();
  return result;
}

void CpuRuntime::start() {
  const Program& p = impl_->program;
  StepResult result;
  impl_->pass(true);
  result.seconds = std::exchange(impl_->seconds, 0);
  CollectiveCounter executed;
  for (size_t r = 0; r < impl_->ranks.size(); ++r) {
    const Rank& rank = *impl_->ranks[r];
    const auto& counts = rank.communicator().counts();
    const auto& promised = impl_->promised[static_cast<size_t>(rank.stage())];
    if (!as_promised(counts, promised)) {
      throw InternalError(fmt::format("executed {}, but the program promises {}",
                                      to_string(counts, p.mesh), to_string(promised, p.mesh)));
    }
    if (static_cast<int64_t>(r) % p.mesh.size() != 0) continue;
    for (const CollectiveCount& c : counts)
      executed.add(c.kind, c.axis, c.bytes / static_cast<double>(c.count), c.count);
  }
  result.collectives = executed.counts();
  const Rank* first = nullptr;
  for (const auto& rank : impl_->ranks) {
    if (rank->nonfinite().text.empty()) continue;
    if (first == nullptr || rank->nonfinite().when < first->nonfinite().when) first = rank.get();
  }
  if (first != nullptr) result.first_nonfinite = first->nonfinite().text;
  for (const ProgramOutput& o : p.outputs) {
    const auto begin = static_cast<size_t>(p.stage_of(p.tensor(o.tensor).chunk) * p.mesh.size());
    const TensorView view = impl_->ranks[begin]->view(o.tensor);
    result.outputs.push_back({o.name, view.shape, values_of(view)});
    const size_t end = begin + static_cast<size_t>(p.mesh.size());
    for (size_t r = begin + 1; impl_->options.compare_ranks && r < end; ++r) {
      if (!same_bits(values_of(impl_->ranks[r]->view(o.tensor)), result.outputs.back().values)) {
        throw InternalError(
            fmt::format("output '{}' of rank {} differs from rank {}'s", o.name, r, begin));
      }
    }
  }
  if (!impl_->ranks[0]->recording().empty()) {
    for (const auto& rank : impl_->ranks) result.runs.push_back(rank->recording());
  }
  impl_->results.push_back(std::move(result));
}

}  // namespace cleave
