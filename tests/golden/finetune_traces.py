"""Fine-tuning traces: ten steps of each task family over PyTorch and transformers. Called by make_golden.py.

`finetune_FAMILY.safetensors`, dropout off:

    param/NAME grad/NAME final/NAME   initial value, gradient at step 0 before clipping, value after the last step
    logits                            step 0: [rows, outputs]; of the reference's head for answers [rows, 1], the starts
    losses losses_f64 grad_norm       [steps]
    step{k}/token_ids type_ids        [tokens], packed
    step{k}/cu_seqlens                [sequences + 1]
    step{k}/rows bounds               packed rows that the head reads; where they are cut into groups
    step{k}/targets                   classes [rows] (4294967295: none), labels [rows, outputs], values [rows], choices
                                      [groups], or first and last row of each group [groups, 2]

Metadata, each a JSON string: config, head (name, kind, head, outputs, crf, span_width), hyperparameters (with
layerwise_lr_decay, class_weights, label_smoothing).

The losses are transformers' own where its classes have them, else PyTorch's functions. Windows of question answering
run one by one: transformers' loss would count padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ElectraForMultipleChoice,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)

import electra_reference as er

VOCAB, CLS, SEP, FIRST_WORD = 30, 2, 3, 5
LAYERS, HIDDEN, STEPS, NONE = 2, 16, 10, 2**32 - 1
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "embedding_size": 8, "hidden_size": HIDDEN, "num_attention_heads": 2, "intermediate_size": 24,
    "num_hidden_layers": LAYERS, "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "summary_last_dropout": 0.0,
}  # fmt: skip
HYPER: dict[str, Any] = {
    "learning_rate": 1e-3, "num_warmup_steps": 2, "num_train_steps": STEPS, "weight_decay_rate": 0.01,
    "layerwise_lr_decay": 0.8, "class_weights": None, "label_smoothing": 0.0,
}  # fmt: skip


class Crf(nn.Module):
    def __init__(self, tags: int):
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.start_transitions = nn.Parameter(torch.zeros(tags))
        self.end_transitions = nn.Parameter(torch.zeros(tags))

    def loss(self, emissions: Tensor, path: Tensor) -> Tensor:
        score = self.start_transitions[path[0]] + emissions[0, path[0]]
        alpha = self.start_transitions + emissions[0]
        for i in range(1, len(path)):
            score = score + self.transitions[path[i - 1], path[i]] + emissions[i, path[i]]
            alpha = torch.logsumexp(alpha[:, None] + self.transitions, 0) + emissions[i]
        return torch.logsumexp(alpha + self.end_transitions, 0) - score - self.end_transitions[path[-1]]


class PairScore(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense, self.output = nn.Linear(2 * HIDDEN, width), nn.Linear(width, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.output(F.gelu(self.dense(torch.cat([first, second], -1)))).squeeze(-1)


class GoogleSpans(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.start, self.end, self.answerable = nn.Linear(HIDDEN, 1), PairScore(width), PairScore(width)


class GoogleModel(nn.Module):
    def __init__(self, config: Any, head: dict[str, Any]):
        super().__init__()
        self.electra = ElectraModel(config)
        if head["kind"] == "question_answering":
            self.google_spans = GoogleSpans(head["span_width"])
        else:
            self.google_classifier = nn.Linear(HIDDEN, head["outputs"])


class Tagger(ElectraForTokenClassification):
    """With a conditional random field on top."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.crf = Crf(config.num_labels)


Batch = dict[str, np.ndarray]


