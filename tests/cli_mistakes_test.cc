// Bad input to every command, as its user meets it: one line on stderr that says what is wrong,
// where, and what to do; the documented exit status; soon; and nothing lost or half-written.
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>

#include "tests/cli_mistakes_world.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

struct Row {
  const char* line;               // "@x" is x in the world's folder
  std::vector<const char*> says;  // parts of the line on stderr
  int status = 1;
  const char* out = "";   // part of what stdout has; "": stdout is empty
  const char* made = "";  // names that begin so may be new; they go after the row
};

const std::vector<Row>& words() {
  static const std::vector<Row> rows = {
      {"", {"name a command: trace, regions, plan", "see cleave --help"}},
      {"trian gpt2:tiny", {"there is no command 'trian'", "train", "see cleave --help"}},
      {"''", {"name a command"}},
      {"trace", {"MODEL is required", "see cleave trace --help"}},
      {"trace gpt2:tiny more", {"'more' was not expected: MODEL is gpt2:tiny already"}},
      {"trace gpt2:tiny --bacth 4", {"there is no option '--bacth'; did you mean --batch?"}},
      {"trace gpt2:tiny --memory 3GB", {"there is no option '--memory'; see cleave trace --help"}},
      {"trace gpt2:tiny --batch", {"--batch needs a value; see cleave trace --help"}},
      {"trace gpt2:tiny --batch --forward", {"--batch needs a value before --forward"}},
      {"trace gpt2:tiny --batch 4 --batch 5", {"--batch is given 2 times"}},
      {"trace gpt2:tiny --forward=yes", {"--forward takes no value"}},
      {"trace gpt2:tiny --batch four", {"--batch 'four': write a whole number, or auto"}},
      {"trace gpt2:tiny --batch 1.5", {"--batch '1.5': write a whole number"}},
      {"trace gpt2:tiny --batch 99999999999999999999", {"--batch", "too large"}},
      {"trace gpt2:tiny --batch 9223372036854775807", {"batch=9223372036854775807 is above"}},
      {"trace gpt2:tiny --batch 0", {"--batch 0: write at least 1"}},
      {"trace gpt2:tiny --batch -1", {"--batch -1: write at least 1"}},
      {"trace gpt2:tiny --precision fp8", {"--precision 'fp8': write fp32, fp64, bf16 or fp16"}},
      {"trace gpt2:tiny --optimizer lion", {"--optimizer 'lion': write adamw or sgd"}},
      {"trace gpt2:tiny --moments fp16", {"--moments 'fp16': write fp32 or bf16"}},
      {"trace gpt2:tiny --precision fp64 --moments fp32",
       {"--moments fp32: beside --precision fp64 they are fp64 when it is left out, or bf16"}},
      {"trace gpt2:tiny --forward --moments bf16", {"--moments bf16: a forward alone has none"}},
      {"regions", {"MODEL is required", "see cleave regions --help"}},
      {"regions gpt2:tiny --jsn", {"there is no option '--jsn'; did you mean --json?"}},
      {"doctor now", {"'now' was not expected; see cleave doctor --help"}},
      {"doctor --jsom", {"there is no option '--jsom'; did you mean --json?"}},
      {"doctor --json --json", {"--json is given 2 times"}},
  };
  return rows;
}

