"""Times ELECTRA's pre-training step under PyTorch on a GPU: full-length random text, both networks, dropout 0.1.

    python bench/peers/gpu_pretrain_step.py --preset small --batch 128 --seq 128 [--compile]

The networks are transformers', attention is scaled_dot_product_attention (flash attention where it applies), bf16 by
autocast over f32 weights, AdamW fused. The host waits for the device once a repetition; masks lie on the device
beforehand. With --compile, generator and discriminator with their losses go through torch.compile.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from gpu_measured import GENERATORS, SIZES, SPECIAL, VOCABULARY, fast_mathematics, repeat, report
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

MASK = 4


class Networks(torch.nn.Module):
    def __init__(self, preset: str):
        super().__init__()
        common = dict(vocab_size=VOCABULARY, attn_implementation="sdpa")
        self.discriminator = ElectraForPreTraining(ElectraConfig(**SIZES[preset], **common))
        self.generator = ElectraForMaskedLM(ElectraConfig(**GENERATORS[preset], **common))
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.generator.electra.embeddings.word_embeddings.weight

    def generate(self, ids: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and samples of the masked rows."""
        hidden = self.generator.electra(input_ids=ids).last_hidden_state.flatten(0, 1)[rows]
        logits = self.generator.generator_lm_head(self.generator.generator_predictions(hidden)).float()
        with torch.no_grad():
            # The greatest of logits with Gumbel noise is a sample of their softmax.
            noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-9, 1 - 1e-7)))
            sampled = (logits + noise).argmax(-1)
        return F.cross_entropy(logits, targets), sampled

    def detect(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.discriminator.electra(input_ids=ids).last_hidden_state
        logits = self.discriminator.discriminator_predictions(hidden).float()
        return F.binary_cross_entropy_with_logits(logits, labels)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=SIZES, default="small")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--seq", type=int, default=128)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--seconds", type=float, default=2.0, help="of a repetition, about")
    p.add_argument("--repetitions", type=int, default=5)
    args = p.parse_args()

    fast_mathematics()
    networks = Networks(args.preset).cuda().train()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    generate, detect = networks.generate, networks.detect
    if args.compile:
        generate, detect = torch.compile(generate), torch.compile(detect)
    tokens = args.batch * args.seq
    masked = args.batch * round(0.15 * args.seq)

    def batch() -> tuple[torch.Tensor, ...]:
        ids = torch.randint(SPECIAL, VOCABULARY, (args.batch, args.seq), device="cuda")
        picks = torch.rand(args.batch, args.seq, device="cuda").topk(masked // args.batch, 1).indices
        rows = (picks + torch.arange(args.batch, device="cuda")[:, None] * args.seq).flatten()
        targets = ids.flatten()[rows]
        kept = torch.rand(masked, device="cuda") < 0.15
        hidden = ids.flatten().clone()
        hidden[rows] = torch.where(kept, targets, MASK)
        return ids.flatten(), hidden.view_as(ids), rows, targets

    batches = [batch() for _ in range(8)]
    step = 0

    def run() -> None:
        nonlocal step
        original, hidden, rows, targets = batches[step % len(batches)]
        step += 1
        with torch.autocast("cuda", torch.bfloat16):
            mlm, sampled = generate(hidden, rows, targets)
            replaced = original.clone()
            replaced[rows] = sampled
            labels = (replaced != original).float().view(args.batch, args.seq)
            loss = mlm + 50.0 * detect(replaced.view(args.batch, args.seq), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = repeat(run, args.seconds, args.repetitions, warm=8)
    settings = {k: getattr(args, k) for k in ("preset", "batch", "seq")}
    report("compiled" if args.compile else "eager", settings, tokens, seconds)


if __name__ == "__main__":
    main()
