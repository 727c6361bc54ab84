#!/bin/sh
# Runs tests on a GPU under compute-sanitizer: reads and writes out of bounds (memcheck), threads of
# a block that meet in shared memory (racecheck), memory that is read before it was written
# (initcheck). A line a tool and program with its time, and what was found. Exits 1 when something
# was found, a test fails or takes too long, or there is nothing to run.
#
# usage: scripts/sanitize-gpu.sh [FOLDER] [TOOL...]
#   FOLDER   of the test programs; build/bin when it is left out
#   TOOL     memcheck, racecheck, initcheck: these only
#
# SANITIZER names the compute-sanitizer, JOBS how many programs run at once (8), LIMIT the seconds
# that all of them may take (1200).
set -u

folder=$(dirname "$0")/../build/bin
if [ "${1:-}" = --help ]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit; fi
if [ $# -gt 0 ] && [ -d "$1" ]; then folder=$1 && shift; fi
tools=${*:-memcheck racecheck initcheck}
for tool in $tools; do
  case $tool in
    memcheck | racecheck | initcheck) ;;
    *)
      echo "sanitize-gpu: '$tool' is no folder that is there, and no tool: memcheck, racecheck," \
        "initcheck; see --help" >&2
      exit 1
      ;;
  esac
done
case ${LIMIT:-1200} in
  *[!0-9]*) echo "sanitize-gpu: LIMIT '$LIMIT' is not a number of seconds" >&2; exit 1 ;;
esac
case ${JOBS:-8} in
  *[!0-9]*) echo "sanitize-gpu: JOBS '$JOBS' is not a number of programs" >&2; exit 1 ;;
esac
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
if [ -n "${SANITIZER:-}" ] && ! command -v "$sanitizer" >/dev/null; then
  echo "sanitize-gpu: there is no program '$SANITIZER', which SANITIZER names" >&2
  exit 1
fi
if ! command -v "$sanitizer" >/dev/null; then
  echo "sanitize-gpu: there is no compute-sanitizer in PATH or /usr/local/cuda/bin: install it beside the" \
    "CUDA toolkit (the package cuda-sanitizer-13-0), or name one by SANITIZER" >&2
  exit 1
fi
if ! [ -x "$folder/kernels_gpu_test" ]; then
  echo "$folder has no kernels_gpu_test: build the tests, or name the folder that has them" >&2
  exit 1
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "sanitize-gpu: there is no NVIDIA GPU here (nvidia-smi -L shows none)" >&2
  exit 1
fi

