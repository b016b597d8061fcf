"""Compares `electra predict` with transformers.

    python tests/compare_predictions.py MODEL... [--electra target/release/electra] [--texts FILE] [--bound 1e-4]

Of a discriminator, on each text: every token of `--as detect`, with its offsets in characters, and its score beside
the sigmoid of ElectraForPreTraining. Of a generator: every candidate of `--as fill` beside the softmax of
ElectraForMaskedLM, which must have no more probable one, and none for a mask that was cut off. Exits with 1 at the
first that differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

TEXTS = [
    "The old boat slept on the river.",
    "Café NAÏVE; 12.5% of it's \"unusual\" - isn't it?",
    "水 and words, 中文 mixed in",
    "a",
    "   spaces \t around   ",
    "an emoji \U0001f980, a combining e\u0301 and an unknown \u1234",
    "tokens of a longer line " * 40,
    "more tokens than the model has positions " * 120,
]
MASKED = [
    "The old [MASK] slept on the river.",
    "[MASK]",
    "One [MASK] and another [MASK], then the end [MASK]",
    "a longer line with a mask " * 30 + "[MASK] here",
]
TOP_K = 7


def predict(electra: str, model: Path, task: str, texts: list[str]) -> list[dict[str, Any]]:
    """What the binary says: one object a text."""
    command = [electra, "predict", "--model", str(model), "--as", task, "--top-k", str(TOP_K), "--json"]
    run = subprocess.run(command, input="".join(f"{t}\n" for t in texts), capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, f"{' '.join(command)} exited with {run.returncode}: {run.stderr}"
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["text"] for line in lines] == texts, "the texts are not those given, in their order"
    return lines


def load(folder: Path, kind: str) -> tuple[Any, Any]:
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def encode(model: Any, tokenizer: Any, text: str) -> Any:
    longest = model.config.max_position_embeddings
    return tokenizer(text, truncation=True, max_length=longest, return_offsets_mapping=True, return_tensors="pt")


@torch.no_grad()
def logits(model: Any, encoded: Any) -> torch.Tensor:
    return model(**{k: encoded[k] for k in ("input_ids", "token_type_ids", "attention_mask")}).logits[0]


def check_detect(electra: str, folder: Path, texts: list[str], bound: float) -> str:
    model, tokenizer = load(folder, "ElectraForPreTraining")
    worst, found = 0.0, []
    for text, line in zip(texts, predict(electra, folder, "detect", texts)):
        encoded = encode(model, tokenizer, text)
        inner = slice(1, -1)  # without [CLS] and [SEP]
        scores = torch.sigmoid(logits(model, encoded))[inner].tolist()
        names = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0][inner].tolist())
        spans = [tuple(span) for span in encoded["offset_mapping"][0][inner].tolist()]
        ours = line["tokens"]
        assert [t["token"] for t in ours] == names, f"{text!r}: tokens {[t['token'] for t in ours]}, transformers {names}"
        assert [(t["start"], t["end"]) for t in ours] == spans, f"{text!r}: offsets differ from {spans}"
        for token, score in zip(ours, scores):
            difference = abs(token["score"] - score)
            assert difference <= bound, f"{text!r}: {token}, transformers {score}"
            worst = max(worst, difference)
            found.append(score)
    return f"{len(found)} tokens, scores {min(found):.3f} .. {max(found):.3f}, greatest difference {worst:.1e}"


def check_fill(electra: str, folder: Path, texts: list[str], bound: float) -> str:
    model, tokenizer = load(folder, "ElectraForMaskedLM")
    worst, found = 0.0, []
    for text, line in zip(texts, predict(electra, folder, "fill", texts)):
        encoded = encode(model, tokenizer, text)
        places = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
        probabilities = logits(model, encoded).softmax(-1)
        seen, cut_off = line["masks"][: len(places)], line["masks"][len(places) :]
        assert len(seen) == len(places) and not any(cut_off), f"{text!r}: {line['masks']}, transformers has {len(places)}"
        for place, candidates in zip(places, seen):
            assert len(candidates) == min(TOP_K, len(tokenizer)), f"{text!r}: {len(candidates)} candidates"
            best = probabilities[place].topk(len(candidates)).values.tolist()
            for candidate, score in zip(candidates, best):
                # Two of nearly one probability may stand in either order.
                (index,) = tokenizer.convert_tokens_to_ids([candidate["token"]])
                theirs = probabilities[place][index].item()
                difference = max(abs(candidate["score"] - score), abs(candidate["score"] - theirs))
                assert difference <= bound, f"{text!r}: {candidate}, transformers {theirs}, in its place {score}"
                worst = max(worst, difference)
                found.append(score)
    return f"{len(found)} candidates, scores {min(found):.3f} .. {max(found):.3f}, greatest difference {worst:.1e}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    p.add_argument("--electra", default="target/release/electra")
    p.add_argument("--texts", type=Path, help="one a line, instead of the texts of this script")
    p.add_argument("--bound", type=float, default=1e-4)
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = args.texts.read_text("utf-8").splitlines() if args.texts else None
    checks = {"ElectraForPreTraining": (check_detect, TEXTS), "ElectraForMaskedLM": (check_fill, MASKED)}
    for folder in args.models:
        (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
        check, own_texts = checks[kind]
        try:
            print(f"{folder}: {check(args.electra, folder, texts or own_texts, args.bound)}")
        except AssertionError as error:
            sys.exit(f"{folder}: {error}")


if __name__ == "__main__":
    main()
