// A byte-level tokenizer: added tokens are taken out, the rest is cut into pieces, and the bytes of
// each are merged.
#pragma once

#include <memory>

#include "data/bpe.h"
#include "data/tokenizer.h"

namespace cleave {

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition);

}  // namespace cleave
