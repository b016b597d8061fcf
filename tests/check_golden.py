"""Makes the golden files anew in a directory of their own and compares them with those that are committed.

    python tests/check_golden.py [DIR]

Every tensor must have the same name, type and shape; integers must be equal, and floating-point values within 5e-6
of the tensor's greatest value (two instruction sets differ by up to 1e-6 in a gradient; of a change over ten optimizer
steps the bound is 1e-4, since a step divides by the root of small numbers). JSON files must be equal. Exits with 1 and names the first file and tensor that differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
BOUND = 5e-6
BOUND_OF_CHANGE = 1e-4


def tensors(path: Path) -> dict[str, np.ndarray]:
    """What a file holds, values after training as changes."""
    if path.suffix == ".bin":
        return {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}
    found = load_file(path)
    for name in [n for n in found if n.startswith("final/")]:
        found[name] = found[name] - found["param/" + name.removeprefix("final/")]
    return found


def compare(made: Path, committed: Path) -> float:
    """Greatest deviation as a share of its bound."""
    if made.suffix in (".json", ".txt"):
        same = made.read_bytes() == committed.read_bytes() or (
            made.suffix == ".json" and json.loads(made.read_text()) == json.loads(committed.read_text())
        )
        assert same, "the contents differ"
        return 0.0
    ours, theirs = tensors(made), tensors(committed)
    assert ours.keys() == theirs.keys(), f"other tensors: {sorted(ours.keys() ^ theirs.keys())}"
    worst = 0.0
    for name, a in ours.items():
        b = theirs[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{name}: {a.dtype} {a.shape}, committed {b.dtype} {b.shape}"
        if a.dtype.kind != "f":
            assert np.array_equal(a, b), f"{name}: other integers"
            continue
        bound = BOUND_OF_CHANGE if name.startswith("final/") else BOUND
        # Where the gradient is zero, as of a key bias, what is stored is rounding.
        kind, _, tensor = name.partition("/")
        zero = kind in ("grad", "final") and float(np.abs(theirs[f"grad/{tensor}"]).max()) < 1e-6
        scale = 1.0 if zero else float(np.abs(b).max())
        share = float(np.abs(a - b).max()) / (bound * max(scale, 1e-30))
        assert share <= 1, f"{name}: differs by {share * bound:.2g} of its greatest value, more than {bound:.0e}"
        worst = max(worst, share)
    return worst


def main(out: Path) -> None:
    script = GOLDEN / "make_golden.py"
    subprocess.run([sys.executable, script, "--out", out], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    committed = sorted(p.relative_to(GOLDEN) for p in GOLDEN.rglob("*") if p.suffix in (".safetensors", ".bin", ".json", ".txt"))
    if files != committed:
        sys.exit(f"other files: {sorted(map(str, set(files) ^ set(committed)))}")
    worst = 0.0
    for file in files:
        try:
            worst = max(worst, compare(out / file, GOLDEN / file))
        except AssertionError as error:
            sys.exit(f"tests/golden/{file}: {error}")
    print(f"{len(files)} golden files are as committed; greatest deviation {worst:.3f} of its bound")


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            main(Path(sys.argv[1]))
        else:
            with tempfile.TemporaryDirectory() as folder:
                main(Path(folder))
    except subprocess.CalledProcessError as error:
        sys.exit(f"make_golden.py failed:\n{error.stderr.decode(errors='replace')}")
