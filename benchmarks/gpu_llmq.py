#!/usr/bin/env python3
"""Training steps of Qwen2.5's shapes by Cleave and by LLMQ (github.com/IST-DASLab/llmq), one after the
other on this machine's GPU: bf16 with moments in bf16, random tokens, nothing recomputed. Prints the
device, and a line a case: ms a step, tokens/s, the share of the GPU's rate in bf16 (operations that a
causal mask leaves, as LLMQ counts them), and LLMQ's ms over Cleave's: above 1, Cleave is faster.

LLMQ keeps weights and gradients in bf16 alone; Cleave trains weights in f32 and sums gradients of
micro-batches in f32."""

import argparse
import array
import json
import pathlib
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import typing

SEQUENCE = 1024
SHAPES = {
    "qwen2.5:1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                         num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5:7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                       num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}


class Case(typing.NamedTuple):
    model: str
    sequences: int  # a step
    micro: int  # sequences of a micro-batch of Cleave's
    llmq_micro: int  # and of LLMQ's
    llmq_options: list  # as in its own benchmarks
    steps: int  # that are timed
    warm_up: int  # steps before them


CASES = {
    "short": Case("qwen2.5:1.5b", 8, 8, 8, [], 20, 5),
    "long": Case("qwen2.5:1.5b", 512, 32, 32, ["--lmhead-chunks=4"], 3, 2),
    "7b": Case("qwen2.5:7b", 192, 8, 4, [], 2, 1),
}


def operations(shape):
    """Floating-point operations a token, forward and backward."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    head = width // shape["num_attention_heads"]
    qkv = head * (shape["num_attention_heads"] + 2 * shape["num_key_value_heads"])
    block = width * (3 * shape["intermediate_size"] + width + qkv)
    return 6 * (layers * block + shape["vocab_size"] * width + layers * width * SEQUENCE)


def write_tokens(path, count, vocabulary):
    """A file of LLMQ's: a header of 1,024 bytes (version 2, 4 bytes a token), and the tokens."""
    draw = random.Random(1)
    tokens = array.array("i", (int(draw.random() * vocabulary) for _ in range(count)))
    header = b"BIN.TOK\n" + struct.pack("<5i", 2, 4, count, vocabulary, 0)
    path.write_bytes(header.ljust(1024, b"\0") + tokens.tobytes())


def llmq_ms(program, case, folder):
    """The median of LLMQ's timed steps; it is ended before it would validate and write the model."""
    micro, all_steps = case.llmq_micro, case.steps + case.warm_up
    config = dict(SHAPES[case.model], architectures=["Qwen2ForCausalLM"], model_type="qwen2", bos_token_id=151643,
                  eos_token_id=151643, max_position_embeddings=32768, max_window_layers=28, rope_theta=1e6,
                  rms_norm_eps=1e-6, torch_dtype="bfloat16", attention_dropout=0.0, hidden_act="silu",
                  initializer_range=0.02, use_cache=True, use_sliding_window=False, use_mrope=False,
                  sliding_window=32768)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokens(folder / "train.bin", (all_steps * case.sequences + 8) * SEQUENCE + 1, 151643)
    write_tokens(folder / "eval.bin", (micro + 2) * SEQUENCE + 1, 151643)
    arguments = [program, "--from-scratch", "--use-cuda-graphs", f"--model={folder}",
                 f"--train-file={folder}/train.bin", f"--eval-file={folder}/eval.bin", f"--seq-length={SEQUENCE}",
                 f"--batch-size={micro}", f"--grad-accumulation={case.sequences // micro}", f"--steps={all_steps}",
                 "--model-dtype=bf16", "--matmul-dtype=bf16", "--opt-m-dtype=bf16", "--opt-v-dtype=bf16", "--gpus=1",
                 "--eval-every-n-steps=0", "--ckpt-interval=0", "--log-gpu-util=0", "--save-training-state=false",
                 f"--out-dir={folder}/out", f"--checkpoint-dir={folder}/ckpt", f"--log-file={folder}/log.json",
                 *case.llmq_options]
    ms, lines = [], []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace") as process:
        for line in process.stdout:
            lines.append(line.rstrip())
            found = re.match(r"\[T\] step +\d+ .*\| time: +(\d+) +(ms|s) ", line)
            if found:
                ms.append(int(found[1]) * (1000 if found[2] == "s" else 1))
            if len(ms) == all_steps:
                process.kill()
                break
    if len(ms) < all_steps:
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        raise RuntimeError(f"LLMQ ended after {len(ms)} of {all_steps} steps: {last}")
    return statistics.median(ms[case.warm_up:])


def cleave_result(program, devices, case):
    """What `cleave bench --json` prints."""
    run = subprocess.run([program, "bench", case.model, "--devices", devices, "--precision", "bf16", "--moments",
                          "bf16", "--set", f"sequence={SEQUENCE}", "--batch", str(case.micro), "--accumulate",
                          str(case.sequences // case.micro), "--steps", str(case.steps), "--warm-up",
                          str(case.warm_up), "--json"], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError((run.stderr.strip().splitlines() or ["cleave says nothing"])[-1])
    return json.loads(run.stdout)


def told(case, ms, peak):
    tokens = case.sequences * SEQUENCE
    share = operations(SHAPES[case.model]) * tokens / ms / 1e9 / peak
    return f"{ms:9.2f} ms {1e3 * tokens / ms:7.0f} tokens/s {100 * share:5.1f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE",
                        help="short: 1.5B, 8 sequences a step; long: 512; 7b: 192 (all)")
    parser.add_argument("--llmq", required=True, help="its program 'train', built for this GPU")
    parser.add_argument("--cleave", default=str(pathlib.Path(__file__).parents[1] / "build/bin/cleave"))
    parser.add_argument("--devices", default="h100", help="the kind of GPU, or a calibrated file")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the GPU in bf16, without sparsity")
    options = parser.parse_args()
    for case in options.cases:
        if case not in CASES:
            sys.exit(f"gpu_llmq.py: there is no case '{case}': {', '.join(CASES)}")
    for program in (options.llmq, options.cleave):
        if not pathlib.Path(program).is_file():
            sys.exit(f"gpu_llmq.py: there is no program '{program}'; --llmq and --cleave name them")

    try:
        gpu = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                             capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("gpu_llmq.py: there is no NVIDIA GPU here (nvidia-smi shows none)")
    print(gpu.stdout.strip(), flush=True)
    failed = False
    for name in options.cases or CASES:
        case = CASES[name]
        print(f"{case.model} {case.sequences}x{SEQUENCE}:", end=" ", flush=True)
        try:
            result = cleave_result(options.cleave, options.devices, case)
            ours, predicted = 1e3 * result["step_seconds"], 1e3 * result["predicted_seconds"]
            print(f"Cleave {told(case, ours, options.peak)} {result['allocated_bytes'] / 2**30:6.2f} GiB, "
                  f"predicted {predicted:.2f} ms;", end=" ", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                theirs = llmq_ms(options.llmq, case, pathlib.Path(folder))
            print(f"LLMQ {told(case, theirs, options.peak)}; {theirs / ours:.3f} times", flush=True)
        except (OSError, RuntimeError) as error:
            print(error, flush=True)
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
