#include "executor/cuda/cuda_runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "executor/cuda/captured_graph.h"
#include "executor/cuda/elements.h"
#include "executor/cuda/memory.h"
#include "executor/cuda/product_trials.h"
#include "executor/cuda/ranges.h"
#include "executor/cuda/recorder.h"
#include "executor/initial_state.h"
#include "executor/instr_batches.h"
#include "executor/memory_layout.h"
#include "executor/narrow_source.h"
#include "executor/typing.h"
#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/generated.h"
#include "kernels/cuda/products.h"

namespace cleave {
namespace {

// A step's instruction with everything looked up.
struct Launch {
  const Instr* instr = nullptr;
  std::vector<TensorView> in, out;
  std::vector<Extent> extents;
  int64_t workspace = 0;  // bytes from the program's workspace to its own
};
using Launches = std::vector<Launch>;  // of an InstrBatch

// A step that was started: when it begins and ends on the device, and what it finds.
struct Flight {
  cudaEvent_t begun = nullptr, ended = nullptr;
  std::unique_ptr<PinnedMemory> results;  // its outputs
  std::vector<InstrRun> runs;             // when recorded
  std::string nonfinite;                  // when watched
};

// Where a program's memory lies: all of it in one arena, or in that of a runtime beside it, with
// its parameters and states there too.
struct Places {
  std::byte* base = nullptr;          // of offset 0
  int64_t kept = 0;                   // bytes at the bottom, of what outlives a step
  std::vector<std::byte*> elsewhere;  // by buffer; null: at its offset
};

// The parts of a step that are captured, each with what runs before it. kRefresh: what is kept from
// step to step, when sources were set.
enum Section : size_t { kRefresh, kOnce, kPass, kUpdate, kSections };

Section section_of(Part part) {
  switch (part) {
    case Part::kBegin: return kOnce;
    case Part::kForward:
    case Part::kBackward:
    case Part::kWeightGradient: return kPass;
    case Part::kUpdate: return kUpdate;
  }
  return kPass;
}

}  // namespace

struct CudaRuntime::Impl final : TriedPass {
  // The constructor below delegates to this one, so that the destructor runs when it throws.
  struct Empty {};
  Impl(Empty, Program p, RunOptions o)
      : program(prepared(std::move(p), o)),
        options(o),
        context(0),
        lent(lent_memory()),
        arena(lent ? 0 : program.arena_bytes),
        places(lent ? *lent : Places{arena.data(), 0, {}}),
        coordinates(program.mesh.coordinates(0)),
        filled(program.sources.size(), false),
        staged(program.sources.size()),
        seconds(program.instrs.size(), 0) {}
  Impl(Program p, RunOptions o) : Impl(Empty{}, std::move(p), o) {
    context.tf32 = options.tf32;
    if (options.any_order) {
      context.tensor_core_attention = context.deterministic_attention = false;
      context.product_search.any_order = true;
    }
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cuda_check(cudaEventCreate(&copied));
    cuda_check(cudaEventRecord(copied, stream));
    resolve_sections();
    size_t bytes = 0;
    for (const ProgramOutput& out : program.outputs) {
      bytes += static_cast<size_t>(span_of(program.tensor(out.tensor)));
    }
    for (Flight& f : flights) {
      cuda_check(cudaEventCreate(&f.begun));
      cuda_check(cudaEventCreate(&f.ended));
      f.results = std::make_unique<PinnedMemory>(bytes);
    }
    for (size_t s = 0; lent && s < program.sources.size(); ++s) {
      filled[s] = program.sources[s].kind != SourceKind::kData;  // by the one who lends it
    }
    warm_up();
    for (size_t s = 0; s < kSections; ++s) capture(static_cast<Section>(s));
    poison();
  }

  ~Impl() override {
    if (stream != nullptr) cudaStreamSynchronize(stream);
    for (CapturedGraph& graph : graphs) graph.reset();
    for (const Flight& f : flights) {
      if (f.begun != nullptr) cudaEventDestroy(f.begun);
      if (f.ended != nullptr) cudaEventDestroy(f.ended);
    }
    if (copied != nullptr) cudaEventDestroy(copied);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }

