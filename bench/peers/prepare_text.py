"""Times text to token ids: `encode_batch` of the package tokenizers, or `datasets` with the same tokenizer.

    python bench/peers/prepare_text.py --peer tokenizers --vocab vocab.txt --threads 2 --input FILE...

Files hold documents apart by blank lines; each line is encoded. `tokenizers` keeps the ids in memory; `datasets` maps them
in batches over processes into its Arrow files, as people do before training.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Callable

from measured import add_repetitions, peak_rss_bytes, settings, spread

BATCH = 1000


def tokenizers_peer(args: argparse.Namespace, lines: list[str]) -> tuple[str, Callable[[], int]]:
    import tokenizers

    tokenizer = tokenizers.BertWordPieceTokenizer(str(args.vocab), lowercase=True)

    def once() -> int:
        tokens = 0
        for i in range(0, len(lines), BATCH):
            encoded = tokenizer.encode_batch(lines[i : i + BATCH], add_special_tokens=False)
            tokens += sum(len(e.ids) for e in encoded)
        return tokens

    return f"tokenizers {tokenizers.__version__} encode_batch", once


def datasets_peer(args: argparse.Namespace, lines: list[str]) -> tuple[str, Callable[[], int]]:
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    tokenizer = tokenizers.BertWordPieceTokenizer(str(args.vocab), lowercase=True)
    source = datasets.Dataset.from_dict({"text": lines})

    def ids(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]}

    def once() -> int:
        directory = tempfile.mkdtemp()
        try:
            # One thread a process: the processes share the threads.
            mapped = source.map(
                ids, batched=True, batch_size=BATCH, remove_columns=["text"], num_proc=args.threads,
                load_from_cache_file=False, cache_file_name=str(Path(directory) / "ids.arrow"),
            )  # fmt: skip
            return len(mapped)
        finally:
            shutil.rmtree(directory)

    return f"datasets {datasets.__version__} map", once


PEERS = {"tokenizers": tokenizers_peer, "datasets": datasets_peer}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=PEERS, required=True)
    p.add_argument("--vocab", type=Path, required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--input", type=Path, nargs="+", required=True)
    add_repetitions(p)
    args = p.parse_args()
    # Read before the libraries start their threads.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads if args.peer == "tokenizers" else 1)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if args.peer == "tokenizers" else "false"

    texts = [path.read_text("utf-8") for path in args.input]
    size = sum(len(text.encode()) for text in texts)
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    name, once = PEERS[args.peer](args, lines)
    once()
    seconds = []
    for _ in range(args.repetitions):
        begin = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begin)
    line = settings(args) | {"peer": name, "input": [str(path) for path in args.input], "text_bytes": size}
    line |= spread("mb_per_s", [size / 1e6 / s for s in seconds])
    line |= spread("ms", [1000 * s for s in seconds])
    print(json.dumps(line | {"peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
