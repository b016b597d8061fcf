"""Ours against PyTorch on one GPU, in turn, and a table: called by `bench/gpu.sh`.

    python bench/peers/gpu_compare.py pretrain --electra ./electra --out results --seconds 500
    python bench/peers/gpu_compare.py rest --electra ./electra --out results --seconds 500

Every process's JSON goes to OUT/gpu-PART.jsonl as it comes. What fails or does not fit into the time is a row that says
so. MFU is against the rate that our side measures on large bf16 products in the same run. Memory is the most that
nvidia-smi reported while a process ran, for both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Preset, tokens of a sequence, sequences of a batch; then batches to find each side's best.
PRETRAIN = [("small", 128, 128), ("base", 128, 128), ("base", 512, 32)]
BEST = [("small", 128, 512)]
REST = [("infer", "small", 256), ("infer", "base", 256), ("finetune", "small", 32)]


def memory_used() -> int | None:
    """Bytes in use on the device."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


class Runner:
    def __init__(self, args: argparse.Namespace):
        self.end = time.monotonic() + args.seconds
        self.log = (args.out / f"gpu-{args.part}.jsonl").open("w", encoding="utf-8")
        self.electra = args.electra

    def run(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
        """The process's last line of JSON, with its most memory; or what went wrong under "failed"."""
        left = self.end - time.monotonic()
        if left < 20:
            return self.keep(name, {"failed": "no time was left"})
        most, done = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.2):
                most = max(most, memory_used() or 0)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        begin = time.monotonic()
        try:
            import os

            process = subprocess.run(command, capture_output=True, text=True, timeout=left, env=os.environ | (environment or {}))
            lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
            if process.returncode or not lines:
                result: dict[str, Any] = {"failed": (process.stderr or process.stdout)[-2000:]}
            else:
                result = json.loads(lines[-1])
        except subprocess.TimeoutExpired:
            result = {"failed": "it took longer than was left"}
        done.set()
        watcher.join()
        return self.keep(name, result | {"device_bytes": most, "seconds": round(time.monotonic() - begin, 1)})

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        self.log.write(json.dumps({"name": name} | result) + "\n")
        self.log.flush()
        short = result.get("failed") or f"{result.get('tokens_per_s', 0):,.0f} tokens/s"
        print(f"{name}: {short}", file=sys.stderr, flush=True)
        return result

    def ours(self, name: str, what: str, options: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
        command = [self.electra, "bench", what, "--device", "cuda", "--precision", "bf16", "--json", *options]
        return self.run(f"electra {name}", command, environment)

    def theirs(self, name: str, script: str, options: list[str]) -> dict[str, Any]:
        return self.run(f"PyTorch {name}", [sys.executable, str(HERE / script), *options])


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


def pretrain(runner: Runner) -> list[str]:
    rows = []
    for preset, seq, batch in PRETRAIN + BEST:
        name = f"pretrain {preset} {batch}×{seq}"
        options = ["--preset", preset, "--batch", str(batch), "--seq", str(seq)]
        ours, theirs = [], []
        for compiled in (False, True):
            theirs.append(runner.theirs(name, "gpu_pretrain_step.py", options + ["--compile"] * compiled))
            ours.append(runner.ours(name, "train", options))
        rows.append(row(name, ours, theirs))
        print(rows[-1], file=sys.stderr, flush=True)
    # Where the time goes: launches that wait, so that an operator's time is the device's.
    for preset, seq, batch in PRETRAIN[:2]:
        options = ["--preset", preset, "--batch", str(batch), "--seq", str(seq), "--profile"]
        result = runner.ours(f"profile {preset}", "train", options, {"CUDA_LAUNCH_BLOCKING": "1"})
        for phase in result.get("phases", [])[:12]:
            weight = "×".join(map(str, phase["weight"] or []))
            print(f"  {preset}: {100 * phase['share']:5.1f}%  {phase['ms']:8.3f} ms  {phase['operator']} {weight}")
    return rows


def rest(runner: Runner, out: Path) -> list[str]:
    # Lengths like those of single sentences: most are short, some long.
    import random

    chance = random.Random(0)
    lengths = [min(128, max(3, round(chance.lognormvariate(3.0, 0.6)))) for _ in range(4096)]
    path = out / "lengths.txt"
    path.write_text("\n".join(map(str, lengths)) + "\n", encoding="utf-8")
    rows = []
    for what, preset, batch in REST:
        name = f"{what} {preset} {batch} ragged"
        options = ["--preset", preset, "--batch", str(batch), "--lengths", str(path)]
        ways = [["--compile"], ["--sorted", "--compile"]] if what == "infer" else [[], ["--compile"]]
        ours, theirs = [], []
        for way in ways:
            theirs.append(runner.theirs(f"{name} {' '.join(way)}", "gpu_sequences.py", [what, *options, *way]))
            ours.append(runner.ours(name, what, options))
        rows.append(row(name, ours, theirs))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=["pretrain", "rest"])
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seconds", type=float, default=500.0, help="for everything")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(args)
    rows = pretrain(runner) if args.part == "pretrain" else rest(runner, args.out)
    print("\n".join([HEAD, *rows]))


if __name__ == "__main__":
    main()
