"""Times the whole pre-training step of PyTorch and transformers, eager, on full-length random text.

    python bench/peers/pretrain_step.py --preset small --batch 16 --seq 128 --precision f32 --threads 2
    python bench/peers/pretrain_step.py --preset small --batch 16 --seq 128 --precision bf16 --threads 2

A step is masking, both networks with dropout 0.1, sampling, losses, backward, clipping and AdamW. Prints one JSON
object; tokens_per_s is of the median step. One precision a process, for the peak memory.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from pretrain import PRESETS, SPECIAL, Masker, Trainer, peak_rss_bytes


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--seq", type=int, default=128)
    p.add_argument("--vocab-size", type=int, default=30522)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warmup", type=int, default=2)
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    h = PRESETS[args.preset].override([f"train_batch_size={args.batch}", f"max_seq_length={args.seq}"])
    vocab = {s: i for i, s in enumerate(SPECIAL)} | {f"word{i}": i for i in range(len(SPECIAL), args.vocab_size)}
    rng = np.random.default_rng(0)
    masker, trainer = Masker(h, vocab, rng), Trainer(h, vocab, args.precision)
    seconds = []
    for step in range(args.warmup + args.steps):
        text = rng.integers(len(SPECIAL), args.vocab_size, size=(args.batch, args.seq - 2))
        start = time.perf_counter()
        trainer.step(step, masker.batch(list(text)))
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds[args.warmup :]))
    settings = {k: getattr(args, k) for k in ("preset", "batch", "seq", "precision", "threads", "steps")}
    print(json.dumps({"peer": f"torch {torch.__version__} eager"} | settings | {
        "ms": round(1000 * median, 1), "ms_min": round(1000 * min(seconds), 1),
        "tokens_per_s": round(args.batch * args.seq / median, 1), "peak_rss_bytes": peak_rss_bytes()}))  # fmt: skip


if __name__ == "__main__":
    main()
