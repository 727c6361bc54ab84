// The checks that go across instructions: data flow, memory shared between tensors, sources and
// outputs. The typing of single instructions is in check_types.cc; what passes between the parts of
// a step and where it lies in check_parts.cc.
#include <algorithm>
#include <set>

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

template <class... Args>
[[noreturn]] void refuse(const std::string& subject, fmt::format_string<Args...> format,
                         Args&&... args) {
  throw InternalError(subject + ": " + fmt::format(format, std::forward<Args>(args)...));
}

// Follows the instructions in order and knows which tensors can be read.
class DataFlow {
 public:
  explicit DataFlow(const Program& program)
      : p_(program), state_(program.tensors.size()), of_buffer_(program.buffers.size()) {}

  void check() {
    for (const ProgramSource& s : p_.sources) {
      state_[static_cast<size_t>(s.tensor)].written = true;
      live_in(s.tensor).push_back(s.tensor);
    }
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      check_types(p_, i);
      step(i);
    }
    for (const ProgramOutput& o : p_.outputs) need_readable("output " + o.name, o.tensor);
    for (const ProgramSource& s : p_.sources) {
      if (s.kind != SourceKind::kData) {
        need_readable(fmt::format("final value of {} {}", name_of(s.kind), s.name), s.final);
      }
    }
    for (const KeptTensor& k : p_.kept) {
      need_readable("what is kept as " + p_.tensor(k.tensor).name, k.final);
    }
  }

 private:
  struct State {
    bool written = false;
    int64_t overwritten_by = -1;  // an instruction
  };

  // The readable tensors of the buffer in which `t` lies.
  std::vector<TensorId>& live_in(TensorId t) {
    return of_buffer_[static_cast<size_t>(p_.tensor(t).buffer)];
  }

  void need_readable(const std::string& subject, TensorId t) {
    const State& s = state_[static_cast<size_t>(t)];
    const std::string& name = p_.tensor(t).name;
    if (!s.written) refuse(subject, "{} is read before it is written", name);
    if (s.overwritten_by >= 0) {
      refuse(subject, "{} is read after {} has overwritten it", name,
             describe_instr(p_, static_cast<size_t>(s.overwritten_by)));
    }
  }

  void step(size_t index) {
    const Instr& instr = p_.instrs[index];
    const std::string subject = describe_instr(p_, index);
    for (TensorId t : instr.in) need_readable(subject, t);
    const auto on_host = [&](TensorId t) {
      return p_.buffers[static_cast<size_t>(p_.tensor(t).buffer)].host;
    };
    for (const auto* list : {&instr.in, &instr.out}) {
      for (TensorId t : *list) {
        if (on_host(t) && instr.kind != InstrKind::kCopy) {
          refuse(subject, "{} lies in the host's memory, which only copies touch",
                 p_.tensor(t).name);
        }
      }
    }
    const bool view = is_view(p_, instr);
    if (!view) check_shared_memory(instr, subject);
    for (TensorId t : instr.out) {
      State& s = state_[static_cast<size_t>(t)];
      if (s.written) refuse(subject, "{} is written twice", p_.tensor(t).name);
      s.written = true;
      std::vector<TensorId>& live = live_in(t);
      if (!view) {
        std::erase_if(live, [&](TensorId old) {
          if (!may_overlap(p_.tensor(old), p_.tensor(t))) return false;
          state_[static_cast<size_t>(old)].overwritten_by = static_cast<int64_t>(index);
          return true;
        });
      }
    }
    for (TensorId t : instr.out) live_in(t).push_back(t);
  }

  // Which results may lie on which operands.
  void check_shared_memory(const Instr& instr, const std::string& subject) {
    for (size_t o = 0; o < instr.out.size(); ++o) {
      const ProgramTensor& out = p_.tensor(instr.out[o]);
      for (size_t d = 0; d < out.geometry.shape.size(); ++d) {
        if (out.geometry.strides[d] == 0 && out.geometry.shape[d] > 1) {
          refuse(subject, "{} is written with stride 0", out.name);
        }
      }
      for (size_t other = 0; other < o; ++other) {
        if (may_overlap(out, p_.tensor(instr.out[other]))) {
          refuse(subject, "results {} and {} overlap", p_.tensor(instr.out[other]).name, out.name);
        }
      }
      for (size_t i = 0; i < instr.in.size(); ++i) {
        const ProgramTensor& in = p_.tensor(instr.in[i]);
        if (may_overlap(out, in) && !may_overwrite(instr, i, o)) {
          refuse(subject, "{} cannot be written over {}", out.name, in.name);
        }
      }
    }
  }

  // In place means element by element: exactly the same elements, or a part that the kernel writes
  // without reading.
  bool may_overwrite(const Instr& instr, size_t i, size_t o) const {
    const ProgramTensor& in = p_.tensor(instr.in[i]);
    const ProgramTensor& out = p_.tensor(instr.out[o]);
    const bool same = in.geometry == out.geometry && in.dtype == out.dtype;
    switch (instr.kind) {
      case InstrKind::kCompute: break;
      case InstrKind::kAllReduce:
      case InstrKind::kMask:
      case InstrKind::kCopy: return same && i == o;
      default: return false;
    }
    if (same && instr.signature->inputs()[i] == instr.signature->outputs()[o]) return true;
    if (instr.op->written == nullptr || i == 0) return false;
    const auto types = local_input_types(p_, instr);
    const auto sizes = local_sizes(instr, p_.mesh);
    const auto parts = instr.op->written({*instr.signature, sizes, instr.attrs, types},
                                         p_.tensor(instr.in[0]).geometry);
    return parts && o < parts->size() &&
           !byte_range((*parts)[o], out.dtype).overlaps(byte_range(in.geometry, in.dtype));
  }

  const Program& p_;
  std::vector<State> state_;                      // by tensor
  std::vector<std::vector<TensorId>> of_buffer_;  // readable tensors, by buffer
};

