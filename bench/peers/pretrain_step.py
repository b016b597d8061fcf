"""Times the whole pre-training step of PyTorch and transformers on random text.

    python bench/peers/pretrain_step.py --preset small --batch 16 --seq 128 --precision bf16 --threads 2 [--compile]

A step is masking, both networks with dropout 0.1, sampling, losses, backward, clipping and AdamW. bf16 is autocast. With
--compile, torch.compile on both encoders and their heads. One setting a process, for the peak memory.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from measured import add_options, batches, repeat, report
from pretrain import PRESETS, SPECIAL, Masker, Trainer


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p, batch=16)
    p.add_argument("--vocab-size", type=int, default=30522)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    p.add_argument("--compile", action="store_true")
    args = p.parse_args()
    if args.preset not in PRESETS:
        p.error(f"--preset {args.preset}: pretrain.py has {', '.join(PRESETS)}")

    torch.set_num_threads(args.threads)
    made = batches(args)
    longest = max(batch.ids.shape[1] for batch in made)
    h = PRESETS[args.preset].override([f"train_batch_size={args.batch}", f"max_seq_length={longest}"])
    vocab = {s: i for i, s in enumerate(SPECIAL)} | {f"word{i}": i for i in range(len(SPECIAL), args.vocab_size)}
    masker, trainer = Masker(h, vocab, np.random.default_rng(0)), Trainer(h, vocab, args.precision)
    if args.compile:
        pair = trainer.pair
        assert pair.generator is not None
        for module in (pair.generator.electra, pair.generator.generator_predictions,
                       pair.discriminator.electra, pair.discriminator.discriminator_predictions):  # fmt: skip
            module.compile()
    # The words of each sequence, without [CLS] and [SEP], which the masker adds.
    texts = [[ids[: int(n) - 2] for ids, n in zip(batch.ids, batch.mask.sum(1))] for batch in made]
    steps = 0

    def pass_over_all() -> None:
        nonlocal steps
        for text in texts:
            trainer.step(steps, masker.batch(text))
            steps += 1

    seconds = repeat(pass_over_all, args)
    report(f"PyTorch {torch.__version__.split('+')[0]} {'compiled' if args.compile else 'eager'}", args, made, seconds)


if __name__ == "__main__":
    main()
