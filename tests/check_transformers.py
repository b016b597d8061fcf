"""Loads model directories with transformers and insists that nothing is missing or left over.

    python tests/check_transformers.py DIR...

For each directory: the class named in its config.json loads every tensor (no missing, unexpected
or mismatched keys), every value is finite, and transformers would write the same tensors and
the same values in config.json again. AutoTokenizer loads where there is a
tokenizer, with ELECTRA's special tokens, no larger than the word table. Exits with 1 at the first directory that fails.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def check(folder: pathlib.Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (name,) = config["architectures"]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(what), f"{what}: {sorted(report[what])}"
    for key, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), f"{key} is not finite"

    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        theirs = json.loads((pathlib.Path(again) / "config.json").read_text())
        # Which keys are written at all differs from release to release.
        for key in (theirs.keys() & config.keys()) - {"transformers_version"}:
            assert config[key] == theirs[key], (
                f"config.json: {key} is {config[key]!r}, transformers writes {theirs[key]!r}"
            )
        if (folder / "model.safetensors").exists():
            from safetensors.torch import load_file

            ours, theirs = (load_file(pathlib.Path(d) / "model.safetensors") for d in (folder, again))
            assert ours.keys() == theirs.keys(), f"tensors: {sorted(ours.keys() ^ theirs.keys())}"
            for key in ours:
                assert torch.equal(ours[key].float(), theirs[key].float()), f"{key} changed"

    text = f"{name}, {sum(p.numel() for p in model.parameters())} parameters"
    if any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        specials = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token]
        assert specials == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], f"special tokens are {specials}"
        assert len(tokenizer) <= model.config.vocab_size, "the tokenizer has more tokens than the word table"
        ids = tokenizer("a b")["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id), f"'a b' became {ids}"
        text += f", {type(tokenizer).__name__} of {len(tokenizer)} tokens"
    return text


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for folder in map(pathlib.Path, sys.argv[1:]):
        try:
            print(f"{folder}: {check(folder)}")
        except Exception as error:  # whatever it is, the directory failed
            sys.exit(f"{folder}: {type(error).__name__}: {error}")
