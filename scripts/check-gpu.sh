#!/bin/sh
# What only a GPU can show, by programs that are built: in parts, whose output goes to a file each;
# a line a part with its time and result. Exits 1 when one fails.
#
# usage: scripts/check-gpu.sh [--out FOLDER] [PART...]
#   tests     the tests labelled gpu, each program in parts, JOBS of them at once (8); those that look
#             at the GPU's free memory alone
#   sanitize  scripts/sanitize-gpu.sh
#   curves    200 steps in bf16, fp32 and on the CPU; the same bits twice (benchmarks/gpu_curves)
#   fp8       200 steps in floats of 8 bits (benchmarks/fp8)
#   step      a training step beside PyTorch's (benchmarks/gpu_step.sh)
#   kernels   kernels against their limits (benchmarks/gpu_kernels)
#   chains    generated kernels beside torch.compile's (benchmarks/chains)
#   FOLDER    for the output; gpu-out in the checkout when it is left out
#
# All parts, in this order, if none is named. Of what is built: tests and benchmarks, as by
# `cmake --preset check -DCLEAVE_BENCHMARKS=ON && cmake --build --preset check`. BUILD names the
# build (build), PYTHON a Python that has torch (python3), PART_LIMIT the seconds that one part may
# take (3600), MODELS the models of step (its own).
set -u
started_in=$PWD
cd "$(dirname "$0")/.." || exit 1

out=gpu-out
if [ "${1:-}" = --out ]; then
  case ${2:-} in
    '') echo "check-gpu: --out needs a folder" >&2; exit 1 ;;
    /*) out=$2 ;;
    *) out=$started_in/$2 ;;
  esac
  shift 2
fi
build=${BUILD:-build}
limit=${PART_LIMIT:-3600}
case $limit in
  *[!0-9]* | '') echo "check-gpu: PART_LIMIT '$limit' is not a number of seconds" >&2; exit 1 ;;
esac
if [ "${1:-}" = --help ]; then sed -n '2,/^set/s/^# \{0,1\}//p' scripts/check-gpu.sh; exit; fi

# What a part runs, of the build.
needs() {
  case $1 in
    tests | sanitize) echo bin/kernels_gpu_test ;;
    curves) echo benchmarks/gpu_curves ;;
    fp8) echo benchmarks/fp8 ;;
    step) echo bin/cleave ;;
    kernels) echo benchmarks/gpu_kernels ;;
    chains) echo benchmarks/chains ;;
  esac
}
if [ $# -eq 0 ]; then set -- tests sanitize curves fp8 step kernels chains; fi
for part in "$@"; do
  needed=$(needs "$part")
  if [ -z "$needed" ]; then
    echo "check-gpu: there is no part '$part': tests, sanitize, curves, fp8, step, kernels, chains;" \
      "--out FOLDER stands before them; see --help" >&2
    exit 1
  fi
  if ! [ -x "$build/$needed" ]; then
    echo "check-gpu: $part needs $build/$needed: build tests and benchmarks (see --help), or name" \
      "the build by BUILD" >&2
    exit 1
  fi
done
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "check-gpu: there is no NVIDIA GPU here (nvidia-smi -L shows none)" >&2
  exit 1
fi
mkdir -p "$out" || exit 1

# One part of one test program: its last line, and what fails. A test that is skipped saw no GPU; left
# out are those of machines without one.
cat >"$out/test" <<'END_OF_TEST'
name="$(basename "$2") $(($3 + 1))/$4"
log=$1/$(basename "$2")-$3.log
if GTEST_TOTAL_SHARDS=$4 GTEST_SHARD_INDEX=$3 "$2" --gtest_brief=1 --gtest_filter=-WithoutAGpu.* \
  >"$log" 2>&1 && ! grep -q SKIPPED "$log"; then
  echo "$name: $(tail -n 1 "$log")"
else
  echo "$name FAILED"
  tail -n 30 "$log"
  exit 1
fi
END_OF_TEST

run_tests() {
  memory='executor_prediction|executor_evaluator|executor_record'
  bad=0
  for program in "$build"/bin/*_gpu_test; do
    if echo "$program" | grep -q -E "$memory"; then continue; fi
    for part in 0 1 2 3 4 5; do printf '%s\0%s\0%s\0' "$program" $part 6; done
  done | xargs -0 -n 3 -P "${JOBS:-8}" sh "$out/test" "$out" || bad=1
  for program in "$build"/bin/*_gpu_test; do
    if ! echo "$program" | grep -q -E "$memory"; then continue; fi
    sh "$out/test" "$out" "$program" 0 1 || bad=1
  done
  return $bad
}

run_part() {
  case $1 in
    tests) run_tests ;;
    sanitize) scripts/sanitize-gpu.sh "$build/bin" ;;
    curves)
      "$build/benchmarks/gpu_curves" \
        --cpu "$(ls benchmarks/results/gpu_curves-cpu-*.csv | tail -n 1)"
      ;;
    fp8)
      "$build/benchmarks/fp8" gpt2:124m --batch 32 --every 50 &&
        "$build/benchmarks/fp8" megatron:1.2b --batch 8 --every 50
      ;;
    step) CLEAVE=$build/bin/cleave benchmarks/gpu_step.sh ${MODELS:-} ;;
    kernels) "$build/benchmarks/gpu_kernels" ;;
    chains)
      "$build/benchmarks/chains" >"$out/chains.ours" &&
        "${PYTHON:-python3}" benchmarks/peers/pytorch_chains.py --ours "$out/chains.ours"
      ;;
  esac
}

# Itself, for one part: what timeout can end.
if [ -n "${CHECK_GPU_PART:-}" ]; then
  run_part "$CHECK_GPU_PART"
  exit
fi
failed=0
for part in "$@"; do
  started=$(date +%s)
  CHECK_GPU_PART=$part timeout "$limit" scripts/check-gpu.sh --out "$out" "$part" \
    >"$out/$part.txt" 2>&1
  status=$?
  case $status in
    0) result=ok ;;
    124) result=LATE ;;
    *) result=FAILED ;;
  esac
  printf '%5d s  %-7s  %-8s  %s/%s.txt\n' $(($(date +%s) - started)) $result "$part" "$out" "$part"
  if [ $status -ne 0 ]; then
    failed=1
    tail -n 40 "$out/$part.txt" | sed 's/^/         /'
  fi
done
exit $failed