@dataclass
class Family:
    kind: str
    outputs: int
    loss: Callable[..., tuple[Tensor, Tensor]]
    model: Any
    head: str = "hf"
    crf: bool = False
    span_width: int = 512
    hyper: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def draw_batch(family: Family, rng: np.random.Generator) -> Batch:
    """Sequences of 4 to 14 tokens; the choices of multiple choice come in twos and threes."""
    groups = [2, 3, 2] if family.kind == "multiple_choice" else [1] * 5
    ids, types, rows, bounds, targets = [], [], [], [0], []
    cu = [0]
    for group in groups:
        for _ in range(group):
            length = int(rng.integers(4, 15))
            words = rng.integers(FIRST_WORD, VOCAB, size=length)
            words[0], words[-1] = CLS, SEP
            segments = np.zeros(length, np.int64)
            if length >= 8:
                middle = int(rng.integers(2, length - 3))
                words[middle] = SEP
                segments[middle + 1 :] = 1
            start, inner = cu[-1], np.arange(1, length - 1)
            if family.kind == "tagging":
                own = np.sort(rng.choice(inner, size=max(1, inner.size * 2 // 3), replace=False))
            elif family.kind == "question_answering" and family.head == "google":
                own = np.concatenate([[0], inner])
            elif family.kind == "question_answering":
                own = np.arange(length)
            else:
                own = np.array([0])
            rows.extend(start + own)
            ids.append(words)
            types.append(segments)
            cu.append(start + length)
        size = len(rows) - bounds[-1]
        bounds.append(len(rows))
        if family.kind == "classification":
            targets.append(rng.integers(family.outputs))
        elif family.kind == "multi_label":
            targets.append(rng.integers(2, size=family.outputs))
        elif family.kind == "regression":
            targets.append(rng.normal())
        elif family.kind == "tagging":
            targets.extend(np.where(rng.random(size) < 0.15, NONE, rng.integers(family.outputs, size=size)))
        elif family.kind == "multiple_choice":
            targets.append(rng.integers(size))
        else:
            first, last = np.sort(rng.integers(1, size - 1, size=2)) if rng.random() < 0.7 else (0, 0)
            targets.append([first, last])
    return {
        "token_ids": np.concatenate(ids), "type_ids": np.concatenate(types), "cu_seqlens": np.array(cu),
        "rows": np.array(rows), "bounds": np.array(bounds),
        "targets": np.array(targets, np.float32 if family.kind == "regression" else np.int64),
    }  # fmt: skip


def padded(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of transformers' classes, and which positions are real."""
    lengths = np.diff(batch["cu_seqlens"])
    real = np.arange(lengths.max()) < lengths[:, None]
    rows = {name: np.zeros(real.shape, np.int64) for name in ("token_ids", "type_ids")}
    for name, array in rows.items():
        array[real] = batch[name]
    names = {"input_ids": "token_ids", "token_type_ids": "type_ids"}
    return {k: torch.from_numpy(rows[v]) for k, v in names.items()} | {"attention_mask": torch.from_numpy(real).long()}, torch.from_numpy(real)


def targets(batch: Batch) -> Tensor:
    return torch.from_numpy(batch["targets"])


def text_loss(model: nn.Module, batch: Batch, family: Family, hyper: dict[str, Any]) -> tuple[Tensor, Tensor]:
    inputs, _ = padded(batch)
    labels = targets(batch)
    if family.head == "google":
        logits = model.google_classifier(model.electra(**inputs).last_hidden_state[:, 0])
        return F.cross_entropy(logits, labels), logits
    if hyper["class_weights"]:
        logits = model(**inputs).logits
        weights = torch.tensor(hyper["class_weights"], dtype=logits.dtype)
        return F.cross_entropy(logits, labels, weights, label_smoothing=hyper["label_smoothing"]), logits
    if family.kind != "classification":
        labels = labels.to(next(model.parameters()).dtype)
    out = model(**inputs, labels=labels)
    return out.loss, out.logits


def tag_loss(model: nn.Module, batch: Batch, family: Family, _: dict[str, Any]) -> tuple[Tensor, Tensor]:
    inputs, real = padded(batch)
    rows, tags = torch.from_numpy(batch["rows"]), targets(batch)
    packed = torch.full((int(real.sum()),), -100)
    packed[rows] = torch.where(tags == NONE, -100, tags)
    labels = torch.full(real.shape, -100)
    labels[real] = packed
    if family.head == "google":
        logits = model.google_classifier(model.electra(**inputs).last_hidden_state[real][rows])
        return F.cross_entropy(logits, torch.where(tags == NONE, -100, tags)), logits
    out = model(**inputs, labels=labels)
    logits = out.logits[real][rows]
    if not family.crf:
        return out.loss, logits
    loss = logits.new_zeros(())
    for first, last in zip(batch["bounds"], batch["bounds"][1:]):
        kept = tags[first:last] != NONE
        if kept.any():
            loss = loss + model.crf.loss(logits[first:last][kept], tags[first:last][kept])
    return loss / (tags != NONE).sum(), logits


def choice_loss(model: nn.Module, batch: Batch, *_: Any) -> tuple[Tensor, Tensor]:
    losses, found = [], []
    inputs, _ = padded(batch)
    for first, last, target in zip(batch["bounds"], batch["bounds"][1:], targets(batch)):
        out = model(**{k: v[None, first:last] for k, v in inputs.items()}, labels=target[None])
        losses.append(out.loss)
        found.append(out.logits[0])
    return torch.stack(losses).mean(), torch.cat(found)[:, None]


def windows(batch: Batch) -> Any:
    cu, bounds = batch["cu_seqlens"], batch["bounds"]
    for i, target in enumerate(targets(batch)):
        tokens = slice(cu[i], cu[i + 1])
        inputs = {"input_ids": batch["token_ids"][tokens], "token_type_ids": batch["type_ids"][tokens]}
        rows = torch.from_numpy(batch["rows"][bounds[i] : bounds[i + 1]] - cu[i])
        yield {k: torch.from_numpy(v)[None] for k, v in inputs.items()}, rows, target


def span_loss(model: nn.Module, batch: Batch, family: Family, _: dict[str, Any]) -> tuple[Tensor, Tensor]:
    losses, found = [], []
    for inputs, rows, target in windows(batch):
        if family.head == "hf":
            out = model(**inputs, start_positions=target[None, 0], end_positions=target[None, 1])
            losses.append(out.loss)
            found.append(torch.stack([out.start_logits[0], out.end_logits[0]], -1))
            continue
        h, head = model.electra(**inputs).last_hidden_state[0][rows], model.google_spans
        start = head.start(h).squeeze(-1)
        end = head.end(h[target[0]].expand_as(h), h)
        impossible = head.answerable(h[0], torch.softmax(start, 0) @ h)
        wanted = torch.tensor(float(not target.any()), dtype=h.dtype)
        spans = F.cross_entropy(start, target[0]) + F.cross_entropy(end, target[1])
        losses.append(0.5 * spans + 0.5 * F.binary_cross_entropy_with_logits(impossible, wanted))
        found.append(start[:, None])
    return torch.stack(losses).mean(), torch.cat(found)


SEQUENCE, TOKEN = ElectraForSequenceClassification, ElectraForTokenClassification
FAMILIES = {
    "classification": Family("classification", 3, text_loss, SEQUENCE,
                             config={"problem_type": "single_label_classification"}),
    "classification_weighted": Family("classification", 3, text_loss, SEQUENCE,
                                      hyper={"class_weights": [0.5, 2.0, 1.0], "label_smoothing": 0.1}),
    "multi_label": Family("multi_label", 4, text_loss, SEQUENCE, config={"problem_type": "multi_label_classification"}),
    "regression": Family("regression", 1, text_loss, SEQUENCE, config={"problem_type": "regression"}),
    "tagging": Family("tagging", 5, tag_loss, TOKEN),
    "tagging_crf": Family("tagging", 4, tag_loss, Tagger, crf=True),
    "question_answering": Family("question_answering", 2, span_loss, ElectraForQuestionAnswering),
    "multiple_choice": Family("multiple_choice", 1, choice_loss, ElectraForMultipleChoice),
    "google_classification": Family("classification", 3, text_loss, None, head="google"),
    "google_tagging": Family("tagging", 5, tag_loss, None, head="google"),
    "google_question_answering": Family("question_answering", 2, span_loss, None, head="google", span_width=12),
}  # fmt: skip


def depth(name: str) -> int:
    if "encoder.layer." in name:
        return int(name.split("encoder.layer.")[1].split(".")[0]) + 1
    return 0 if "embeddings" in name else LAYERS + 1


def train(model: nn.Module, family: Family, batches: list[Batch], hyper: dict[str, Any]) -> dict[str, Any]:
    def arrays(what: str) -> dict[str, np.ndarray]:
        return {n: (p.grad if what == "grad" else p.data).numpy().copy() for n, p in model.named_parameters()}

    out: dict[str, Any] = {"param": arrays("data"), "losses": [], "grad_norm": []}
    optimizer = er.Optimizer(model, hyper["weight_decay_rate"], 1.0)
    # The optimizer takes one learning rate: steps of the whole, scaled tensor by tensor afterwards.
    factors = [hyper["layerwise_lr_decay"] ** (LAYERS + 1 - depth(n)) for n, _ in model.named_parameters()]
    for step, batch in enumerate(batches):
        loss, logits = family.loss(model, batch, family, hyper)
        loss.backward()
        if step == 0:
            out |= {"grad": arrays("grad"), "logits": logits.detach().numpy().copy()}
        before = [p.detach().clone() for p in optimizer.parameters]
        lr = er.learning_rate(step, hyper["learning_rate"], hyper["num_train_steps"], hyper["num_warmup_steps"])
        out["losses"].append(loss.item())
        out["grad_norm"].append(optimizer.step(lr))
        with torch.no_grad():
            for p, old, factor in zip(optimizer.parameters, before, factors):
                p.copy_(old + factor * (p - old))
    return out | {"final": arrays("data")}


def build(family: Family) -> tuple[nn.Module, Any]:
    config = er.config(**(SIZES | family.config), num_labels=family.outputs)
    head = {"kind": family.kind, "outputs": family.outputs, "span_width": family.span_width}
    return (GoogleModel(config, head) if family.head == "google" else family.model(config)).train(), config


def make(name: str, family: Family, path: Path, seed: int, draw_parameters: Any, save: Any) -> None:
    rng = np.random.default_rng(seed)
    hyper = HYPER | family.hyper
    batches = [draw_batch(family, rng) for _ in range(STEPS)]
    model, config = build(family)
    draw_parameters(model, rng)
    double = build(family)[0].double()
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    if family.kind == "regression":
        wide = [b | {"targets": b["targets"].astype(np.float64)} for b in batches]
    else:
        wide = batches
    f32, f64 = train(model, family, batches, hyper), train(double, family, wide, hyper)
    tensors = {f"{group}/{n}": a for group in ("param", "grad", "final") for n, a in f32[group].items()}
    for k, batch in enumerate(batches):
        for n, a in batch.items():
            tensors[f"step{k}/{n}"] = a if a.dtype.kind == "f" else a.astype(np.uint32)
    tensors |= {
        "logits": f32["logits"], "losses": np.array(f32["losses"], np.float32),
        "losses_f64": np.array(f64["losses"]), "grad_norm": np.array(f32["grad_norm"], np.float32),
    }  # fmt: skip
    head = {
        "name": name, "kind": family.kind, "head": family.head, "outputs": family.outputs, "crf": family.crf,
        "span_width": family.span_width,
    }  # fmt: skip
    written = {k: v for k, v in config.to_dict().items() if k in SIZES or k in ("model_type", "hidden_act", "layer_norm_eps")}
    save(tensors, path, {"config": written, "head": head, "hyperparameters": hyper})
    error = np.max(np.abs(np.array(f32["losses"]) - f64["losses"]) / np.abs(f64["losses"]))
    print(f"{path.name}: {path.stat().st_size} bytes, losses {f32['losses'][0]:.4f} .. {f32['losses'][-1]:.4f}, "
          f"f32 against f64 {error:.1e}")  # fmt: skip