const std::vector<Row>& models() {
  static const std::vector<Row> rows = {
      {"trace gpt2:giant", {"there is no model 'gpt2:giant'", "there are gpt2:tiny"}},
      {"trace gpt9:tiny", {"there is no model 'gpt9:tiny'; there are", "gpt2:tiny"}},
      {"regions ''", {"MODEL"}},
      {"trace gpt2", {"there is no model 'gpt2'", "gpt2:tiny"}},
      {"trace gpt2:tiny --set layers", {"--set layers: write key=value, for example layers=4"}},
      {"trace gpt2:tiny --set =4", {"--set =4", "the keys are"}},
      {"trace gpt2:tiny --set depth=3", {"--set depth=3", "'depth'; the keys are layers"}},
      {"trace gpt2:tiny --set layers=", {"--set layers=", "is not a whole number"}},
      {"trace gpt2:tiny --set layers=two", {"--set layers=two", "'two' is not a whole number"}},
      {"trace gpt2:tiny --set layers=0", {"layers=0 must be at least 1"}},
      {"trace gpt2:tiny --set hidden=-32", {"hidden=-32 must be at least 1"}},
      {"trace gpt2:tiny --set vocab=9223372036854775807", {"is above"}},
      {"trace gpt2:tiny --set layers=1000000", {"layers=1000000 is above"}},
      {"trace gpt2:tiny --set heads=3", {"hidden=128 is not a multiple of heads=3"}},
      {"trace llama:tiny --set heads=4 kv_heads=3", {"heads=4 is not a multiple of kv_heads=3"}},
      {"trace gpt2:tiny --set dropout=2", {"dropout=2 must be at least 0 and below 1"}},
      {"trace gpt2:tiny --set tied=perhaps", {"'perhaps' is not true or false"}},
      {"trace gpt2:tiny --set layers=1 vocab=2147483647 sequence=2147483647", {"2^50 elements"}},
      {"trace gpt2:tiny -o @no/such/graph.txt", {"cannot write", "no/such/graph.txt", "No such"}},
      {"trace gpt2:tiny -o @nothing", {"cannot write", "nothing': it is a folder; name a file"}},
      {"trace mlp:tiny -o /dev/full", {"cannot write '/dev/full'", "is the disk full?"}},
  };
  return rows;
}

