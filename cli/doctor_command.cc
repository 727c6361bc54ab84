// cleave doctor
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/doctor.h"
#include "cli/format.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

std::string json_text(const std::vector<Finding>& findings, double rate) {
  Json list = Json::array();
  for (const Finding& f : findings) {
    Json item = {{"name", f.name}, {"status", name_of(f.status)}, {"detail", f.detail}};
    if (!f.cost.empty()) item["cost"] = f.cost;
    if (!f.fix.empty()) item["fix"] = f.fix;
    list.push_back(std::move(item));
  }
  const Json json = {{"matrix_product_rate", rate}, {"findings", list}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string table_text(const std::vector<Finding>& findings) {
  Table table({"", "", "found"});
  for (const Finding& f : findings) {
    table.add({std::string(name_of(f.status)), f.name, f.detail});
    if (!f.cost.empty()) table.add({"", "", "  costs: " + f.cost});
    if (!f.fix.empty()) table.add({"", "", "  fix:   " + f.fix});
  }
  const std::string text = table.to_string();
  return text.substr(text.find('\n') + 1);  // columns that speak for themselves need no header
}

}  // namespace

void doctor_command(const DoctorArguments& a) {
  const MachineReport report = examine_machine();
  const std::vector<Finding>& all = report.findings;
  fmt::print("{}", a.json ? json_text(all, report.matrix_product_rate) : table_text(all));
  const auto count = [&](Finding::Status status) {
    return std::count_if(all.begin(), all.end(),
                         [&](const Finding& f) { return f.status == status; });
  };
  const auto broken = count(Finding::Status::kBroken), warnings = count(Finding::Status::kWarning);
  if (broken > 0) fail("{} of what cleave needs does not work; its line says what to do", broken);
  if (a.json) return;
  fmt::print("\nAll that cleave needs works{}.\n",
             warnings == 0 ? std::string()
                           : fmt::format("; {} warning{}", warnings, warnings == 1 ? "" : "s"));
}

}  // namespace cleave
