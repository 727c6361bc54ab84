#!/usr/bin/env python3
"""Writes data/unicode_table.cc: which code points are letters, numbers and white space.

usage: scripts/make-unicode-table.py > data/unicode_table.cc
Takes the tables of the package unicodedata2 where it is installed (pip install unicodedata2==16.0.0
made the committed file), else Python's own, which may be of an older Unicode.
"""
try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

# The property White_Space, which no general category gives.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
          0x202F, 0x205F, 0x3000}
OTHER, LETTER, NUMBER, SPACE = range(4)


def class_of(code):
    if code in SPACES:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(chr(code))[0], OTHER)


starts, last = [], None
for code in range(0x110000):
    kind = class_of(code)
    if kind != last:
        starts.append(code << 2 | kind)
        last = kind

print(f"""// Made by scripts/make-unicode-table.py from Unicode {unicodedata.unidata_version}; do not edit.
#include "data/unicode.h"

namespace cleave {{

// clang-format off
const std::array<uint32_t, {len(starts)}> kUnicodeRuns = {{""")
row = "   "
for start in starts:
    word = f" {start},"
    if len(row) + len(word) > 100:
        print(row)
        row = "   "
    row += word
print(f"""{row}
}};
// clang-format on

}}  // namespace cleave""")
