#include "viz/html.h"

#include <fmt/format.h>

#include <algorithm>

#include "viz/svg.h"
#include "viz/text.h"

namespace cleave {
namespace {

constexpr const char* kStyle = R"(
body { font-family: Helvetica, Arial, sans-serif; margin: 0; background: #f6f8fa; color: #1f2328; }
nav { position: sticky; top: 0; padding: 10px 16px; background: #24292f; display: flex; gap: 8px; }
nav b { color: #fff; margin-right: 16px; align-self: center; }
nav button { border: 0; border-radius: 6px; padding: 6px 14px; font: inherit; cursor: pointer; }
nav button.on { background: #54aeff; }
nav .zoom { margin-left: auto; }
section { padding: 16px; overflow: auto; }
section.off { display: none; }
section svg { display: block; margin: 0 auto; }
body.fit section svg { max-width: 100%; height: auto; }
pre { background: #fff; padding: 16px; border-radius: 8px; font-size: 13px; line-height: 1.35; }
)";

constexpr const char* kScript = R"(
const sections = [...document.querySelectorAll('section')];
const buttons = [...document.querySelectorAll('nav button[data-tab]')];
function show(i) {
  sections.forEach((s, k) => s.classList.toggle('off', k !== i));
  buttons.forEach((b, k) => b.classList.toggle('on', k === i));
}
buttons.forEach((b, i) => b.addEventListener('click', () => show(i)));
document.querySelector('.zoom').addEventListener('click', () => document.body.classList.toggle('fit'));
document.addEventListener('keydown', e => {
  const i = Number(e.key) - 1;
  if (i >= 0 && i < sections.length) show(i);
});
show(0);
)";

}  // namespace

std::string picture_tab(const Picture& picture, const std::string& ids) {
  return to_svg(picture, ids);
}

std::string text_tab(std::string_view text) {
  std::string body = "<pre>";
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    body += xml_text(text.substr(at, end - at)) + "\n";
    at = end + 1;
  }
  return body + "</pre>";
}

std::string html_page(const std::string& title, const std::vector<Tab>& tabs) {
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<title>{0}</title><style>{1}</style></head>\n<body class=\"fit\">\n<nav><b>{0}</b>",
      xml_text(title), kStyle);
  for (const Tab& t : tabs) text += fmt::format("<button data-tab>{}</button>", xml_text(t.name));
  text += "<button class=\"zoom\">fit / full size</button></nav>\n";
  for (const Tab& t : tabs) text += "<section>" + t.body + "</section>\n";
  return text + "<script>" + kScript + "</script>\n</body></html>\n";
}

}  // namespace cleave
