"""Writes an untrained ElectraModel in the forms that the peers run, once; what is there already stays.

    python bench/peers/export_model.py --preset small --models DIR

DIR/PRESET gets `hf` (transformers), `full.onnx` and `masked.onnx` (without and with an attention mask, operators fused
by ONNX Runtime's own optimizer), the same `-int8` (dynamic quantization), `full.xml` and `masked.xml` (OpenVINO), and the
same `-int8` (NNCF, weights and activations).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import SIZES, SPECIAL, VOCABULARY
from transformers import ElectraConfig, ElectraModel

CALIBRATION = 32


class Full(torch.nn.Module):
    """Full-length batches: ids in, last hidden states out."""

    def __init__(self, model: ElectraModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).last_hidden_state


class Masked(Full):
    """Padded batches: ids and mask in, last hidden states out."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def load(dir: Path, attention: str) -> ElectraModel:
    return ElectraModel.from_pretrained(dir, attn_implementation=attention).eval()


def example(form: type[Full]) -> dict[str, torch.Tensor]:
    ids = torch.randint(SPECIAL, VOCABULARY, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    return {"input_ids": ids} if form is Full else {"input_ids": ids, "attention_mask": mask}


def write_onnx(hf: Path, form: type[Full], out: Path, sizes: dict[str, int]) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    inputs = example(form)
    axes = {name: {0: "sequences", 1: "length"} for name in [*inputs, "last_hidden_state"]}
    plain = out.with_suffix(".plain.onnx")
    with torch.no_grad():
        torch.onnx.export(
            form(load(hf, "eager")), tuple(inputs.values()), str(plain), input_names=list(inputs),
            output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    optimized = optimize_model(
        str(plain), model_type="bert", num_heads=sizes["num_attention_heads"], hidden_size=sizes["hidden_size"], opt_level=0
    )
    print(out.name, optimized.get_fused_operator_statistics(), file=sys.stderr)
    int8 = out.with_name(out.stem + "-int8.onnx")
    optimized.save_model_to_file(str(out))
    # The fused operators are ONNX Runtime's own, of which its shape inference does not know the type.
    types = {"DefaultTensorType": TensorProto.FLOAT}
    quantize_dynamic(str(out), str(int8), weight_type=QuantType.QInt8, per_channel=True, extra_options=types)
    plain.unlink()


def write_openvino(hf: Path, form: type[Full], out: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.convert_model(form(load(hf, "sdpa")), example_input=example(form))
    for port, name in zip(model.inputs, example(form)):
        port.get_tensor().set_names({name})
    model.reshape({port.get_any_name(): [-1, -1] for port in model.inputs})
    ov.save_model(model, out, compress_to_fp16=False)
    rng = np.random.default_rng(1)

    def sample(_: int) -> dict[str, Any]:
        ids = rng.integers(SPECIAL, VOCABULARY, size=(4, 64))
        return {"input_ids": ids} if form is Full else {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    quantized = nncf.quantize(
        model, nncf.Dataset(range(CALIBRATION), sample), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION
    )
    ov.save_model(quantized, out.with_name(out.stem + "-int8.xml"), compress_to_fp16=False)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=SIZES, default="small")
    p.add_argument("--models", type=Path, required=True)
    args = p.parse_args()
    done, sizes = args.models / args.preset, SIZES[args.preset]
    if done.exists():
        return
    dir = done.with_name(f"{args.preset}.part")
    shutil.rmtree(dir, ignore_errors=True)
    torch.manual_seed(0)
    ElectraModel(ElectraConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(dir / "hf")
    for form in (Full, Masked):
        name = form.__name__.lower()
        write_onnx(dir / "hf", form, dir / f"{name}.onnx", sizes)
        write_openvino(dir / "hf", form, dir / f"{name}.xml")
    dir.rename(done)


if __name__ == "__main__":
    main()
