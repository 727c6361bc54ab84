#!/usr/bin/env python3
"""Trains a GPT on a text with Cleave, on 4 devices and on 1, and in PyTorch, from the same weights
and on the same batches, and compares the validation losses. Writes PREFIX.csv, a plot PREFIX.svg and
a report PREFIX.md. A run that was interrupted goes on when the same command is given again.

    benchmarks/gpt_curve.py --data TEXT --torch-python V/bin/python -o benchmarks/results/PREFIX

First 30 steps in fp64 on the text's first 12,000 bytes, which are several epochs, must agree to
1e-9: that the weights, the batches and the update are the same. --fp64 repeats all steps so."""

import argparse
import csv
import datetime
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLEAVE = ROOT / "build/bin/cleave"
PEER = ROOT / "benchmarks/peers/gpt_curve.py"
MODEL = ["--set", "layers=4", "hidden=128", "heads=4", "sequence=128", "--batch", "8",
         "--lr", "2e-3"]
PROOF_STEPS, PROOF_BYTES, PROOF_LIMIT = 30, 12000, 1e-9


# --- Running --------------------------------------------------------------------------------------

def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def commit():
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return output_of("git", "rev-parse", "--short=10", "HEAD") + (" (changed)" if changed else "")


def environment():
    """Less what some machines set to hold an older OpenBLAS back; waiting threads sleep."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    return dict(kept, OMP_WAIT_POLICY="passive")


def read(folder):
    """The numbers of a run, by kind and step."""
    found = dict(loss={}, val_loss={})
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = json.loads(line)
        for kind in found:
            if kind in entry:
                found[kind][entry["step"]] = entry[kind]
    return found


class Runs:
    """The runs in one folder, all with the same flags."""

    def __init__(self, folder, flags, torch_python):
        self.folder, self.flags, self.torch_python = folder, flags, torch_python
        folder.mkdir(parents=True, exist_ok=True)
        note, text = folder / "flags", " ".join(flags) + "\n"
        if note.exists() and note.read_text() != text:
            sys.exit(f"gpt_curve: {folder} has runs of: {note.read_text()}remove it, or --work")
        note.write_text(text)

    def run(self, name, precision, devices=0):
        """With Cleave on so many devices; 0: in PyTorch."""
        out = self.folder / name
        flags = [*self.flags, "--precision", precision, "--out", str(out)]
        command = [self.torch_python, str(PEER), *flags]
        if devices > 0:
            command = [str(CLEAVE), "train", "gpt2:tiny", *flags, "--devices", f"cpu:{devices}",
                       "--checkpoint-every", "500", "--log-every", "100"]
            if out.exists():
                command.append("--resume")
        if not (out / "commit").exists():  # written last
            print("+", " ".join(command), flush=True)
            if subprocess.run(command, cwd=ROOT, env=environment()).returncode != 0:
                sys.exit(f"gpt_curve: {name} ended with an error")
            (out / "commit").write_text(commit() + "\n")
        return read(out)


def differences(a, b):
    """Between two curves of the same steps: the largest, the step where it is, and all."""
    if a.keys() != b.keys():
        sys.exit("gpt_curve: the curves are not of the same steps")
    all_of_them = {step: abs(a[step] - b[step]) for step in a}
    at = max(all_of_them, key=all_of_them.get)
    return all_of_them[at], at, all_of_them


def prove(options, work):
    """The same in fp64 on a text of several epochs; returns the largest difference."""
    text = work / "proof.txt"
    text.write_bytes(pathlib.Path(options.data).read_bytes()[:PROOF_BYTES])
    flags = [*MODEL, "--data", str(text), "--steps", str(PROOF_STEPS), "--eval-every", "5",
             "--seed", "7"]
    runs = Runs(work / "proof", flags, options.torch_python)
    ours, theirs = runs.run("cleave-4", "fp64", 4), runs.run("pytorch", "fp64")
    largest = max(differences(ours[kind], theirs[kind])[0] for kind in ours)
    if not largest <= PROOF_LIMIT:
        sys.exit(f"gpt_curve: in fp64 the two differ by {largest:.1e}: not the same training")
    return largest


def sample(checkpoint, devices):
    command = [str(CLEAVE), "generate", str(checkpoint), "--prompt", "Ge1:1 In the beginning ",
               "--tokens", "600", "--seed", "1", "--devices", f"cpu:{devices}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"gpt_curve: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


# --- Writing --------------------------------------------------------------------------------------

def write_csv(path, runs):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *(f"{name} {kind}" for kind in ("val_loss", "loss")
                                   for name in runs)])
        for step in runs["cleave-4"]["val_loss"]:
            writer.writerow([step, *(repr(run[kind][step]) for kind in ("val_loss", "loss")
                                     for run in runs.values())])


class Panel:
    """A part of the plot with axes of its own, drawn in SVG."""

    def __init__(self, top, height, steps, low, high, title, legend):
        self.top, self.height, self.steps, self.low, self.high = top, height, steps, low, high
        self.legend = legend  # y of its first row
        self.parts = [f'<text x="70" y="{top - 12}" font-weight="bold">{title}</text>',
                      f'<path d="M70 {top}V{top + height}H670" fill="none" stroke="#888"/>']
        for step in range(0, steps + 1, steps // 4):
            self.parts.append(f'<text x="{self.x(step):.0f}" y="{top + height + 18}" '
                              f'text-anchor="middle">{step}</text>')

    def x(self, step):
        return 70 + 600 * step / self.steps

    def y(self, value):
        return self.top + self.height * (self.high - value) / (self.high - self.low)

    def tick(self, value, label):
        y = self.y(value)
        self.parts.append(f'<path d="M70 {y:.1f}H670" stroke="#ddd"/><text x="62" y="{y + 4:.1f}" '
                          f'text-anchor="end">{label}</text>')

    def line(self, points, colour, width, label, row, dash=""):
        path = " ".join(f"{self.x(s):.1f},{self.y(v):.1f}" for s, v in points)
        style = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}" fill="none"'
        y = self.legend + 17 * row
        self.parts.append(f'<polyline points="{path}" {style}/><path d="M400 {y}h30" {style}/>'
                          f'<text x="438" y="{y + 4}">{label}</text>')


def write_svg(path, runs, pairs, steps):
    ours, theirs = runs["cleave-4"]["val_loss"], runs["pytorch"]["val_loss"]
    values = [*ours.values(), *theirs.values()]
    top = Panel(40, 240, steps, math.floor(min(values) * 4) / 4, math.ceil(max(values) * 4) / 4,
                "validation loss, nats a byte", legend=54)
    for tick in range(round(top.low * 4), round(top.high * 4) + 1):
        top.tick(tick / 4, f"{tick / 4:.2f}")
    top.line(theirs.items(), "#f0a030", 6, "PyTorch", 0)
    top.line(ours.items(), "#1f4e9c", 1.5, "Cleave on 4 devices", 1)

    curves = [(label, [(step, math.log10(max(d, 1e-16))) for step, d in differences(
        runs[a]["val_loss"], runs[b]["val_loss"])[2].items()]) for label, a, b in pairs]
    exponents = [v for _, points in curves for _, v in points]
    bottom = Panel(350, 240, steps, math.floor(min(exponents)), math.ceil(max(exponents)),
                   "difference of two validation losses", legend=540)
    for exponent in range(bottom.low, bottom.high + 1, 1 if bottom.high - bottom.low < 8 else 2):
        bottom.tick(exponent, f"1e{exponent}")
    looks = [("#1f4e9c", ""), ("#b03060", "5 3"), ("#2e8b57", "2 2")]
    for row, ((label, points), (colour, dash)) in enumerate(zip(curves, looks)):
        bottom.line(points, colour, 1.5, label, row, dash)
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="700" height="620" '
                    'font-family="sans-serif" font-size="12"><rect width="700" height="620" '
                    'fill="white"/>\n' + "\n".join(top.parts + bottom.parts) + "\n</svg>\n")


def report(options, runs, pairs, proof, texts, trained_at):
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), platform.machine())
    torch = output_of(options.torch_python, "-c", "import torch; print(torch.__version__)")
    prefix = pathlib.Path(options.out)
    command = " ".join(["benchmarks/gpt_curve.py", "--data TEXT", "--torch-python PYTHON",
                        f"--steps {options.steps}", *(["--fp64"] if options.fp64 else []),
                        f"-o {os.path.relpath(prefix.resolve(), ROOT)}"])
    yield f"# A GPT's validation loss beside PyTorch's, {options.steps:,} steps\n"
    yield f"![both curves, and their difference]({prefix.name}.svg)\n"
    yield f"- `{command}`"
    yield (f"- {cpu}, {os.cpu_count()} cores, shared with other work; commit "
           f"{trained_at}; PyTorch {torch}, 2 threads; {datetime.date.today()}")
    yield (f"- gpt2:tiny, {' '.join(MODEL)}, AdamW, cosine schedule, bytes as tokens; TEXT: "
           f"{options.text_name}, {os.path.getsize(options.data):,} bytes; validation: 32 batches "
           f"of its last tenth")
    yield (f"- In fp64, {PROOF_STEPS} steps on the first {PROOF_BYTES:,} bytes (several epochs): "
           f"losses and validation losses of Cleave on 4 devices and of PyTorch differ by at most "
           f"{proof:.1e}.\n")
    ours, theirs, one = (runs[n]["val_loss"] for n in ("cleave-4", "pytorch", "cleave-1"))
    yield "| step | Cleave, 4 devices | PyTorch | difference | Cleave, 1 device | 4 devices less 1 |"
    yield "|---|---|---|---|---|---|"
    for step in [s for s in ours if s % 200 == 0 or s == options.steps]:
        yield (f"| {step} | {ours[step]:.6f} | {theirs[step]:.6f} | {ours[step] - theirs[step]:+.1e}"
               f" | {one[step]:.6f} | {ours[step] - one[step]:+.1e} |")
    yield "\nAbsolute differences over the run:\n"
    yield ("| between | validation loss, mean | largest | at step | loss of a batch, mean | largest "
           "| at step |\n|---|---|---|---|---|---|---|")
    for label, a, b in pairs:
        cells = []
        for kind in ("val_loss", "loss"):
            largest, at, every = differences(runs[a][kind], runs[b][kind])
            cells += [f"{sum(every.values()) / len(every):.1e}", f"{largest:.1e}", str(at)]
        yield f"| {label} | {' | '.join(cells)} |"
    yield ("\nOn 4 devices and on 1 Cleave computes the same, but takes its sums apart elsewhere. What "
           "those two differ by\nis rounding alone, which training amplifies: a difference to PyTorch "
           "of that size says no more.\n")
    yield f"`{prefix.name}.csv` has every validation. What follows is `cleave generate` from the"
    same = texts[0] == texts[1]
    yield (f"last checkpoint, temperature 0.8, top-k 40, on 1 device; on 4 devices it is "
           f"{'the same text to the byte' if same else 'another text'}:\n")
    yield "```\n" + texts[0].strip() + "\n```"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="a text; its last tenth is validated on")
    parser.add_argument("--text-name", default="a text", help="what the report calls it")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--fp64", action="store_true", help="4 devices and PyTorch in fp64 too")
    parser.add_argument("--work", default="run/gpt-curve", help="folder of the runs")
    parser.add_argument("-o", "--out", required=True, metavar="PREFIX")
    options = parser.parse_args()
    if not CLEAVE.exists():
        sys.exit("gpt_curve: build first: cmake --preset check && ninja -C build cleave")

    work = (ROOT / options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    proof = prove(options, work)
    flags = [*MODEL, "--data", str(pathlib.Path(options.data).resolve()), "--steps",
             str(options.steps), "--seed", "0", "--eval-every", "50", "--eval-batches", "32"]
    all_runs = Runs(work / "runs", flags, options.torch_python)
    runs = {"cleave-4": all_runs.run("cleave-4", "fp32", 4),
            "pytorch": all_runs.run("pytorch", "fp32"),
            "cleave-1": all_runs.run("cleave-1", "fp32", 1)}
    pairs = [("Cleave on 4 devices, PyTorch", "cleave-4", "pytorch"),
             ("Cleave on 4 devices, on 1", "cleave-4", "cleave-1")]
    if options.fp64:
        runs["cleave-4-fp64"] = all_runs.run("cleave-4-fp64", "fp64", 4)
        runs["pytorch-fp64"] = all_runs.run("pytorch-fp64", "fp64")
        pairs.append(("the first two in fp64", "cleave-4-fp64", "pytorch-fp64"))

    texts = [sample(work / "runs/cleave-4/checkpoints", devices) for devices in (1, 4)]
    write_csv(pathlib.Path(options.out + ".csv"), runs)
    write_svg(pathlib.Path(options.out + ".svg"), runs, pairs, options.steps)
    trained_at = (work / "runs/cleave-4/commit").read_text().strip()
    text = "\n".join(report(options, runs, pairs, proof, texts, trained_at)) + "\n"
    pathlib.Path(options.out + ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