const std::vector<Row>& planning() {
  static const std::vector<Row> rows = {
      {"plan gpt2:tiny", {"--cluster is required", "see cleave plan --help"}},
      {"plan gpt2:tiny --cluster gpu:4", {"unknown cluster 'gpu:4': kinds are cpu, v100"}},
      {"plan gpt2:tiny --cluster cpu:2 --set experts=4",
       {"--set experts=4: gpt2:tiny has no 'experts'; the keys are layers, hidden, heads, ffn, "}},
      {"plan gpt2:tiny --cluster cpu:2 --batch 4 --set batch=2",
       {"--batch 4 and --set batch=2: write one of them"}},
      {"plan gpt2:tiny --cluster cpu:0", {"cluster 'cpu:0': '0' is not a number of devices"}},
      {"plan gpt2:tiny --cluster box.toml:2x", {"'' is not a number of devices", "box.toml:2x8"}},
      {"plan gpt2:tiny --cluster cpu:-2", {"cluster 'cpu:-2': '-2' is not a number of devices"}},
      {"plan gpt2:tiny --cluster cpu:", {"cluster 'cpu:'", "is not a number of devices"}},
      {"plan gpt2:tiny --cluster ''", {"--cluster ''", "write"}},
      {"plan gpt2:tiny --cluster cpu:99999999999999999999",
       {"is not a number of devices from 1 to"}},
      {"plan gpt2:tiny --cluster 2x2x2xh100", {"write nodes x devices x kind, as in 64x8xh100"}},
      {"plan gpt2:tiny --cluster 1000000x1000000xh100", {"at most 1000000 are planned for"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh 3x2", {"6 devices", "cpu:4"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh 2x2x1x1x1",
       {"mesh '2x2x1x1x1' has 5 axes; at most 4"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh pp=4", {"'pp=4' is not an axis", "dp"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh dp=0,tp=4",
       {"mesh 'dp=0,tp=4': '0' is not a size; write 2x4"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh 2y2", {"mesh '2y2': '2y2' is not a size; write 2x4"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh dp=", {"mesh 'dp=': '' is not a size"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh dp=4 --batch 6", {"--mesh dp=4", "try --batch 8"}},
      {"plan gpt2:tiny --cluster cpu:4 --memory lots", {"--memory lots: write a size such as"}},
      {"plan gpt2:tiny --cluster cpu:4 --memory -3GB", {"--memory -3GB: write a size"}},
      {"plan gpt2:tiny --cluster cpu:4 --memory 0", {"--memory 0: write a size"}},
      {"plan gpt2:tiny --cluster cpu:4 --memory 40", {"that is 40 bytes; write a unit"}},
      {"plan mlp:tiny --cluster cpu:2 --memory 100KB -o @plan.json",
       {"mlp:tiny does not fit on cpu:2", "a device, the limit is 97.7 KiB", "use more devices or"},
       3},
      {"plan mlp:tiny --cluster cpu:2 --memory 1B --json", {"does not fit"}, 3, "\"fits\": false"},
      {"plan mlp:tiny --cluster cpu:2 --mesh dp=2 --memory 10KB", {"does not fit"}, 3},
      {"plan gpt2:tiny --cluster cpu:2 --memory 2MiB", {"the limit is 2.00 MiB", "too much"}, 3},
      {"plan gpt2:124m --set layers=2 --cluster 8xh100 --memory 50MB",
       {"the limit is 47.7 MiB"},
       3},
      {"plan mlp:tiny --cluster cpu:2 -o @no/such/plan.json", {"cannot write", "no/such/plan"}},
      {"plan mlp:tiny --cluster cpu:2 -o @nothing",
       {"cannot write", "nothing': it is a folder; name a file"}},
      {"plan mlp:tiny --cluster cpu:2 -o /dev/full", {"cannot write '/dev/full'", "disk full?"}},
  };
  return rows;
}

const std::vector<Row>& answers() {
  static const std::vector<Row> rows = {
      {"plan gpt2:tiny --cluster cpu:4 --pin tp", {"--pin 'tp': write KEY=VALUE, PATTERN=VALUE"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin qp=2", {"'qp' is nothing to pin; there are dp, tp"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin tp=3", {"tp=3: the 4 devices of cpu:4"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin tp=2 tp=4",
       {"--pin 'tp=2' and 'tp=4' contradict each other"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin h.0=keep h.0=recompute",
       {"'h.0=keep' and 'h.0=recompute' contradict each other"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh dp=4 --pin wte.weight:tp=shard(0)",
       {"dp 4: it has no axis tp, which 'wte.weight:tp=shard(0)' names"}},
      {"plan gpt2:tiny --cluster cpu:4 --mesh 4 --pin zero=1",
       {"--pin zero=1: --mesh 4 does not say which axis is dp"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin micro=3", {"--pin micro=3", "do not divide by it"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin h.9=recompute",
       {"no op of the forward is called h.9"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin wte:tp=shard(7)",
       {"no parameter of wte has a dimension 7"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin h.*.mlp=again", {"'again' is no value"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin schedule=gpipe", {"write 1f1b, interleaved or"}},
      {"plan gpt2:tiny --cluster cpu:4 --pin offload=on", {"--pin offload=on", "nothing else"}},
      {"plan mlp:tiny --forward --cluster cpu:4 --pin pp=2", {"a forward alone has no stages"}},
      {"plan gpt2:tiny --cluster cpu:4 --objective money",
       {"--objective 'money': write time, memory or gpus"}},
      {"explain", {"PLAN is required", "see cleave explain --help"}},
      {"explain @missing.json", {"cannot read", "missing.json"}},
      {"explain @graph.json", {"graph.json: not a plan; cleave plan -o writes one"}},
      {"explain @plan.json nobody", {"no op or parameter", "is called nobody"}},
      {"explain @plan.json wte --why-not tp=2", {"--why-not asks about the whole plan"}},
      {"explain @plan.json --why-not two", {"--why-not 'two': write KEY=VALUE"}},
      {"explain @plan.json --why-not h.7=cut", {"no op of the forward is called h.7"}},
      {"explain @plan.json --memory 3GB", {"--memory is for --why-not"}},
      {"explain @plan.json a b", {"'b' was not expected"}},
      {"diff @plan.json", {"OTHER is required", "see cleave diff --help"}},
      {"diff @plan.json @forward.json", {"are plans of different models: the models gpt2:tiny"}},
      {"diff @plan.json @graph.txt", {"graph.txt: not JSON"}},
      {"fit gpt2:tiny", {"--cluster is required", "see cleave fit --help"}},
      {"fit gpt2:tiny --cluster cpu:2 --seconds -1", {"--seconds -1: write at least 0"}},
      {"fit mlp:tiny --cluster cpu:2 --memory 100KB --seconds 0",
       {"does not fit: mlp:tiny needs", "more than one may use"},
       3,
       "does not fit on cpu:2"},
      {"export @plan.json", {"--to is required", "see cleave export --help"}},
      {"export @plan.json --to jax", {"--to 'jax': write megatron, dtensor, hf-tp or deepspeed"}},
      {"export @forward.json --to megatron", {"a plan of the forward alone"}},
      {"export @plan.json --to megatron -o @no/such/flags", {"cannot write", "no/such/flags"}},
      {"export @plans/hash.json --to hf-tp", {"hash.json", "another graph", "plan again"}},
  };
  return rows;
}

const std::vector<Row>& drawing() {
  static const std::vector<Row> rows = {
      {"view gpt2:tiny", {"--out is required", "see cleave view --help"}},
      {"view gpt2:tiny -o @a.png", {"a.png: name a .svg, .html or .dot file"}},
      {"view gpt2:tiny -o @a.dot --level atoms", {"--level 'atoms': write model, block or raw"}},
      {"view gpt2:124m --level raw -o @graph.svg", {"boxes at --level raw", "write a .dot"}},
      {"view mlp:tiny -o @no/such.svg", {"cannot write", "no/such.svg"}},
      {"view @dangling/a.txt -o @a.dot", {"cannot read", "dangling/a.txt", "No such file"}},
      {"view @missing.txt -o @a.dot", {"cannot read", "missing.txt", "No such file"}},
      {"view @nothing.json -o @a.dot", {"cannot read", "nothing.json"}},
      {"view @half.txt -o @a.dot", {"half.txt: line "}},
      {"view @shape.txt -o @a.dot", {"shape.txt: line 3:"}},
      {"view @op.txt -o @a.dot", {"op.txt: line 4:", "frobnicate"}},
      {"view @undefined.txt -o @a.dot", {"undefined.txt: line 4:", "%7"}},
      {"view @binary.txt -o @a.dot", {"binary.txt: line 1"}},
      {"view @half.json -o @a.dot",
       {"half.json: not JSON: parse error at line", "write the file again"}},
      {"view @deep.json -o @a.dot", {"deep.json", "deep"}},
      {"view @other.json -o @a.dot", {"other.json: neither a graph nor a plan; cleave trace -o"}},
      {"view @plan.json --batch 3 -o @a.dot", {"--batch does not change the file"}},
      {"view @plans/cut.json -o @a.dot", {"plans/cut.json: not JSON"}},
      {"view @plans/words.json -o @a.dot", {"plans/words.json: not JSON"}},
      {"view @plans/deep.json -o @a.dot", {"plans/deep.json", "deep"}},
      {"view @plans/version.json -o @a.dot", {"version.json", "version 99, this build reads"}},
      {"view @plans/no_model.json -o @a.dot", {"no_model.json: the field 'model'", "plan again"}},
      {"view @plans/no_choices.json -o @a.dot", {"no_choices.json", "'choices' is missing"}},
      {"view @plans/type.json -o @a.dot", {"type.json", "mesh"}},
      {"view @plans/hash.json -o @a.dot", {"hash.json", "another graph", "plan again"}},
      {"view @plans/layers.json -o @a.dot", {"layers.json", "another graph", "plan again"}},
      {"view @plans/name.json -o @a.dot", {"name.json", "there is no model 'gpt2:giant'"}},
      {"view @plans/precision.json -o @a.dot", {"precision.json", "fp7"}},
      {"view @plans/batch.json -o @a.dot", {"plans/batch.json"}},
  };
  return rows;
}

const std::vector<Row>& training() {
  static const std::vector<Row> rows = {
      {"train", {"MODEL is required", "see cleave train --help"}},
      {"train gpt2:tiny --devices cpu:1", {"--data is required"}},
      {"train gpt2:tiny --data @data.txt", {"--devices is required"}},
      {"train gpt2:tiny --data @data.txt --devices 8xh100", {"cpu:N or on one GPU"}},
      {"train gpt2:tiny --data @data.txt --devices h100 --no-fuse bais --out @new",
       {"--no-fuse bais: there is no fusion 'bais'; there are ", ", wide, chunks, ", "and all"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --no-fuse bias --out @new",
       {"--no-fuse bias: only the programs of one GPU are fused"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:1 --fp8 delayed --out @new",
       {"--fp8 delayed: floats of 8 bits are for GPUs"}},
      {"train gpt2:tiny --data @data.txt --devices h100 --fp8 delayed --out @new",
       {"--fp8 delayed: it goes with --precision bf16, not fp32"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:1 --profile @no/such.json --out @new",
       {"cannot write", "no/such.json"}},
      {"bench @plan.json --devices cpu:1", {"plan.json' is a file, and this takes a model"}},
      {"simulate @plan.json -o @plan.json", {"would take the place of", "name another file"}},
      {"simulate @plan.json --dump @plan.json", {"would take the place of"}},
      {"simulate @plan.json --dump @same -o @same", {"would take the place of"}},
      {"export @plan.json --to megatron -o @plan.json", {"would take the place of"}},
      {"bench gpt2:tiny --devices cpu:1 --dump @same --profile @same", {"would take the place of"}},
      {"simulate gpt2:tiny",
       {"'gpt2:tiny' is a model, and this takes a plan's file", "cleave plan"}},
      {"bench gpt2:tiny --devices cpu:1 --steps 1000000 --profile @no/such.json",
       {"cannot write", "no/such.json"}},
      {"train gpt2:tiny --data @data.txt --devices h100 --fp8 e4m3 --out @new",
       {"--fp8", "current", "delayed"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:0", {"is not a number of devices"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --steps 0", {"--steps 0: write at"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --lr -1", {"--lr -1: write a number"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --lr nan", {"--lr 'nan': write a number"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --min-lr 1", {"must not be above --lr"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --warmup 999", {"be below --steps"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --precision bf16 --out @new",
       {"bf16", "fp32 and fp64"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --mesh 3", {"3 devices"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:4 --mesh dp=4 --batch 6 --out @new",
       {"--mesh dp=4", "try --batch 8"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --checkpoint-every 5",
       {"--checkpoint-every 5: name the run's folder with --out"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --out @run",
       {"holds a run already; --resume goes on with it, or name another folder"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --out @data.txt", {"data.txt'", "folder"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --out @data.txt/run",
       {"data.txt/run", "folder"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --out @dangling", {"dangling"}},
      {"train gpt2:tiny --data @data.txt --devices cpu:2 --out /proc/cleave",
       {"/proc/cleave", "name one that can be written"}},
      {"train gpt2:124m --data @data.txt --devices cpu:1 --batch 16 --out @new",
       {"does not fit on cpu:1", "a device, the limit is 4.00 GiB", "it fits on cpu:"},
       3},
      // Plans.
      {"train @missing.json --data @data.txt --devices cpu:2", {"cannot read", "missing.json"}},
      {"train @other.json --data @data.txt --devices cpu:2", {"other.json: not a plan"}},
      {"train @plan.json --data @data.txt --devices cpu:4 --out @new",
       {"plan.json: a plan for 2 devices (cpu:2), not for the 4 of --devices cpu:4"}},
      {"train @plan.json --data @data.txt --devices cpu:2 --batch 8",
       {"--batch is fixed by the plan", "plan again to change it"}},
      {"train @plan.json --data @data.txt --devices cpu:2 --set layers=2", {"--set is fixed"}},
      {"train @plans/layers.json --data @data.txt --devices cpu:2 --out @new",
       {"layers.json", "another graph", "plan again"}},
      {"train @plans/cut.json --data @data.txt --devices cpu:2 --out @new",
       {"plans/cut.json: not JSON"}},
      {"train @forward.json --data @data.txt --devices cpu:2 --out @new",
       {"forward.json: a plan of the forward alone trains nothing"}},
      {"train @bf16.json --data @data.txt --devices cpu:2 --out @new",
       {"bf16.json", "plan with --precision fp32"}},
  };
  return rows;
}

const std::vector<Row>& data() {
  static const std::vector<Row> rows = {
      {"--data @missing.txt", {"cannot read", "missing.txt"}},
      {"--data @empty.txt", {"empty.txt"}},
      {"--data @nothing", {"nothing", "folder"}},
      {"--data @short.txt", {"short.txt", "2 bytes, but one sequence of 64 needs 65", "more data"}},
      {"--data @*.nothing", {"*.nothing", "no file"}},
      {"--data @data.txt --val-data @missing.txt", {"cannot read", "missing.txt"}},
      {"--data @data.txt --val-data @short.txt", {"short.txt"}},
      {"--data @cut.bin", {"cut.bin", "2000"}},
      {"--data @headless.bin", {"headless.bin"}},
      {"--data @version.bin", {"version.bin", "version 7"}},
      {"--data @zeros.bin", {"zeros.bin"}},
      {"--data @bad_idx", {"bad_idx.idx"}},
      {"--data @lonely", {"lonely"}},
      {"--data uint16:@odd.u16", {"odd.u16"}},
      {"--data @data.txt,@shard.bin", {"data.txt", "shard.bin"}},
      {"--data @shard.bin",
       {"but the model knows tokens 0 to 255; --set vocab="},
       1,
       "100 steps, seed 0\n"},
      {"--data @shard.bin --val-data @data.txt", {"shard.bin", "data.txt"}},
      {"--data @data.txt --tokenizer @missing", {"cannot read the tokenizer", "missing"}},
      {"--data @data.txt --tokenizer @tok/broken.json", {"tok/broken.json' is not JSON: byte"}},
      {"--data @data.txt --tokenizer @tok/unigram.json",
       {"tok/unigram.json': model.type is \"Unigram\""}},
      {"--data @data.txt --tokenizer @tok/pre.json", {"tok/pre.json", "pre_tokenizer"}},
      {"--data @data.txt --tokenizer @tok/deep.json", {"tok/deep.json", "deeper"}},
      {"--data @data.txt --tokenizer @tok/no_model.json",
       {"tok/no_model.json' is no tokenizer that is known"}},
      {"--data @data.txt --tokenizer @tok/empty.json", {"tok/empty.json' is empty"}},
      {"--data @data.txt --tokenizer @tok/few", {"tok/few/vocab.json"}},
      {"--data @data.txt --tokenizer @tok/merges_only", {"tok/merges_only", "vocab.json"}},
      {"--data @data.txt --tokenizer @tok/vocab_only", {"tok/vocab_only", "merges.txt"}},
      {"--data @data.txt --tokenizer @nothing", {"nothing", "no tokenizer.json"}},
  };
  return rows;
}

const std::vector<Row>& configs() {
  static const std::vector<Row> rows = {
      {"train --config @missing.toml", {"cannot read", "missing.toml", "--print-config makes one"}},
      {"train --config @nothing", {"cannot read", "nothing"}},
      {"train --config @toml/line.toml", {"toml/line.toml:2: not TOML"}},
      {"train --config @toml/key.toml", {"toml/key.toml:4:", "'stpes'", "did you mean steps?"}},
      {"train --config @toml/section.toml", {"section.toml:1:", "did you mean train?"}},
      {"train --config @toml/type.toml", {"toml/type.toml:2:", "write a whole number"}},
      {"train --config @toml/twice.toml", {"toml/twice.toml:3: not TOML"}},
      {"train --config @toml/range.toml", {"toml/range.toml:2: train.steps 0: write at least 1"}},
      {"train --config @toml/set.toml", {"toml/set.toml:3:", "there is no key 'depth'"}},
      {"train --config @toml/deep.toml", {"toml/deep.toml:2: not TOML"}},
      {"train --config @toml/no_data.toml", {"--data is required"}},
      {"train --config @toml/good.toml --steps 0 --out @new", {"--steps 0: write at least 1"}},
      {"train @plan.json --config @toml/good.toml --out @new", {"fixed by the plan"}},
      {"train --config @toml/plan.toml --mesh 2 --out @new", {"--mesh is fixed by the plan"}},
      {"train --config @toml/plan.toml --devices cpu:4 --out @new", {"a plan for 2 devices"}},
      {"train --config @toml/good.toml --config @toml/plan.toml", {"--config is given 2 times"}},
      {"train --config @toml/good.toml --checkpoint-every 1", {"name the run's folder with --out"}},
      {"train --config @toml/good.toml --out @run", {"holds a run already"}},
  };
  return rows;
}

const std::vector<Row>& resuming() {
  static const std::vector<Row> rows = {
      {"train --resume", {"--resume needs a run's folder: write it, or --out DIR"}},
      {"train --resume @missing", {"missing: there is no such folder"}},
      {"train --resume @data.txt", {"data.txt: there is no such folder"}},
      {"train --resume @nothing", {"that is no run's folder; say with --out"}},
      {"train --config @toml/good.toml --resume @nothing --out @new",
       {"there is no checkpoint in", "nothing"}},
      {"train --resume @run --steps 9 --out @bert", {"bert' holds a run already"}},
      {"train --resume @run --steps 5 --seed 9",
       {"seed 5, and this one 9: give it --seed 5"},
       1,
       "one device on cpu:1, 5 steps, seed 9\n"},
      {"train --resume @run --steps 5 --set hidden=64",
       {"step-00000003", "a model of hidden=32, and this one hidden=64"}},
      {"train --resume @run --steps 5 --set layers=2", {"step-00000003", "layers=1", "layers=2"}},
      // Tensors of the same shapes, and another model all the same.
      {"train --resume @run --steps 5 --set heads=2", {"a model of heads=", "this one heads=2"}},
      {"train --resume @run --steps 5 --set dropout=0.1", {"dropout=0, and this one dropout=0.1"}},
      {"train --resume @run --steps 5 --precision fp64", {"trains in fp32, and this one fp64"}},
      {"train llama:tiny --resume @run --steps 5 --set layers=1",
       {"step-00000003", "the model gpt2:tiny, and this one llama:tiny"}},
      {"train --resume @run --steps 5 --optimizer sgd",
       {"step-00000003", "trains with adamw, and this one sgd"}},
      {"train --resume @run --steps 5 --moments bf16",
       {"step-00000003", "trains with moments in fp32, and this one bf16"}},
      {"train --resume @run --steps 5 --data @missing.txt", {"cannot read", "missing.txt"}},
      {"train --resume @run --steps 5 --devices cpu:3 --mesh dp=3", {"try --batch"}},
      {"train --resume @ruined --steps 5",
       {"no checkpoint in", "is sound; the newest:", "step-00000003/weights", "damaged"}},
      {"train --resume @damaged/checkpoints/step-00000003 --config @toml/good.toml --out @new",
       {"damaged", "step-00000002' is older and sound"}},
      {"train --resume @damaged --steps 5 --seed 9",
       {"step-00000002", "--seed 5"},
       1,
       "step-00000003/weights-00001.safetensors': damaged"},
  };
  return rows;
}

const std::vector<Row>& checkpoints() {
  static const std::vector<Row> rows = {
      {"checkpoint", {"name a command: ls, verify, export; see cleave checkpoint --help"}},
      {"checkpoint lst @run", {"there is no command 'checkpoint lst'"}},
      {"checkpoint ls", {"PATH is required"}},
      {"checkpoint ls @dangling", {"there is no file or folder", "dangling"}},
      {"checkpoint ls @missing", {"there is no file or folder", "missing"}},
      {"checkpoint ls @data.txt", {"data.txt", "no safetensors file"}},
      {"checkpoint ls @torn/checkpoints/step-00000003", {"step-00000003/manifest.json"}},
      {"checkpoint ls @cut/checkpoints/step-00000002", {"step-00000002"}},
      {"checkpoint ls @st/cut.safetensors", {"st/cut.safetensors"}},
      {"checkpoint ls @st/huge.safetensors", {"st/huge.safetensors"}},
      {"checkpoint ls @st/words.safetensors", {"st/words.safetensors"}},
      {"checkpoint ls @st/offsets.safetensors", {"st/offsets.safetensors", "'a'"}},
      {"checkpoint verify @missing", {"there is no checkpoint", "missing"}},
      {"checkpoint verify @data.txt", {"data.txt' is a file; a checkpoint is a folder"}},
      {"checkpoint verify @nothing", {"there is no checkpoint in", "nothing"}},
      {"checkpoint verify @damaged/checkpoints",
       {"1 of the 3 checkpoints", "the newest sound one is", "step-00000002"},
       1,
       "step-00000003: 1 problem\n  'weights-00001.safetensors': damaged"},
      {"checkpoint verify @damaged/checkpoints/step-00000003",
       {"step-00000003' is damaged;", "step-00000002' is older and sound"},
       1,
       "1 problem"},
      {"checkpoint verify @ruined/checkpoints",
       {"3 of the 3 checkpoints", "none is sound"},
       1,
       "step-00000001: 1 problem"},
      {"checkpoint verify @cut/checkpoints", {"2 of the 3", "step-00000001"}, 1, "cut off, 1000"},
      {"checkpoint verify --json @torn/checkpoints", {"1 of the 3"}, 1, "\"sound\": false"},
      {"checkpoint export @run", {"--out is required"}},
      {"checkpoint export @nothing -o @w", {"there is no checkpoint in", "nothing"}},
      {"checkpoint export @run -o @nothing", {"nothing' is a folder, not a file"}},
      {"checkpoint export @run -o @no/such/w", {"cannot write", "no/such/w"}},
      {"checkpoint export @run -o /dev/full", {"/dev/full", "no regular file"}},
      {"checkpoint export @ruined -o @plan.json", {"is sound; the newest:", "step-00000003"}},
      {"checkpoint export @damaged/checkpoints/step-00000003 -o @plan.json",
       {"step-00000002' is older and sound"}},
  };
  return rows;
}

const std::vector<Row>& generating() {
  static const std::vector<Row> rows = {
      {"generate", {"CHECKPOINT is required"}},
      {"generate @missing --prompt a", {"there is no checkpoint", "missing"}},
      {"generate @nothing --prompt a", {"there is no checkpoint in", "nothing"}},
      {"generate @run", {"the prompt is empty, and the tokenizer 'bytes' has no end-of-text"}},
      {"generate @run --prompt ''", {"the prompt is empty", "write --prompt TEXT"}},
      {"generate @run --prompt a --prompt-file @data.txt", {"write one of them"}},
      {"generate @run --prompt-file @missing.txt", {"cannot read", "missing.txt"}},
      {"generate @run --prompt a --temperature -1", {"--temperature -1: write at least 0"}},
      {"generate @run --prompt a --temperature hot", {"--temperature 'hot': write a number"}},
      {"generate @run --prompt a --top-k 0", {"--top-k 0: write at least 1"}},
      {"generate @run --prompt a --top-p 0", {"--top-p 0: write a number above 0"}},
      {"generate @run --prompt a --top-p 2", {"--top-p 2"}},
      {"generate @run --prompt a --tokens 0", {"--tokens 0: write at least 1"}},
      {"generate @run --prompt a --samples -1", {"--samples -1: write at least 1"}},
      {"generate @run --prompt a --samples 9223372036854775807", {"9223372036854775807"}},
      {"generate @run --prompt a --devices 8xh100", {"generate runs on cpu:N only"}},
      {"generate @run --prompt a --devices cpu:2 --mesh dp=2", {"try --samples 2"}},
      {"generate @run --prompt a --tokenizer @tok/broken.json", {"broken.json' is not JSON"}},
      {"generate @ruined --prompt a", {"is sound; the newest:", "step-00000003"}},
      {"generate @damaged/checkpoints/step-00000003 --prompt a", {"is older and sound"}},
      {"generate @bert --prompt a", {"predicts masked tokens"}},
      {"generate @run --prompt a --temprature 1", {"did you mean --temperature?"}},
  };
  return rows;
}

// Of processor time, for one row. What is built for sanitizers takes longer.
#ifdef NDEBUG
constexpr double kMostSeconds = 10;
#else
constexpr double kMostSeconds = 100;
#endif

class Mistakes : public ::testing::Test {
 protected:
  void SetUp() override { before_ = picture_of(world_.folder()); }

  void expect(const std::string& line, const Row& row) {
    SCOPED_TRACE(line);
    const std::clock_t start = std::clock();  // of the processor: others may keep it busy
    const Outcome o = cleave_run(world_.here(line));
    const double took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    if (std::getenv("CLEAVE_SHOW") != nullptr) {
      fmt::print("{}\n  {} {:.1f} s  {}", line, o.status, took, o.err);
    }
    EXPECT_EQ(o.status, row.status) << o.err;
    EXPECT_TRUE(o.err.starts_with(row.status == 3 ? "cleave: does not fit: " : "cleave: error: "))
        << o.err;
    EXPECT_TRUE(one_line(o.err)) << o.err;
    for (const char* part : row.says) {
      EXPECT_NE(o.err.find(part), std::string::npos) << o.err << "lacks: " << part;
    }
    if (*row.out == 0) {
      EXPECT_EQ(o.out, "");
    } else {
      EXPECT_NE(o.out.find(row.out), std::string::npos) << o.out;
    }
    EXPECT_LT(took, kMostSeconds);
    const auto after = picture_of(world_.folder());
    EXPECT_EQ(difference(before_, after, row.made), "");
    before_ = after;
    ++rows_;
  }

  World world_;
  std::map<std::string, std::string> before_;
  int rows_ = 0;
};

TEST_F(Mistakes, AreOneLineAndLoseNothing) {
  for (const auto* table : {&words(), &models(), &planning(), &answers(), &drawing(), &training(),
                            &configs(), &resuming(), &checkpoints(), &generating()}) {
    for (const Row& row : *table) expect(row.line, row);
  }
  for (const Row& row : data()) {
    expect(std::string("train gpt2:tiny --devices cpu:2 --out @new/run ") + row.line, row);
  }
  EXPECT_GE(rows_, 80);
  RecordProperty("rows", rows_);
}

}  // namespace
}  // namespace cleave
