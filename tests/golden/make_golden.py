"""Makes the golden files beside this script: training traces and tiny Hugging Face model directories.

    python tests/golden/make_golden.py                  # everything
    python tests/golden/make_golden.py trace trace_tied # some of it; the directories are `tiny`, `finetune` all of those
    python tests/golden/make_golden.py --out DIR        # elsewhere, to compare: tests/check_golden.py

Needs bench/peers/requirements.txt. Everything is drawn from fixed seeds.

A trace is a pre-training run of ten steps with dropout off and given batches, one safetensors file:

    param/NAME grad/NAME final/NAME   initial value, gradient at step 0 before clipping, value after the last step;
                                      a shared tensor once, the second name -> stored name in metadata `shared`
    logits/generator                  [masked rows, vocabulary], step 0
    logits/discriminator              [tokens], step 0
    losses losses_f64                 [steps, 3]: total, mlm, rtd
    grad_norm                         [steps], before clipping
    step{k}/token_ids original_ids type_ids   [tokens], packed; what the generator reads, the text, the types
    step{k}/cu_seqlens                [sequences + 1]
    step{k}/masked_rows targets sampled       [masked rows]: packed row, true id, given sample of the generator

Metadata, each a JSON string: generator_config, discriminator_config, hyperparameters, shared, and f32_error, the
distance of this f32 run from the same run in f64 (losses, gradients, changes), which bounds what a test can ask.

The directories: `tiny-discriminator`, `tiny-generator` as transformers saves them, each with `expected.safetensors`
(packed token_ids, type_ids, offsets, cu_seqlens, hidden, logits; metadata `texts`: pairs of first and second text);
`-zip` and `-legacy` hold the same model as a PyTorch `.bin`, `-sharded` as several safetensors.

Traces of fine-tuning, `finetune_FAMILY.safetensors`: see finetune_traces.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import ElectraTokenizer

HERE = Path(__file__).resolve().parent
OUT = HERE
sys.path.insert(0, str(HERE.parents[1] / "bench" / "peers"))
import electra_reference as er  # noqa: E402

import finetune_traces  # noqa: E402

VOCAB, PAD, CLS, SEP, MASK, FIRST_WORD = 120, 0, 2, 3, 4, 5
HYPER = {
    "gen_weight": 1.0, "disc_weight": 50.0, "learning_rate": 1e-3, "num_warmup_steps": 2, "num_train_steps": 10,
    "lr_decay_power": 1.0, "weight_decay_rate": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-6,
    "clip_norm": 1.0, "dropout": 0.0, "mask_prob": 0.15,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "max_position_embeddings": 32, "type_vocab_size": 2, "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LARGE = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80}
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 56}


@dataclass
class Trace:
    seed: int
    sharing: str
    discriminator: dict[str, Any]
    generator: dict[str, Any]
    common: dict[str, Any] = field(default_factory=dict)


TRACES = {
    "trace": Trace(1, "embeddings", LARGE | {"embedding_size": 24}, SMALL | {"embedding_size": 24}),
    "trace_untied": Trace(2, "none", LARGE | {"embedding_size": 48}, SMALL | {"embedding_size": 32},
                          {"hidden_act": "gelu_new"}),
    "trace_tied": Trace(3, "all", LARGE | {"embedding_size": 24}, LARGE | {"embedding_size": 24}),
}  # fmt: skip


def draw_batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Six sequences of 3 to 20 tokens, one or two segments, about 15% masked, a third of the samples correct."""
    lengths = rng.permutation(np.concatenate([[3, 20], rng.integers(4, 20, size=4)]))
    ids, types, masked = [], [], []
    start = 0
    for length in lengths:
        words = rng.integers(FIRST_WORD, VOCAB, size=length)
        words[0], words[-1] = CLS, SEP
        segments = np.zeros(length, np.int64)
        if length >= 8:
            end = int(rng.integers(3, length - 3))
            words[end] = SEP
            segments[end + 1 :] = 1
        candidates = np.flatnonzero((words != CLS) & (words != SEP))
        count = max(1, round(length * HYPER["mask_prob"]))
        masked.append(start + np.sort(rng.choice(candidates, size=count, replace=False)))
        ids.append(words)
        types.append(segments)
        start += length
    original, rows = np.concatenate(ids), np.concatenate(masked)
    targets = original[rows]
    token_ids = original.copy()
    token_ids[rows] = np.where(rng.random(rows.size) < 0.85, MASK, targets)
    sampled = np.where(rng.random(rows.size) < 0.35, targets, rng.integers(FIRST_WORD, VOCAB, size=rows.size))
    return {
        "token_ids": token_ids, "original_ids": original, "type_ids": np.concatenate(types),
        "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]),
        "masked_rows": rows, "targets": targets, "sampled": sampled,
    }  # fmt: skip


