"""Fine-tuned models and predictions, both ways between electra and transformers, for each head.

    python tests/check_tasks.py --electra BIN [--work DIR]

For each of transformers' heads (classification, multi-label, regression, tags, answers, choices):

1. A small model made by transformers answers the same in `electra predict` as in transformers.
2. A small model fine-tuned by `electra finetune` loads in transformers with no tensor missing or left over
   (tests/check_transformers.py) and answers the same there.

The reference's heads, the conditional random field and several tasks in one model, which transformers has no class for,
must load there as an encoder. Numbers agree within 1e-4. Exits with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import transformers
from check_transformers import check

BOUND = 1e-4
GOLDEN = Path(__file__).resolve().parent / "golden" / "tiny-discriminator"
WORDS = "the a of and in on old new small big red blue river stone boat tree house wind night morning water bird song".split()
CLASSES = ["bad", "fair", "good"]
KINDS = {"river": "PLACE", "house": "PLACE", "bird": "ANIMAL"}

transformers.logging.set_verbosity_error()


def sentence(rng: random.Random, length: int | None = None) -> str:
    return " ".join(rng.choices(WORDS, k=length or rng.randint(3, 9)))


def grade(text: str) -> int:
    return 2 if "boat" in text else 1 if "wind" in text else 0


def question(rng: random.Random) -> tuple[str, str, str, int]:
    text = sentence(rng, 12)
    word = rng.choice(text.split())
    return f"which {word}", text, word, text.split().index(word)


def write_data(folder: Path, kind: str, rng: random.Random, count: int) -> Path:
    """Labelled examples that can be learned from."""
    texts = [sentence(rng) for _ in range(count)]
    if kind == "tagging":
        path = folder / "data.conll"
        tags = lambda w: f"B-{KINDS[w]}" if w in KINDS else "O"  # noqa: E731
        path.write_text("\n".join("".join(f"{w} {tags(w)}\n" for w in t.split()) for t in texts))
    elif kind == "question_answering":
        path = folder / "data.json"
        paragraphs = []
        for i in range(count):
            asked, text, word, _ = question(rng)
            answer = {"text": word, "answer_start": text.index(word)}
            paragraphs.append({"context": text, "qas": [{"id": str(i), "question": asked, "answers": [answer]}]})
        path.write_text(json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    else:
        path = folder / "data.jsonl"
        rows: list[dict[str, Any]] = []
        for text in texts:
            if kind == "classification":
                rows.append({"text": text, "label": CLASSES[grade(text)]})
            elif kind == "multi_label":
                rows.append({"text": text, "label": [w for w in ("boat", "wind", "tree") if w in text]})
            elif kind == "regression":
                rows.append({"text": text, "label": len(text.split()) / 10})
            else:
                choices = [sentence(rng, 4) for _ in range(3)]
                right = rng.randrange(3)
                choices[right] = text
                rows.append({"text": text, "choices": choices, "label": right})
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def model_of(folder: Path) -> Any:
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(folder).eval()


def check_encoder(folder: Path) -> str:
    """What transformers has no head for is an encoder to it, with nothing of that missing."""
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ElectraModel"]
    model, report = transformers.ElectraModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], f"missing: {sorted(report['missing_keys'])}"
    return f"an encoder of {sum(p.numel() for p in model.parameters())} parameters"


def run(command: list[Any], given: str = "") -> list[dict[str, Any]]:
    done = subprocess.run([str(c) for c in command], input=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def close(what: str, ours: Any, theirs: Any) -> None:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{what}: {ours.shape}, transformers {theirs.shape}"
    off = float(np.abs(ours - theirs).max(initial=0.0))
    assert off <= BOUND, f"{what}: differ by {off:.2g}"


@torch.no_grad()
def compare(electra: str, folder: Path, kind: str, rng: random.Random) -> None:
    """Answers of both about the same new texts."""
    model, tokenizer = model_of(folder), transformers.AutoTokenizer.from_pretrained(folder)
    predict = [electra, "predict", "--model", folder, "--json", "--threads", 1, "--as"]
    texts = [sentence(rng) for _ in range(20)]
    lines = "".join(f"{t}\n" for t in texts)
    if kind in ("classification", "multi_label", "regression"):
        ours = run([*predict, "classify", "--top-k", 9], lines)
        for text, answer in zip(texts, ours, strict=True):
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
            if kind == "regression":
                close(text, answer["value"], logits.item())
                continue
            scores = torch.softmax(logits, 0) if kind == "classification" else torch.sigmoid(logits)
            found = {s["label"]: s["score"] for s in answer["labels"]}
            close(text, [found[model.config.id2label[i]] for i in range(len(scores))], scores)
    elif kind == "tagging":
        for strategy in ("none", "simple", "first", "average", "max"):
            pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=strategy)
            ours = run([*predict, "tag", "--aggregation", strategy], lines)
            for text, answer in zip(texts, ours, strict=True):
                theirs, key = pipe(text), "entity" if strategy == "none" else "entity_group"
                spans = [(e["label"], e["start"], e["end"]) for e in answer["entities"]]
                assert spans == [(e[key], e["start"], e["end"]) for e in theirs], f"{strategy}: {text}: {spans} {theirs}"
                close(text, [e["score"] for e in answer["entities"]], [e["score"] for e in theirs])
    elif kind == "question_answering":
        asked = [question(rng)[:2] for _ in range(20)]
        ours = run([*predict, "answer", "--max-answer-len", 4], "".join(f"{q}\t{t}\n" for q, t in asked))
        for (q, text), answer in zip(asked, ours, strict=True):
            encoded = tokenizer(q, text, return_tensors="pt", return_offsets_mapping=True)
            offsets = encoded.pop("offset_mapping")[0]
            out = model(**encoded)
            context = [i for i, s in enumerate(encoded.sequence_ids(0)) if s == 1]
            start, end = out.start_logits[0], out.end_logits[0]
            spans = [(float(start[i] + end[j]), i, j) for i in context for j in context if i <= j < i + 4]
            _, i, j = max(spans)
            (best,) = answer["answers"]
            assert (best["start"], best["end"]) == (offsets[i][0], offsets[j][1]), f"{q}: {best}, transformers {text[offsets[i][0]:offsets[j][1]]}"
    else:
        rows = [[sentence(rng, 4) for _ in range(4)] for _ in range(20)]
        ours = run([*predict, "choose"], "".join("\t".join(r) + "\n" for r in rows))
        for (first, *choices), answer in zip(rows, ours, strict=True):
            encoded = tokenizer([first] * 3, choices, return_tensors="pt", padding=True)
            logits = model(**{k: v[None] for k, v in encoded.items()}).logits[0]
            close(first, answer["scores"], torch.softmax(logits, 0))


@torch.no_grad()
def compare_embeddings(electra: str, folder: Path, rng: random.Random) -> None:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [sentence(rng) for _ in range(20)]
    pools: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"cls": lambda h: h[0], "mean": lambda h: h.mean(0)}
    for pooling, pool in pools.items():
        command = [electra, "predict", "--model", folder, "--as", "embed", "--json", "--threads", 1, "--pooling", pooling]
        for text, answer in zip(texts, run(command, "".join(f"{t}\n" for t in texts)), strict=True):
            close(text, answer["embedding"], pool(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]))


HEADS = {
    "classification": ("ForSequenceClassification", {"num_labels": 3, "id2label": dict(enumerate(CLASSES))}),
    "multi_label": ("ForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "regression": ("ForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "tagging": ("ForTokenClassification", {"id2label": dict(enumerate(["B-ANIMAL", "B-PLACE", "I-PLACE", "O"]))}),
    "question_answering": ("ForQuestionAnswering", {}),
    "multiple_choice": ("ForMultipleChoice", {}),
}  # fmt: skip


def theirs(work: Path, kind: str) -> Path:
    """A model of transformers' with wide random values."""
    name, extra = HEADS[kind]
    if "id2label" in extra:
        extra = extra | {"label2id": {v: k for k, v in extra["id2label"].items()}}
    config = transformers.ElectraConfig.from_pretrained(GOLDEN, **extra)
    torch.manual_seed(1)
    model = getattr(transformers, "Electra" + name)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = work / f"theirs-{kind}"
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(GOLDEN).save_pretrained(folder)
    return folder


