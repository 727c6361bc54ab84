#!/bin/sh
# Checks what needs no build: format, file sizes, that headers compile alone which no file of a build
# includes first.
# usage: scripts/check-style.sh [--fix]   (--fix formats the files)
set -eu
cd "$(dirname "$0")/.."

format=$(command -v clang-format-14 || true)
if [ -z "$format" ]; then
  echo "check-style: clang-format-14 is missing; run scripts/setup.sh style" >&2
  exit 1
fi
files=$(git ls-files '*.cc' '*.h' '*.cu' '*.cuh')
if [ -z "$files" ]; then
  echo "check-style: no C++ files are tracked" >&2
  exit 1
fi
if [ "${1:-}" = --fix ]; then
  $format -i $files
  exit 0
fi

bad=0
$format --dry-run -Werror $files || bad=1

# No file above 800 lines, no test above 1500.
wc -l $files | awk '
  $2 == "total" { next }
  { limit = $2 ~ /^tests\// ? 1500 : 800 }
  $1 > limit { printf "%s: %d lines, more than %d\n", $2, $1, limit; bad = 1 }
  END { exit bad }' || bad=1

# A header that is the first include of a file is compiled alone by the build. Those of GPUs need the
# toolkit's, without which nothing of theirs is built.
if nvcc=$(command -v nvcc); then
  cuda="-isystem $(dirname "$nvcc")/../include"
  gpus=
else
  cuda=
  gpus=':!:*/cuda/*'
fi
headers=$(git ls-files '*.h' $gpus)
first=$(awk '
  FNR == 1 { seen = 0 }
  !seen && /^#include/ { seen = 1; if (split($0, part, "\"") == 3) print part[2] }
' $(git ls-files '*.cc' ':!:benchmarks/*' $gpus))
{ echo "$first"; echo "$first"; echo "$headers"; } | sort | uniq -u | xargs -P "$(nproc)" -I{} \
  c++ -std=c++20 -fsyntax-only -I. $cuda -DCLEAVE_SOURCE_DIR='""' -DCLEAVE_BINARY_DIR='""' \
  -include {} -x c++ /dev/null ||
  { echo "check-style: a header does not compile alone; see above"; bad=1; }

# Lines a folder and file, and the share of lines with a comment among those that are not blank.
# The budget is there so that growth is decided, not drifted into.
for file in $files; do
  awk -v file="$file" '
    /^[ \t]*$/ { next }
    { full++ }
    /^[ \t]*\/\// || / \/\/ / { comments++ }
    END { split(file, part, "/"); print part[1], NR, full + 0, comments + 0, file }' "$file"
done | sort -k1,1 -k2,2n | awk -v code_budget=87000 -v test_budget=40500 '
  function folder_line(    median) {
    if (count == 0) return
    median = count % 2 ? size[(count + 1) / 2] : (size[count / 2] + size[count / 2 + 1]) / 2
    printf "  %-12s %6d %6d %7g %8d  %-34s %5.1f %%\n", folder, lines, count, median, size[count],
           largest, 100 * comments / full
  }
  BEGIN {
    printf "  %-12s %6s %6s %7s %8s  %-34s %s\n", "folder", "lines", "files", "median", "largest",
           "", "comments"
  }
  $1 != folder { folder_line(); folder = $1; lines = count = full = comments = 0 }
  {
    size[++count] = $2; lines += $2; full += $3; comments += $4; largest = $5
    all += $2; all_files++; all_full += $3; all_comments += $4
    if (folder == "tests") tests += $2; else code += $2
  }
  END {
    folder_line()
    printf "  %-12s %6d %6d %52s %5.1f %%\n", "all", all, all_files, "", 100 * all_comments / all_full
    if (code > code_budget || tests > test_budget) {
      printf "check-style: %d lines and %d of tests; the budgets are %d and %d\n", code, tests,
             code_budget, test_budget
      exit 1
    }
  }' || bad=1
exit $bad