# Tool, program, parts that it is divided into, filter of its tests. Left out: large shapes, which
# take minutes and run the same code; of racecheck kernels without shared memory, and attention on
# tensor cores, whose barriers it does not know; of initcheck kernels of libraries, which read
# scratch memory as it comes.
libraries='*/matmul:*/linear:*/scaled_matmul:*/attention*:*/embedding_backward'
rows() {
  cat <<END
memcheck kernels_gpu_test 6 *
memcheck kernels_rows_gpu_test 4 *
memcheck kernels_rest_gpu_test 2 *
memcheck kernels_experts_gpu_test 4 *
memcheck kernels_many_gpu_test 1 *
memcheck kernels_moments_gpu_test 2 *
memcheck kernels_f8_gpu_test 2 *
memcheck kernels_attention_gpu_test 2 *-*MoreWeights*
memcheck kernels_product_gpu_test 2 *Sizes*-*/2300x*
memcheck executor_gpu_test 1 *TheSameBitsTwice*
racecheck kernels_gpu_test 4 */softmax*:*/*norm*:*/sum*:*/max:*/logsumexp:*/cross_entropy*:*/rotary:*/gelu_backward:*/embedding*:*/quantize:*/*slots:*/histogram:*/grouped_matmul*:*/chain:*/combine*
racecheck kernels_rows_gpu_test 8 *-*Rotary*:*/7x4096:*/3x8192:*/2x*:*/300x4096:*/300x16384
racecheck kernels_experts_gpu_test 5 *-*RowsMove*:*/3:*/4:*/5:*/6:*/7
racecheck kernels_f8_gpu_test 3 *Quantizes*-*/256x392:*/1040x520
racecheck kernels_product_gpu_test 2 *Sizes*-*/2300x*:*/900x*
racecheck kernels_many_gpu_test 1 *
racecheck kernels_moments_gpu_test 2 *
initcheck kernels_gpu_test 4 *-$libraries
initcheck kernels_rows_gpu_test 8 *-*Embeddings*
initcheck kernels_experts_gpu_test 4 *
initcheck kernels_many_gpu_test 1 *
initcheck kernels_moments_gpu_test 2 *
initcheck kernels_f8_gpu_test 3 *-*Products*
initcheck kernels_product_gpu_test 2 *Sizes*-*/2300x*
END
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
started=$(date +%s)

# One part of one row.
cat >"$logs/run" <<'END'
tool=$1 program=$2 part=$3 parts=$4 filter=$5
log=$logs/$tool-$program-$part
started=$(date +%s)
left=$((deadline - started))
if [ $left -lt 1 ]; then left=1; fi
options="--tool $tool --error-exitcode 86 --print-limit 20"
# That a call fails is what some tests are about.
if [ "$tool" = memcheck ]; then options="$options --report-api-errors no"; fi
GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part timeout -k 10 "$left" \
  "$sanitizer" $options "$folder/$program" --gtest_brief=1 "--gtest_filter=$filter" >"$log" 2>&1
status=$?
ran=$(sed -n 's/^\[==========\] \([0-9]*\) tests\{0,1\} from .* ran\..*/\1/p' "$log" | tail -1)
case $status in
  0) result=ok ;;
  86) result=FOUND ;;
  124) result=LATE ;;
  *) result=FAILED ;;
esac
if [ $result = ok ] && grep -q SKIPPED "$log"; then result=SKIPPED; fi
# With one part for each test or fewer, none is empty: a filter that finds nothing is a mistake here.
if [ $result = ok ] && [ "${ran:-0}" = 0 ]; then result=EMPTY; fi
printf '%5d s  %-7s  %-9s  %s %d/%d, %d tests\n' $(($(date +%s) - started)) $result "$tool" \
  "$program" $((part + 1)) "$parts" "${ran:-0}" >"$log.told"
if [ $result != ok ]; then
  grep -v -e '^\[' -e '^Running main' -e '^Note:' "$log" | head -n 60 |
    sed 's/^/         /' >>"$log.told"
fi
cat "$log.told"
[ $result = ok ]
END
export logs folder sanitizer

# What takes longer under a tool is not to be found in the caches of other runs. Where kernels are
# generated, the first run compiles them: once, not under every tool.
XDG_CACHE_HOME=$logs/cache
export XDG_CACHE_HOME
"$folder/kernels_gpu_test" --gtest_brief=1 >"$logs/first" 2>&1 || {
  cat "$logs/first"
  echo "kernels_gpu_test fails without a sanitizer" >&2
  exit 1
}

deadline=$(($(date +%s) + ${LIMIT:-1200}))
export deadline
set -f
rows | while read -r tool program parts filter; do
  case " $tools " in *" $tool "*) ;; *) continue ;; esac
  if ! [ -x "$folder/$program" ]; then echo "$folder has no $program: left out" >&2; continue; fi
  part=0
  while [ $part -lt "$parts" ]; do
    printf '%s\0%s\0%s\0%s\0%s\0' "$tool" "$program" "$part" "$parts" "$filter"
    part=$((part + 1))
  done
done | xargs -0 -n 5 -P "${JOBS:-8}" sh "$logs/run"
status=$?
echo "compute-sanitizer: $(($(date +%s) - started)) s"
[ $status -eq 0 ]