  static Program prepared(Program p, const RunOptions& options) {
    if (p.ranks() != 1) fail("a GPU runs one rank, and the plan has {}", p.ranks());
    for (const ProgramSource& s : p.sources) {
      if (s.on_host) fail("{} lies on the host: plan with --pin offload=off for a GPU", s.name);
    }
    for (const Instr& instr : p.instrs) {
      if (instr.kind == InstrKind::kCompute && !is_view(p, instr) && instr.op->cuda == nullptr) {
        fail("op {} has no kernel for the GPU ({})", instr.op->name, instr.where);
      }
    }
    p.gpu = true;
    plan_memory(p);
    if (options.check) check(p);
    return p;
  }

  // --- Memory ------------------------------------------------------------------------------------

  std::byte* data(const ProgramTensor& t) const {
    const Buffer& b = program.buffers[static_cast<size_t>(t.buffer)];
    std::byte* const elsewhere =
        places.elsewhere.empty() ? nullptr : places.elsewhere[static_cast<size_t>(t.buffer)];
    return (elsewhere != nullptr ? elsewhere : places.base + b.offset) +
           t.geometry.offset * size_of(t.dtype);
  }

  // Bytes at the bottom of the arena, of what is kept from step to step.
  static int64_t kept_bytes(const Program& p) {
    int64_t end = 0;
    for (const Buffer& b : p.buffers) {
      if (b.persistent) end = std::max(end, b.offset + b.bytes);
    }
    return (end + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  }

  // The memory of the runtime beside this one, if all that this one needs is there.
  std::optional<Places> lent_memory() const {
    const auto* beside = dynamic_cast<const CudaRuntime*>(options.beside);
    if (beside == nullptr) return std::nullopt;
    const Impl& host = *beside->impl_;
    Places lent;
    lent.kept = kept_bytes(program);
    lent.elsewhere.resize(program.buffers.size(), nullptr);
    for (const ProgramSource& s : program.sources) {
      if (s.kind == SourceKind::kData) continue;
      const ProgramTensor& t = program.tensor(s.tensor);
      const auto same = std::find_if(
          host.program.sources.begin(), host.program.sources.end(), [&](const ProgramSource& h) {
            const ProgramTensor& other = host.program.tensor(h.tensor);
            return h.name == s.name && h.kind == s.kind && other.dtype == t.dtype &&
                   other.geometry.shape == t.geometry.shape &&
                   other.geometry.strides == t.geometry.strides;
          });
      if (same == host.program.sources.end()) return std::nullopt;
      std::byte* const base =
          host.data(host.program.tensor(same->tensor)) - t.geometry.offset * size_of(t.dtype);
      std::byte*& found = lent.elsewhere[static_cast<size_t>(t.buffer)];
      if (found != nullptr && found != base) return std::nullopt;  // they lie beside others there
      found = base;
    }
    for (size_t b = 0; b < program.buffers.size(); ++b) {
      if (program.buffers[b].persistent && lent.elsewhere[b] == nullptr) return std::nullopt;
    }
    // What the host keeps is below; what it holds only during a step is free now.
    const int64_t from = kept_bytes(host.program) - lent.kept;
    const int64_t offset =
        (from + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    if (from < 0 || offset + program.arena_bytes > host.program.arena_bytes) return std::nullopt;
    lent.base = host.places.base + offset;
    return lent;
  }

  // Fills what is this runtime's alone.
  void fill(int byte) {
    cuda_check(cudaMemsetAsync(places.base + places.kept, byte,
                               static_cast<size_t>(program.arena_bytes - places.kept), stream));
  }

  TensorView view(TensorId id) const {
    const ProgramTensor& t = program.tensor(id);
    return {numel(t.geometry.shape) == 0 ? nullptr : data(t), t.dtype, t.geometry.shape,
            t.geometry.strides};
  }

  // Bytes from a tensor's first element to its last.
  static int64_t span_of(const ProgramTensor& t) {
    int64_t last = 0;
    for (size_t d = 0; d < t.geometry.shape.size(); ++d) {
      if (t.geometry.shape[d] == 0) return 0;
      last += (t.geometry.shape[d] - 1) * t.geometry.strides[d];
    }
    return (last + 1) * size_of(t.dtype);
  }

  // Above all buffers, at a multiple of kWorkspaceAlignment.
  std::byte* workspace() const {
    const int64_t bytes = program.memory[0].workspace_bytes;
    return places.base + program.arena_bytes -
           (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  }

  void poison() {
    fill(0xff);
    cuda_check(cudaStreamSynchronize(stream));
  }

  // --- Instructions ------------------------------------------------------------------------------

  void resolve_sections() {
    std::array<std::vector<int32_t>, kSections> instrs;
    std::vector<bool> kept(program.tensors.size(), false);
    for (const KeptTensor& k : program.kept) kept[static_cast<size_t>(k.tensor)] = true;
    for (size_t i = 0; i < program.instrs.size(); ++i) {
      const Instr& instr = program.instrs[i];
      if (is_view(program, instr)) continue;
      const bool refreshes = !instr.out.empty() && kept[static_cast<size_t>(instr.out[0])];
      instrs[refreshes ? kRefresh : section_of(instr.part)].push_back(static_cast<int32_t>(i));
    }
    for (size_t s = 0; s < kSections; ++s) {
      for (const InstrBatch& batch : instr_batches(program, instrs[s])) {
        Launches launches;
        for (size_t k = 0; k < batch.instrs.size(); ++k) {
          launches.push_back(resolve(program.instrs[static_cast<size_t>(batch.instrs[k])]));
          launches.back().workspace = batch.workspaces[k];
        }
        sections[s].push_back(std::move(launches));
      }
    }
  }

  Launch resolve(const Instr& instr) const {
    Launch launch;
    launch.instr = &instr;
    for (TensorId t : instr.in) launch.in.push_back(view(t));
    for (TensorId t : instr.out) launch.out.push_back(view(t));
    if (instr.kind == InstrKind::kCompute) {
      launch.extents = local_extents(instr, program.mesh, coordinates);
    } else {
      CLEAVE_ASSERT(instr.kind == InstrKind::kCopy, "{} on one GPU", name_of(instr.kind));
    }
    return launch;
  }

  KernelArgs arguments(const Launch& launch) {
    static const Signature& none = Signature::get("->");
    const Instr& instr = *launch.instr;
    const bool compute = instr.kind == InstrKind::kCompute;
    return {.signature = compute ? *instr.signature : none,
            .attrs = instr.attrs,
            .in = launch.in,
            .out = launch.out,
            .extents = launch.extents,
            .workspace = workspace() + launch.workspace,
            .seed = options.seed,
            .device = &context,
            .stream = stream,
            .element = compute ? instr.op->element : std::string_view()};
  }

  int32_t index_of(const Launch& launch) const {
    return static_cast<int32_t>(launch.instr - program.instrs.data());
  }

  void execute(const Launches& launches) {
    const Range range(name_of(*launches[0].instr), launches[0].instr->where);
    if (launches.size() > 1) {
      std::vector<KernelArgs> all;
      for (const Launch& launch : launches) all.push_back(arguments(launch));
      launches[0].instr->op->cuda_many(all);
      return;
    }
    const Launch& launch = launches[0];
    const KernelArgs args = arguments(launch);
    if (launch.instr->kind == InstrKind::kCompute) {
      launch.instr->op->cuda(args);
    } else {
      for (size_t i = 0; i < launch.in.size(); ++i)
        copy_on_device(launch.out[i], launch.in[i], args);
    }
  }

  template <class Work>
  void with_place(const Launches& launches, const Work& work) {
    const auto index = static_cast<size_t>(index_of(launches[0]));
    try {
      work();
    } catch (const Error& e) {
      throw Error(fmt::format("{}: {}", describe_instr(program, index), e.what()));
    } catch (const InternalError& e) {
      throw InternalError(fmt::format("{}: {}", describe_instr(program, index), e.what()));
    }
  }

  void execute_all(Section s) {
    for (const Launches& l : sections[s]) with_place(l, [&] { execute(l); });
  }

  // On zeros, which are indices as well as numbers.
  void warm_up() {
    fill(0);
    for (size_t s = 0; s < kSections; ++s) {
      s == kPass ? listen_to_pass() : execute_all(static_cast<Section>(s));
    }
    cuda_check(cudaStreamSynchronize(stream));
  }

  // Runs it, and notes what is to be known of each launch for a trial.
  void listen_to_pass() {
    for (const Launches& l : sections[kPass]) {
      std::vector<Product> heard;
      context.products().heard = [&](const Product& p) { heard.push_back(p); };
      with_place(l, [&] { execute(l); });
      context.products().heard = nullptr;
      TriedLaunch known;
      const bool one =
          !heard.empty() && std::count(heard.begin(), heard.end(), heard[0]) == std::ssize(heard);
      if (one) known.product = heard[0];
      known.clocked = l[0].instr->kind == InstrKind::kCompute && l[0].instr->op->fused_products > 0;
      tried_launches.push_back(known);
    }
  }

  void capture(Section s) {
    graphs[s].reset();
    if (!sections[s].empty()) graphs[s] = captured(stream, [&] { execute_all(s); });
  }

  // --- Trials of products' algorithms ------------------------------------------------------------

  // Before the first step: its first pass, again and again.
  void try_algorithms() {
    tried = true;
    if (lent || !worth_a_trial(program, options.least_tried)) return;
    const bool was_watched = std::exchange(watched, false);
    recorded = false;
    try_products(*this, tried_launches, context, options.tell);
    begin_pass();
    execute_all(kPass);  // what was chosen may not have run here: see launches()
    cuda_check(cudaStreamSynchronize(stream));
    for (const Section s : {kRefresh, kOnce, kPass, kUpdate}) capture(s);
    watched = was_watched;
    std::fill(seconds.begin(), seconds.end(), 0.0);
  }

  std::vector<double> launches(int passes) override {
    begin_pass();
    execute_all(kPass);  // kernels are loaded when they run first, which no capture allows
    StepRecorder trial;
    const std::vector<StepRecorder::Work> work = launches_of(kPass);
    std::vector<double> means(work.size(), 0);
    const cudaEvent_t begun = flight(started).begun;
    cuda_check(cudaEventRecord(begun, stream));
    for (int i = 0; i <= passes; ++i) {
      begin_pass();
      trial.run(kPass, 0, work, stream);
      cuda_check(cudaStreamSynchronize(stream));
      const std::vector<InstrRun> runs = trial.take(begun);
      for (size_t l = 0; l < means.size() && i > 0; ++l) means[l] += runs[l].seconds / passes;
    }
    return means;
  }

  double in_a_row(double seconds) override {
    begin_pass();
    execute_all(kPass);
    capture(kPass);
    const auto several = [&](int passes) {
      const Flight& f = flight(started);
      cuda_check(cudaEventRecord(f.begun, stream));
      for (int i = 0; i < passes; ++i) {
        begin_pass();
        run(kPass);
      }
      cuda_check(cudaEventRecord(f.ended, stream));
      cuda_check(cudaEventSynchronize(f.ended));
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, f.begun, f.ended));
      return static_cast<double>(milliseconds) * 1e-3 / passes;
    };
    several(1);
    const double once = several(1);
    return once >= seconds ? once : several(static_cast<int>(std::ceil(seconds / once)));
  }

  void begin_pass() {
    begin();
    feed(Part::kForward);
  }

  // --- Sources -----------------------------------------------------------------------------------

  size_t index_of(std::string_view name) const {
    for (size_t s = 0; s < program.sources.size(); ++s) {
      if (program.sources[s].name == name) return s;
    }
    fail("the program has no source '{}'", name);
  }
  size_t kept(std::string_view name) const {
    const size_t s = index_of(name);
    CLEAVE_ASSERT(!program.sources[s].is_rest, "'{}' is not seen from outside", name);
    if (program.sources[s].kind == SourceKind::kData) {
      fail("'{}' is data, not kept from step to step", name);
    }
    return s;
  }
  const ProgramTensor& tensor_of(size_t s) const {
    return program.tensor(program.sources[s].tensor);
  }
  int64_t bytes_of(size_t s) const {
    return numel(tensor_of(s).layout.atoms) * size_of(tensor_of(s).dtype);
  }
  void check_size(size_t s, std::span<const std::byte> whole) const {
    const TensorType type = outer_type(program, program.sources[s]);
    const int64_t bytes = numel(type.shape) * size_of(type.dtype);
    if (static_cast<int64_t>(whole.size()) == bytes) return;
    fail("'{}' is {} of {} bytes, got {}", program.sources[s].name, to_string(type), bytes,
         whole.size());
  }

  void to_device(size_t s, const std::byte* from) {
    cuda_check(cudaMemcpyAsync(data(tensor_of(s)), from, static_cast<size_t>(bytes_of(s)),
                               cudaMemcpyHostToDevice, stream));
  }
  // Waits for it.
  void from_device(size_t s, std::vector<std::byte>& to) const {
    to.resize(static_cast<size_t>(bytes_of(s)));
    cuda_check(
        cudaMemcpyAsync(to.data(), data(tensor_of(s)), to.size(), cudaMemcpyDeviceToHost, stream));
    cuda_check(cudaStreamSynchronize(stream));
  }

  // --- Steps -------------------------------------------------------------------------------------

  void feed(Part part) {
    for (size_t s = 0; s < program.sources.size(); ++s) {
      const ProgramSource& source = program.sources[s];
      if (source.kind == SourceKind::kData && source.part == part) to_device(s, staged[s]->data());
    }
  }

  void run(Section s) {
    if (recorded && !watched) {
      record(s);
    } else if (watched || eager || options.time_instructions) {
      for (const Launches& l : sections[s]) with_place(l, [&] { alone(l); });
    } else if (graphs[s] != nullptr) {
      cuda_check(cudaGraphLaunch(graphs[s].get(), stream));
    }
  }

  std::vector<StepRecorder::Work> launches_of(Section s) {
    std::vector<StepRecorder::Work> work;
    for (const Launches& l : sections[s]) {
      work.push_back({index_of(l[0]), [&] { with_place(l, [&] { execute(l); }); }});
    }
    return work;
  }

  void record(Section s) {
    recorder.run(s, s == kPass ? static_cast<int32_t>(given) : 0, launches_of(s), stream);
  }

  // With its time taken, and its results looked at.
  void alone(const Launches& launches) {
    if (!options.time_instructions) {
      execute(launches);
    } else {
      cudaEvent_t before = nullptr, after = nullptr;
      cuda_check(cudaEventCreate(&before));
      cuda_check(cudaEventCreate(&after));
      cuda_check(cudaEventRecord(before, stream));
      execute(launches);
      cuda_check(cudaEventRecord(after, stream));
      cuda_check(cudaEventSynchronize(after));
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, before, after));
      const std::vector<double> share = shares(launches);
      for (size_t k = 0; k < launches.size(); ++k) {
        seconds[static_cast<size_t>(index_of(launches[k]))] +=
            static_cast<double>(milliseconds) * 1e-3 * share[k];
      }
      cudaEventDestroy(before);
      cudaEventDestroy(after);
    }
    for (const Launch& launch : launches) {
      if (watched && nonfinite.empty()) look_at(launch);
    }
  }

