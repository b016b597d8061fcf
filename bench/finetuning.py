"""Fine-tunes one checkpoint with the binary and with PyTorch, and compares scores and time.

    cargo build --release
    python bench/finetuning.py --model run/discriminator --data DIR --work DIR [--electra target/release/electra] [--seeds 3]

`--data` holds sst2/ and conll2000/. Both sides learn in bf16 with the same settings, those of bench/tasks.sh, and draw their
own numbers; the score is that of the best epoch on SST-2's development set and on every tenth sentence of CoNLL-2000's training
set, which is held out. Our time is that of the whole command, with loading, scoring and writing; the peer's is that of its steps
alone. A finished run in `--work` is not run again. Prints a Markdown row a task.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

PEER = Path(__file__).parent / "peers" / "finetune.py"
TASKS = ("sst2", "conll2000")
DROPOUT = "0.1"


def run(command: list[str]) -> str:
    print("$", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        # What is wrong it has said itself.
        sys.exit(f"{Path(command[0]).name} ended with {done.returncode}")
    return done.stdout


def files(task: str, args: argparse.Namespace) -> tuple[str, str]:
    """Training and development file."""
    if task == "sst2":
        return str(args.data / "sst2/train.tsv"), str(args.data / "sst2/dev.tsv")
    parts = [args.work / f"conll2000.{part}.txt" for part in ("train", "dev")]
    sentences = (args.data / "conll2000/train.txt").read_text().strip().split("\n\n")
    for held, path in enumerate(parts):
        kept = (s for i, s in enumerate(sentences) if (i % 10 == 0) == bool(held))
        path.write_text("\n\n".join(kept) + "\n")
    return str(parts[0]), str(parts[1])


def pair(task: str, seed: int, args: argparse.Namespace) -> tuple[tuple[float, float], tuple[float, float]]:
    """Score and seconds of ours and of the peer."""
    train, dev = files(task, args)
    common = ["--model", str(args.model), "--task", task, "--train", train, "--dev", dev, "--threads", str(args.threads)]
    run_name = f"{task}-{seed}-{args.learning_rate}-{args.layer_decay}"
    mine, peer = args.work / f"{run_name}.ours.json", args.work / f"{run_name}.peer.json"
    if not mine.exists():
        out = args.work / run_name
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        said = run([args.electra, "finetune", *common, "--out", str(out), "--precision", "bf16", "--json", "--set", f"seed={seed}",
             "--set", f"hidden_dropout_prob={DROPOUT}", "--set", f"attention_probs_dropout_prob={DROPOUT}",
             "--set", f"learning_rate={args.learning_rate}", "--set", f"layerwise_lr_decay={args.layer_decay}"])  # fmt: skip
        mine.write_text(json.dumps(json.loads(said) | {"seconds": time.perf_counter() - start}))
    if not peer.exists():
        rates = ["--learning-rate", str(args.learning_rate), "--layer-decay", str(args.layer_decay)]
        peer.write_text(run([sys.executable, str(PEER), *common, "--seed", str(seed), "--dropout", DROPOUT, *rates]))
    ours, theirs = json.loads(mine.read_text()), json.loads(peer.read_text())
    return (ours["summary"]["best"], ours["seconds"]), (theirs["score"], theirs["seconds"])


def spread(scores: list[float]) -> str:
    return f"{mean(scores):.4f} ± {stdev(scores):.4f}" if len(scores) > 1 else f"{scores[0]:.4f}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--learning-rate", type=float, default=1e-4)
    p.add_argument("--layer-decay", type=float, default=1.0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", choices=TASKS)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print("| task | seeds | score, ours | PyTorch | seconds, ours, all of it | PyTorch, steps | PyTorch / ours |")
    print("|---|---|---|---|---|---|---|")
    for task in TASKS:
        if args.only not in (None, task):
            continue
        ours, theirs = zip(*(pair(task, seed, args) for seed in range(args.seeds)))
        scores = [[score for score, _ in side] for side in (ours, theirs)]
        seconds = [[seconds for _, seconds in side] for side in (ours, theirs)]
        ratio = median(b / a for a, b in zip(*seconds))
        cells = [task, str(args.seeds), *map(spread, scores), *(f"{median(side):.1f}" for side in seconds), f"{ratio:.2f}×"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
