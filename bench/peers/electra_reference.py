"""The published ELECTRA recipe over PyTorch and transformers: networks, objective, optimizer, schedule.

Imported by `pretrain.py`, `pretrain_step.py` and `tests/golden/make_golden.py`; runs nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

SHARING = ("embeddings", "none", "all")


class Pair(nn.Module):
    """Discriminator and generator; a shared tensor is one parameter under both names.

    `sharing`: "embeddings" shares the three tables and their layer norm, "none" nothing, "all" the whole
    encoder. The language-model head always uses the generator's word embeddings. Without a generator
    (`uniform_generator`) only the discriminator exists.
    """

    def __init__(self, discriminator: ElectraConfig, generator: ElectraConfig | None, sharing: str = "embeddings"):
        super().__init__()
        assert sharing in SHARING
        self.discriminator = ElectraForPreTraining(discriminator)
        self.generator = ElectraForMaskedLM(generator) if generator is not None else None
        if self.generator is None:
            return
        if sharing == "all":
            self.generator.electra = self.discriminator.electra
        elif sharing == "embeddings":
            self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.generator.electra.embeddings.word_embeddings.weight

    def shared_names(self) -> dict[str, str]:
        """Second name of a shared tensor -> the name it is stored under."""
        owner: dict[int, str] = {}
        shared: dict[str, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if id(parameter) in owner:
                shared[name] = owner[id(parameter)]
            owner.setdefault(id(parameter), name)
        return shared


@dataclass
class Padded:
    """Sequences in rows: ids, types and a mask that is true at real tokens, each [sequences, longest]."""

    ids: Tensor
    types: Tensor
    real: Tensor

    def hidden(self, network: nn.Module) -> Tensor:
        """Last hidden states of the real tokens only, [tokens, hidden], in packed order."""
        mask = None if bool(self.real.all()) else self.real.long()
        out = network(input_ids=self.ids, attention_mask=mask, token_type_ids=self.types)
        return out.last_hidden_state[self.real]

    def replaced(self, packed_ids: Tensor) -> Padded:
        """The same sequences with other ids, given in packed order."""
        ids = self.ids.clone()
        ids[self.real] = packed_ids
        return Padded(ids, self.types, self.real)


def generator_logits(generator: ElectraForMaskedLM, batch: Padded, masked_rows: Tensor) -> Tensor:
    """[masked rows, vocabulary]; rows count real tokens in packed order."""
    hidden = batch.hidden(generator.electra)[masked_rows]
    return generator.generator_lm_head(generator.generator_predictions(hidden))


def discriminator_logits(discriminator: ElectraForPreTraining, batch: Padded) -> Tensor:
    """[tokens]"""
    return discriminator.discriminator_predictions(batch.hidden(discriminator.electra))


def mlm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the masked rows of the whole batch."""
    return F.cross_entropy(logits, targets)


def rtd_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all real tokens of the whole batch, [CLS] and [SEP] too."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def learning_rate(step: int, peak: float, total: int, warmup: int) -> float:
    """Linear decay times linear warm-up; zero at step 0."""
    return peak * (1.0 - step / total) * min(1.0, step / max(1, warmup))


class Optimizer:
    """Adam without bias correction, epsilon outside the root, decay added to the update, clipped by global norm."""

    beta1, epsilon = 0.9, 1e-6

    def __init__(self, model: nn.Module, weight_decay: float = 0.01, clip: float = 1.0, beta2: float = 0.999):
        self.beta2 = beta2
        named = list(model.named_parameters())
        self.clip = clip
        self.parameters = [p for _, p in named]
        self.decays = [0.0 if n.endswith("bias") or "LayerNorm" in n else weight_decay for n, _ in named]
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Applies and drops the gradients; returns their norm before clipping."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()
        if norm > self.clip:
            grads = torch._foreach_mul(grads, self.clip / norm)
        torch._foreach_lerp_(self.m, grads, 1.0 - self.beta1)
        torch._foreach_mul_(self.v, self.beta2)
        torch._foreach_addcmul_(self.v, grads, grads, 1.0 - self.beta2)
        denominator = torch._foreach_sqrt(self.v)
        torch._foreach_add_(denominator, self.epsilon)
        update = torch._foreach_div(self.m, denominator)
        torch._foreach_add_(update, torch._foreach_mul(self.parameters, self.decays))
        torch._foreach_add_(self.parameters, update, alpha=-lr)
        for p in self.parameters:
            p.grad = None
        return norm


def config(**overrides: Any) -> ElectraConfig:
    """ELECTRA's configuration with eager attention unless told otherwise."""
    return ElectraConfig(**{"attn_implementation": "eager", **overrides})


@torch.no_grad()
def initialize(pair: Pair, std: float = 0.02) -> None:
    """Truncated normal weights, Glorot uniform projections into and out of the encoder, zero biases."""
    for name, p in pair.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif "LayerNorm" in name:
            p.fill_(1.0)
        elif "embeddings_project" in name or "dense_prediction" in name:
            nn.init.xavier_uniform_(p)
        else:
            nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)