  // Instructions that ran together share the time by the elements they read.
  static std::vector<double> shares(const Launches& launches) {
    std::vector<double> result;
    for (const Launch& launch : launches) {
      result.push_back(1);
      for (const TensorView& t : launch.in) result.back() += static_cast<double>(t.numel());
    }
    const double all = std::accumulate(result.begin(), result.end(), 0.0);
    for (double& share : result) share /= all;
    return result;
  }

  // The runs of batches, which are recorded under their first instruction, as those of all.
  std::vector<InstrRun> of_each(const std::vector<InstrRun>& runs) const {
    std::map<int32_t, const Launches*> batch_of;
    for (const auto& section : sections) {
      for (const Launches& l : section) batch_of[index_of(l[0])] = &l;
    }
    std::vector<InstrRun> result;
    for (InstrRun run : runs) {
      const Launches& launches = *batch_of.at(run.instr);
      const std::vector<double> share = shares(launches);
      const double seconds_of_all = run.seconds;
      for (size_t k = 0; k < launches.size(); ++k) {
        run.instr = index_of(launches[k]);
        run.share = share[k];
        run.seconds = seconds_of_all * share[k];
        result.push_back(run);
        run.start += run.seconds;
      }
    }
    return result;
  }

  std::vector<double> numbers(TensorId id) const {
    const ProgramTensor& t = program.tensor(id);
    std::vector<std::byte> bytes(static_cast<size_t>(span_of(t)));
    cuda_check(
        cudaMemcpyAsync(bytes.data(), data(t), bytes.size(), cudaMemcpyDeviceToHost, stream));
    cuda_check(cudaStreamSynchronize(stream));
    return elements(t, bytes.data());
  }

