"""Pre-trains ELECTRA with PyTorch and transformers: the oracle whose losses ours are compared with.

    python bench/peers/pretrain.py --preset small --input en_*.txt --vocab vocab.txt --out run.jsonl \
        --set train_batch_size=16 num_train_steps=300 num_warmup_steps=50
    python bench/peers/pretrain.py --train-vocab 8000 --input en_*.txt --vocab vocab-8000.txt

Text files hold documents apart by blank lines. A document becomes runs of max_seq_length - 2 tokens between [CLS]
and [SEP], the tail a short example. Masks are drawn anew each time, without replacement: of n = max(1, min(cap,
round(length * mask_prob))) positions 85% become [MASK] and 15% stay, and the generator samples all of them again,
in its one forward pass, dropout on. Hyper-parameters (`--set`) have the names of the reference code. `--init-from`
takes a folder with `discriminator` and `generator` to begin with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Iterator

import electra_reference as er
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers.implementations import BertWordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Hyper:
    num_hidden_layers: int = 12
    hidden_size: int = 256
    embedding_size: int = 128
    generator_layers: float = 1.0
    generator_hidden_size: float = 0.25
    max_position_embeddings: int = 512
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    untied_generator: bool = True
    untied_generator_embeddings: bool = False
    uniform_generator: bool = False
    temperature: float = 1.0
    disallow_correct: bool = False
    mask_prob: float = 0.15
    gen_weight: float = 1.0
    disc_weight: float = 50.0
    max_seq_length: int = 128
    train_batch_size: int = 128
    num_train_steps: int = 1_000_000
    num_warmup_steps: int = 10_000
    learning_rate: float = 5e-4
    weight_decay_rate: float = 0.01
    adam_beta2: float = 0.999
    seed: int = 0

    def override(self, settings: list[str]) -> Hyper:
        """Applies NAME=VALUE; an unknown name is an error."""
        types = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        changes: dict[str, object] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in types:
                sys.exit(f"no hyper-parameter {name!r}; there are {', '.join(types)}")
            changes[name] = json.loads(text.lower()) if types[name] is bool else types[name](text)
        return replace(self, **changes)

    @property
    def max_predictions_per_seq(self) -> int:
        return int((self.mask_prob + 0.005) * self.max_seq_length)


PRESETS = {
    "small": Hyper(),
    "tiny": Hyper(num_hidden_layers=4, hidden_size=128, generator_hidden_size=0.5, max_seq_length=64,
                  train_batch_size=32, num_train_steps=10_000, num_warmup_steps=1000, learning_rate=1e-3),
}  # fmt: skip


def build(h: Hyper, vocab_size: int) -> er.Pair:
    """Both networks, initialized; heads are 64 wide and the feed-forward four times the hidden size."""

    def config(layers: int, hidden: int, embedding: int) -> er.ElectraConfig:
        return er.config(
            vocab_size=vocab_size, num_hidden_layers=layers, hidden_size=hidden, embedding_size=embedding,
            num_attention_heads=max(1, hidden // 64), intermediate_size=4 * hidden,
            max_position_embeddings=h.max_position_embeddings, hidden_dropout_prob=h.hidden_dropout_prob,
            attention_probs_dropout_prob=h.attention_probs_dropout_prob, attn_implementation="sdpa",
        )  # fmt: skip

    discriminator = generator = config(h.num_hidden_layers, h.hidden_size, h.embedding_size)
    sharing = "all"
    if h.untied_generator:
        hidden = int(h.hidden_size * h.generator_hidden_size)
        embedding = hidden if h.untied_generator_embeddings else h.embedding_size
        generator = config(int(h.num_hidden_layers * h.generator_layers), hidden, embedding)
        sharing = "none" if h.untied_generator_embeddings else "embeddings"
    pair = er.Pair(discriminator, None if h.uniform_generator else generator, sharing)
    er.initialize(pair)
    return pair


def load(pair: er.Pair, models: Path) -> None:
    """Takes all parameters from the models' files."""
    for network in ("discriminator", "generator"):
        module = getattr(pair, network)
        if module is None:
            continue
        state = load_file(models / network / "model.safetensors")
        missing, unexpected = module.load_state_dict(state, strict=False)
        # The head's table is the embeddings', and in no file twice.
        wrong = [name for name in missing if name != "generator_lm_head.weight"] + unexpected
        if wrong:
            sys.exit(f"{models / network}: {', '.join(wrong)}")


