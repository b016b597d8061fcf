"""What the measuring scripts beside this one share: batches, repetitions, and the JSON line they print.

A pass runs every batch once. Warm passes come first; then repetitions of whole passes are timed, and their median, least
and most are printed. Tokens are real ones: padding counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

SPECIAL = 5
VOCABULARY = 30522
SIZES = {
    "tiny": dict(num_hidden_layers=4, hidden_size=128, embedding_size=128, num_attention_heads=2, intermediate_size=512),
    "small": dict(num_hidden_layers=12, hidden_size=256, embedding_size=128, num_attention_heads=4, intermediate_size=1024),
    "base": dict(num_hidden_layers=12, hidden_size=768, embedding_size=768, num_attention_heads=12, intermediate_size=3072),
}  # fmt: skip


@dataclass
class Batch:
    """Sequences in rows, each [sequences, longest]; the mask is 1 at real tokens."""

    ids: np.ndarray
    mask: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def full(self) -> bool:
        return bool(self.mask.all())


def add_options(p: argparse.ArgumentParser, batch: int = 32) -> None:
    p.add_argument("--preset", choices=SIZES, default="small")
    p.add_argument("--batch", type=int, default=batch)
    p.add_argument("--seq", type=int, default=128)
    p.add_argument("--lengths", type=Path, help="a file with the length of one sequence a line, instead of --seq")
    p.add_argument("--sorted", action="store_true", help="sort the sequences by length before they are cut into batches")
    p.add_argument("--threads", type=int, default=2)
    add_repetitions(p)


def add_repetitions(p: argparse.ArgumentParser) -> None:
    p.add_argument("--repetitions", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0, help="of a repetition, about")


def batches(args: argparse.Namespace) -> list[Batch]:
    """Padded batches of random words, in the order of arrival unless sorted."""
    lengths = [args.seq] * args.batch
    if args.lengths:
        lengths = [int(line) for line in args.lengths.read_text().split()]
    if args.sorted:
        lengths = sorted(lengths)
    rng = np.random.default_rng(0)
    made = []
    for i in range(0, len(lengths), args.batch):
        own = np.array(lengths[i : i + args.batch])
        mask = (np.arange(own.max()) < own[:, None]).astype(np.int64)
        made.append(Batch(rng.integers(SPECIAL, VOCABULARY, size=mask.shape) * mask, mask))
    return made


def repeat(run: Callable[[], object], args: argparse.Namespace) -> list[float]:
    """Seconds of a pass in each repetition, after two passes and half a repetition to warm up."""
    start, passes, last = time.perf_counter(), 0, 0.0
    while passes < 2 or time.perf_counter() - start < args.seconds / 2:
        begin = time.perf_counter()
        run()
        last = time.perf_counter() - begin
        passes += 1
    passes = max(1, round(args.seconds / max(last, 1e-9)))
    seconds = []
    for _ in range(args.repetitions):
        begin = time.perf_counter()
        for _ in range(passes):
            run()
        seconds.append((time.perf_counter() - begin) / passes)
    return seconds


def spread(name: str, values: list[float]) -> dict[str, float]:
    """`name`, `name_min` and `name_max`, with the digits that mean something."""
    picked = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {key: float(f"{value:.6g}") for key, value in picked.items()}


def peak_rss_bytes() -> int:
    """Most memory that this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The options as they were, paths as text; what is not set, or of no effect beside --lengths, is left out."""
    unused = ("seq",) if getattr(args, "lengths", None) else ()
    given = {k: v for k, v in vars(args).items() if v is not None and v is not False and k not in unused}
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}


def report(peer: str, args: argparse.Namespace, made: list[Batch], seconds: list[float]) -> None:
    """Prints the one JSON line; `seconds` are those of a pass over all batches."""
    tokens = sum(batch.tokens for batch in made)
    line = {"peer": peer} | settings(args)
    line |= spread("tokens_per_s", [tokens / s for s in seconds])
    line |= spread("ms", [1000 * s / len(made) for s in seconds])
    print(json.dumps(line | {"peak_rss_bytes": peak_rss_bytes()}))
