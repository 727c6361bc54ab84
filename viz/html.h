// One page that needs nothing else: pictures of several levels to switch between, and texts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "viz/picture.h"

namespace cleave {

struct Tab {
  std::string name;  // on its button
  std::string body;  // HTML
};

// A picture as the body of a tab, in a frame that scrolls, drawn as wide as the window or at its
// own size. `ids`: as for to_svg, different in every tab.
std::string picture_tab(const Picture& picture, const std::string& ids);
// Text in columns, as on a terminal.
std::string text_tab(std::string_view text);

// The page. The first tab is shown; without scripts all are, one below the other.
std::string html_page(const std::string& title, const std::vector<Tab>& tabs);

}  // namespace cleave
