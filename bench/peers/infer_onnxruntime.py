"""Times ONNX Runtime on the model that export_model.py wrote: ids in, last hidden states out.

    python bench/peers/infer_onnxruntime.py --models DIR --batch 32 --seq 128 --precision int8 --threads 2

int8 is dynamic quantization, weights per channel. Full batches run on the faster of the forms with and without a mask.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Callable

import onnxruntime as ort
from measured import add_options, batches, repeat, report


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p)
    p.add_argument("--models", type=Path, required=True)
    p.add_argument("--precision", choices=["f32", "int8"], default="f32")
    args = p.parse_args()

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    made = batches(args)

    def passes(form: str) -> Callable[[], None]:
        path = args.models / args.preset / (form + ("-int8.onnx" if args.precision == "int8" else ".onnx"))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [{"input_ids": b.ids} | ({"attention_mask": b.mask} if form == "masked" else {}) for b in made]

        def pass_over_all() -> None:
            for batch in inputs:
                session.run(["last_hidden_state"], batch)

        return pass_over_all

    # Attention is fused only where there is a mask: with full batches either form may be the faster.
    forms = ["masked", "full"] if all(batch.full for batch in made) else ["masked"]
    candidates = [passes(form) for form in forms]
    fastest = min(candidates, key=time_of) if len(candidates) > 1 else candidates[0]
    report(f"ONNX Runtime {ort.__version__}", args, made, repeat(fastest, args))


def time_of(run: Callable[[], None]) -> float:
    """Seconds of the fastest of three warm passes."""
    run()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
