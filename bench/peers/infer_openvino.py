"""Times OpenVINO on the model that export_model.py wrote: ids in, last hidden states out.

    python bench/peers/infer_openvino.py --models DIR --batch 32 --seq 128 --precision bf16 --threads 2 [--streams 2]

int8 is NNCF's quantization of weights and activations, with the rest in bf16 where the processor has it, or as --rest
says. Full batches run on a model of just their shape. With more than one stream as many batches are under way at a time, each on its share
of the threads: more tokens a second, and each batch takes longer (`ms` is the time of all divided by their number).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import openvino as ov
from measured import add_options, batches, repeat, report


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(p)
    p.add_argument("--models", type=Path, required=True)
    p.add_argument("--precision", choices=["f32", "f16", "bf16", "int8"], default="f32")
    p.add_argument("--rest", choices=["f32", "bf16"], default="bf16", help="of an int8 model")
    p.add_argument("--streams", type=int, default=1)
    args = p.parse_args()

    core = ov.Core()
    made = batches(args)
    full = all(batch.full for batch in made)
    name = ("full" if full else "masked") + ("-int8" if args.precision == "int8" else "")
    model = core.read_model(args.models / args.preset / f"{name}.xml")
    if len({batch.ids.shape for batch in made}) == 1:
        model.reshape({port.get_any_name(): list(made[0].ids.shape) for port in model.inputs})
    wanted = args.rest if args.precision == "int8" else args.precision
    named = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}[wanted]
    has_it = named in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "INFERENCE_NUM_THREADS": args.threads,
        "NUM_STREAMS": args.streams,
        "INFERENCE_PRECISION_HINT": wanted if has_it else "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    inputs = [{"input_ids": b.ids} | ({} if full else {"attention_mask": b.mask}) for b in made]
    if args.streams == 1:
        request = compiled.create_infer_request()

        def pass_over_all() -> None:
            for batch in inputs:
                request.infer(batch, share_inputs=True, share_outputs=True)
    else:
        queue = ov.AsyncInferQueue(compiled, args.streams)
        # One batch alone would leave the other streams without work.
        rounds = args.streams if len(inputs) == 1 else 1
        inputs, made = inputs * rounds, made * rounds

        def pass_over_all() -> None:
            for batch in inputs:
                queue.start_async(batch, share_inputs=True)
            queue.wait_all()

    version = ov.__version__.split("-")[0]
    report(f"OpenVINO {version}", args, made, repeat(pass_over_all, args))


if __name__ == "__main__":
    main()
