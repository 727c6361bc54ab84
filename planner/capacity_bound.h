// A lower bound that does not divide pieces.
#pragma once

#include <vector>

#include "planner/bounds.h"

namespace cleave {

// Most of the pieces of a model are alike: the copies of its largest repeat. In a step of T seconds
// each stage has room for a whole number of them: as many as keep the chains that follow its units
// within T, and its bytes within its limit, with every other chunk that must hold a copy holding
// one, and whatever options they take (mixed in parts). A step takes at least the least T in which
// all find room; of the other pieces the heaviest few are placed too, each on some stage.
// `limits`: bytes, by stage; infinite: not priced. `sent`: seconds to send what passes between
// stages. Stops looking where `enough` is reached. 0 without a repeat; infinite when nothing fits.
double capacity_bound(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                      const std::vector<PieceOption>& options,
                      const std::vector<CriticalPath>& paths, const std::vector<double>& limits,
                      double sent, double enough, Schedules& schedules);

}  // namespace cleave
