"""Ours against PyTorch on one GPU, what tells most first, and a table: called by `bench/gpu.sh`.

    python bench/peers/gpu_compare.py pretrain --electra ./electra --out results --seconds 500
    python bench/peers/gpu_compare.py rest --electra ./electra --out results --seconds 500

Every process's JSON goes to OUT/gpu-PART.jsonl as it comes. What fails or does not fit into the time is a row that says
so. MFU is against the rate that our side measures on large bf16 products in the same run. Memory is the most that
nvidia-smi reported while a process ran, for both sides.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Preset, tokens of a sequence, sequences of a batch; then batches to find each side's best.
PRETRAIN = [("small", 128, 128), ("base", 128, 128), ("base", 512, 32)]
BEST = [("small", 128, 512)]
REST = [("infer", "small", 256), ("infer", "base", 256), ("finetune", "small", 32)]


class Memory:
    """The most bytes in use on the device from now on, by one nvidia-smi that reports every 0.2 seconds."""

    def __init__(self) -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self.process = None

    def most(self) -> int:
        """0 where it is not known."""
        if self.process is None:
            return 0
        self.process.terminate()
        said, _ = self.process.communicate()
        return max((int(line) for line in said.split() if line.isdigit()), default=0) << 20


class Runner:
    def __init__(self, args: argparse.Namespace):
        self.end = time.monotonic() + args.seconds
        self.log = (args.out / f"gpu-{args.part}.jsonl").open("w", encoding="utf-8")
        self.electra = args.electra
        # Runs of ours that failed, or met a product that the library has not.
        self.wrong: list[str] = []

    def run(self, name: str, command: list[str]) -> dict[str, Any]:
        """The process's last line of JSON, with its most memory; or what went wrong under "failed"."""
        left = self.end - time.monotonic()
        if left < 20:
            return self.keep(name, {"failed": "no time was left"})
        begin = time.monotonic()
        watcher = Memory()
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=left)
            lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
            if process.returncode or not lines:
                result: dict[str, Any] = {"failed": (process.stderr or process.stdout)[-2000:]}
            else:
                result = json.loads(lines[-1])
                refused = [line for line in process.stderr.splitlines() if "cuBLASLt has nothing for" in line]
                if refused:
                    result["refused"] = refused
                    print("\n".join(refused), file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired:
            result = {"failed": "it took longer than was left"}
        return self.keep(name, result | {"device_bytes": watcher.most(), "seconds": round(time.monotonic() - begin, 1)})

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        self.log.write(json.dumps({"name": name} | result) + "\n")
        self.log.flush()
        short = result.get("failed") or f"{result.get('tokens_per_s', 0):,.0f} tokens/s"
        print(f"{name}: {short}", file=sys.stderr, flush=True)
        return result

    def ours(self, name: str, what: str, options: list[str]) -> dict[str, Any]:
        command = [self.electra, "bench", what, "--device", "cuda", "--precision", "bf16", "--json", *options]
        result = self.run(f"electra {name}", command)
        if "failed" in result or "refused" in result:
            self.wrong.append(name)
        return result

    def theirs(self, name: str, command: list[str]) -> dict[str, Any]:
        script, *options = command
        return self.run(f"PyTorch {name}", [sys.executable, str(HERE / script), *options])


@dataclass(frozen=True)
class Case:
    """What is compared: `what` of `electra bench`, the peer's script, options of both, and the ways in which the peer is
    tried."""

    name: str
    what: str
    script: list[str]
    options: list[str]
    ways: list[list[str]]
    profile: bool


def speed(result: dict[str, Any]) -> float:
    return float(result.get("tokens_per_s") or 0.0)


def row(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """One row: the median of ours, the best of theirs."""
    good = [r for r in ours if "failed" not in r]
    best = max(theirs, key=speed, default={})
    if not good or not speed(best):
        why = [str(r.get("failed"))[-90:].replace("\n", " ").replace("|", "/") for r in ours + theirs if "failed" in r]
        return f"| {name} | {statistics.median(map(speed, good)) if good else 0:,.0f} | {speed(best):,.0f} | not compared: {'; '.join(why)} | | | |"
    our_speed = statistics.median(map(speed, good))
    mfu = [100 * r["gflops"] / r["gemm_peak_gflops"] for r in good if r.get("gemm_peak_gflops")]
    peak = [r["gemm_peak_gflops"] / 1000 for r in good if r.get("gemm_peak_gflops")]
    memory = [max(r["device_bytes"] for r in good) / 2**30, best["device_bytes"] / 2**30]
    share = f"{statistics.median(mfu):.0f}% of {statistics.median(peak):.0f}" if mfu else "not measured"
    return (f"| {name} | {our_speed:,.0f} | {speed(best):,.0f} ({best['peer'].split()[-1]}) | {our_speed / speed(best):.2f}× | "
            f"{share} | {memory[0]:.1f} | {memory[1]:.1f} |")  # fmt: skip


HEAD = """| | electra tokens/s | PyTorch tokens/s | ratio | electra MFU, TFLOP/s | electra GiB | PyTorch GiB |
|---|---|---|---|---|---|---|"""


def in_order(runner: Runner, cases: list[Case]) -> list[str]:
    """Rows of the cases, what tells most first: ours, then where its time goes, the peer as it is, the peer compiled, ours
    once more. So what a spent time leaves out is what is missed least."""
    ours: list[list[dict[str, Any]]] = [[runner.ours(c.name, c.what, c.options)] for c in cases]
    for case in cases:
        if case.profile:
            result = runner.ours(f"profile {case.name}", case.what, [*case.options, "--profile"])
            for phase in result.get("phases", [])[:20]:
                weight = "×".join(map(str, phase["weight"] or []))
                print(f"  {100 * phase['share']:5.1f}%  {phase['ms']:8.3f} ms  {phase['operator']} {weight}")
    theirs: list[list[dict[str, Any]]] = [[] for _ in cases]
    for way in range(max(len(c.ways) for c in cases)):
        for case, results in zip(cases, theirs):
            if way < len(case.ways):
                extra = case.ways[way]
                results.append(runner.theirs(f"{case.name} {' '.join(extra)}", [*case.script, *case.options, *extra]))
        print("\n".join([HEAD, *(row(c.name, o, t) for c, o, t in zip(cases, ours, theirs))]), file=sys.stderr, flush=True)
    for case, results in zip(cases, ours):
        results.append(runner.ours(case.name, case.what, case.options))
    return [row(c.name, o, t) for c, o, t in zip(cases, ours, theirs)]


def pretrain() -> list[Case]:
    cases = []
    for preset, seq, batch in PRETRAIN + BEST:
        options = ["--preset", preset, "--batch", str(batch), "--seq", str(seq), "--repetitions", "3"]
        profile = (preset, seq, batch) in PRETRAIN[:2]
        ways = [[], ["--compile"]]
        cases.append(Case(f"pretrain {preset} {batch}×{seq}", "train", ["gpu_pretrain_step.py"], options, ways, profile))
    return cases


def rest(out: Path) -> list[Case]:
    # Lengths like those of single sentences: most are short, some long.
    chance = random.Random(0)
    lengths = [min(128, max(3, round(chance.lognormvariate(3.0, 0.6)))) for _ in range(4096)]
    path = out / "lengths.txt"
    path.write_text("\n".join(map(str, lengths)) + "\n", encoding="utf-8")
    cases = []
    for what, preset, batch in REST:
        options = ["--preset", preset, "--batch", str(batch), "--lengths", str(path), "--repetitions", "3"]
        ways = [["--compile"], ["--sorted", "--compile"]] if what == "infer" else [[], ["--compile"]]
        name = f"{what} {preset} {batch} ragged"
        cases.append(Case(name, what, ["gpu_sequences.py", what], options, ways, profile=preset == "small"))
    return cases


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=["pretrain", "rest"])
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seconds", type=float, default=500.0, help="for everything")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(args)
    rows = in_order(runner, pretrain() if args.part == "pretrain" else rest(args.out))
    print("\n".join([HEAD, *rows]))
    wrong = [row for row in rows if "not compared" in row] + runner.wrong
    if wrong:
        sys.exit(f"{len(wrong)} rows or runs of ours are not as they should be: {'; '.join(runner.wrong)}")


if __name__ == "__main__":
    main()
