"""Times a pre-training step beside PyTorch eager: the same shapes and threads, in turn, medians.

    cargo build --release
    python bench/step.py --vocab vocab.txt [--electra target/release/electra] [--rounds 3] [--threads 2]

Both sides train `small` on 16 sequences of 128 tokens of random words: masking, both networks with dropout 0.1,
sampling, losses, backward, clipping and AdamW. Ours is the whole `electra pretrain` process on shards made for it,
writing its metrics as always. Prints a row a precision: tokens a second (median, least, most), peak memory, ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BATCH, LENGTH, STEPS = 16, 128, 20
PEER = Path(__file__).parent / "peers" / "pretrain_step.py"


def run(command: list[str]) -> tuple[str, int]:
    """Output of a command, and its peak memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{err}")
    return out, usage.ru_maxrss * 1024


def shards(electra: str, vocab: Path, work: Path) -> Path:
    """One long document of whole words, so that every example is full."""
    words = [w for w in vocab.read_text(encoding="utf-8").split("\n") if w.isascii() and w.isalpha() and w.islower()]
    picks = np.random.default_rng(0).integers(0, len(words), size=BATCH * (LENGTH - 2) * STEPS * 2)
    (work / "text.txt").write_text(" ".join(words[i] for i in picks) + "\n", encoding="utf-8")
    out = work / "shards"
    run([electra, "prepare", "--input", str(work / "text.txt"), "--tokenizer", str(vocab), "--out", str(out)])
    return out


def ours(electra: str, data: Path, out: Path, precision: str, threads: int) -> tuple[float, int]:
    settings = [f"train_batch_size={BATCH}", f"max_seq_length={LENGTH}", f"num_train_steps={STEPS}",
                "num_warmup_steps=5", "eval_steps=0", "held_out=0"]  # fmt: skip
    command = [electra, "pretrain", "--preset", "small", "--data", str(data), "--out", str(out)]
    command += ["--precision", precision, "--threads", str(threads)]
    for setting in settings:
        command += ["--set", setting]
    _, memory = run(command)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["tokens_per_s"], memory


def theirs(precision: str, threads: int) -> tuple[float, int]:
    out, memory = run([sys.executable, str(PEER), "--batch", str(BATCH), "--seq", str(LENGTH),
                       "--precision", precision, "--threads", str(threads), "--steps", "8"])  # fmt: skip
    return json.loads(out)["tokens_per_s"], memory


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vocab", type=Path, required=True)
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    print("| precision | electra tokens/s | PyTorch eager tokens/s | ratio | electra peak MB | PyTorch peak MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        data = shards(args.electra, args.vocab, work)
        for precision in ("f32", "bf16"):
            pairs = []
            for i in range(args.rounds):
                pairs.append((ours(args.electra, data, work / f"{precision}-{i}", precision, args.threads),
                              theirs(precision, args.threads)))  # fmt: skip
            speeds = [[pair[side][0] for pair in pairs] for side in (0, 1)]
            memory = [statistics.median(pair[side][1] for pair in pairs) / 1e6 for side in (0, 1)]
            cells = [f"{statistics.median(s):,.0f} ({min(s):,.0f}–{max(s):,.0f})" for s in speeds]
            ratio = statistics.median(a[0] / b[0] for a, b in pairs)
            print(f"| {precision} | {cells[0]} | {cells[1]} | {ratio:.2f}× | {memory[0]:,.0f} | {memory[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