@dataclass
class Corpus:
    """All documents' tokens in one array and each example's place in it."""

    tokens: np.ndarray  # [tokens]
    starts: np.ndarray  # [examples]
    lengths: np.ndarray  # [examples], without [CLS] and [SEP]

    def example(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]]


def read_documents(paths: list[Path]) -> Iterator[list[str]]:
    """Documents as lists of lines."""
    for path in paths:
        document: list[str] = []
        for line in path.read_text("utf-8").splitlines():
            if line.strip():
                document.append(line.strip())
            elif document:
                yield document
                document = []
        if document:
            yield document


def read_corpora(
    paths: list[Path], tokenizer: BertWordPieceTokenizer, max_seq_length: int, held_out: float
) -> tuple[Corpus, Corpus]:
    """Examples to train on and, of every document drawn into the held-out part, to evaluate on."""
    documents = list(read_documents(paths))
    lines = [line for document in documents for line in document]
    encoded = iter(tokenizer.encode_batch(lines, add_special_tokens=False))
    out = np.random.default_rng(12345).random(len(documents)) < held_out
    pieces: list[np.ndarray] = []
    places: tuple[list[tuple[int, int]], ...] = ([], [])
    position, run = 0, max_seq_length - 2
    for document, side in zip(documents, out):
        ids = np.concatenate([np.array(next(encoded).ids, np.int32) for _ in document])
        pieces.append(ids)
        places[int(side)].extend((position + i, min(run, ids.size - i)) for i in range(0, ids.size, run))
        position += ids.size
    tokens = np.concatenate(pieces)
    return tuple(Corpus(tokens, *np.array(p, np.int64).reshape(-1, 2).T) for p in places)  # type: ignore[return-value]


@dataclass
class Batch:
    original: er.Padded
    masked: er.Padded
    masked_rows: torch.Tensor  # [masked rows], packed rows
    targets: torch.Tensor  # [masked rows]


class Masker:
    """Turns examples into a padded batch with fresh masks."""

    def __init__(self, h: Hyper, ids: dict[str, int], rng: np.random.Generator):
        self.h, self.ids, self.rng = h, ids, rng

    def batch(self, examples: list[np.ndarray]) -> Batch:
        lengths = np.array([e.size + 2 for e in examples])
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(real.shape, self.ids["[PAD]"], np.int64)
        for row, example in zip(ids, examples):
            row[: example.size + 2] = np.concatenate([[self.ids["[CLS]"]], example, [self.ids["[SEP]"]]])
        untouchable = [self.ids[s] for s in ("[CLS]", "[SEP]", "[MASK]")]
        scores = np.where(real & ~np.isin(ids, untouchable), self.rng.random(ids.shape), np.inf)
        count = np.clip(np.round(lengths * self.h.mask_prob), 1, self.h.max_predictions_per_seq)
        rank = scores.argsort(1).argsort(1)
        chosen = (rank < count[:, None]) & np.isfinite(scores)
        masked = np.where(chosen & (self.rng.random(ids.shape) < 0.85), self.ids["[MASK]"], ids)
        types, real_t = torch.zeros(ids.shape, dtype=torch.long), torch.from_numpy(real)
        return Batch(
            er.Padded(torch.from_numpy(ids), types, real_t), er.Padded(torch.from_numpy(masked), types, real_t),
            torch.from_numpy(np.flatnonzero(chosen[real])), torch.from_numpy(ids[chosen]),
        )  # fmt: skip


