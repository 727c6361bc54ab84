#!/bin/sh
# Runs the fuzzers of tests/fuzz one after the other, each from its seeds, and prints a table.
# Exits 1 when one found a crash; its input and its log stay in build-asan/run/.
#
# usage: scripts/fuzz.sh [SECONDS [NAME...]]
#   SECONDS  for each fuzzer (60)
#   NAME     text_fuzz, json_fuzz, ...; all when none is named
# A hang is an input that takes more than 60 s, too much memory more than 2 GiB.
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-60}
case $seconds in
  *[!0-9]* | '') sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
[ $# -gt 0 ] && shift
names=${*:-$(cd tests/fuzz && ls *_fuzz.cc | sed 's/\.cc$//')}
if ! command -v clang++-14 >/dev/null; then
  echo "fuzz: clang++-14 is missing; run scripts/setup.sh fuzz" >&2
  exit 1
fi
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE

cmake --preset fuzz >/dev/null
cmake --build build-asan --target $names

bad=0
table=$(printf '%-20s %10s %8s %8s' fuzzer runs seconds crashes)
for name in $names; do
  run=build-asan/run/$name
  mkdir -p "$run/corpus" "$run/found"
  dict=
  if [ -f "tests/fuzz/$name.dict" ]; then dict=-dict=tests/fuzz/$name.dict; fi
  started=$(date +%s)
  build-asan/bin/"$name" $dict -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
    -max_len=32768 -artifact_prefix="$run/found/" -print_final_stats=1 \
    "$run/corpus" "tests/fuzz/seeds/$name" >"$run/log" 2>&1 || bad=1
  took=$(($(date +%s) - started))
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$run/log")
  # libFuzzer also keeps inputs that were only slow.
  crashes=$(ls "$run/found" | grep -cE '^(crash|timeout|oom|leak)-' || true)
  if [ "$crashes" -gt 0 ]; then
    bad=1
    tail -n 30 "$run/log" >&2
  fi
  table="$table
$(printf '%-20s %10s %8s %8s' "$name" "${runs:-?}" "$took" "$crashes")"
done
echo "$table"
exit $bad
