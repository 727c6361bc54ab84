// Clusters: specs, presets, uneven nodes, and their TOML.
#include "planner/cluster.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "graph/error.h"
#include "kernels/ops.h"
#include "planner/cluster_toml.h"

namespace cleave {
namespace {

void expect_same(const Cluster& a, const Cluster& b) {
  EXPECT_EQ(a.device, b.device);
  EXPECT_EQ(a.nodes, b.nodes);
  EXPECT_EQ(a.devices_per_node, b.devices_per_node);
  EXPECT_EQ(a.tiers, b.tiers);
  EXPECT_EQ(a.host_memory, b.host_memory);
  EXPECT_EQ(a.groups, b.groups);
}

// What a text is refused with; "" when it is not.
std::string mistake(const std::string& text) {
  try {
    cluster_from_toml(text, "c.toml", ops::find);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

// A cluster's file, while it is needed.
class File {
 public:
  explicit File(const std::string& text)
      : path_(
            (std::filesystem::path(::testing::TempDir()) / "planner_cluster_test.toml").string()) {
    std::ofstream(path_) << text;
  }
  ~File() { std::filesystem::remove(path_); }
  File(const File&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Presets, MakeSense) {
  const std::vector<std::string> kinds = cluster_kinds();
  EXPECT_GE(kinds.size(), 7u);
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    const Cluster c = parse_cluster("2x8x" + kind);
    EXPECT_EQ(c.size(), 16);
    EXPECT_GT(c.device.memory, 1e9);
    EXPECT_GT(c.host_memory, 8 * c.device.memory / 4);
    EXPECT_GT(c.device.bf16.peak, 0.99 * c.device.f32.peak);
    EXPECT_GE(c.device.f16.peak, c.device.bf16.peak);
    EXPECT_GE(c.device.f32.peak, c.device.f64.peak);
    EXPECT_GE(c.device.f32.peak, c.device.vector_flops);
    EXPECT_LE(c.device.bf16.efficiency, 1);
    ASSERT_EQ(c.tiers.size(), 2u);
    // The nearer, the faster.
    EXPECT_GT(c.device.bandwidth, c.tiers[0].link.bandwidth);
    EXPECT_GT(c.tiers[0].link.bandwidth, c.tiers[1].link.bandwidth);
    EXPECT_LT(c.tiers[0].link.latency, c.tiers[1].link.latency);
    EXPECT_LE(c.device.host_bandwidth, c.device.bandwidth);
  }
}

TEST(Specs, AsBefore) {
  EXPECT_EQ(parse_cluster("cpu:4").devices_per_node, 4);
  EXPECT_EQ(parse_cluster("h100").size(), 1);
  EXPECT_EQ(parse_cluster("8xa100-40g").devices_per_node, 8);
  const Cluster c = parse_cluster("64x8xh100");
  EXPECT_EQ(c.nodes, 64);
  EXPECT_EQ(c.devices_per_node, 8);
  EXPECT_EQ(c.spec, "64x8xh100");
  for (const char* bad :
       {"", "x", "8x", "0xh100", "8xq100", "2x2x2xh100", "cpu:", "cpu:0", "-1xcpu",
        "1000000x1000000xcpu", "nothing.toml", "nothing.toml:3", ":4"}) {
    EXPECT_THROW(parse_cluster(bad), Error) << bad;
  }
}

TEST(Toml, EveryPresetIsReadAsWritten) {
  for (const std::string& kind : cluster_kinds()) {
    SCOPED_TRACE(kind);
    const Cluster c = parse_cluster("4x8x" + kind);
    const std::string text = cluster_to_toml(c, "one\ntwo");
    EXPECT_TRUE(text.starts_with("# one\n# two\n")) << text;
    const Cluster back = cluster_from_toml(text, "c.toml");
    expect_same(c, back);
    EXPECT_EQ(back.spec, "c.toml");
    EXPECT_EQ(back.description, text);
    EXPECT_EQ(cluster_to_toml(back, "one\ntwo"), text);
  }
}

TEST(Toml, StrangeNumbersAndNames) {
  Cluster c = parse_cluster("2x4xh100");
  c.device.name = "a \"b\" \x7f \\ ü\n";
  c.device.bandwidth = 1.0 / 3 * 1e12;
  c.tiers[1].devices = 64;
  c.tiers.push_back({"spine", 0, {1e-300, 0.1 + 0.2 + 1, 0}, 7});
  expect_same(c, cluster_from_toml(cluster_to_toml(c), "c.toml"));
}

// What calibrating a GPU writes besides.
TEST(Toml, MeasuredProductsAndOps) {
  Cluster c = parse_cluster("h100");
  c.device.bf16.measured = {{8192, 6144, 1536, 1.03}, {16, 4096, 4096, 2}};
  c.device.tf32.measured = {{512, 512, 512, 0.9}};
  c.device.fused_backward = {.efficiency = 0.7, .half_width = 32, .half_length = 100};
  c.device.ops = {
      {"adamw", 2.9e12, 3e-6}, {"grouped_matmul", 2.5e12, 1e-6, 0.6}, {"layer_norm", 2.5e12, 0}};
  const std::string text = cluster_to_toml(c);
  const Cluster back = cluster_from_toml(text, "c.toml");
  expect_same(c, back);
  EXPECT_EQ(back.device, c.device);
  EXPECT_EQ(cluster_to_toml(back), text);
  const auto mistake = [&](const std::string& from, const std::string& to) {
    std::string wrong = text;
    const size_t at = wrong.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    wrong.replace(at, from.size(), to);
    try {
      cluster_from_toml(wrong, "c.toml");
      ADD_FAILURE() << to << " is accepted";
    } catch (const Error& e) {
      EXPECT_TRUE(std::string(e.what()).starts_with("c.toml:")) << e.what();
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    }
  };
  mistake("[8192, 6144, 1536, 1.03]", "[8192, 6144, 1536]");
  mistake("[8192, 6144, 1536, 1.03]", "[8192, 6144, 0, 1.03]");
  mistake("[8192, 6144, 1536, 1.03]", "[8192, 6144, 1536, -1.0]");
  mistake("[8192, 6144, 1536, 1.03]", "8192");
  mistake("\"layer_norm\"", "\"adamw\"");  // twice
  mistake("bandwidth = 2900000000000", "bandwidth = 0");
  for (const char* wrong : {"0", "-0.5", "1.01", "nan", "true"}) {
    mistake("efficiency = 0.6 ", fmt::format("efficiency = {} ", wrong));
  }
  mistake("gpu = true", "gpu = 1");
}

TEST(Presets, ComputeInTheTypeThatTheyHave) {
  const auto taken = [](const char* kind) { return cluster_of_kind(kind).default_dtype(); };
  EXPECT_EQ(taken("v100"), DType::kF16);
  EXPECT_EQ(taken("cpu"), DType::kF32);
  for (const char* kind : {"a100-40g", "a100", "h100", "h200", "b200"}) {
    EXPECT_EQ(taken(kind), DType::kBF16) << kind;
  }
  Cluster faster = cluster_of_kind("h100");
  faster.device.f16.peak *= 2;  // bf16 needs no scaling of the loss
  EXPECT_EQ(faster.default_dtype(), DType::kBF16);
  const Cluster v100 = cluster_of_kind("v100");
  EXPECT_EQ(v100.peak_flops(DType::kF16), 125e12);
  EXPECT_EQ(v100.peak_flops(DType::kBF16), v100.peak_flops(DType::kF32));
  EXPECT_NEAR(cluster_of_kind("b200").device.memory / 1073741824, 0.96 * 180, 1e-9);
}

TEST(Toml, APresetWithChanges) {
  const Cluster c = cluster_from_toml(
      "kind = \"a100\"\n[device]\nmemory = 40e9\n[device.bf16]\nefficiency = 0.7\n"
      "[[node]]\ncount = 2\ndevices = 4\n",
      "c.toml");
  const Cluster a100 = cluster_of_kind("a100");
  EXPECT_EQ(c.device.memory, 40e9);
  EXPECT_EQ(c.device.bf16.peak, a100.device.bf16.peak);
  EXPECT_EQ(c.device.bf16.efficiency, 0.7);
  EXPECT_EQ(c.tiers, a100.tiers);
  EXPECT_EQ(c.size(), 8);
}

TEST(Toml, TheLeastThereCanBe) {
  const Cluster c = cluster_from_toml(
      "[device]\nmemory = 1e9\nbandwidth = 1e10\nvector_flops = 1e9\n[device.f32]\npeak = 1e11\n"
      "[[link]]\nbandwidth = 1e9\n",
      "c.toml");
  EXPECT_EQ(c.size(), 1);
  EXPECT_EQ(c.device.bf16, c.device.f32);
  EXPECT_EQ(c.device.f16, c.device.f32);
  EXPECT_EQ(c.device.host_bandwidth, 1e10);
}

TEST(Toml, FilesAndCounts) {
  const File file(cluster_to_toml(parse_cluster("cpu:2")));
  EXPECT_EQ(parse_cluster(file.path()).size(), 2);
  const Cluster four = parse_cluster(file.path() + ":4");
  EXPECT_EQ(four.size(), 4);
  EXPECT_EQ(cluster_from_toml(four.description, "x").size(), 4);  // as a plan keeps it
  const Cluster nodes = parse_cluster(file.path() + ":3x4");  // a preset has links between nodes
  EXPECT_EQ(nodes.nodes, 3);
  EXPECT_EQ(nodes.devices_per_node, 4);
  EXPECT_EQ(nodes.spec, file.path() + ":3x4");
  expect_same(nodes, cluster_from_toml(nodes.description, "x"));
  for (const char* bad : {":0", ":2x", ":x2", ":2x2x2", ":1000000x1000000"}) {
    EXPECT_THROW(parse_cluster(file.path() + bad), Error) << bad;
  }
}

// A file's links say how many devices they join; what one node does not use does not matter to it.
TEST(Toml, SizesThatLinksDoNotJoin) {
  const std::string device =
      "[device]\nmemory = 1e9\nbandwidth = 1e10\nvector_flops = 1e9\n[device.f32]\npeak = 1e11\n";
  const std::string link = "[[link]]\nbandwidth = 1e9\n";
  const auto refused = [](const std::string& spec) -> std::string {
    try {
      const Cluster c = parse_cluster(spec);
      expect_same(c, cluster_from_toml(c.description, "x"));
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  };
  {
    const File one(device + link);
    EXPECT_EQ(refused(one.path() + ":8"), "");
    EXPECT_NE(refused(one.path() + ":2x8").find("several nodes need a second"), std::string::npos);
  }
  const File pods(device + link + link + "devices = 16\n");
  for (const char* size : {":8", ":3", ":2x8", ":4x4"}) {
    EXPECT_EQ(refused(pods.path() + size), "") << size;
  }
  EXPECT_NE(refused(pods.path() + ":2x3").find("joins 16 devices, which nodes of 3 do not make"),
            std::string::npos);
  EXPECT_NE(refused(pods.path() + ":3x8").find("joins 16 of 24 devices"), std::string::npos);
}

// A rate that nothing would read is a mistake: of an op that there is not, or in another's words.
TEST(Toml, RatesOfOpsAreOfOpsThatHaveThem) {
  const auto with = [](const std::string& op) {
    return mistake("kind = \"h100\"\n[[device.op]]\n" + op);
  };
  const std::string rate = "bandwidth = 1e12\n";
  EXPECT_EQ(with("name = \"add\"\n" + rate), "");
  EXPECT_EQ(with("name = \"grouped_matmul\"\nefficiency = 0.5\n" + rate), "");
  for (const auto& [op, expected] : std::vector<std::pair<std::string, std::string>>{
           {"name = \"frobnicate\"\n" + rate,
            "c.toml:3: device.op.name: there is no op 'frobnicate'; cleave trace MODEL"},
           {"name = \"attention\"\n" + rate, "c.toml:3: device.op.name: 'attention' is attention"},
           {"name = \"matmul\"\n" + rate, "c.toml:3: device.op.name: 'matmul' is a matrix product"},
           {"name = \"linear\"\n" + rate, "'linear' is a matrix product"},
           {"name = \"add\"\nefficiency = 0.5\n" + rate,
            "c.toml:4: device.op.efficiency: 'add' is no product of experts"},
           {rate, "c.toml:2: device.op.name: is missing: the op's"},
           {"name = \"add\"\n", "c.toml:2: device.op.bandwidth: is missing: bytes/s"}}) {
    const std::string found = with(op);
    EXPECT_NE(found.find(expected), std::string::npos) << op << found;
    EXPECT_EQ(found.find('\n'), std::string::npos) << found;
  }
}

TEST(UnevenNodes, WhatTheyHaveInCommon) {
  struct Row {
    const char* text;
    int64_t nodes, devices, idle;
  };
  for (const Row& r : {Row{"[[node]]\ncount = 3\ndevices = 8\n[[node]]\ndevices = 4\n", 7, 4, 0},
                       Row{"[[node]]\ncount = 4\ndevices = 8\n[[node]]\ndevices = 3\n", 4, 8, 3},
                       Row{"[[node]]\ndevices = 2\n[[node]]\ncount = 5\ndevices = 7\n", 5, 7, 2},
                       Row{"[[node]]\ndevices = 4\n[[node]]\ndevices = 4\n", 2, 4, 0}}) {
    const Cluster c = cluster_from_toml(std::string("kind = \"h100\"\n") + r.text, "c.toml");
    EXPECT_EQ(c.nodes, r.nodes) << r.text;
    EXPECT_EQ(c.devices_per_node, r.devices) << r.text;
    EXPECT_EQ(c.devices_present() - c.size(), r.idle) << r.text;
    EXPECT_EQ(c.note().empty(), c.groups.empty());
    expect_same(c, cluster_from_toml(cluster_to_toml(c), "c.toml"));
  }
  const Cluster c = cluster_from_toml(
      "kind = \"h100\"\n[[node]]\ncount = 4\ndevices = 8\n[[node]]\ndevices = 3\n", "c.toml");
  EXPECT_EQ(c.note(),
            "uneven nodes (35 devices): 4 of 8 + 1 of 3, planned as 4 of 8; 3 devices idle");
}

TEST(Toml, MistakesNameTheLineAndTheKey) {
  const std::string base =
      "[device]\nmemory = 1e9\nbandwidth = 1e10\nvector_flops = 1e9\n[device.f32]\npeak = 1e11\n";
  const std::string link = "[[link]]\nbandwidth = 1e9\n";
  ASSERT_EQ(mistake(base + link), "");
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"", "c.toml:1: device: is missing"},
      {"= 3", "c.toml:1: not TOML"},
      {"kind = {,}", ": not TOML"},
      {"kind = {a = 1, =}", ": not TOML"},
      {"kind = 3\n", "c.toml:1: kind: write"},
      {"kind = \"q100\"\n", "c.toml:1: kind: there is no preset 'q100'"},
      {"device = 3\n", "c.toml:1: device: write [device]"},
      {"\n\nspeed = 3\n" + base + link, "c.toml:3: speed: there is no such key"},
      {base, "link: is missing"},
      {"[device]\nmemory = 1e9\n", "device.bandwidth: is missing"},
      {"[device]\nmemory = 1e9\nbandwidth = 1e10\nvector_flops = 1\n", "device.f32: is missing"},
      {base + "[device.f64]\n" + link, "c.toml:7: device.f64.peak: is missing"},
      {base + "[device.f8]\npeak = 3\n" + link, "device.f8: there is no such key"},
      {base + "[device.bf16]\npeak = -1\n" + link, "c.toml:8: device.bf16.peak: write a number"},
      {base + "[device.bf16]\npeak = nan\n" + link, "device.bf16.peak: write a number"},
      {base + "[device.bf16]\npeak = inf\n" + link, "device.bf16.peak: write a number"},
      {base + "[device.bf16]\npeak = \"fast\"\n" + link, "device.bf16.peak: write a number"},
      {base + "[device.tiling]\nunits = 1.5\n" + link, "device.tiling.units: write a whole number"},
      {base + "[device.tiling]\nunits = 0\n" + link, "device.tiling.units: write a whole number"},
      {base + "[device.tiling]\nrows = 8\ncolumns = 64\nsmallest = 16\n" + link,
       "c.toml:10: device.tiling.smallest: 16 is more than a side of the largest tile, 8 x 64"},
      {"kind = \"h100\"\n[device.tiling]\ncolumns = 16\n",
       "c.toml:2: device.tiling.smallest: 32 is more than a side of the largest tile, 128 x 16"},
      {base + link + "latency = -1e-6\n", "c.toml:9: link.latency: write a number"},
      {base + link + "ports = 3\n", "link: the first joins"},
      {base + "[link]\nbandwidth = 3\n", "link: write [[link]]"},
      {base + "link = [3]\n", "c.toml:7: device.f32.link: there is no such key"},
      {"link = [3]\n" + base, "c.toml:1: link: write [[link]]"},
      {base + link + "[[node]]\ncount = 2\n", "link: several nodes need a second"},
      {base + link + "[[node]]\ncount = 0\n", "c.toml:10: node.count: write a whole number"},
      {base + link + "[[node]]\ncount = 1000000\ndevices = 1000000\n", "node: more than"},
      {base + link + link + "devices = 2\n[[node]]\ncount = 3\n", "the last link joins 2 of 3"},
      {base + link + link + link, "every link but the first and the last"},
      {base + link + link + "devices = 4\n" + link + "devices = 6\n", "must be a multiple of 4"},
      {base + link + link + "devices = 2\n" + link + "devices = 4\n" + link + "devices = 8\n" +
           link,
       "at most 4"},
  };
  for (const auto& [text, expected] : rows) {
    const std::string found = mistake(text);
    EXPECT_NE(found.find(expected), std::string::npos) << text << "\n" << found;
    EXPECT_EQ(found.find('\n'), std::string::npos) << found;
  }
}

// Every text that is cut short, or has a byte changed, is read or refused in one line.
TEST(Toml, DamagedTexts) {
  const std::string whole = cluster_to_toml(parse_cluster("2x8xa100"));
  for (size_t n = 0; n < whole.size(); n += 7) {
    const std::string cut = mistake(whole.substr(0, n));
    EXPECT_EQ(cut.find('\n'), std::string::npos) << cut;
    for (const char c : {'\0', '"', '[', '-', '9', '\n'}) {
      std::string changed = whole;
      changed[n] = c;
      const std::string found = mistake(changed);
      EXPECT_EQ(found.find('\n'), std::string::npos) << found;
    }
  }
}

}  // namespace
}  // namespace cleave