  int64_t count_nonfinite(TensorId id) const {
    if (!is_float(program.tensor(id).dtype)) return 0;
    const std::vector<double> values = numbers(id);
    return std::count_if(values.begin(), values.end(), [](double x) { return !std::isfinite(x); });
  }

  void look_at(const Launch& launch) {
    const Instr& instr = *launch.instr;
    if (instr.kind != InstrKind::kCompute) return;
    for (TensorId out : instr.out) {
      const int64_t bad = count_nonfinite(out);
      if (bad == 0) continue;
      nonfinite = fmt::format("{} at {} makes {} of {} numbers NaN or infinite", instr.op->name,
                              instr.where, bad, numel(program.tensor(out).geometry.shape));
      for (size_t i = 0; i < instr.in.size(); ++i) {
        if (launch.in[i].data == view(out).data || count_nonfinite(instr.in[i]) == 0) continue;
        nonfinite +=
            fmt::format("; its operand {} ({}) held some", i + 1, program.tensor(instr.in[i]).name);
        break;
      }
      return;
    }
  }

  // What comes before the first pass of a step.
  void begin() {
    for (const ProgramSource& s : program.sources) {
      if (s.kind != SourceKind::kAccumulator) continue;
      const ProgramTensor& t = program.tensor(s.tensor);
      cuda_check(cudaMemsetAsync(data(t), 0, static_cast<size_t>(span_of(t)), stream));
    }
    if (stale) run(kRefresh);
    stale = false;
    run(kOnce);
  }