void check_sources(const Program& p) {
  std::set<std::pair<std::string, int64_t>> names;  // of data: one for each place that is fed
  std::vector<std::vector<const ProgramSource*>> owners(p.buffers.size());
  const auto known = [&](TensorId t) {
    return t >= 0 && static_cast<size_t>(t) < p.tensors.size();
  };
  for (const ProgramSource& s : p.sources) {
    const std::string subject = fmt::format("{} {}", name_of(s.kind), s.name);
    const int64_t place = s.kind != SourceKind::kData ? -1
                          : s.part == Part::kUpdate   ? -2 - int64_t{s.chunk}
                                                      : s.chunk;
    if (!names.emplace(s.name, place).second) refuse(subject, "another source has this name");
    if (!known(s.tensor)) refuse(subject, "there is no tensor {}", s.tensor);
    const ProgramTensor& t = p.tensor(s.tensor);
    for (const Placement& placement : t.layout.placements) {
      // Zeros are a partial sum of zero.
      const bool zero =
          s.kind == SourceKind::kAccumulator && placement.reduction == Reduction::kSum;
      if (placement.is_partial() && !zero) refuse(subject, "a source cannot be a partial result");
    }
    if (t.geometry.strides != contiguous_strides(t.geometry.shape)) {
      refuse(subject, "a source must be contiguous");
    }
    std::vector<const ProgramSource*>& owner = owners[static_cast<size_t>(t.buffer)];
    for (const ProgramSource* other : owner) {
      if (may_overlap(p.tensor(other->tensor), t)) {
        refuse(subject, "it shares memory with {}", other->name);
      }
    }
    owner.push_back(&s);
    const bool kept = s.kind != SourceKind::kData;
    if (p.buffers[static_cast<size_t>(t.buffer)].persistent != kept) {
      refuse(subject, "its buffer must {}be persistent", kept ? "" : "not ");
    }
    if (p.buffers[static_cast<size_t>(t.buffer)].host != s.on_host) {
      refuse(subject, "its buffer must {}lie on the host", s.on_host ? "" : "not ");
    }
    if (!kept) continue;
    if (!known(s.final)) refuse(subject, "it has no final value");
    const ProgramTensor& f = p.tensor(s.final);
    if (f.ring.axis >= 0) refuse(subject, "it ends in the middle of a ring");
    if (f.buffer != t.buffer || f.layout != t.layout || f.geometry != t.geometry ||
        f.dtype != t.dtype) {
      refuse(subject, "it ends as {} (buffer {}, {}), not where and as it began (buffer {}, {})",
             f.name, f.buffer, to_string(f.layout, p.mesh), t.buffer, to_string(t.layout, p.mesh));
    }
  }
  for (const ProgramOutput& o : p.outputs) {
    if (!known(o.tensor)) refuse("output " + o.name, "there is no tensor {}", o.tensor);
    const Layout& layout = p.tensor(o.tensor).layout;
    if (p.tensor(o.tensor).ring.axis >= 0) {
      refuse("output " + o.name, "it is in the middle of a ring");
    }
    for (const Placement& placement : layout.placements) {
      if (!placement.is_replicate()) {
        refuse("output " + o.name, "it is {}, must be replicated", to_string(layout, p.mesh));
      }
    }
  }
}

