// From a solution of the placement problem back to a plan: the forms of every value, and the sums
// that the search minimised, added up again step by step.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "graph/error.h"
#include "planner/bundles.h"
#include "planner/of_weights.h"
#include "planner/offload.h"
#include "planner/placement_problem.h"

namespace cleave {

// The form of v that an end needs, made from form `from` unless that is it already or the same way
// was gone before in this phase. `paid`: the search counts the way here.
int32_t PlacementProblem::form_for(std::span<const int32_t> choice, Value v, const End& end,
                                   size_t need, int32_t from, Phase phase, bool bundled, bool paid,
                                   Plan& plan) const {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  const PlacementSpace& s = space(w.space, bundled);
  const size_t pick =
      end.variable < 0 ? 0 : static_cast<size_t>(choice[static_cast<size_t>(end.variable)]);
  const size_t target = static_cast<size_t>((*end.needs[need])[pick]);
  std::vector<Form>& forms = plan.values[static_cast<size_t>(v)];
  const Placements& have = forms[static_cast<size_t>(from)].placements;
  if (have == s.at(target)) return from;
  const double seconds = s.seconds(static_cast<size_t>(s.index_of(have)), target);
  if (paid) plan.certificate.cost += runs(v, phase) * seconds;
  for (size_t f = 0; f < forms.size(); ++f) {
    if (forms[f].from == from && forms[f].placements == s.at(target) && forms[f].phase == phase &&
        forms[f].bundled == bundled) {
      if (paid) load(v, plan).again[static_cast<size_t>(phase)] += seconds;
      return static_cast<int32_t>(f);
    }
  }
  Form form;
  form.placements = s.at(target);
  form.from = from;
  form.steps = s.steps(static_cast<size_t>(s.index_of(have)), target);
  form.phase = phase;
  form.bundled = bundled;
  forms.push_back(std::move(form));
  return static_cast<int32_t>(forms.size() - 1);
}

void PlacementProblem::read_phase(std::span<const int32_t> choice, Value v, size_t phase,
                                  int32_t held, int32_t& forward_form, Plan& plan) const {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  const Readers& r = w.readers[phase];
  if (r.ends.empty()) return;
  const Phase p = phase_of_readers(phase);
  const bool bundled = is_bundled(w, v, phase);
  const PlacementSpace& s = space(w.space, false);
  int32_t from = held;
  const NodeId producer = graph_.value(v).producer;
  const bool crosses = producer != kNoNode && graph_.node(producer).phase == Phase::kForward;
  if (phase == 1 && !w.data && (crosses || w.source) && !w.readers[0].ends.empty() &&
      forward_form >= 0 && forward_form != held) {
    // The same comparison as add_backward_term makes.
    const End out = handed_out(r);
    const size_t pick = static_cast<size_t>(choice[static_cast<size_t>(out.variable)]);
    const auto index = [&](int32_t form) {
      return s.index_of(plan.values[static_cast<size_t>(v)][static_cast<size_t>(form)].placements);
    };
    const int32_t h = index(held), k = index(forward_form);
    const double price = price_of(v, true);
    const double held_price = w.saved ? price * s.local_bytes(size_t(h)) : 0;
    const double kept_price = price * s.local_bytes(size_t(k)) * (w.saved || w.source || w.once);
    const double times = runs(v, Phase::kBackward);
    const double again = times * conversion(w.space, false, h, out, pick);
    const bool keep = w.keep >= 0 ? choice[static_cast<size_t>(w.keep)] == 1
                                  : times * conversion(w.space, false, k, out, pick) + kept_price <
                                        again + held_price;
    if (keep) {
      from = forward_form;
      ++plan.kept;
      if (w.source || w.once) {
        load(v, plan).kept_bytes += static_cast<int64_t>(s.local_bytes(size_t(k)));
      }
    } else if (again > 0) {
      ++plan.regathered;
    }
  }
  if (phase == 1 && w.saved) {
    const Placements& kept =
        plan.values[static_cast<size_t>(v)][static_cast<size_t>(from)].placements;
    load(v, plan).kept_bytes +=
        static_cast<int64_t>(s.local_bytes(static_cast<size_t>(s.index_of(kept))));
  }
  if (r.hand_out >= 0) {
    from = form_for(choice, v, handed_out(r), 0, from, p, bundled, true, plan);
  }
  // The search counts each family's ways by themselves; two that are one way are gone once.
  std::set<std::pair<int32_t, int32_t>> paid;  // variable, placement
  std::vector<int32_t> taken;                  // forms
  for (const Use& use : r.uses) {
    const int32_t variable = variable_of_[static_cast<size_t>(families_.family_of(use.node))];
    const End& end = *std::find_if(r.ends.begin(), r.ends.end(),
                                   [&](const End& e) { return e.variable == variable; });
    const Placements& need =
        families_.kind_of(use.node)
            .members[static_cast<size_t>(families_.member_of(use.node))]
                    [static_cast<size_t>(choice[static_cast<size_t>(variable)])]
            .inputs[static_cast<size_t>(use.operand)];
    const size_t pick = static_cast<size_t>(choice[static_cast<size_t>(variable)]);
    size_t which = 0;
    while (s.at(static_cast<size_t>((*end.needs[which])[pick])) != need) ++which;
    const bool first = paid.emplace(variable, (*end.needs[which])[pick]).second;
    const int32_t form = form_for(choice, v, end, which, from, p, bundled, first, plan);
    plan.nodes[static_cast<size_t>(use.node)].input_forms[static_cast<size_t>(use.operand)] = form;
    taken.push_back(form);
  }
  if (phase != 0) return;
  const bool one_form = std::count(taken.begin(), taken.end(), taken[0]) == std::ssize(taken);
  forward_form = r.hand_out >= 0 ? from : one_form ? taken[0] : -1;
}

void PlacementProblem::read_value(std::span<const int32_t> choice, Value v, Plan& plan) const {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  std::vector<Form>& forms = plan.values[static_cast<size_t>(v)];
  const PlacementSpace& s = space(w.space, false);
  const auto placement = [&](const End& end) {
    const size_t pick =
        end.variable < 0 ? 0 : static_cast<size_t>(choice[static_cast<size_t>(end.variable)]);
    return s.at(static_cast<size_t>((*end.needs[0])[pick]));
  };
  Form made;
  if (w.source && w.held >= 0) {
    made.placements = placement(held_end(w));
  } else if (!w.producer.needs.empty()) {
    made.placements = placement(w.producer);
  } else {
    made.placements.assign(mesh_.axes.size(), Placement::replicate());
  }
  if (w.source) {
    const double bytes = s.local_bytes(static_cast<size_t>(s.index_of(made.placements)));
    GroupLoad& l = load(v, plan);
    if (lies_on_host(v)) {
      const double seconds = offload_seconds(cluster_, bytes);
      const auto group = static_cast<size_t>(group_of_value_[static_cast<size_t>(v)]);
      l.seconds[2] += seconds, l.communication[2] += seconds, l.host += seconds;
      plan.certificate.cost += costing_.runs[group][2] * seconds;
      plan.predicted.host_bytes += static_cast<int64_t>(bytes);
      plan.predicted.host_seconds += seconds;
    } else {
      l.state_bytes += static_cast<int64_t>(bytes);
    }
  }
  forms.push_back(std::move(made));
  int32_t held = 0;
  const NodeId producer = graph_.value(v).producer;
  if (w.held >= 0) plan.held[v] = placement(held_end(w));
  if (w.held >= 0 && !w.source) {
    held = form_for(choice, v, held_end(w), 0, 0, phase_of(producer), false, true, plan);
  }
  if (w.lasts) {
    const Placements& kept = forms[static_cast<size_t>(held)].placements;
    load(v, plan).state_bytes +=
        static_cast<int64_t>(s.local_bytes(static_cast<size_t>(s.index_of(kept))));
  }
  int32_t forward_form = -1;
  for (size_t p = 0; p < std::size(w.readers); ++p) {
    read_phase(choice, v, p, held, forward_form, plan);
  }
  for (size_t o = 0; o < graph_.outputs().size(); ++o) {
    if (graph_.outputs()[o].value != v) continue;
    plan.output_form[o] =
        form_for(choice, v, w.fixed[0], 0, held, output_phase(v), false, true, plan);
  }
  const size_t outputs = w.fixed.size() - w.final_of.size();
  for (size_t i = 0; i < w.final_of.size(); ++i) {
    plan.final_form[static_cast<size_t>(w.final_of[i])] =
        form_for(choice, v, w.fixed[outputs + i], 0, held, Phase::kUpdate, true, true, plan);
  }
}

void PlacementProblem::read_solution(std::span<const int32_t> choice, Plan& plan) const {
  plan.nodes.assign(graph_.nodes().size(), {});
  plan.values.assign(graph_.values().size(), {});
  plan.final_form.assign(graph_.sources().size(), 0);
  plan.output_form.assign(graph_.outputs().size(), 0);
  plan.choices.assign(graph_.nodes().size(), {});
  plan.collectives.clear();
  plan.held.clear();
  plan.kept = plan.regathered = 0;
  plan.predicted = {};
  plan.certificate = {};
  plan.costing = costing_;
  plan.on_host = on_host_;
  plan.loads.assign(costing_.runs.size(), {});
  // Collectives by (stage, kind, axis, phase, of parameters).
  std::map<std::tuple<int32_t, StepKind, int32_t, Phase, bool>, PlannedCollectives> sums;
  const auto times_of = [&](Phase phase) {
    return phase == Phase::kUpdate ? 1.0 : static_cast<double>(graph_.micro_batches);
  };
  const std::vector<bool> of_weights = values_of_weights(graph_);
  double counted_cost = 0;  // of what is added up here, as the search counts it
  const auto add_step = [&](const Step& step, int32_t g, Phase phase, bool parameters,
                            bool counted) {
    const double times = times_of(phase);
    GroupLoad& l = plan.loads[static_cast<size_t>(g)];
    l.seconds[static_cast<size_t>(phase)] += step.seconds;
    l.communication[static_cast<size_t>(phase)] += step.seconds;
    counted_cost +=
        costing_.runs[static_cast<size_t>(g)][static_cast<size_t>(phase)] * step.seconds;
    if (!counted) l.bundled += step.seconds;
    if (!is_collective(step.kind)) return;
    const int32_t stage = g % std::max(plan.pipeline.stages, 1);
    PlannedCollectives& c = sums[{stage, step.kind, step.axis, phase, parameters}];
    c.kind = step.kind, c.axis = step.axis, c.phase = phase, c.parameters = parameters;
    c.stage = stage;
    c.count += counted ? static_cast<int64_t>(times) : 0;
    c.bytes += times * step.bytes;
    c.seconds += times * step.seconds;
  };
  for (size_t n = 0; n < graph_.nodes().size(); ++n) {
    const int32_t variable =
        variable_of_[static_cast<size_t>(families_.family_of(static_cast<NodeId>(n)))];
    const size_t pick = static_cast<size_t>(choice[static_cast<size_t>(variable)]);
    const FamilyKind& kind = families_.kind_of(static_cast<NodeId>(n));
    const size_t member = static_cast<size_t>(families_.member_of(static_cast<NodeId>(n)));
    const MemberSplit& m = kind.members[member][pick];
    NodePlan& node = plan.nodes[n];
    node.axes = m.axes;
    node.inner = m.inner;
    node.seconds = m.seconds;
    node.input_forms.assign(graph_.nodes()[n].inputs.size(), 0);
    if (member == 0) plan.choices[n] = kind.choices[pick];
    const auto id = static_cast<NodeId>(n);
    const Phase phase = phase_of(id);
    plan.certificate.cost += runs_of(id) * m.seconds;
    if (graph_.nodes()[n].op->transfer) {
      plan.loads[static_cast<size_t>(group(id))].received[static_cast<size_t>(phase)] += m.seconds;
      counted_cost += runs_of(id) * m.seconds;
      continue;
    }
    double own = m.seconds;
    for (const Step& step : m.inner) {
      own -= step.seconds;
      add_step(step, group(id), phase, works_on_weights(graph_, of_weights, id), true);
    }
    plan.loads[static_cast<size_t>(group(id))].seconds[static_cast<size_t>(phase)] += own;
    counted_cost += runs_of(id) * own;
  }
  // A bundle is one collective: its first step counts for all.
  for (size_t v = 0; v < graph_.values().size(); ++v) {
    read_value(choice, static_cast<Value>(v), plan);
    const bool of_parameters = counts_as_weights(graph_, of_weights, static_cast<Value>(v));
    for (const Form& form : plan.values[v]) {
      const bool parameter = form.bundled || of_parameters;
      for (const Step& step : form.steps) {
        add_step(step, group_of_value_[v], form.phase, parameter, !form.bundled);
      }
    }
  }
  CLEAVE_ASSERT(counted_cost <= plan.certificate.cost * (1 + 1e-9),
                "the plan's steps take {}, the search counted {}", counted_cost,
                plan.certificate.cost);
  // What the search leaves out, since it is the same for nearly all plans: starting each bundle.
  for (bool made_by_update : {false, true}) {
    for (const Bundle& bundle : bundles(graph_, plan, made_by_update)) {
      const Step& step = step_of(plan, bundle[0]);
      if (!is_collective(step.kind)) continue;
      const Form& form = plan.values[size_t(bundle[0].value)][static_cast<size_t>(bundle[0].form)];
      const int32_t g = group_of_value_[static_cast<size_t>(bundle[0].value)];
      const double seconds = start_seconds(plan, bundle);
      plan.loads[static_cast<size_t>(g)].starts += seconds;
      PlannedCollectives& c =
          sums[{g % std::max(plan.pipeline.stages, 1), step.kind, step.axis, form.phase, true}];
      c.seconds += seconds;
      ++c.count;
    }
  }
  for (auto& [key, sum] : sums) plan.collectives.push_back(sum);
  // All groups one after the other; what a schedule makes of them is the caller's to say.
  double compute = 0, communication = 0;
  for (const GroupLoad& l : plan.loads) {
    for (size_t p = 0; p < 3; ++p) {
      const double times = times_of(static_cast<Phase>(p));
      communication += times * l.communication[p];
      compute += times * (l.seconds[p] - l.communication[p]);
    }
    communication += l.starts;
    plan.predicted.held_bytes += l.state_bytes + l.kept_bytes;
  }
  plan.predicted.compute_seconds = compute;
  plan.predicted.communication_seconds = communication;
  plan.predicted.step_seconds = compute + communication;
}

Costing Costing::plain(int64_t micro_batches, const MemoryPrice& price) {
  const auto m = static_cast<double>(micro_batches);
  return {.runs = {{m, m, 1}}, .sends = {}, .prices = {price}, .in_flight = {1}};
}

Layout layout_of(const Dimensions& dimensions, Value v, Placements placements) {
  Layout layout;
  for (const ValueAtom& a : dimensions.values[static_cast<size_t>(v)]) {
    layout.atoms.push_back(a.size);
    layout.atom_dim.push_back(a.dim);
  }
  layout.placements = std::move(placements);
  return layout;
}

Layout Plan::layout(Value v, int32_t form) const {
  return layout_of(*dimensions, v,
                   values[static_cast<size_t>(v)][static_cast<size_t>(form)].placements);
}

}  // namespace cleave