  void pass(bool last) {
    if (!failure.empty()) throw InternalError("an earlier step has failed: " + failure);
    for (size_t s = 0; s < program.sources.size(); ++s) {
      const ProgramSource& source = program.sources[s];
      if (filled[s] || source.kind == SourceKind::kAccumulator) continue;
      fail("{} '{}' has no value{}", name_of(source.kind), source.name,
           source.kind == SourceKind::kData ? " for this step" : ": initialize it");
    }
    CLEAVE_ASSERT(last == (given + 1 == program.micro_batches()),
                  "pass {} of {} micro-batches {} the step", given + 1, program.micro_batches(),
                  last ? "ends" : "does not end");
    try {
      if (given == 0) {
        nonfinite.clear();
        CLEAVE_ASSERT(started - finished < std::ssize(flights), "{} steps are not finished",
                      started - finished);
        if (!tried) try_algorithms();
        recorded = asked_to_record;
        cuda_check(cudaEventRecord(flight(started).begun, stream));
        begin();
      }
      feed(Part::kForward);
      if (last) feed(Part::kUpdate);
      cuda_check(cudaEventRecord(copied, stream));
      run(kPass);
      if (last) run(kUpdate);
    } catch (const std::exception& e) {
      failure = e.what();
      throw;
    }
    for (size_t s = 0; s < program.sources.size(); ++s) {
      if (program.sources[s].kind == SourceKind::kData) filled[s] = false;
    }
    given = last ? 0 : given + 1;
  }