def pad(batch: dict[str, np.ndarray], ids: np.ndarray) -> er.Padded:
    """Packed ids as padded rows."""
    cu = batch["cu_seqlens"]
    lengths = np.diff(cu)
    real = np.arange(lengths.max()) < lengths[:, None]
    rows = {name: np.zeros(real.shape, np.int64) for name in ("ids", "types")}
    rows["ids"][real], rows["types"][real] = ids, batch["type_ids"]
    return er.Padded(torch.from_numpy(rows["ids"]), torch.from_numpy(rows["types"]), torch.from_numpy(real))


def draw_parameters(pair: torch.nn.Module, rng: np.random.Generator) -> None:
    """Wide enough that no gradient is degenerate: every bias non-zero, every layer-norm weight its own."""
    for name, p in pair.named_parameters():
        normal = rng.standard_normal(tuple(p.shape))
        if "LayerNorm.weight" in name:
            value = 1.0 + 0.2 * normal
        elif name.endswith("bias"):
            value = 0.1 * normal
        else:
            value = (0.5 if "embeddings.weight" in name else 0.15) * normal
        p.data.copy_(torch.from_numpy(value.astype(np.float32)))


def arrays(pair: torch.nn.Module, what: str) -> dict[str, np.ndarray]:
    return {n: (p.grad if what == "grad" else p.data).numpy().copy() for n, p in pair.named_parameters()}


