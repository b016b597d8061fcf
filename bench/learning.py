"""Pre-trains with the binary and with PyTorch from the same text and settings, and compares what both have learned.

    cargo build --release
    python bench/learning.py --text DIR --vocab bert-base-uncased.txt --work DIR [--electra target/release/electra]

`--text` holds en_*.txt and zh_reviews.txt (blank lines between documents). One text is made up here: on real text a
`tiny` pair that begins with random numbers stays at temperature 1 at the entropy of its labels for millions of tokens.
Where a run begins with counts of the text, PyTorch begins with the same parameters, which a run of one step writes. Each
side draws its own numbers and holds out documents of its own, as many, so losses agree as those of two seeds do. With
`--beside bf16` the other side is the binary too, in bf16, from the same numbers. A finished run in `--work` is not run
again. Prints a Markdown row a run: means over the last steps and, where evaluated, measures on held-out documents.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

PEER = Path(__file__).parent / "peers" / "pretrain.py"
# Steps whose means are compared.
LAST = {"PyTorch": 50, "bf16": 100}


@dataclass(frozen=True)
class Case:
    """One comparison. `text` is a pattern or MADE_UP; `vocab` a file, or a number of entries to train on the text."""

    name: str
    preset: str
    text: str
    vocab: str | int
    settings: tuple[str, ...]
    eval_steps: int
    seeds: int = 1


MADE_UP = "made up"
HELD_OUT = 0.02
NO_DROPOUT = ("hidden_dropout_prob=0", "attention_probs_dropout_prob=0")
COUNTS = "initialization=counts"
SMALL = ("train_batch_size=16", "num_train_steps=300", "num_warmup_steps=50")
CASES = [
    Case("small, English", "small", "en_*.txt", "given", SMALL, 100),
    Case("small, Chinese", "small", "zh_reviews.txt", 8000, SMALL, 100),
    Case("tiny, uniform", "tiny", "en_*.txt", "given",
         ("uniform_generator=true", "num_train_steps=1000", "num_warmup_steps=100"), 100),
    Case("tiny, joint, temperature 2", "tiny", "en_*.txt", 8000,
         ("temperature=2", "num_train_steps=600", "num_warmup_steps=100", *NO_DROPOUT), 100, seeds=3),
    Case("tiny, joint, temperature 1", "tiny", MADE_UP, 100,
         ("learning_rate=3e-4", "max_seq_length=32", "num_train_steps=400", "num_warmup_steps=100", *NO_DROPOUT), 100,
         seeds=6),
    Case("tiny, joint, begun with counts", "tiny", "en_*.txt", 8000,
         (COUNTS, "adam_beta2=0.98", "num_train_steps=1000", "num_warmup_steps=100", *NO_DROPOUT), 250, seeds=3),
]  # fmt: skip


def made_up_text(path: Path) -> None:
    """Pairs of words, the second given by the first: two masked words of a pair are rarely sampled to match."""
    rng = random.Random(1)

    def line() -> str:
        return " ".join(f"w{n} v{(3 * n + 1) % 8}" for n in rng.choices(range(8), k=6)) + ".\n"

    path.write_text("\n".join("".join(line() for _ in range(4)) for _ in range(20_000)), "utf-8")


def call(command: list[str]) -> None:
    print("$", " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def vocabulary(case: Case, args: argparse.Namespace, inputs: list[str]) -> Path:
    if case.vocab == "given":
        return args.vocab
    path = args.work / f"vocab-{case.text[:2]}-{case.vocab}.txt"
    if not path.exists():
        call([sys.executable, str(PEER), "--train-vocab", str(case.vocab), "--input", *inputs, "--vocab", str(path)])
    return path


def peer_run(case: Case, seed: int, args: argparse.Namespace, inputs: list[str], vocab: Path) -> list[dict[str, float]]:
    out = args.work / f"peer-{slug(case)}-{seed}.jsonl"
    steps = int(next(s for s in case.settings if s.startswith("num_train_steps")).partition("=")[2])
    if not out.exists() or sum('"loss"' in line for line in out.read_text().splitlines()) < steps:
        command = [sys.executable, str(PEER), "--preset", case.preset, "--input", *inputs, "--vocab", str(vocab),
                   "--out", str(out), "--eval-steps", str(case.eval_steps), "--threads", str(args.threads),
                   "--held-out", str(HELD_OUT)]  # fmt: skip
        if COUNTS in case.settings:
            # The first step's learning rate is 0: the models of a run of one step are what it began with.
            start = args.work / f"start-{slug(case)}-{seed}"
            our_command(case, seed, args, start, "num_train_steps=1")
            command += ["--init-from", str(start)]
        call([*command, "--set", *(s for s in case.settings if s != COUNTS), f"seed={seed}"])
    return [json.loads(line) for line in out.read_text().splitlines()]


def our_run(
    case: Case, seed: int, args: argparse.Namespace, inputs: list[str], vocab: Path, precision: str
) -> list[dict[str, float]]:
    call([args.electra, "prepare", "--input", *inputs, "--tokenizer", str(vocab), "--out", str(shards(case, args)),
          "--threads", str(args.threads)])  # fmt: skip
    out = args.work / f"ours-{precision}-{slug(case)}-{seed}"
    our_command(case, seed, args, out, precision=precision)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def our_command(
    case: Case, seed: int, args: argparse.Namespace, out: Path, *settings: str, precision: str = "f32"
) -> None:
    command = [args.electra, "pretrain", "--preset", case.preset, "--data", str(shards(case, args)), "--out", str(out),
               "--threads", str(args.threads), "--precision", precision]  # fmt: skip
    for setting in (*case.settings, f"eval_steps={case.eval_steps}", f"held_out={HELD_OUT}", f"seed={seed}", *settings):
        nested = "model_hparam_overrides." if "dropout" in setting else ""
        command += ["--set", nested + setting]
    call(command)


def shards(case: Case, args: argparse.Namespace) -> Path:
    return args.work / f"shards-{slug(case)}"


def slug(case: Case) -> str:
    return "-".join(case.name.replace(",", "").lower().split())


def measures(lines: list[dict[str, float]], last: int) -> dict[str, float]:
    trained = [line for line in lines if "loss" in line][-last:]
    out = {key: mean(line[key] for line in trained) for key in ("mlm_loss", "rtd_loss", "rtd_base") if key in trained[0]}
    if out.get("mlm_loss") is None:
        out.pop("mlm_loss", None)
    evaluations = [line for line in lines if "eval_rtd_auc" in line]
    return out | ({"auc": evaluations[-1]["eval_rtd_auc"]} if evaluations else {})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=Path, required=True)
    p.add_argument("--vocab", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", metavar="NAME", help="one comparison, such as %r" % CASES[0].name)
    p.add_argument("--beside", choices=LAST, default="PyTorch", help="what runs beside the binary in f32")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    both = "f32 / bf16" if args.beside == "bf16" else "ours / PyTorch"
    print(f"| run | seed | MLM, {both} | ratio | RTD, {both} | ratio | base | held-out AUC, {both} |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if args.only not in (None, case.name):
            continue
        if case.text == MADE_UP:
            made_up_text(args.work / "made-up.txt")
            inputs = [str(args.work / "made-up.txt")]
        else:
            inputs = [str(path) for path in sorted(args.text.glob(case.text))]
        vocab = vocabulary(case, args, inputs)
        for seed in range(case.seeds):
            last, given = LAST[args.beside], (case, seed, args, inputs, vocab)
            a = measures(our_run(*given, "f32"), last)
            b = measures(our_run(*given, "bf16") if args.beside == "bf16" else peer_run(*given), last)
            cells = [case.name, str(seed)]
            for key in ("mlm_loss", "rtd_loss"):
                both = key in a and key in b
                cells += [f"{a[key]:.4f} / {b[key]:.4f}", f"{a[key] / b[key]:.3f}"] if both else ["", ""]
            cells += [f"{a['rtd_base']:.4f}", f"{a.get('auc', 0):.4f} / {b.get('auc', 0):.4f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
