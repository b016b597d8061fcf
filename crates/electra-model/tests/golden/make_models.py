"""Writes a small model of every kind with transformers, in every form of weights, for
`tests/transformers.rs`.

    python make_models.py DIR
"""

import pathlib
import sys

import torch
import transformers
from transformers import ElectraConfig

HEADS = [
    "ForPreTraining",
    "ForMaskedLM",
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
]

out = pathlib.Path(sys.argv[1])
torch.manual_seed(1)
for head in HEADS:
    labels = 11 if "Classification" in head else 2
    config = ElectraConfig(
        vocab_size=50, embedding_size=8, hidden_size=12, num_attention_heads=3, intermediate_size=20,
        num_hidden_layers=2, max_position_embeddings=16, num_labels=labels,
    )
    model = getattr(transformers, "Electra" + head)(config)
    model.save_pretrained(out / head / "single")
    model.save_pretrained(out / head / "sharded", max_shard_size="3KB")
    for form, new in (("zip", True), ("legacy", False)):
        folder = out / head / form
        config.architectures = ["Electra" + head]
        config.save_pretrained(folder)
        # As releases before 4.31 saved it, with the buffers that are no longer stored.
        state = model.state_dict()
        prefix = "" if head == "Model" else "electra."
        state[prefix + "embeddings.position_ids"] = torch.arange(16).reshape(1, 16)
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