  Program program;
  const RunOptions options;
  DeviceContext context;
  const std::optional<Places> lent;
  DeviceMemory arena;  // empty when memory is lent
  const Places places;
  const std::vector<int64_t> coordinates;
  std::array<std::vector<Launches>, kSections> sections;
  std::array<CapturedGraph, kSections> graphs;
  std::vector<TriedLaunch> tried_launches;  // of the pass
  bool tried = false;
  cudaStream_t stream = nullptr;
  // Steps take turns. So many have been started, and finished.
  std::array<Flight, 2> flights;
  int64_t started = 0, finished = 0;
  Flight& flight(int64_t step) { return flights[static_cast<size_t>(step) % flights.size()]; }
  cudaEvent_t copied = nullptr;  // staged data may be overwritten
  std::vector<bool> filled;      // by source; of data: for the next micro-batch
  std::vector<std::unique_ptr<PinnedMemory>> staged;  // by source, of data
  std::vector<double> seconds;                        // by instruction
  int64_t given = 0;                                  // micro-batches of this step so far
  bool stale = true;                                  // what is kept is not that of the parameters
  bool watched = false;
  const bool eager = ranges_wanted();              // no graphs: see ranges.h
  bool asked_to_record = false, recorded = false;  // the next step, and this one
  StepRecorder recorder;
  std::string nonfinite, failure;
};

