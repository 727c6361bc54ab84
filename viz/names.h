// Names as people read them: layers folded, classes in words.
#pragma once

#include <string>
#include <string_view>

#include "planner/dimensions.h"

namespace cleave {

// "h.3.mlp.fc.weight[0]" -> "h.*.mlp.fc.weight[0]": parts that are numbers become stars.
std::string folded_name(std::string_view name);

// What a class is called in reports: "batch", "h.*.mlp.fc.weight[0]".
std::string class_name(const Dimensions& dimensions, ClassId c);

// The scope that both are in: "h.*.mlp.fc" and "h.*.mlp" -> "h.*.mlp"; empty: none.
std::string common_scope(std::string_view a, std::string_view b);

// A folded scope without the layers that it is in: "h.*.attn.qkv" -> "attn.qkv".
std::string inside_layer(const std::string& scope);

// The last part of a scope: "h.3.attn" -> "attn".
std::string_view last_part(std::string_view scope);

}  // namespace cleave
