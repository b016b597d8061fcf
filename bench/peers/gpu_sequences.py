"""Times inference or a fine-tuning step under PyTorch on a GPU, on padded batches of given lengths.

    python bench/peers/gpu_sequences.py infer --preset small --batch 256 --lengths lengths.txt [--sorted] [--compile]
    python bench/peers/gpu_sequences.py finetune --preset small --batch 32 --lengths lengths.txt [--compile]

`infer`: ids in, last hidden states out in f32 on the host. `finetune`: two classes, dropout 0.1, clipping, fused AdamW.
bf16 by autocast; inference with weights in bf16. --sorted sorts by length first. Lengths are padded to a multiple of
eight, which compiled networks need so as not to be compiled for each length.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gpu_measured import SIZES, SPECIAL, VOCABULARY, fast_mathematics, repeat, report
from transformers import ElectraConfig, ElectraForSequenceClassification, ElectraModel


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["infer", "finetune"])
    p.add_argument("--preset", choices=SIZES, default="small")
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lengths", type=Path, required=True, help="a file with the length of one sequence a line")
    p.add_argument("--sorted", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--seconds", type=float, default=1.0, help="of a repetition, about")
    p.add_argument("--repetitions", type=int, default=5)
    args = p.parse_args()

    fast_mathematics()
    lengths = [int(line) for line in args.lengths.read_text().split()]
    if args.sorted:
        lengths.sort()
    made = []
    for i in range(0, len(lengths), args.batch):
        own = torch.tensor(lengths[i : i + args.batch])
        width = (int(own.max()) + 7) // 8 * 8
        mask = (torch.arange(width) < own[:, None]).long()
        ids = torch.randint(SPECIAL, VOCABULARY, mask.shape) * mask
        made.append((ids.pin_memory(), mask.pin_memory(), (torch.arange(len(own)) % 2).cuda()))
    config = ElectraConfig(vocab_size=VOCABULARY, attn_implementation="sdpa", **SIZES[args.preset])
    if args.what == "infer":
        model = ElectraModel(config).cuda().bfloat16().eval()
    else:
        model = ElectraForSequenceClassification(config).cuda().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, eps=1e-6, fused=True)
    forward = torch.compile(model, dynamic=True) if args.compile else model

    def infer() -> None:
        with torch.inference_mode():
            for ids, mask, _ in made:
                ids, mask = ids.cuda(non_blocking=True), mask.cuda(non_blocking=True)
                forward(input_ids=ids, attention_mask=mask).last_hidden_state.float().cpu()

    def finetune() -> None:
        for ids, mask, labels in made:
            ids, mask = ids.cuda(non_blocking=True), mask.cuda(non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = forward(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    seconds = repeat(infer if args.what == "infer" else finetune, args.seconds, args.repetitions, warm=2)
    settings = {"what": args.what, "preset": args.preset, "batch": args.batch, "sorted": args.sorted}
    report("compiled" if args.compile else "eager", settings, sum(lengths), seconds)


if __name__ == "__main__":
    main()
