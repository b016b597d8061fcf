"""Times the whole pre-training step of PyTorch and transformers on random text.

    python bench/peers/pretrain_step.py --preset small --batch 16 --seq 128 --precision bf16 --threads 2 [--compile]

A step is masking, both networks with dropout 0.1, sampling, losses, backward, clipping and AdamW: PyTorch's own, fused,
whose correction of bias costs nothing that shows. bf16 and f16 are autocast, f16 with a loss scale. With --compile, torch.compile on both encoders and their heads. One setting a process, for the peak memory.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from measured import add_options, batches, repeat, report
from pretrain import PRESETS, SPECIAL, Masker, Trainer


class FusedAdamW:
    """PyTorch's fused AdamW, in the place of the optimizer of electra_reference.py, which counts as ELECTRA's does."""

    def __init__(self, module: torch.nn.Module):
        self.parameters = list(module.parameters())
        named = list(module.named_parameters())
        kept = [p for n, p in named if n.endswith("bias") or "LayerNorm" in n]
        decayed = [p for n, p in named if not (n.endswith("bias") or "LayerNorm" in n)]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, eps=1e-6, fused=True)

    def step(self, lr: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(norm)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p, batch=16)
    p.add_argument("--vocab-size", type=int, default=30522)
    p.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
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
    trainer.optimizer = FusedAdamW(trainer.pair)
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