// What is kept begins as something made of parameters, and ends in the same memory as something
// made together with their final values.
void check_kept(const Program& p) {
  if (p.kept.empty()) return;
  std::vector<int32_t> makers(p.tensors.size(), -1);
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    for (TensorId t : p.instrs[i].out) makers[static_cast<size_t>(t)] = static_cast<int32_t>(i);
  }
  std::vector<const ProgramSource*> source_of(p.tensors.size(), nullptr);
  for (const ProgramSource& s : p.sources) source_of[static_cast<size_t>(s.tensor)] = &s;
  for (const KeptTensor& k : p.kept) {
    const auto known = [&](TensorId t) {
      return t >= 0 && static_cast<size_t>(t) < p.tensors.size() &&
             makers[static_cast<size_t>(t)] >= 0;
    };
    if (!known(k.tensor) || !known(k.final)) refuse("what is kept", "nothing makes it");
    const ProgramTensor &t = p.tensor(k.tensor), &f = p.tensor(k.final);
    const std::string subject = "what is kept as " + t.name;
    if (f.buffer != t.buffer || f.layout != t.layout || f.geometry != t.geometry ||
        f.dtype != t.dtype) {
      refuse(subject, "it ends in buffer {} as {}, not where and as it began, in buffer {} as {}",
             f.buffer, name_of(f.dtype), t.buffer, name_of(t.dtype));
    }
    if (!p.buffers[static_cast<size_t>(t.buffer)].persistent) {
      refuse(subject, "its buffer must be persistent");
    }
    const Instr& first = p.instrs[static_cast<size_t>(makers[static_cast<size_t>(k.tensor)])];
    if (first.part != Part::kBegin || first.out.size() != 1 || first.in.empty()) {
      refuse(subject, "it is not made by itself when the step begins");
    }
    const auto last = static_cast<size_t>(makers[static_cast<size_t>(k.final)]);
    for (TensorId in : first.in) {
      const ProgramSource* s = source_of[static_cast<size_t>(in)];
      if (s == nullptr || s->kind != SourceKind::kParameter) {
        refuse(subject, "it is made of {}, which is no parameter", p.tensor(in).name);
      }
      const auto& made = p.instrs[last].out;
      if (std::find(made.begin(), made.end(), s->final) == made.end()) {
        refuse(subject, "{} does not make the final value of {}", describe_instr(p, last), s->name);
      }
    }
  }
}

}  // namespace

void check(const Program& program) {
  for (const MeshAxis& a : program.mesh.axes) {
    if (a.size < 1) refuse("mesh", "axis {} has size {}", a.name, a.size);
  }
  for (const Buffer& b : program.buffers) {
    if (b.bytes < 0) refuse("buffers", "one has {} bytes", b.bytes);
  }
  for (size_t t = 0; t < program.tensors.size(); ++t) {
    check_tensor(program, static_cast<TensorId>(t));
  }
  check_order(program);
  check_sources(program);
  check_kept(program);
  DataFlow(program).check();
  if (program.stages() > 1) check_pipeline(program);
  if (program.arena_bytes > 0) check_arena(program);
}

}  // namespace cleave
