#!/usr/bin/env python3
"""Trains small tokenizers on a made-up text, and asks the reference library for the tokens of others.

usage: tests/tokenizers/make_fixtures.py        (writes into its own folder)
Needs the package tokenizers; expected.json names the version that made it.
"""
import json
import pathlib
import random

import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers)

HERE = pathlib.Path(__file__).parent
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
rng = random.Random(7)


def made_up_text(words):
    """Words of few syllables, so that pairs repeat, with what stands between words."""
    syllables = [c + v for c in "bdklmnrst" for v in "aeiou"] + ["th", "ing", "é", "ß", "ой", "の", "你好"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    between = [" "] * 20 + [", ", ". ", "\n", "\n\n", "  ", "'s ", "'ll ", " 1", "12 ", "345", "\t", " - "]
    return "".join(rng.choice(lexicon) + rng.choice(between) for _ in range(words))


def odd_text(length):
    """What splitting can go wrong about: white space, contractions, numbers, all planes."""
    spaces = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\u00a0", "\u2028", "\x85", "\x1c", " \n "]
    ends = ["'s", "'T", "'re", "'VE", "'m", "'lL", "'d", "'\u017f", "''", "'", "<|endoftext|>", "<|endo",
            "<|x|>", "kasa", "kas"]
    blocks = [(0x20, 0x7F)] * 4 + [(0, 0x250), (0x370, 0x600), (0x900, 0xA00), (0x3040, 0x3100),
                                   (0x4E00, 0x5000), (0x660, 0x66A), (0x1F300, 0x1F700), (0x2150, 0x2190),
                                   (0, 0x10000), (0x10000, 0x110000)]
    text = ""
    while len(text) < length:
        kind = rng.random()
        if kind < 0.25:
            text += rng.choice(spaces) * rng.randint(1, 4)
        elif kind < 0.4:
            text += rng.choice(ends)
        elif kind < 0.5:
            text += str(rng.randrange(10 ** rng.randint(1, 9)))
        elif kind < 0.7:
            text += made_up_text(2)
        else:
            low, high = rng.choice(blocks)
            codes = [rng.randrange(low, high) for _ in range(rng.randint(1, 6))]
            text += "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
    return text


def trained(name, pre, text, vocab, ignore_merges=False, added=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            special_tokens=["<|endoftext|>"], show_progress=False))
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(HERE / f"{name}.json"), pretty=False)
    return tokenizer


def by_pattern(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def members(pattern):
    """The code points that the library's regular expressions match."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed")
    every = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    found = set()
    for start in range(0, len(every), 4096):
        block = every[start:start + 4096]
        left = {ord(c) for piece, _ in split.pre_tokenize_str("".join(map(chr, block))) for c in piece}
        found.update(c for c in block if c not in left)
    return found


def class_hash():
    """FNV-1a over a byte for each code point but surrogates: 0 other, 1 letter, 2 number, 3 space."""
    letters, numbers, spaces = members(r"\p{L}"), members(r"\p{N}"), members(r"\s")
    value = 14695981039346656037
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            kind = 1 if c in letters else 2 if c in numbers else 3 if c in spaces else 0
            value = (value ^ kind) * 1099511628211 % 2**64
    return f"{value:016x}"


text = made_up_text(20000)
made = {
    "gpt2": trained("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False), text, 600),
    "gpt4": trained("gpt4", by_pattern(GPT4), text, 500, ignore_merges=True,
                    added=[AddedToken("kas", normalized=True), AddedToken("kasa", normalized=False),
                           AddedToken("<|x|>", special=True)]),
    "qwen2": trained("qwen2", by_pattern(QWEN2), text, 400),
}
made["gpt2"].model.save(str(HERE), "gpt2")
endings = ["s", "t", "re", "ve", "m", "ll", "d"]
contractions = "".join(f"'{e}a '{e.upper()}a '{e.title()}. " for e in endings) + "'\u017fa \u017f'l"
texts = [made_up_text(30), contractions] + [odd_text(80) for _ in range(100)]
expected = {
    "library": f"tokenizers {tokenizers.__version__}",
    "classes": class_hash(),
    "texts": texts,
    # Bytes of each piece before merging; added tokens are not taken out.
    "pieces": {name: [[len(piece) for piece, _ in t.pre_tokenizer.pre_tokenize_str(x)]
                      for x in texts] for name, t in made.items()},
    "tokens": {name: [t.encode(x).ids for x in texts] for name, t in made.items()},
}
(HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
