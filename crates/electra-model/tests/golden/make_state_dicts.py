"""Writes the small PyTorch files that `tests/pytorch_files.rs` reads.

    python make_state_dicts.py          # into the folder of this script; needs torch

The values are formulas, so that the test states them again: element i of a tensor is (i - 4) / 8,
exact in every floating type.
"""

import os
import pathlib
from collections import OrderedDict

import torch

HERE = pathlib.Path(__file__).parent


def ramp(n, dtype=torch.float32):
    return ((torch.arange(n, dtype=torch.float64) - 4) / 8).to(dtype)


def state_dict():
    grid = ramp(12).reshape(3, 4)
    tied = ramp(6).reshape(2, 3)
    state = OrderedDict()
    state["plain"] = grid.clone()
    state["transposed"] = grid.t()
    state["column"] = grid[:, 1]
    state["rows_from_1"] = grid[1:]
    state["tied_a"] = tied
    state["tied_b"] = tied
    state["parameter"] = torch.nn.Parameter(ramp(2))
    state["half"] = ramp(5, torch.float16)
    state["bfloat"] = ramp(5, torch.bfloat16)
    state["double"] = ramp(5, torch.float64)
    state["position_ids"] = torch.arange(4).reshape(1, 4)
    state["bytes"] = torch.arange(4, dtype=torch.uint8)
    state["flags"] = torch.tensor([True, False])
    state["scalar"] = torch.tensor(0.5)
    state["empty"] = torch.zeros(0, 4)
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


class Runs:
    """Would run a command in a reader that executes what it reads."""

    def __reduce__(self):
        return os.system, ("echo this was executed",)


torch.save(state_dict(), HERE / "zip.bin")
torch.save(state_dict(), HERE / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state_dict": state_dict()}, HERE / "nested.bin")
torch.save({"a": torch.zeros(1), "b": Runs()}, HERE / "executes.bin")


def without_source(_):
    raise OSError("the file would hold torch's source and where it lies")


torch.serialization.get_source_lines_and_file = without_source
torch.save(torch.nn.Linear(1, 1), HERE / "module.bin", _use_new_zipfile_serialization=False)