CudaRuntime::CudaRuntime(Program program, RunOptions options)
    : impl_(std::make_unique<Impl>(std::move(program), options)) {}

CudaRuntime::~CudaRuntime() = default;

const Program& CudaRuntime::program() const { return impl_->program; }

int64_t CudaRuntime::allocated_bytes() const {
  return impl_->arena.bytes() + impl_->context.scratch_bytes();
}

const std::vector<double>& CudaRuntime::instruction_seconds(int64_t) const {
  return impl_->seconds;
}

bool CudaRuntime::shares(std::string_view name) const {
  const Impl& r = *impl_;
  return r.lent && r.program.sources[r.index_of(name)].kind != SourceKind::kData;
}

TensorType CudaRuntime::source_type(std::string_view name) const {
  return outer_type(impl_->program, impl_->program.sources[impl_->index_of(name)]);
}

void CudaRuntime::initialize() {
  const Program& p = impl_->program;
  std::vector<std::unique_ptr<std::byte[]>> memory(p.sources.size());  // of what is drawn
  std::vector<InitialShard> shards;
  const auto take = [&](size_t s) {
    memory[s] =
        std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(impl_->bytes_of(s)));
    return memory[s].get();
  };
  for (size_t s = 0; s < p.sources.size(); ++s) {
    if (p.sources[s].kind == SourceKind::kData) continue;
    const ProgramTensor& tensor = impl_->tensor_of(s);
    const auto bytes = static_cast<size_t>(impl_->bytes_of(s));
    impl_->stale = true;
    impl_->filled[s] = true;
    if (is_zero(p.sources[s].init)) {
      cuda_check(cudaMemsetAsync(impl_->data(tensor), 0, bytes, impl_->stream));
      continue;
    }
    if (p.sources[s].is_rest) continue;  // drawn with its source
    const int32_t rest = p.sources[s].rest;
    shards.push_back(
        {p.sources[s], tensor, take(s), rest < 0 ? nullptr : take(static_cast<size_t>(rest))});
  }
  fill_initial(shards, p.mesh, impl_->coordinates, impl_->options.seed);
  for (size_t s = 0; s < memory.size(); ++s) {
    if (memory[s] != nullptr) impl_->to_device(s, memory[s].get());
  }
  cuda_check(cudaStreamSynchronize(impl_->stream));
}