def train(pair: er.Pair, batches: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Runs the steps; keeps what a trace stores."""
    out: dict[str, Any] = {"param": arrays(pair, "data"), "losses": [], "grad_norm": []}
    optimizer = er.Optimizer(pair, HYPER["weight_decay_rate"], HYPER["clip_norm"])
    for step, batch in enumerate(batches):
        rows, targets, sampled = (torch.from_numpy(batch[k]) for k in ("masked_rows", "targets", "sampled"))
        original = torch.from_numpy(batch["original_ids"])
        masked = pad(batch, batch["token_ids"])
        gen = er.generator_logits(pair.generator, masked, rows)
        corrupted = original.clone()
        corrupted[rows] = sampled
        disc = er.discriminator_logits(pair.discriminator, masked.replaced(corrupted))
        mlm, rtd = er.mlm_loss(gen, targets), er.rtd_loss(disc, corrupted != original)
        total = HYPER["gen_weight"] * mlm + HYPER["disc_weight"] * rtd
        total.backward()
        if step == 0:
            whole = pair.generator(masked.ids, attention_mask=masked.real.long(), token_type_ids=masked.types)
            torch.testing.assert_close(whole.logits[masked.real][rows], gen)
            out |= {"grad": arrays(pair, "grad"), "generator": gen.detach().numpy(), "discriminator": disc.detach().numpy()}
        lr = er.learning_rate(step, HYPER["learning_rate"], HYPER["num_train_steps"], HYPER["num_warmup_steps"])
        out["losses"].append([total.item(), mlm.item(), rtd.item()])
        out["grad_norm"].append(optimizer.step(lr))
    return out | {"final": arrays(pair, "data")}


def f32_error(f32: dict[str, Any], f64: dict[str, Any]) -> dict[str, float]:
    """Largest deviations of f32 from f64; key biases (true gradient zero) apart."""
    names = [n for n in f64["grad"] if not n.endswith("key.bias")]
    keys = [n for n in f64["grad"] if n.endswith("key.bias")]
    change = {n: (f32["final"][n].astype(np.float64) - f32["param"][n], f64["final"][n] - f64["param"][n]) for n in names}
    losses = np.array(f64["losses"])
    return {
        "losses_relative": float(np.max(np.abs(np.array(f32["losses"]) - losses) / losses)),
        "grad_over_max": max(float(np.abs(f32["grad"][n] - f64["grad"][n]).max() / np.abs(f64["grad"][n]).max()) for n in names),
        "grad_key_bias": max(float(np.abs(f32["grad"][n]).max()) for n in keys),
        "change_relative_l2": max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in change.values()),
    }  # fmt: skip


def save(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, Any]) -> None:
    """A safetensors file whose metadata stand in order, so that the same values make the same bytes."""
    save_file(tensors, path, {k: json.dumps(v, ensure_ascii=True) for k, v in metadata.items()})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    assert len(text) == size
    path.write_bytes(data[:8] + text + data[8 + size :])


def full(config: Any) -> dict[str, Any]:
    """Every key of the configuration, defaults too."""
    return json.loads(config.to_json_string(use_diff=False))


def make_trace(name: str, spec: Trace) -> None:
    rng = np.random.default_rng(spec.seed)
    batches = [draw_batch(rng) for _ in range(HYPER["num_train_steps"])]
    configs = [er.config(**(COMMON | spec.common | part)) for part in (spec.discriminator, spec.generator)]
    pair = er.Pair(configs[0], configs[1], spec.sharing).train()
    draw_parameters(pair, rng)
    double = er.Pair(configs[0], configs[1], spec.sharing).train().double()
    double.load_state_dict({k: v.double() for k, v in pair.state_dict().items()})
    f32, f64 = train(pair, batches), train(double, batches)
    error = f32_error(f32, f64)

    tensors = {f"{group}/{n}": a for group in ("param", "grad", "final") for n, a in f32[group].items()}
    tensors |= {f"step{k}/{n}": a.astype(np.uint32) for k, batch in enumerate(batches) for n, a in batch.items()}
    tensors |= {
        "logits/generator": f32["generator"], "logits/discriminator": f32["discriminator"],
        "losses": np.array(f32["losses"], np.float32), "losses_f64": np.array(f64["losses"]),
        "grad_norm": np.array(f32["grad_norm"], np.float32),
    }  # fmt: skip
    metadata = {
        "discriminator_config": full(configs[0]), "generator_config": full(configs[1]),
        "hyperparameters": HYPER, "shared": pair.shared_names(), "f32_error": error,
    }  # fmt: skip
    path = OUT / f"{name}.safetensors"
    save(tensors, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, losses {f32['losses'][0]} .. {f32['losses'][-1]}, "
          f"grad norms {f32['grad_norm'][0]:.3f} .. {f32['grad_norm'][-1]:.3f}, f32 against f64 {error}")  # fmt: skip


LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = """the a of and in on to is was it old new small big red blue river stone boat tree house wind night morning
water bird song road walk sing sleep ##ing ##ed ##er ##s ##ly 12 7""".split()
PIECES = [*LETTERS, *(f"##{c}" for c in LETTERS)]
# A vocabulary has each token once: a letter that is a word too keeps its place but not its name.
PIECES = [f"[unused{i}]" if piece in WORDS else piece for i, piece in enumerate(PIECES)]
TINY_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'-", *PIECES, *WORDS]
TINY_TEXTS: list[tuple[str, str | None]] = [
    ("The old boat sleeps on the river.", None),
    ("A small bird [MASK] in the tree, and it was [MASK]!", None),
    ("Café Wind, NAÏVE singers", "It is morning."),
    ("水", None),
    ("It's 12 stones - 7 [MASK] boats?", "the night walked slowly to the house of the new red road"),
]


def make_tiny() -> None:
    """A pair as pre-training exports it, in every form that an import meets."""
    rng = np.random.default_rng(4)
    common = {
        "vocab_size": len(TINY_VOCAB), "embedding_size": 16, "max_position_embeddings": 40, "num_hidden_layers": 2,
        "type_vocab_size": 2,
    }  # fmt: skip
    discriminator = er.config(**common, hidden_size=24, num_attention_heads=3, intermediate_size=44)
    generator = er.config(**common, hidden_size=12, num_attention_heads=2, intermediate_size=20)
    pair = er.Pair(discriminator, generator).eval()
    draw_parameters(pair, rng)
    for kind, model in (("discriminator", pair.discriminator), ("generator", pair.generator)):
        folder = OUT / f"tiny-{kind}"
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("".join(f"{w}\n" for w in TINY_VOCAB), "utf-8")
        tokenizer = ElectraTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=40)
        tokenizer.save_pretrained(folder)
        save_expected(kind, model, tokenizer, folder / "expected.safetensors")
        save_bin(kind, model)
    pair.discriminator.save_pretrained(OUT / "tiny-discriminator-sharded", max_shard_size="12KB")


