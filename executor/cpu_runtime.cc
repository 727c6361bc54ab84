#include "executor/cpu_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "executor/initial_state.h"
#include "executor/memory_layout.h"
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
};

double element_as_double(const TensorView& t, int64_t offset) {
  switch (t.dtype) {
    case DType::kF64: return t.as<double>()[offset];
    case DType::kF32: return t.as<float>()[offset];
    case DType::kI32: return t.as<int32_t>()[offset];
    case DType::kBF16: break;
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
        coordinates_(program.mesh.coordinates(rank)),
        options_(options),
        arena_(program.arena_bytes),
        communicator_(world, rank),
        team_(threads_of(program, options)),
        seconds_(program.instrs.size(), 0) {
    for (const Instr& instr : program.instrs) {
      if (is_view(program, instr)) continue;
      if (instr.phase != Phase::kUpdate) update_ = steps_.size() + 1;
      steps_.push_back(resolve(instr));
    }
  }

  // `first`: of the step's micro-batches; `last`: the update too.
  void run(bool first, bool last) {
    if (first) {
      communicator_.reset_counts();
      nonfinite_ = {};
      for (const ProgramSource& s : p_.sources) {
        if (s.kind == SourceKind::kAccumulator) clear(p_.tensor(s.tensor));
      }
    }
    // With one micro-batch, the order of the phases is free.
    const size_t end = last ? steps_.size() : update_;
    for (size_t i = 0; i < end; ++i) {
      try {
        if (options_.time_instructions) {
          timed(steps_[i]);
        } else {
          execute(steps_[i]);
        }
      } catch (const Error& e) {
        throw Error(place(steps_[i]) + e.what());
      } catch (const InternalError& e) {
        throw InternalError(place(steps_[i]) + e.what());
      }
      if (watched_ && nonfinite_.text.empty()) watch(steps_[i]);
    }
    communicator_.synchronize();
  }

  // The first result of this step that was not finite, though the operands were.
  struct Nonfinite {
    size_t instr = 0;
    std::string text;  // empty: none yet
  };
  const Nonfinite& nonfinite() const { return nonfinite_; }
  void set_watched(bool on) { watched_ = on; }
  const std::vector<double>& seconds() const { return seconds_; }

  std::byte* data(const ProgramTensor& t) const {
    return buffer(t) + t.geometry.offset * size_of(t.dtype);
  }
  TensorView view(TensorId id) const {
    const ProgramTensor& t = p_.tensor(id);
    return {numel(t.geometry.shape) == 0 ? nullptr : data(t), t.dtype, t.geometry.shape,
            t.geometry.strides};
  }
  const std::vector<int64_t>& coordinates() const { return coordinates_; }
  const Communicator& communicator() const { return communicator_; }

 private:
  std::byte* buffer(const ProgramTensor& t) const {
    return arena_.data() + p_.buffers[static_cast<size_t>(t.buffer)].offset;
  }

  void clear(const ProgramTensor& t) const {
    std::memset(data(t), 0, static_cast<size_t>(numel(t.geometry.shape) * size_of(t.dtype)));
  }

  void watch(const Step& step) {
    if (step.instr->kind != InstrKind::kCompute) return;
    for (const TensorView& out : step.out) {
      const int64_t bad = count_nonfinite(out);
      if (bad == 0) continue;
      nonfinite_.instr = static_cast<size_t>(step.instr - p_.instrs.data());
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

  std::string place(const Step& step) const {
    const auto index = static_cast<size_t>(step.instr - p_.instrs.data());
    return fmt::format("rank {}, {}: ", rank_, describe_instr(p_, index));
  }

  Step resolve(const Instr& instr) const {
    Step step;
    step.instr = &instr;
    if (instr.kind == InstrKind::kCompute) {
      if (instr.op->cpu == nullptr) fail("op {} has no kernel for the CPU", instr.op->name);
      for (TensorId t : instr.in) step.in.push_back(view(t));
      for (TensorId t : instr.out) step.out.push_back(view(t));
      step.extents = local_extents(instr, p_.mesh, coordinates_);
      return step;
    }
    for (size_t i = 0; i < instr.in.size(); ++i) {
      if (is_collective(instr.kind)) {
        CollectiveTensor t = collective_tensor(p_, instr, i);
        t.in = data(p_.tensor(instr.in[i]));
        t.out = data(p_.tensor(instr.out[i]));
        step.collectives.push_back(t);
      } else {
        step.copies.push_back(resolve_copy(instr, p_.tensor(instr.in[i]), p_.tensor(instr.out[i])));
      }
    }
    return step;
  }

  LocalCopy resolve_copy(const Instr& instr, const ProgramTensor& in,
                         const ProgramTensor& out) const {
    LocalCopy copy{out.geometry, in.geometry, buffer(out), buffer(in), size_of(in.dtype)};
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
    return static_cast<int>(std::max<int64_t>(1, usable_cores() / program.mesh.size()));
  }

  void timed(const Step& step) {
    const auto begin = std::chrono::steady_clock::now();
    execute(step);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    seconds_[static_cast<size_t>(step.instr - p_.instrs.data())] += passed.count();
  }

  void execute(const Step& step) {
    const Instr& instr = *step.instr;
    if (instr.kind == InstrKind::kCompute) {
      // The workspace lies at the top of the arena.
      const int64_t scratch = (p_.workspace_bytes + kArenaAlignment - 1) / kArenaAlignment;
      void* workspace = arena_.data() + p_.arena_bytes - scratch * kArenaAlignment;
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
  const std::vector<int64_t> coordinates_;
  const RunOptions options_;
  Arena arena_;
  ThreadCommunicator communicator_;
  ThreadTeam team_;
  std::vector<double> seconds_;  // by instruction
  std::vector<Step> steps_;
  size_t update_ = 0;  // how many of them come before the update; of one micro-batch: at most
  bool watched_ = false;
  Nonfinite nonfinite_;
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
  Impl(Program p, RunOptions o) : program(std::move(p)), options(o), world(program.mesh) {}

  size_t index_of(std::string_view name) const {
    for (size_t s = 0; s < program.sources.size(); ++s) {
      if (program.sources[s].name == name) return s;
    }
    fail("the program has no source '{}'", name);
  }

  const ProgramTensor& tensor_of(size_t source) const {
    return program.tensor(program.sources[source].tensor);
  }

  TensorType type_of(size_t source) const {
    return {tensor_of(source).dtype, tensor_of(source).layout.global_shape()};
  }

  size_t kept(std::string_view name) const {
    const size_t s = index_of(name);
    if (program.sources[s].kind == SourceKind::kData) {
      fail("'{}' is data, not kept from step to step", name);
    }
    return s;
  }

  void need_sound() const {
    if (!failure.empty()) throw InternalError("an earlier step has failed: " + failure);
  }

  // Gives every rank its part.
  void scatter(size_t source, std::span<const std::byte> whole) {
    need_sound();
    const ProgramTensor& t = tensor_of(source);
    const int64_t element = size_of(t.dtype);
    const int64_t bytes = numel(t.layout.atoms) * element;
    if (static_cast<int64_t>(whole.size()) != bytes) {
      fail("'{}' is {} of {} bytes, got {}", program.sources[source].name,
           to_string(type_of(source)), bytes, whole.size());
    }
    for (const auto& rank : ranks) {
      const Shard shard = shard_of(t.layout, program.mesh, rank->coordinates());
      std::byte* data = rank->data(t);
      for_each_run(t.layout, shard, [&](int64_t from, int64_t to, int64_t n) {
        std::memcpy(data + to * element, whole.data() + from * element,
                    static_cast<size_t>(n * element));
      });
    }
    filled[source] = true;
  }

  void gather(size_t source, std::vector<std::byte>& whole) const {
    need_sound();
    const ProgramSource& s = program.sources[source];
    if (!filled[source]) fail("{} '{}' has no value yet", name_of(s.kind), s.name);
    const ProgramTensor& t = tensor_of(source);
    const int64_t element = size_of(t.dtype);
    whole.resize(static_cast<size_t>(numel(t.layout.atoms) * element));
    for (size_t r = 0; r < ranks.size(); ++r) {
      const std::vector<int64_t>& c = ranks[r]->coordinates();
      // The first rank that holds a part gives it, the others are compared with it.
      bool first = true;
      for (size_t a = 0; a < c.size(); ++a) {
        first &= c[a] == 0 || t.layout.placements[a].is_shard();
      }
      const std::byte* data = ranks[r]->data(t);
      for_each_run(
          t.layout, shard_of(t.layout, program.mesh, c), [&](int64_t at, int64_t from, int64_t n) {
            std::byte* to = whole.data() + at * element;
            const auto bytes = static_cast<size_t>(n * element);
            if (first) {
              std::memcpy(to, data + from * element, bytes);
            } else if (std::memcmp(to, data + from * element, bytes) != 0) {
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

  // Runs all ranks once, and returns the seconds that took. `last`: of the step's micro-batches.
  double pass(bool last);

  Program program;
  const RunOptions options;
  ThreadWorld world;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<bool> filled;  // by source; of data: for the next step
  std::vector<CollectiveCount> promised;
  int64_t passes = 0;                    // of this step so far
  double seconds = 0;                    // that they took
  std::string failure;                   // what the first failed step said
  std::unique_ptr<RankThreads> threads;  // last: they stop before what they use is gone
};

CpuRuntime::CpuRuntime(Program program, RunOptions options)
    : impl_(std::make_unique<Impl>(std::move(program), options)) {
  Program& p = impl_->program;
  if (p.arena_bytes == 0) plan_memory(p);
  if (options.check) check(p);
  impl_->promised = count_collectives(p);
  impl_->filled.assign(p.sources.size(), false);
  impl_->ranks.resize(static_cast<size_t>(p.mesh.size()));
  impl_->threads =
      std::make_unique<RankThreads>(p.mesh.size(), [w = &impl_->world] { w->abort(); });
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
      if (s.kind == SourceKind::kData) continue;
      const ProgramTensor& t = p.tensor(s.tensor);
      fill_initial(s, t, p.mesh, rank.coordinates(), impl_->options.seed, rank.data(t));
    }
  });
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (p.sources[s].kind != SourceKind::kData) impl_->filled[s] = true;
  }
}

void CpuRuntime::set_data(std::string_view name, std::span<const std::byte> whole) {
  const size_t s = impl_->index_of(name);
  if (impl_->program.sources[s].kind != SourceKind::kData) fail("'{}' is not data", name);
  impl_->scatter(s, whole);
}

std::vector<std::byte> CpuRuntime::read_source(std::string_view name) const {
  std::vector<std::byte> whole;
  impl_->gather(impl_->kept(name), whole);
  return whole;
}

void CpuRuntime::read_source(std::string_view name, std::vector<std::byte>& whole) const {
  impl_->gather(impl_->kept(name), whole);
}

void CpuRuntime::write_source(std::string_view name, std::span<const std::byte> whole) {
  impl_->scatter(impl_->kept(name), whole);
}

double CpuRuntime::Impl::pass(bool last) {
  const Program& p = program;
  need_sound();
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (filled[s] || p.sources[s].kind == SourceKind::kAccumulator) continue;
    const bool data = p.sources[s].kind == SourceKind::kData;
    fail("{} '{}' has no value{}", name_of(p.sources[s].kind), p.sources[s].name,
         data ? " for this step" : ": initialize it");
  }
  CLEAVE_ASSERT(last == (passes + 1 == p.micro_batches), "pass {} of {} micro-batches {} the step",
                passes + 1, p.micro_batches, last ? "ends" : "does not end");
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (p.sources[s].kind == SourceKind::kData) filled[s] = false;
  }
  const auto begin = std::chrono::steady_clock::now();
  const bool first = passes == 0;
  run_on_ranks([&](int64_t r) { ranks[static_cast<size_t>(r)]->run(first, last); });
  const auto end = std::chrono::steady_clock::now();
  passes = last ? 0 : passes + 1;
  return std::chrono::duration<double>(end - begin).count();
}

void CpuRuntime::accumulate() { impl_->seconds += impl_->pass(false); }

void CpuRuntime::watch(bool on) {
  for (const auto& rank : impl_->ranks) rank->set_watched(on);
}

StepResult CpuRuntime::step() {
  const Program& p = impl_->program;
  StepResult result;
  result.seconds = impl_->pass(true) + std::exchange(impl_->seconds, 0);
  result.collectives = impl_->ranks[0]->communicator().counts();
  for (const auto& rank : impl_->ranks) {
    const auto& counts = rank->communicator().counts();
    if (!as_promised(counts, impl_->promised)) {
      throw InternalError(fmt::format("executed {}, but the program promises {}",
                                      to_string(counts, p.mesh),
                                      to_string(impl_->promised, p.mesh)));
    }
  }
  const Rank* first = nullptr;
  for (const auto& rank : impl_->ranks) {
    if (rank->nonfinite().text.empty()) continue;
    if (first == nullptr || rank->nonfinite().instr < first->nonfinite().instr) first = rank.get();
  }
  if (first != nullptr) result.first_nonfinite = first->nonfinite().text;
  for (const ProgramOutput& o : p.outputs) {
    const TensorView view = impl_->ranks[0]->view(o.tensor);
    result.outputs.push_back({o.name, view.shape, values_of(view)});
    for (size_t r = 1; impl_->options.compare_ranks && r < impl_->ranks.size(); ++r) {
      if (!same_bits(values_of(impl_->ranks[r]->view(o.tensor)), result.outputs.back().values)) {
        throw InternalError(fmt::format("output '{}' of rank {} differs from rank 0's", o.name, r));
      }
    }
  }
  return result;
}

double StepResult::value(std::string_view name) const {
  for (const StepOutput& o : outputs) {
    if (o.name != name) continue;
    if (o.values.size() != 1) fail("output '{}' is {}, not one number", name, to_string(o.shape));
    return o.values[0];
  }
  fail("there is no output '{}'", name);
}

}  // namespace cleave