def main(electra: str, work: Path) -> None:
    rng = random.Random(7)
    checked = 0
    for kind in HEADS:
        compare(electra, theirs(work, kind), kind, rng)
        print(f"{kind}: transformers' model answers the same here")
        checked += 1
    compare_embeddings(electra, GOLDEN, rng)
    # On top of these transformers has a class, or none.
    variants: list[tuple[str, list[str], bool]] = [("hf", [], True), ("google", ["--head", "google"], False)]
    for kind in HEADS:
        for name, options, alone in [*variants, *([("crf", ["--set", "crf=true"], False)] if kind == "tagging" else [])]:
            folder = work / f"data-{kind}"
            folder.mkdir(exist_ok=True)
            data, out = write_data(folder, kind, rng, 60), work / f"ours-{kind}-{name}"
            command = [electra, "finetune", "--model", GOLDEN, "--task", "own", "--kind", kind.replace("_", "-")]
            command += ["--train", data, "--dev", data, "--out", out, "--set", "num_train_epochs=3", "--set", "learning_rate=2e-3"]
            extra = ["--set", "max_seq_length=40", "--set", "hidden_dropout_prob=0", "--set", "max_restarts=0"]
            (result,) = run([*command, *options, *extra, "--threads", 1, "--json"])
            evaluate = [electra, "evaluate", "--model", out, "--data", data, "--json", "--threads", 1]
            (again,) = run(evaluate)
            for metric, value in result["scores"]["own"].items():
                close(f"{kind} {name}: {metric}", again[metric], value)
            print(f"{kind} {name}: {check(out) if alone else check_encoder(out)}")
            if alone:
                compare(electra, out, kind, rng)
                print(f"{kind}: our model answers the same in transformers")
            checked += 1
    folder, out = work / "data-classification", work / "ours-two-tasks"
    command = [electra, "finetune", "--model", GOLDEN, "--kind", "classification", "--out", out, "--json", "--threads", 1]
    for task in ("one", "two"):
        command += ["--task", task, "--train", folder / "data.jsonl", "--dev", folder / "data.jsonl"]
    run([*command, "--set", "num_train_epochs=1"])
    print(f"two tasks: {check_encoder(out)}")
    for task in ("one", "two"):
        run([electra, "evaluate", "--model", out, "--task", task, "--data", folder / "data.jsonl", "--json", "--threads", 1])
    print(f"{checked + 1} models checked")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--electra", required=True)
    p.add_argument("--work", type=Path)
    args = p.parse_args()
    torch.set_num_threads(1)
    try:
        if args.work:
            args.work.mkdir(parents=True, exist_ok=True)
            main(args.electra, args.work)
        else:
            with tempfile.TemporaryDirectory() as folder:
                main(args.electra, Path(folder))
    except AssertionError as error:
        sys.exit(f"check_tasks: {error}")