@torch.no_grad()
def save_expected(kind: str, model: Any, tokenizer: Any, path: Path) -> None:
    """Token ids, types, offsets (in characters), last hidden states and logits of TINY_TEXTS, packed."""
    found: dict[str, list[np.ndarray]] = {k: [] for k in ("token_ids", "type_ids", "offsets", "hidden", "logits")}
    for first, second in TINY_TEXTS:
        encoded = tokenizer(first, second, return_offsets_mapping=True, return_tensors="pt")
        inputs = {k: encoded[k] for k in ("input_ids", "token_type_ids", "attention_mask")}
        found["token_ids"].append(encoded["input_ids"][0].numpy().astype(np.uint32))
        found["type_ids"].append(encoded["token_type_ids"][0].numpy().astype(np.uint32))
        found["offsets"].append(encoded["offset_mapping"][0].numpy().astype(np.uint32))
        found["hidden"].append(model.electra(**inputs).last_hidden_state[0].numpy())
        found["logits"].append(model(**inputs).logits[0].numpy())
    lengths = [ids.size for ids in found["token_ids"]]
    tensors = {k: np.concatenate(v) for k, v in found.items()}
    tensors["cu_seqlens"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    save(tensors, path, {"kind": kind, "texts": TINY_TEXTS})
    print(f"{path.parent.name}: {lengths} tokens, logits {tensors['logits'].min():.3f} .. {tensors['logits'].max():.3f}")


def save_bin(kind: str, model: Any) -> None:
    """PyTorch's zip form and its older one, each with the stray buffer that old checkpoints carry."""
    state = dict(model.state_dict()) | {"electra.embeddings.position_ids": torch.arange(40).expand((1, -1))}
    for form, zipped in (("zip", True), ("legacy", False)):
        folder = OUT / f"tiny-{kind}-{form}"
        model.config.save_pretrained(folder)
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def main() -> None:
    global OUT
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("wanted", nargs="*", help="what to make [default: everything]")
    p.add_argument("--out", type=Path, default=HERE)
    args = p.parse_args()
    wanted, OUT = args.wanted, args.out
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, spec in TRACES.items():
        if not wanted or name in wanted:
            make_trace(name, spec)
    if not wanted or "tiny" in wanted:
        make_tiny()
    for seed, (family, spec) in enumerate(finetune_traces.FAMILIES.items(), start=20):
        name = f"finetune_{family}"
        if not wanted or name in wanted or "finetune" in wanted:
            finetune_traces.make(family, spec, OUT / f"{name}.safetensors", seed, draw_parameters, save)


if __name__ == "__main__":
    main()