void CudaRuntime::set_data(std::string_view name, std::span<const std::byte> whole) {
  const size_t s = impl_->index_of(name);
  if (impl_->program.sources[s].kind != SourceKind::kData) fail("'{}' is not data", name);
  impl_->check_size(s, whole);
  if (impl_->staged[s] == nullptr) impl_->staged[s] = std::make_unique<PinnedMemory>(whole.size());
  cuda_check(cudaEventSynchronize(impl_->copied));
  std::memcpy(impl_->staged[s]->data(), whole.data(), whole.size());
  impl_->filled[s] = true;
}

void CudaRuntime::accumulate() { impl_->pass(false); }

void CudaRuntime::watch(bool on) { impl_->watched = on; }

void CudaRuntime::read_source(std::string_view name, std::vector<std::byte>& whole) const {
  const size_t s = impl_->kept(name);
  const ProgramSource& source = impl_->program.sources[s];
  if (!impl_->filled[s]) fail("{} '{}' has no value yet", name_of(source.kind), source.name);
  if (!source.narrow) return impl_->from_device(s, whole);
  if (source.rest < 0) fail("'{}' is kept in bf16 alone here", source.name);
  NarrowBytes parts;
  impl_->from_device(s, parts.narrow);
  impl_->from_device(static_cast<size_t>(source.rest), parts.rest);
  join_f32s(parts, whole);
}

void CudaRuntime::write_source(std::string_view name, std::span<const std::byte> whole) {
  const size_t s = impl_->kept(name);
  impl_->check_size(s, whole);
  CLEAVE_ASSERT(!impl_->lent, "'{}' is another runtime's", name);
  impl_->stale = true;
  const ProgramSource& source = impl_->program.sources[s];
  const NarrowBytes parts = source.narrow ? split_f32s(whole) : NarrowBytes{};
  impl_->to_device(s, source.narrow ? parts.narrow.data() : whole.data());
  if (source.rest >= 0) {
    impl_->to_device(static_cast<size_t>(source.rest), parts.rest.data());
    impl_->filled[static_cast<size_t>(source.rest)] = true;
  }
  cuda_check(cudaStreamSynchronize(impl_->stream));
  impl_->filled[s] = true;
}

void CudaRuntime::record(bool on) { impl_->asked_to_record = on; }

void CudaRuntime::start() {
  Impl& r = *impl_;
  r.pass(true);
  Flight& flight = r.flight(r.started);
  std::byte* to = flight.results->data();
  for (const ProgramOutput& o : r.program.outputs) {
    const ProgramTensor& t = r.program.tensor(o.tensor);
    const auto bytes = static_cast<size_t>(Impl::span_of(t));
    cuda_check(cudaMemcpyAsync(to, r.data(t), bytes, cudaMemcpyDeviceToHost, r.stream));
    to += bytes;
  }
  cuda_check(cudaEventRecord(flight.ended, r.stream));
  ++r.started;
  flight.nonfinite = r.nonfinite;
  if (!r.recorded) return;
  cuda_check(cudaEventSynchronize(flight.ended));  // its events are those of the next one too
  flight.runs = r.of_each(r.recorder.take(flight.begun));
}

StepResult CudaRuntime::finish() {
  Impl& r = *impl_;
  CLEAVE_ASSERT(r.finished < r.started, "no step was started");
  Flight& flight = r.flight(r.finished++);
  cuda_check(cudaEventSynchronize(flight.ended));
  StepResult result;
  float milliseconds = 0;
  cuda_check(cudaEventElapsedTime(&milliseconds, flight.begun, flight.ended));
  result.seconds = static_cast<double>(milliseconds) * 1e-3;
  result.first_nonfinite = flight.nonfinite;
  if (!flight.runs.empty()) result.runs = {std::exchange(flight.runs, {})};
  const std::byte* from = flight.results->data();
  for (const ProgramOutput& o : r.program.outputs) {
    const ProgramTensor& t = r.program.tensor(o.tensor);
    result.outputs.push_back({o.name, t.geometry.shape, elements(t, from)});
    from += Impl::span_of(t);
  }
  return result;
}

}  // namespace cleave
