#!/bin/sh
# Checks what needs no build: format, file sizes, headers that compile alone.
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

git ls-files '*.h' | xargs -P "$(nproc)" -I{} \
  c++ -std=c++20 -fsyntax-only -I. -include {} -x c++ /dev/null ||
  { echo "check-style: a header does not compile alone; see above"; bad=1; }

echo "lines per folder:"
wc -l $files | awk '
  $2 == "total" { next }
  { folder = $2; sub(/\/.*/, "", folder); lines[folder] += $1; count[folder]++; all += $1 }
  END {
    for (folder in lines)
      printf "  %-12s %6d in %3d files\n", folder, lines[folder], count[folder] | "sort"
    close("sort")
    printf "  %-12s %6d\n", "all", all
  }'
exit $bad