def entropy(rate: float) -> float:
    """Loss in nats of a discriminator that knows only the label rate."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a replaced token scores above an original one, ties counting half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(labels.sum())
    negative = labels.size - positive
    return float((rank[labels].sum() - positive * (positive + 1) / 2) / max(1, positive * negative))


class Trainer:
    def __init__(self, h: Hyper, vocab: dict[str, int], precision: str = "f32"):
        torch.manual_seed(h.seed)
        self.h = h
        self.pair = build(h, len(vocab)).train()
        self.optimizer = er.Optimizer(self.pair, h.weight_decay_rate, beta2=h.adam_beta2)
        special = {vocab[s] for s in SPECIAL}
        self.words = torch.tensor([i for i in range(len(vocab)) if i not in special])
        self.half = {"bf16": torch.bfloat16, "f16": torch.float16}.get(precision)
        self.loss_scale = 1024.0 if self.half == torch.float16 else 1.0

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast("cpu", self.half) if self.half else contextlib.nullcontext()

    @torch.no_grad()
    def sample(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Draws from softmax(logits / temperature), one uniform number a row against the cumulated probabilities."""
        logits = logits.float() / self.h.temperature
        if self.h.disallow_correct:
            logits[torch.arange(len(targets)), targets] -= 1000.0
        cumulated = logits.softmax(-1).cumsum_(-1)
        drawn = torch.rand(len(targets), 1) * cumulated[:, -1:]
        return torch.searchsorted(cumulated, drawn).squeeze(1).clamp_(max=logits.shape[1] - 1)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses, and what evaluation measures."""
        original = batch.original.ids[batch.original.real]
        out: dict[str, torch.Tensor] = {}
        with self.autocast():
            if self.pair.generator is None:
                sampled = self.words[torch.randint(len(self.words), batch.targets.shape)]
                out["loss"] = torch.zeros(())
            else:
                logits = er.generator_logits(self.pair.generator, batch.masked, batch.masked_rows).float()
                sampled = self.sample(logits.detach(), batch.targets)
                out["mlm_loss"] = er.mlm_loss(logits, batch.targets)
                out["loss"] = self.h.gen_weight * out["mlm_loss"]
                out["mlm_hits"] = logits.argmax(-1) == batch.targets
            corrupted = original.clone()
            corrupted[batch.masked_rows] = sampled
            scores = er.discriminator_logits(self.pair.discriminator, batch.original.replaced(corrupted)).float()
        labels = corrupted != original
        out["rtd_loss"] = er.rtd_loss(scores, labels)
        out["loss"] = out["loss"] + self.h.disc_weight * out["rtd_loss"]
        return out | {"sampled_hits": sampled == batch.targets, "scores": scores, "labels": labels}

    def step(self, index: int, batch: Batch) -> dict[str, float]:
        out = self.forward(batch)
        (out["loss"] * self.loss_scale).backward()
        if self.loss_scale != 1.0:
            gradients = [p.grad for p in self.pair.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        lr = er.learning_rate(index, self.h.learning_rate, self.h.num_train_steps, self.h.num_warmup_steps)
        norm = self.optimizer.step(lr)
        losses = {k: out[k].item() for k in ("loss", "mlm_loss", "rtd_loss") if k in out}
        return losses | {"rtd_base": entropy(out["labels"].float().mean().item()), "lr": lr, "grad_norm": norm}

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, float]:
        """Held-out metrics, dropout off, samples the same each time."""
        self.pair.eval()
        with torch.random.fork_rng():
            torch.manual_seed(999)
            outs = [self.forward(b) for b in batches]
        self.pair.train()
        joined = {k: torch.cat([o[k] for o in outs]).numpy() for k in outs[0] if outs[0][k].ndim}
        scores, labels = joined["scores"], joined["labels"]
        guess = scores > 0
        true_positive = int((guess & labels).sum())
        metrics = {
            "rtd_loss": float(er.rtd_loss(torch.from_numpy(scores), torch.from_numpy(labels))),
            "rtd_base": entropy(float(labels.mean())), "rtd_auc": area_under_curve(scores, labels),
            "rtd_accuracy": float((guess == labels).mean()), "rtd_precision": true_positive / max(1, int(guess.sum())),
            "rtd_recall": true_positive / max(1, int(labels.sum())), "sampled_accuracy": float(joined["sampled_hits"].mean()),
        }  # fmt: skip
        if "mlm_hits" in joined:
            rows = [len(b.targets) for b in batches]
            metrics["mlm_loss"] = float(np.average([o["mlm_loss"].item() for o in outs], weights=rows))
            metrics["mlm_accuracy"] = float(joined["mlm_hits"].mean())
        return {f"eval_{k}": v for k, v in metrics.items()}


def shuffled(corpus: Corpus, batch_size: int, rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
    """Batches without end, every epoch in its own order, epochs joined without a short batch."""
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue.extend(rng.permutation(len(corpus.starts)).tolist())
        yield [corpus.example(i) for i in queue[:batch_size]]
        del queue[:batch_size]


def train_vocabulary(paths: list[Path], size: int, out: Path) -> None:
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train([str(p) for p in paths], vocab_size=size, limit_alphabet=size, special_tokens=SPECIAL, show_progress=False)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    out.write_text("".join(f"{word}\n" for word, _ in vocab), "utf-8")


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--input", type=Path, nargs="+", required=True)
    p.add_argument("--vocab", type=Path, required=True)
    p.add_argument("--train-vocab", type=int, metavar="SIZE", help="train --vocab on the input and stop")
    p.add_argument("--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE")
    p.add_argument("--out", type=Path, help="JSON lines; standard output otherwise")
    p.add_argument("--held-out", type=float, default=0.02, help="fraction of documents")
    p.add_argument("--eval-steps", type=int, default=0, help="evaluate every so many steps; 0: only at the end")
    p.add_argument("--eval-batches", type=int, default=100)
    p.add_argument("--init-from", type=Path, metavar="DIR", help="models to begin with")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    args = p.parse_args()
    if args.train_vocab:
        return train_vocabulary(args.input, args.train_vocab, args.vocab)

    torch.set_num_threads(args.threads)
    h = PRESETS[args.preset].override(args.set)
    tokenizer = BertWordPieceTokenizer(str(args.vocab), lowercase=True)
    vocab = tokenizer.get_vocab()
    train, held_out = read_corpora(args.input, tokenizer, h.max_seq_length, args.held_out)
    ids = {s: vocab[s] for s in SPECIAL}
    masker, fixed = (Masker(h, ids, np.random.default_rng(seed)) for seed in (h.seed, 999))
    order = shuffled(held_out, h.train_batch_size, np.random.default_rng(999)) if len(held_out.starts) else None
    whole = len(held_out.starts) // h.train_batch_size
    evaluation = [fixed.batch(next(order)) for _ in range(min(args.eval_batches, whole))] if order else []
    trainer = Trainer(h, vocab, args.precision)
    if args.init_from:
        load(trainer.pair, args.init_from)
    out = args.out.open("w") if args.out else sys.stdout

    def write(line: dict[str, object]) -> None:
        print(json.dumps(line), file=out, flush=True)

    parameters = sum(p.numel() for p in trainer.pair.parameters())
    write({"config": asdict(h), "vocab_size": len(vocab), "parameters": parameters, "precision": args.precision,
           "train_tokens": int(train.lengths.sum()), "train_examples": len(train.starts),
           "held_out_tokens": int(held_out.lengths.sum()), "held_out_examples": len(held_out.starts)})  # fmt: skip
    batches = shuffled(train, h.train_batch_size, np.random.default_rng(h.seed))
    tokens, begin = 0, time.perf_counter()
    for step in range(h.num_train_steps):
        start = time.perf_counter()
        batch = masker.batch(next(batches))
        metrics = trainer.step(step, batch)
        count = int(batch.original.real.sum())
        tokens += count
        rate = count / (time.perf_counter() - start)
        write({"step": step + 1} | metrics | {"tokens": tokens, "tokens_per_s": round(rate, 1)})
        last = step + 1 == h.num_train_steps
        if evaluation and (last or args.eval_steps and (step + 1) % args.eval_steps == 0):
            write({"step": step + 1, "tokens": tokens} | trainer.evaluate(evaluation))
    write({"seconds": round(time.perf_counter() - begin, 1), "peak_rss_bytes": peak_rss_bytes()})


if __name__ == "__main__":
    main()
