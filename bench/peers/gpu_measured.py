"""What the GPU scripts beside this one share: sizes, timing by repetitions, memory, and the JSON line they print.

A repetition runs so many passes without waiting for the device in between and then waits for all of them. Tokens are
real ones: padding counts for nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Callable

import torch

VOCABULARY = 30522
SPECIAL = 5
SIZES = {
    "small": dict(num_hidden_layers=12, hidden_size=256, embedding_size=128, num_attention_heads=4, intermediate_size=1024),
    "base": dict(num_hidden_layers=12, hidden_size=768, embedding_size=768, num_attention_heads=12, intermediate_size=3072),
}  # fmt: skip
GENERATORS = {
    "small": SIZES["small"] | dict(hidden_size=64, num_attention_heads=1, intermediate_size=256),
    "base": SIZES["base"] | dict(hidden_size=256, num_attention_heads=4, intermediate_size=1024),
}


def fast_mathematics() -> None:
    """What everybody turns on who wants speed."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)


def repeat(run: Callable[[], Any], seconds: float, repetitions: int, warm: int) -> list[float]:
    """Seconds of a pass in each repetition, after `warm` passes."""
    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    passes = max(1, round(seconds / max(time.perf_counter() - begin, 1e-6)))
    measured = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        for _ in range(passes):
            run()
        torch.cuda.synchronize()
        measured.append((time.perf_counter() - begin) / passes)
    return measured


def report(peer: str, settings: dict[str, Any], tokens: int, seconds: list[float]) -> None:
    """Prints the one JSON line; `seconds` are those of a pass over `tokens` tokens."""
    speeds = [tokens / s for s in seconds]
    print(json.dumps({"peer": f"PyTorch {torch.__version__} {peer}"} | settings | {
        "tokens_per_s": round(statistics.median(speeds)), "tokens_per_s_min": round(min(speeds)),
        "tokens_per_s_max": round(max(speeds)), "ms": round(1000 * statistics.median(seconds), 3),
        "memory_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}))  # fmt: skip
