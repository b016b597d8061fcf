"""Times the forward pass of transformers' ElectraModel under PyTorch: ids in, last hidden states out.

    python bench/peers/infer_torch.py --preset small --batch 32 --seq 128 --precision bf16 --threads 2 [--compile]

bf16 and f16 are autocast over f32 weights, or weights in that with --half-weights. With --compile, torch.compile.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from measured import SIZES, VOCABULARY, add_options, batches, repeat, report
from transformers import ElectraConfig, ElectraModel

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p)
    p.add_argument("--precision", choices=["f32", *HALVES], default="f32")
    p.add_argument("--half-weights", action="store_true")
    p.add_argument("--compile", action="store_true")
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ElectraModel(ElectraConfig(vocab_size=VOCABULARY, **SIZES[args.preset])).eval()
    half = HALVES.get(args.precision)
    if half and args.half_weights:
        model = model.to(half)
    autocast = torch.autocast("cpu", half) if half and not args.half_weights else contextlib.nullcontext()
    if args.compile:  # weights as constants, which the compiler may pack
        torch._inductor.config.freezing = True
    run = torch.compile(model, dynamic=bool(args.lengths)) if args.compile else model
    made = batches(args)
    # Without a mask attention takes its fastest way.
    inputs = [(torch.from_numpy(b.ids), None if b.full else torch.from_numpy(b.mask)) for b in made]

    def pass_over_all() -> None:
        with torch.inference_mode(), autocast:
            for ids, mask in inputs:
                run(input_ids=ids, attention_mask=mask).last_hidden_state.float()

    seconds = repeat(pass_over_all, args)
    report(f"PyTorch {torch.__version__.split('+')[0]} {'compiled' if args.compile else 'eager'}", args, made, seconds)


if __name__ == "__main__":
    main()
