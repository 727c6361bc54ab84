#!/bin/sh
# Builds test programs with sanitizers and runs them: a line a program with its time, and all of
# the output of those that fail. Exits 1 when one does.
#
# usage: scripts/sanitize.sh asan|tsan [TEST...]
#   asan   address and undefined behaviour: all tests but the slow ones and some that take minutes
#   tsan   threads: the tests that start any, but some that take minutes and add no new code
#   TEST   executor_runtime_test, ...: these only
set -eu
cd "$(dirname "$0")/.."

preset=${1:-}
case $preset in
  # Leaves out what takes minutes under a sanitizer and runs the same code as others do.
  asan) tests=$(ls tests/*_test.cc | grep -v -e '_slow_test' -e '_gpu_test' -e planner_joint_test \
    -e planner_memory_test -e planner_exact_test -e planner_wide_test -e planner_first_stage_test \
    -e training_context_test -e models_next_token_test -e models_pytorch_test \
    -e cli_answers_test -e cli_answers_kept_test -e cli_plan_again_test -e cli_words_test \
    -e cli_export_advice_test -e training_accumulation_test -e training_pipeline_test \
    -e training_plans_test) ;;
  tsan) tests=$(grep -lE 'cpu_runtime.h|communicator.h|rank_threads.h|trainer.h|training_plans.h|thread_team.h|async_writer.h' \
    tests/*_test.cc | grep -v -e '_slow_test' -e '_gpu_test' -e planner_offload_test \
    -e training_plans_test -e training_accumulation_test -e training_context_test \
    -e models_next_token_test) ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
shift
if [ $# -gt 0 ]; then tests=$*; fi
tests=$(for test in $tests; do basename "$test" .cc; done)
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE

started=$(date +%s)
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" --target $tests
echo "$preset: built in $(($(date +%s) - started)) s"

export ASAN_OPTIONS=detect_leaks=1
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=second_deadlock_stack=1
# From the last one: those of training take longest, and are not to be waited for alone.
echo "$tests" | sort -r | xargs -P "$(nproc)" -I{} sh -c '
  started=$(date +%s)
  log=build-$1/$2.log
  if build-$1/bin/$2 --gtest_brief=1 >$log 2>&1; then result=ok; else result=FAILED; fi
  printf "%5d s  %-6s  %s\n" $(($(date +%s) - started)) $result $2
  if [ $result = FAILED ]; then tail -n 200 $log; exit 1; fi
' - "$preset" {} || exit 1
echo "$preset: $(echo "$tests" | wc -w) programs pass, $(($(date +%s) - started)) s with the build"
