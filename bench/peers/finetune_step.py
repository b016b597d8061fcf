"""Times a fine-tuning step of transformers' ElectraForSequenceClassification under PyTorch, on padded batches.

    python bench/peers/finetune_step.py --preset small --batch 32 --lengths sst2.lengths --precision bf16 --threads 2 [--compile]

A step is forward with dropout 0.1, cross-entropy over two classes, backward, clipping to 1 and AdamW (fused). bf16 and
f16 are autocast, f16 with a GradScaler. A pass takes one step on every batch.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from measured import SIZES, VOCABULARY, add_options, batches, repeat, report
from transformers import ElectraConfig, ElectraForSequenceClassification


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p)
    p.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
    p.add_argument("--compile", action="store_true")
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ElectraForSequenceClassification(ElectraConfig(vocab_size=VOCABULARY, **SIZES[args.preset])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, eps=1e-6, fused=True)
    run = torch.compile(model, dynamic=bool(args.lengths)) if args.compile else model
    half = {"bf16": torch.bfloat16, "f16": torch.float16}.get(args.precision)
    scaler = torch.amp.GradScaler("cpu", enabled=half == torch.float16)
    made = batches(args)
    inputs = [(torch.from_numpy(b.ids), torch.from_numpy(b.mask), torch.arange(len(b.ids)) % 2) for b in made]

    def pass_over_all() -> None:
        for ids, mask, labels in inputs:
            with torch.autocast("cpu", half) if half else contextlib.nullcontext():
                loss = run(input_ids=ids, attention_mask=mask, labels=labels).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    seconds = repeat(pass_over_all, args)
    report(f"PyTorch {torch.__version__.split('+')[0]} {'compiled' if args.compile else 'eager'}", args, made, seconds)


if __name__ == "__main__":
    main()
