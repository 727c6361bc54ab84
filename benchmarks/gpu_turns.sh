#!/bin/sh
# Training steps by some builds of cleave, in turns, on this machine's GPU: a line a model and build
# with the ms of each round, so that a change is told from noise.
#
# usage: benchmarks/gpu_turns.sh BUILD... -- MODEL...
#   BUILD  a cleave: build/bin/cleave, and one that was kept from before a change
#   MODEL  as of benchmarks/gpu_step.sh
#
# ROUNDS says how often each is run (3; one more comes first, in which algorithms are timed), DEVICES
# the kind of GPU or a calibrated file (h100), OPTIONS more for cleave (--moments bf16).
set -u

here=$(dirname "$0")
if [ "${1:-}" = --help ]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit; fi
rounds=${ROUNDS:-3}
case $rounds in
  *[!0-9]* | '' | 0) echo "gpu_turns.sh: ROUNDS '$rounds' is not a number of rounds" >&2; exit 1 ;;
esac
builds=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if ! [ -x "$1" ]; then
    echo "gpu_turns.sh: there is no program '$1'; builds stand before --, models behind it" >&2
    exit 1
  fi
  builds="$builds $1"
  shift
done
if [ -z "$builds" ] || [ $# -lt 2 ]; then
  echo "gpu_turns.sh: needs builds and models: gpu_turns.sh BUILD... -- MODEL...; see --help" >&2
  exit 1
fi
shift
. "$here/gpu_models.sh"
for model in "$@"; do options_of "$model" >/dev/null || exit 1; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
failed=0
for model in "$@"; do
  options=$(options_of "$model")
  rm -f "$logs"/*
  round=0
  while [ $round -le "$rounds" ]; do
    number=0
    for build in $builds; do
      number=$((number + 1))
      # shellcheck disable=SC2086  # words
      if ! "$build" bench "$model" --devices "${DEVICES:-h100}" --precision "${PRECISION:-bf16}" \
        ${options%%/*} ${OPTIONS:-} --json >"$logs/json" 2>"$logs/errors"; then
        tail -n 1 "$logs/errors" >&2
        failed=1
        break 2
      fi
      if [ $round -gt 0 ]; then
        sed -n 's/.*"step_seconds": *\([0-9.e+-]*\).*/\1/p' "$logs/json" |
          awk '{ printf " %.2f", 1e3 * $1 }' >>"$logs/$number"
      fi
    done
    round=$((round + 1))
  done
  number=0
  for build in $builds; do
    number=$((number + 1))
    [ -s "$logs/$number" ] && printf '%-14s %s:%s ms\n' "$model" "$build" "$(cat "$logs/$number")"
  done
done
exit $failed
