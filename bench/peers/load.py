"""Times a peer from a model on disk to its first answer, in this process, with the libraries imported and the files cached.

    python bench/peers/load.py --models DIR --peer openvino --precision bf16 --seq 16 --threads 2

The forms are those that export_model.py wrote. OpenVINO compiles for the shape asked; with --cached it keeps what it compiled
in a folder, and reads that.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Callable

from measured import SIZES, add_repetitions, batches, peak_rss_bytes, settings, spread


def load_torch(args: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    import torch
    from transformers import ElectraModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    ids = torch.from_numpy(batches(args)[0].ids)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32

    def once() -> object:
        model = ElectraModel.from_pretrained(args.models / args.preset / "hf", dtype=dtype).eval()
        with torch.inference_mode():
            return model(input_ids=ids).last_hidden_state.float().numpy()

    return f"transformers, PyTorch {torch.__version__.split('+')[0]}", once


def load_onnxruntime(args: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    name = "full-int8.onnx" if args.precision == "int8" else "full.onnx"
    ids = batches(args)[0].ids

    def once() -> object:
        path = str(args.models / args.preset / name)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session.run(["last_hidden_state"], {"input_ids": ids})

    return f"ONNX Runtime {ort.__version__}", once


def load_openvino(args: argparse.Namespace) -> tuple[str, Callable[[], object]]:
    import openvino as ov

    core = ov.Core()
    if args.cached:
        core.set_property({"CACHE_DIR": str(args.models / args.preset / "cache")})
    name = "full-int8.xml" if args.precision == "int8" else "full.xml"
    ids = batches(args)[0].ids
    hint = "f32" if args.precision == "f32" else "bf16"
    options = {"INFERENCE_NUM_THREADS": args.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}

    def once() -> object:
        model = core.read_model(args.models / args.preset / name)
        model.reshape({"input_ids": list(ids.shape)})
        return core.compile_model(model, "CPU", options)({"input_ids": ids})

    return f"OpenVINO {ov.__version__.split('-')[0]}", once


PEERS = {"torch": load_torch, "onnxruntime": load_onnxruntime, "openvino": load_openvino}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, required=True)
    p.add_argument("--preset", choices=SIZES, default="small")
    p.add_argument("--peer", choices=PEERS, required=True)
    p.add_argument("--precision", choices=["f32", "bf16", "int8"], default="f32")
    p.add_argument("--cached", action="store_true")
    p.add_argument("--seq", type=int, default=16)
    p.add_argument("--threads", type=int, default=2)
    add_repetitions(p)
    p.set_defaults(batch=1, lengths=None, sorted=False)
    args = p.parse_args()

    name, once = PEERS[args.peer](args)
    for _ in range(2):
        once()
    seconds = []
    for _ in range(args.repetitions):
        begin = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begin)
    line = settings(args) | {"peer": name} | spread("ms", [1000 * s for s in seconds])
    print(json.dumps(line | {"peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
