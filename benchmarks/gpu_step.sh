#!/bin/sh
# A training step on this machine's GPU beside PyTorch's, one model after the other in one run: prints
# the device, and a line a model with times, tokens/s, memory, their ratio, and what the plan predicted.
#
# usage: benchmarks/gpu_step.sh [MODEL...]
#   MODEL  gpt2:124m gpt2:355m megatron:1.2b llama:1b gpt2:1558m qwen2.5:1.5b llama:7b (12 of its
#          layers) mixtral:8x7b (four layers, half as wide); the first four when none is named
#
# CLEAVE names the command (build/bin/cleave), PYTHON one that has torch (python3), DEVICES the kind
# of GPU or a calibrated file (h100), OPTIONS more for cleave (--moments bf16), LIMIT the seconds that
# PyTorch may take for a model (600): torch.compile takes one or two minutes of them.
set -u

here=$(dirname "$0")
cleave=${CLEAVE:-$here/../build/bin/cleave}
python=${PYTHON:-python3}
devices=${DEVICES:-h100}
limit=${LIMIT:-600}
if [ "${1:-}" = --help ]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit; fi
case $limit in
  *[!0-9]* | '') echo "gpu_step.sh: LIMIT '$limit' is not a number of seconds" >&2; exit 1 ;;
esac
for command in "$cleave" "$python"; do
  if ! command -v "$command" >/dev/null; then
    echo "gpu_step.sh: there is no program '$command': CLEAVE and PYTHON name them" >&2
    exit 1
  fi
done
if [ $# -eq 0 ]; then set -- gpt2:124m gpt2:355m megatron:1.2b llama:1b; fi

. "$here/gpu_models.sh"
for model in "$@"; do options_of "$model" >/dev/null || exit 1; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
git -C "$here" rev-parse --short HEAD 2>/dev/null
failed=0
for model in "$@"; do
  options=$(options_of "$model")
  # shellcheck disable=SC2086  # words
  "$cleave" bench "$model" --devices "$devices" --precision "${PRECISION:-bf16}" ${options%%/*} \
    ${OPTIONS:-} --json >"$logs/ours" 2>"$logs/errors" || {
    cat "$logs/errors" >&2
    failed=1
    continue
  }
  # shellcheck disable=SC2086
  timeout "$limit" "$python" "$here/peers/pytorch_gpu_step.py" --steps 20 --warm-up 5 \
    ${options#*/ } >"$logs/peer" 2>&1 || echo "PyTorch: $(tail -n 1 "$logs/peer")" >&2
  "$python" - "$model" "$logs/ours" "$logs/peer" <<'END' || failed=1
import json
import re
import sys

model, ours, peer = sys.argv[1:]
try:
    o = json.load(open(ours))
except ValueError:
    sys.exit(1)
ms, gib = 1e3 * o["step_seconds"], 2**-30
line = (f"{model:14} {ms:8.2f} ms {o['tokens_per_second']:9.0f} tokens/s {o['allocated_bytes'] * gib:6.2f} GiB, "
        f"predicted {1e3 * o['predicted_seconds']:.2f} ms, {o['predicted_bytes'] * gib:.2f} GiB; ")
found = re.search(r"median ([0-9.]+) ms, ([0-9]+) tokens/s, ([0-9.]+) GiB", open(peer).read())
if found is None:
    print(line + "PyTorch: no result")
    sys.exit(1)
print(line + f"PyTorch {found[1]} ms {found[2]} tokens/s {found[3]} GiB; {float(found[1]) / ms:.3f} times")
END
done
exit $failed
