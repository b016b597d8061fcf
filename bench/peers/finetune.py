"""Fine-tunes a transformers model under PyTorch for SST-2 or CoNLL-2000 and scores it after every epoch.

    python bench/peers/finetune.py --model run/discriminator --task sst2 --train train.tsv --dev dev.tsv --seed 0

Settings are those of `electra finetune`: AdamW without bias correction, as in the reference, a learning rate for each layer,
linear warm-up and decay, clipping to 1, no decay of norms and biases, dropout 0.1, heads that begin as Glorot and Bengio's.
Sentences of like length share a batch, which is then padded: the fastest way there is without packing. bf16 is autocast.
Prints one JSON line: the best epoch's score, the seconds that the steps took, and their real tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from seqeval.metrics import f1_score
from transformers import (
    AutoTokenizer,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

IGNORED = -100
MAX_TOKENS = {"sst2": 128, "conll2000": 256}


@dataclass
class Example:
    """`labels` has one class for a sentence; for words it has a tag at the first token of each and IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]


def sentences(path: Path) -> list[tuple[list[str], list[str]]]:
    """Words, and a tag for each, of a CoNLL file; text and class of a file with tabs."""
    text = path.read_text("utf-8")
    if path.suffix == ".tsv":
        pairs = [line.split("\t") for line in text.splitlines()]
        return [([words], [label]) for words, label in pairs if label in ("0", "1")]
    blocks = [[line.split() for line in block.splitlines()] for block in text.strip().split("\n\n")]
    return [([line[0] for line in block], [line[-1] for line in block]) for block in blocks]


def read(path: Path, task: str, names: list[str], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    examples = []
    for words, labels in sentences(path):
        if task == "sst2":
            ids = tokenizer(words[0], truncation=True, max_length=MAX_TOKENS[task])["input_ids"]
            examples.append(Example(ids, [names.index(labels[0])]))
            continue
        coded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_TOKENS[task])
        of_word = coded.word_ids()
        first = [word is not None and word != before for word, before in zip(of_word, [None, *of_word])]
        tags = [names.index(labels[word]) if start else IGNORED for word, start in zip(of_word, first)]
        examples.append(Example(coded["input_ids"], tags))
    return examples


def tensors(batch: list[Example], task: str) -> dict[str, torch.Tensor]:
    longest = max(len(example.ids) for example in batch)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    labels = [example.labels for example in batch]
    return {
        "input_ids": padded([example.ids for example in batch], 0),
        "attention_mask": padded([[1] * len(example.ids) for example in batch], 0),
        "labels": torch.tensor(labels).squeeze(1) if task == "sst2" else padded(labels, IGNORED),
    }


def batches(examples: list[Example], size: int, rng: random.Random) -> list[list[Example]]:
    """In random order, but sorted by length within fifty batches."""
    order = rng.sample(examples, len(examples))
    pools = [sorted(order[i : i + 50 * size], key=lambda e: len(e.ids)) for i in range(0, len(order), 50 * size)]
    cut = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return rng.sample(cut, len(cut))


def groups(model: torch.nn.Module, rate: float, decay: float) -> list[dict[str, object]]:
    """Parameters by learning rate and weight decay: a factor for each layer below the head."""
    layers, made = model.config.num_hidden_layers, {}
    for name, tensor in model.named_parameters():
        parts = name.split(".")
        if "layer" in parts:
            depth = int(parts[parts.index("layer") + 1]) + 1
        else:
            depth = 0 if name.startswith("electra.") else layers + 1
        decayed = tensor.ndim > 1
        made.setdefault((depth, decayed), []).append(tensor)
    return [
        {"params": tensors, "lr": rate * decay ** (layers + 1 - depth), "weight_decay": 0.01 if decayed else 0.0}
        for (depth, decayed), tensors in made.items()
    ]


class WithoutBiasCorrection(torch.optim.AdamW):
    """AdamW with `p -= lr (m / (sqrt(v) + eps) + decay p)`, as google-research/electra has it.

    The fused step divides by `1 - beta1^t` and `sqrt(1 - beta2^t)`: rates and epsilons that undo both make it this one. Epsilon
    counts: clipped gradients of single weights are often smaller.
    """

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        given = [(group["lr"], group["weight_decay"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            second = (1 - beta2**self.steps) ** 0.5
            undo = (1 - beta1**self.steps) / second
            group["lr"] *= undo
            group["eps"] /= second
            group["weight_decay"] /= undo
        done = super().step(closure)
        for group, (rate, decay, eps) in zip(self.param_groups, given):
            group.update(lr=rate, weight_decay=decay, eps=eps)
        return done


@torch.inference_mode()
def score(model: torch.nn.Module, examples: list[Example], task: str, names: list[str], autocast) -> float:
    model.eval()
    predicted, wanted = [], []
    ordered = sorted(examples, key=lambda e: len(e.ids))
    for i in range(0, len(ordered), 64):
        batch = tensors(ordered[i : i + 64], task)
        with autocast():
            best = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        predicted += best.tolist()
        wanted += batch["labels"].tolist()
    model.train()
    if task == "sst2":
        return sum(p == w for p, w in zip(predicted, wanted)) / len(wanted)
    kept = [[(p, w) for p, w in zip(ps, ws) if w != IGNORED] for ps, ws in zip(predicted, wanted)]
    return f1_score(
        [[names[w] for _, w in row] for row in kept], [[names[p] for p, _ in row] for row in kept]
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--task", choices=MAX_TOKENS, required=True)
    p.add_argument("--train", type=Path, required=True)
    p.add_argument("--dev", type=Path, required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--learning-rate", type=float, default=3e-4)
    p.add_argument("--layer-decay", type=float, default=0.8)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    names = sorted({label for _, labels in sentences(args.train) + sentences(args.dev) for label in labels})
    train, dev = (read(path, args.task, names, tokenizer) for path in (args.train, args.dev))
    kind = ElectraForSequenceClassification if args.task == "sst2" else ElectraForTokenClassification
    model = kind.from_pretrained(
        args.model,
        num_labels=len(names),
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    ).train()
    for module in model.classifier.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
    optimizer = WithoutBiasCorrection(groups(model, args.learning_rate, args.layer_decay), eps=1e-6, fused=True)
    steps = args.epochs * -(-len(train) // args.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()

    best, seconds, tokens = 0.0, 0.0, 0
    for _ in range(args.epochs):
        for batch in batches(train, args.batch, rng):
            start = time.perf_counter()
            with autocast():
                loss = model(**tensors(batch, args.task)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seconds += time.perf_counter() - start
            tokens += sum(len(example.ids) for example in batch)
        best = max(best, score(model, dev, args.task, names, autocast))
    print(json.dumps({"score": best, "seconds": round(seconds, 3), "tokens": tokens}))


if __name__ == "__main__":
    main()
