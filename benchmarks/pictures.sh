#!/bin/bash
# How long `cleave view -o x.svg` takes for every built-in model, as a graph and as a plan for eight
# H100s, at the levels model and block; and how wide the pictures are for their height. The time is
# the whole command's: tracing, finding regions or making the plan again, laying out, writing. It is
# the processor's: what a machine with nothing else to do needs.
#
#   benchmarks/pictures.sh [build/bin/cleave] > benchmarks/results/pictures.txt
set -eu
cleave=${1:-build/bin/cleave}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

TIMEFORMAT='%U %S'
# Median of three; then width : height of the picture, and its boxes.
picture() {
  times=
  for i in 1 2 3; do
    { time "$cleave" view "$1" --level "$2" -o "$out/x.svg" > "$out/said"; } 2> "$out/time"
    times="$times $(awk '{print $1 + $2}' "$out/time")"
  done
  boxes=$(sed 's/.*: \([0-9]*\) boxes.*/\1/' "$out/said")
  median=$(printf '%s\n' $times | sort -n | sed -n 2p)
  shape=$(sed -n '1s/.*width="\([0-9]*\)" height="\([0-9]*\)".*/\1 \2/p' "$out/x.svg")
  printf '%5.2f s %3d boxes %4.2f  ' "$median" "$boxes" "$(echo "$shape" | awk '{print $1 / $2}')"
}

echo "cleave view, processor seconds (median of 3), boxes, width / height; $(nproc) cores,$(sed -n 's/model name.*://p' /proc/cpuinfo | head -n 1)"
printf '%-15s %-27s %-27s %-27s %-27s\n' model "graph, model" "graph, block" "plan, model" "plan, block"
for model in $("$cleave" view '?' -o x.svg 2>&1 | sed 's/.*there are //; s/,//g'); do
  printf '%-15s ' "$model"
  picture "$model" model
  picture "$model" block
  "$cleave" plan "$model" --cluster 8xh100 --memory none -o "$out/plan.json" > "$out/report.txt"
  picture "$out/plan.json" model
  picture "$out/plan.json" block
  echo
done
