#!/bin/sh
# Compares the loss curves of two training runs step by step: a table, a plot, and the largest
# difference. Exits 1 when they differ by more than the limit, or have not the same steps.
# usage: scripts/compare-runs.sh RUN_A RUN_B [NAME_A NAME_B [LIMIT]]
#   RUN_*   a directory that `cleave train --out` wrote, with metrics.jsonl
#   LIMIT   of the difference in any step's loss; 1e-3 if not given
set -eu
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 1
fi
for run in "$1" "$2"; do
  if [ ! -f "$run/metrics.jsonl" ]; then
    echo "compare-runs: $run/metrics.jsonl is missing" >&2
    exit 1
  fi
done

exec awk -v name_a="${3:-A}" -v name_b="${4:-B}" -v limit="${5:-1e-3}" '
  # The number that follows "key": in the line, or "" where there is none.
  function field(key,    rest) {
    if (!match($0, "\"" key "\" *: *")) return ""
    rest = substr($0, RSTART + RLENGTH)
    return match(rest, /^-?[0-9][-+.0-9eE]*/) ? substr(rest, 1, RLENGTH) : ""
  }
  # NaN and infinity are written as null or as words: not a number, so the step has no loss.
  /"summary"/ || /"val_loss"/ { next }
  {
    step = field("step")
    if (step == "") next
    if (!((run, step) in loss)) { steps[run]++; if (run == 1) order[steps[1]] = step }
    loss[run, step] = field("loss")
  }

  function row(value) {  # 1 is the top line of the plot
    return high > low ? 1 + int((high - value) / (high - low) * (height - 1) + 0.5) : 1
  }

  END {
    if (steps[1] == 0 || steps[1] != steps[2]) {
      printf "compare-runs: %d steps in %s, %d in %s\n", steps[1], name_a, steps[2], name_b
      exit 1
    }
    n = steps[1]
    every = int((n + 11) / 12)
    printf "%6s  %12s  %12s  %12s\n", "step", name_a, name_b, "difference"
    for (i = 1; i <= n; i++) {
      a = loss[1, order[i]]; b = loss[2, order[i]]
      if (a == "" || b == "") {
        printf "compare-runs: step %s has no finite loss in both runs\n", order[i]
        exit 1
      }
      a += 0; b += 0
      difference = a > b ? a - b : b - a
      if (difference > largest) { largest = difference; at = order[i] }
      if (i == 1 || a > high) high = a
      if (i == 1 || a < low) low = a
      if (b > high) high = b
      if (b < low) low = b
      if (i == 1 || i == n || i % every == 0)
        printf "%6s  %12.6f  %12.6f  %12.2e\n", order[i], a, b, difference
    }

    height = 12
    width = n < 60 ? n : 60
    for (column = 1; column <= width; column++) {
      i = width > 1 ? 1 + int((column - 1) * (n - 1) / (width - 1) + 0.5) : 1
      ra = row(loss[1, order[i]]); rb = row(loss[2, order[i]])
      cell[ra, column] = "1"
      cell[rb, column] = ra == rb ? "*" : "2"
    }
    printf "\nloss  (1: %s, 2: %s, *: both)\n", name_a, name_b
    for (r = 1; r <= height; r++) {
      line = ""
      for (column = 1; column <= width; column++)
        line = line ((r, column) in cell ? cell[r, column] : " ")
      label = r == 1 ? sprintf("%8.3f", high) : r == height ? sprintf("%8.3f", low) : "        "
      sub(/ +$/, "", line)
      printf "%s |%s\n", label, line
    }
    rule = ""
    for (column = 1; column <= width; column++) rule = rule "-"
    printf "         +%s\n          step %s to %s\n\n", rule, order[1], order[n]

    agree = largest <= limit + 0
    where = at == "" ? "" : ", at step " at
    printf "%s: the largest difference between the two loss curves is %.2e over %d steps%s (limit %s)\n",
           agree ? "OK" : "FAILED", largest, n, where, limit
    exit !agree
  }' run=1 "$1/metrics.jsonl" run=2 "$2/metrics.jsonl"
