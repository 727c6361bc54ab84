#!/usr/bin/env python3
"""A training step of Cleave beside PyTorch's, on the same cores, in one run: both sides wait in
processes of their own and take turns of a few steps. Prints a table; --help has the options.

    benchmarks/train_step.py --torch-python ~/torch-venv/bin/python -o benchmarks/results/FILE.txt"""

import argparse
import datetime
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# name: family, what differs from the family's tiny model.
SHAPES = {
    "gpt2:tiny": ("gpt2", dict(layers=4, hidden=128, heads=4, vocab=256, sequence=64, batch=8)),
    "gpt 6x384": ("gpt2", dict(layers=6, hidden=384, heads=6, vocab=256, sequence=256, batch=8)),
    "gpt2:124m": ("gpt2", dict(layers=12, hidden=768, heads=12, vocab=50304, sequence=512, batch=1,
                               tied=1)),
    "llama 6x384": ("llama", dict(layers=6, hidden=384, heads=6, kv_heads=2, ffn=1024, vocab=256,
                                  sequence=256, batch=8)),
}


class Side:
    """A process that makes steps when told to."""

    def __init__(self, name, command, environment):
        self.name, self.command, self.wall, self.cpu = name, command, [], []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment, cwd=ROOT)
        self.ready = self.process.stdout.readline().strip()
        if not self.ready.startswith("ready"):
            sys.exit(f"{' '.join(command)}: {self.ready or 'ended'}")

    def steps(self, n):
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        times = [float(s) for s in self.process.stdout.readline().split()]
        self.wall += times[0::2]
        self.cpu += times[1::2]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def sides_of(shape, options, environment):
    family, c = SHAPES[shape]
    c = dict(dict(kv_heads=c["heads"], ffn=4 * c["hidden"], tied=0), **c)
    not_set = ["batch"] + (["kv_heads"] if family == "gpt2" else [])
    ours = [str(ROOT / "build/benchmarks/train_step"), f"{family}:tiny", "--serve", "--batch",
            str(c["batch"]), "--set", *(f"{k}={v}" for k, v in c.items() if k not in not_set)]
    theirs = [options.torch_python, "benchmarks/peers/pytorch_step.py", "--family", family]
    for key, value in c.items():
        theirs += ["--" + key.replace("_", "-"), str(value)]
    theirs += ["--threads", str(options.cores)]
    yield Side("cleave cpu:1", [*ours, "--threads", str(options.cores)], environment)
    yield Side("PyTorch eager", theirs, environment)
    if not options.no_compile:
        yield Side("PyTorch compiled", [*theirs, "--compile", "default"], environment)
    for devices in options.devices:
        yield Side(f"cleave cpu:{devices}", [*ours, "--devices", str(devices), "--threads",
                                              str(max(1, options.cores // devices))], environment)


def commit():
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                         cwd=ROOT, check=False)
    return git.stdout.strip() or "unknown"


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    parser.add_argument("--turn", type=int, default=5, help="steps in a turn")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--devices", type=int, nargs="*", default=[2, 4],
                        help="also Cleave's own split over so many devices")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("-o", "--out", type=argparse.FileType("w"))
    options = parser.parse_args()
    # What steers BLAS libraries from outside steers neither side.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "MKL"))}

    def say(line):
        print(line, flush=True)
        if options.out:
            print(line, file=options.out, flush=True)

    say(f"date      {datetime.datetime.now():%Y-%m-%d %H:%M}")
    say(f"commit    {commit()}")
    say(f"processor {processor()}, {options.cores} of {os.cpu_count()} cores")
    say(f"load      {' '.join(pathlib.Path('/proc/loadavg').read_text().split()[:3])}")
    say(f"command   {' '.join(['benchmarks/train_step.py', *sys.argv[1:]])}")
    say(f"steps     {options.rounds} turns of {options.turn} each; milliseconds; cpu: the median of "
        "all threads' processor time; speed: PyTorch eager's median over this side's, by least "
        "time, and by processor time")
    for shape in options.shapes:
        sides = list(sides_of(shape, options, environment))
        for turn in range(options.rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                side.steps(options.turn)
        say("")
        say(f"{shape:<20}{'median':>9}{'least':>9}{'cpu':>9}{'speed':>8}{'by least':>9}{'by cpu':>8}")
        eager = next(s for s in sides if s.name == "PyTorch eager")
        for side in sides:
            side.close()
            wall, least, cpu = statistics.median(side.wall), min(side.wall), statistics.median(side.cpu)
            say(f"  {side.name:<18}{1e3 * wall:>9.2f}{1e3 * least:>9.2f}{1e3 * cpu:>9.2f}"
                f"{statistics.median(eager.wall) / wall:>8.2f}{min(eager.wall) / least:>9.2f}"
                f"{statistics.median(eager.cpu) / cpu:>8.2f}   {side.ready.removeprefix('ready ')}")
    say("")
    say(f"load after {' '.join(pathlib.Path('/proc/loadavg').read_text().split()[:3])}")


if __name__ == "__main__":
    main()
