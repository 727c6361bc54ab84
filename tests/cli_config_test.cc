// A run as one TOML: what is read, what is refused and where, and that what is printed reads back.
#include "cli/config_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cli/format.h"
#include "cli/nearest.h"
#include "graph/error.h"

namespace cleave {
namespace {

std::string error_of(std::string_view text) {
  TrainArguments a;
  try {
    parse_config(text, "run.toml", options_of(a));
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

struct Mistake {
  const char* text;
  const char* says;
};

TEST(Config, MistakesAreOneLineWithFileAndLine) {
  const std::vector<Mistake> mistakes = {
      // Not TOML.
      {"[train\nsteps = 3\n", "run.toml:1: not TOML"},
      {"[train]\nsteps 3\n", "run.toml:2: not TOML"},
      {"[train]\nsteps =\n", "run.toml:2: not TOML"},
      {"[train]\nsteps = 3 4\n", "run.toml:2: not TOML"},
      {"[train]\nsteps = 007\n", "run.toml:2: not TOML"},
      {"[train]\nsteps = 99999999999999999999\n", "run.toml:2: not TOML"},
      {"[optimizer]\nlr = .5\n", "run.toml:2: not TOML"},
      {"[optimizer]\nlr = 1e\n", "run.toml:2: not TOML"},
      {"[data]\nfile = \"unclosed\nsteps = 3\n", "run.toml:2: not TOML"},
      {"[data]\nfile = 'a\n", "run.toml:2: not TOML"},
      {"[data]\nfile = \"\\q\"\n", "run.toml:2: not TOML"},
      {"[data]\nfile = unquoted\n", "run.toml:2: not TOML"},
      {"[model]\nset = { layers = 2\n", "not TOML"},
      {"[model]\nset = { layers = 2, }\n", "run.toml:2: not TOML"},
      {"; a comment of INI\n", "run.toml:1: not TOML"},
      {"garbage\n", "run.toml:1: not TOML"},
      {"\xff\xfe[train]\n", "run.toml:1: not TOML"},
      {"[train]\nsteps = \x01\n", "run.toml:2: not TOML"},
      // Twice.
      {"[train]\nsteps = 3\nsteps = 4\n", "run.toml:3: not TOML"},
      {"[train]\nsteps = 3\n[train]\nseed = 4\n", "run.toml:3: not TOML"},
      {"[model]\nset = { layers = 1, layers = 2 }\n", "run.toml:2: not TOML"},
      {"[model]\nset = {}\n[model.set]\nlayers = 1\n", "run.toml:3: not TOML"},
      // Unknown.
      {"[trian]\nsteps = 3\n", "run.toml:1: there is no section [trian]; did you mean train?"},
      {"\n\n[nonsense]\n", "run.toml:3: there is no section [nonsense]; the sections are model, "},
      {"[train]\n\nstpes = 3\n",
       "run.toml:3: there is no key 'stpes' in [train]; did you mean steps?"},
      {"[train]\nxyzzy = 3\n", "no key 'xyzzy' in [train]; the keys are batch, accumulate, "},
      {"[train]\nlr = 1\n", "run.toml:2: 'lr' is no key of [train] but of [optimizer]"},
      {"[train]\nsteps.more = 1\n", "run.toml:2: train.steps = {...}: write a whole number"},
      {"steps = 3\n", "run.toml:1: 'steps' stands in no section: write it below [train]"},
      {"nonsense = 3\n", "run.toml:1: there is no section for 'nonsense'"},
      {"train = 3\n", "run.toml:1: 'train' is a section: write [train] above its keys"},
      {"[[train]]\nsteps = 3\n", "run.toml:1: 'train' is a section"},
      {"[model]\nset = { depth = 2 }\n", "run.toml:2: depth=2: there is no key 'depth'"},
      {"[model.set]\nhidden = 1\nlayers = 1.5\n", "run.toml:3: layers=1.5: '1.5' is not a whole"},
      {"[run]\nresume = \"x\"\n", "run.toml:2: there is no key 'resume'"},
      {"\"\" = 3\n", "run.toml:1: there is no section for ''"},
      // Another type.
      {"[train]\nsteps = \"3\"\n", "run.toml:2: train.steps = \"3\": write a whole number"},
      {"[train]\nsteps = 3.0\n", "run.toml:2: train.steps '3.0': write a whole number"},
      {"[train]\nsteps = true\n", "run.toml:2: train.steps = true: write a whole number"},
      {"[train]\nsteps = [3]\n", "run.toml:2: train.steps = [...]: write a whole number"},
      {"[train]\nsteps = 1979-05-27\n", "run.toml:2: train.steps = a date"},
      {"[train]\nsteps = \"auto\"\n", "run.toml:2: train.steps = \"auto\": write a whole number"},
      {"[optimizer]\nmin_lr = \"half\"\n", "write a number, or \"auto\""},
      {"[optimizer]\nlr = nan\n", "run.toml:2: optimizer.lr 'nan': write a number"},
      {"[optimizer]\nlr = inf\n", "run.toml:2: optimizer.lr 'inf': write a number"},
      {"[data]\nfile = 3\n", "run.toml:2: data.file = 3: write text in quotes"},
      {"[data]\nfile = \"\"\n", "run.toml:2: data.file '': write FILE"},
      {"[run]\ntensorboard = \"yes\"\n", "run.tensorboard = \"yes\": write true or false"},
      {"[run]\ntensorboard = 1\n", "run.tensorboard = 1: write true or false"},
      {"[model]\nset = 3\n", "run.toml:2: model.set: write a table"},
      {"[model]\nset = { layers = [1] }\n", "run.toml:2: model.set.layers: write a number"},
      // Out of range.
      {"[train]\nsteps = 0\n", "run.toml:2: train.steps 0: write at least 1"},
      {"[train]\nbatch = 0\n", "run.toml:2: train.batch 0: write at least 1"},
      {"[train]\nseed = -1\n", "run.toml:2: train.seed -1: write at least 0"},
      {"[optimizer]\nlr = 0\n", "run.toml:2: optimizer.lr 0: write a number above 0"},
      {"[optimizer]\nmin_lr = -1\n", "run.toml:2: optimizer.min_lr -1: write at least 0"},
      {"[optimizer]\nschedule = \"line\"\n", "optimizer.schedule 'line': write cosine or constant"},
      {"[train]\nprecision = \"fp8\"\n",
       "train.precision 'fp8': write fp32, fp64, bf16, fp16 or tf32"},
  };
  EXPECT_GE(mistakes.size(), 50u);
  for (const Mistake& m : mistakes) {
    const std::string error = error_of(m.text);
    EXPECT_NE(error.find(m.says), std::string::npos) << m.text << "\n" << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_TRUE(error.starts_with("run.toml:")) << error;
  }
}

TEST(Config, DeepNestingIsAMistake) {
  const std::string error = error_of("[train]\nsteps = " + std::string(100'000, '['));
  EXPECT_TRUE(error.starts_with("run.toml:2: not TOML")) << error.substr(0, 200);
}

TEST(Config, ReadsEveryFormOfAValue) {
  TrainArguments a;
  parse_config(
      "data.file = \"a#b \\u00e9\"\n"
      "[model]\nname = 'gpt2:tiny'\n[model.set]\nlayers = 2\ndropout = 1e-1\ntied = true\n"
      "[ train ]\nsteps = 1_000  # a comment with = and ]\nbatch = 'auto'\nfind_nan = true\n"
      "[optimizer]\nlr = 1\nwarmup = 0x10\nmin_lr = 0\n"
      "[run]\nfolder = \"\"\"a\nb\"\"\"\ntensorboard = false\n",
      "run.toml", options_of(a));
  EXPECT_EQ(a.model.model, "gpt2:tiny");
  EXPECT_EQ(a.model.set, (std::vector<std::string>{"dropout=0.1", "layers=2", "tied=true"}));
  EXPECT_EQ(a.data, "a#b \u00e9");
  EXPECT_EQ(a.steps, 1000);
  EXPECT_EQ(a.model.batch, 0);
  EXPECT_TRUE(a.find_nan);
  EXPECT_EQ(a.lr, 1);
  EXPECT_EQ(a.warmup, 16);
  EXPECT_EQ(a.min_lr, 0);
  EXPECT_EQ(a.out, "a\nb");
  EXPECT_FALSE(a.tensorboard);
}

// The text of every option that a TOML has, by key.
std::vector<std::string> values(TrainArguments& a) {
  std::vector<std::string> texts;
  for (const Option& o : options_of(a)) {
    if (!o.key.empty()) texts.push_back(o.key + "=" + text_of(o));
  }
  return texts;
}

// Sets every option to something that it may be.
void randomize(TrainArguments& a, std::mt19937_64& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const auto any_text = [&] {
    static constexpr std::string_view kParts[] = {"a",  "\"",   "\\",   "'",    "#", "\n",
                                                  "\t", "\x7f", "\x01", "=",    "é", "𝛼",
                                                  " ",  "]",    "/",    "u0041"};
    std::string text = "x";
    for (size_t i = below(12); i > 0; --i) text += kParts[below(std::size(kParts))];
    return text;
  };
  for (const Option& o : options_of(a)) {
    if (o.key.empty()) continue;
    if (!o.automatic.empty() && below(3) == 0) {
      set_text(o, o.automatic_word, o.key);
    } else if (std::holds_alternative<std::vector<std::string>*>(o.target)) {
      static constexpr const char* kPairs[] = {"layers=2",   "layers=007", "dropout=.5",
                                               "theta=5.",   "theta=1e22", "tied=1",
                                               "tied=false", "eps=1e-300"};
      for (size_t i = below(4); i > 0; --i) set_text(o, kPairs[below(std::size(kPairs))], o.key);
    } else if (!o.choices.empty()) {
      set_text(o, o.choices[below(o.choices.size())], o.key);
    } else if (std::holds_alternative<std::string*>(o.target)) {
      set_text(o, any_text(), o.key);
    } else if (std::holds_alternative<bool*>(o.target)) {
      set_text(o, below(2) == 0 ? "true" : "false", o.key);
    } else if (std::holds_alternative<int64_t*>(o.target)) {
      const uint64_t n = random() >> (1 + below(62));
      set_text(o, std::to_string(std::max<uint64_t>(n, 1)), o.key);
    } else {
      const double x =
          std::ldexp(static_cast<double>(random() | 1), static_cast<int>(below(200)) - 150);
      set_text(o, fmt::format("{}", x), o.key);
    }
  }
}

TEST(Config, WhatIsPrintedReadsBackTheSame) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 300; ++i) {
    TrainArguments written, read;
    randomize(written, random);
    const std::string text = config_text(written);
    randomize(read, random);  // whatever was there is replaced, but for pairs
    read.model.set.clear();
    ASSERT_NO_THROW(parse_config(text, "run.toml", options_of(read))) << text;
    // Pairs come in the order of their keys, and numbers in TOML's form.
    EXPECT_EQ(config_text(read).size(), text.size()) << text;
    written.model.set = read.model.set;
    ASSERT_EQ(values(written), values(read)) << text;
    EXPECT_EQ(config_text(written), config_text(read));
  }
}

TEST(Config, TheDefaultsReadBackToo) {
  TrainArguments plain, read;
  const std::string text = config_text(plain);
  parse_config(text, "run.toml", options_of(read));
  EXPECT_EQ(values(read), values(plain));
  // Every key is there, one a line.
  for (const Option& o : options_of(plain)) {
    if (o.key.empty()) continue;
    EXPECT_NE(text.find("\n" + std::string(o.required ? "# " : "") + o.entry() + " = "),
              std::string::npos)
        << o.key;
  }
}

TEST(Config, ValuesThatTomlCannotHoldAreMistakes) {
  TrainArguments a;
  a.out = "caf\xe9";
  EXPECT_THROW(config_text(a), Error);
  a.out = "run";
  a.model.set = {"layers"};
  EXPECT_THROW(config_text(a), Error);
}

TEST(Config, FilesThatCannotBeRead) {
  TrainArguments a;
  const std::vector<Option> options = options_of(a);
  const auto error = [&](const std::string& path) -> std::string {
    try {
      read_config(path, options);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(error("/nowhere/run.toml").find("cannot read '/nowhere/run.toml'"), std::string::npos);
  EXPECT_NE(error(::testing::TempDir()).find("cannot read"), std::string::npos);
  EXPECT_NE(error("/dev/zero").find("larger than 1 MiB"), std::string::npos);
  EXPECT_EQ(error("/dev/null"), "no error");  // an empty file says nothing
}

// A row of docs/run.md. An option that is missing there, or is another, is printed as it should be.
std::string documented(const Option& o) {
  const std::string value = default_text(o);
  std::string flag = o.flag;
  for (size_t at; (at = flag.find(",!")) != std::string::npos;) flag.replace(at, 2, "`, `");
  return fmt::format("| `{}{}{}` | {} | {} | {} |", flag, o.type.empty() ? "" : " ", o.type,
                     o.key.empty() ? "" : "`" + o.key + "`", value, o.help);
}

TEST(Config, TheDocumentationHasEveryOption) {
  const std::string docs = read_file(std::string(CLEAVE_SOURCE_DIR) + "/docs/run.md");
  TrainArguments a;
  std::string missing;
  for (const Option& o : options_of(a)) {
    if (docs.find(documented(o) + "\n") == std::string::npos) missing += documented(o) + "\n";
  }
  EXPECT_EQ(missing, "") << "these rows belong into docs/run.md";
}

TEST(Config, EveryFlagHasAKeyOfItsOwn) {
  TrainArguments a;
  std::vector<std::string> keys, flags;
  for (const Option& o : options_of(a)) {
    if (!o.key.empty()) keys.push_back(o.key);
    flags.push_back(o.name());
  }
  for (std::vector<std::string>* list : {&keys, &flags}) {
    std::sort(list->begin(), list->end());
    EXPECT_EQ(std::adjacent_find(list->begin(), list->end()), list->end());
  }
}

TEST(Nearest, FindsWhatWasMeant) {
  const std::vector<std::string> known = {"--steps", "--seed", "--set", "--lr", "--min-lr"};
  EXPECT_EQ(nearest("--stesp", known), "--steps");
  EXPECT_EQ(nearest("--step", known), "--steps");
  EXPECT_EQ(nearest("--minlr", known), "--min-lr");
  EXPECT_EQ(nearest("--sed", known), "--seed");
  EXPECT_EQ(nearest("--completely-other", known), "");
  EXPECT_EQ(nearest("", known), "");
  EXPECT_EQ(nearest(std::string(100'000, 'x'), known), "");
  EXPECT_EQ(did_you_mean("--stesp", known), "; did you mean --steps?");
}

}  // namespace
}  // namespace cleave
