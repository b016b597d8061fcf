"""Runs electra and its peers in turn and writes the table; started by compare.sh, which builds both.

Each row is measured in rounds: ours, then each peer, each in a process of its own that warms up and gives the median of a
few repetitions; then the next round. The table has the median and the range over the rounds, and as ratio the median of
the rounds' ratios. Finished measurements are kept in $ELECTRA_BENCH_DIR/measurements.jsonl and hold for one machine, one
build of electra, one set of peers and of these scripts, and one number of threads.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

PEERS = Path(__file__).parent / "peers"
WORK = Path(os.environ.get("ELECTRA_BENCH_DIR", Path.home() / ".cache/electra-bench"))
DATA = Path(os.environ.get("ELECTRA_BENCH_DATA", Path(__file__).parent / "../../shared/data"))
VOCABULARY = DATA / "vocab/bert-base-uncased.txt"
MODELS = WORK / "models"
# Tokens of each sentence of SST-2's development set in its order, cut by BERT's uncased vocabulary, [CLS] and [SEP]
# counted; and of some batches of them where a whole pass would take a peer too long.
LENGTHS, LENGTHS_OF_SOME = PEERS / "sst2-dev.lengths", WORK / "sst2-dev-some.lengths"
# Where the development data is not there: the text inside the binary, and a tokenizer trained on it.
EMBEDDED = WORK / "embedded"
BATCH, SOME = 32, 8
PACKAGES = ["torch", "transformers", "onnxruntime", "openvino", "nncf", "tokenizers", "datasets"]
# Of the processors' time taken by others while nothing of ours runs: above it a measurement means little.
BUSY = 0.05


@dataclass
class Row:
    """One line of figures: our command and the peers' that do the same."""

    group: str
    name: str
    ours: list[str]
    peers: dict[str, list[str]] = field(default_factory=dict)
    target: str = ""
    measure: str = "tokens_per_s"
    models: str | None = None

    @property
    def less_is_better(self) -> bool:
        return self.measure == "ms"


def cpu_flags() -> set[str]:
    """What the system says that the processor has; nothing where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


# Intel's processors whose matrix unit is hidden multiply bf16 slowly: peers may be better off with another type.
SLOW_BF16 = "avx512_fp16" in cpu_flags() and "amx_bf16" not in cpu_flags()


def openvino(precision: str, *options: str) -> list[str]:
    return ["infer_openvino.py", "--models", str(MODELS), "--precision", precision, *options]


def onnxruntime(precision: str, *options: str) -> list[str]:
    return ["infer_onnxruntime.py", "--models", str(MODELS), "--precision", precision, *options]


def torch(precision: str, *options: str) -> list[str]:
    return ["infer_torch.py", "--precision", precision, *options]


def rows(threads: int) -> Iterator[Row]:
    def infer(batch: int, seq: int, precision: str, preset: str = "small") -> tuple[list[str], list[str]]:
        shape = ["--preset", preset, "--batch", str(batch), "--seq", str(seq)]
        return ["infer", *shape, "--precision", precision], shape

    streams = ["--streams", str(threads)]
    ours, shape = infer(32, 128, "f32")
    yield Row("infer", "infer 32×128 f32", ours, {
        "OpenVINO f32": openvino("f32", *shape), "OpenVINO f32, streams": openvino("f32", *shape, *streams),
        "ONNX Runtime f32": onnxruntime("f32", *shape), "PyTorch eager f32": torch("f32", *shape),
        "PyTorch compiled f32": torch("f32", "--compile", *shape),
    }, "8,500; ≥ 1.15× OpenVINO f32", models="small")  # fmt: skip
    ours, shape = infer(32, 128, "bf16")
    yield Row("infer", "infer 32×128 bf16", ours, {
        "OpenVINO bf16": openvino("bf16", *shape), "OpenVINO bf16, streams": openvino("bf16", *shape, *streams),
        "PyTorch eager bf16": torch("bf16", "--half-weights", *shape),
        "PyTorch compiled bf16": torch("bf16", "--half-weights", "--compile", *shape),
        **({"OpenVINO f16, streams": openvino("f16", *shape, *streams),
            "PyTorch eager f16": torch("f16", "--half-weights", *shape),
            "OpenVINO f32, streams": openvino("f32", *shape, *streams)} if SLOW_BF16 else {}),
    }, "17,000; ≥ 1.1× OpenVINO bf16; ≥ 80% of peak", models="small")  # fmt: skip
    ours, shape = infer(32, 128, "int8")
    yield Row("infer", "infer 32×128 int8", ours, {
        "OpenVINO int8": openvino("int8", *shape), "OpenVINO int8, streams": openvino("int8", *shape, *streams),
        "ONNX Runtime int8": onnxruntime("int8", *shape),
        **({"OpenVINO int8, rest f32, streams": openvino("int8", "--rest", "f32", *shape, *streams)} if SLOW_BF16 else {}),
    }, "28,600; ≥ 1.3× OpenVINO int8", models="small")  # fmt: skip

    for seq, precision, target in [
        (128, "int8", "5 ms; ≥ 1.4× OpenVINO"), (128, "bf16", "8.5 ms; ≥ 1.4× OpenVINO"),
        (16, "int8", "1.0 ms; ≥ 2.5× OpenVINO"),
    ]:  # fmt: skip
        ours, shape = infer(1, seq, precision)
        peers = {f"OpenVINO {precision}": openvino(precision, *shape)}
        if precision == "int8":
            peers["ONNX Runtime int8"] = onnxruntime("int8", *shape)
        if SLOW_BF16 and precision == "int8":
            peers["OpenVINO int8, rest f32"] = openvino("int8", "--rest", "f32", *shape)
        if SLOW_BF16 and precision == "bf16":
            peers |= {f"OpenVINO {other}": openvino(other, *shape) for other in ("f16", "f32")}
        yield Row("latency", f"latency 1×{seq} {precision}", ours, peers, target, "ms", models="small")

    ragged = ["--preset", "small", "--batch", str(BATCH), "--lengths", str(LENGTHS)]
    half = "--half-weights"
    yield Row("ragged", "ragged, SST-2 dev, 32 in order of arrival, bf16", ["infer", *ragged, "--precision", "bf16"], {
        "OpenVINO bf16": openvino("bf16", *ragged), "OpenVINO bf16, streams": openvino("bf16", *ragged, *streams),
        "OpenVINO bf16, sorted": openvino("bf16", "--sorted", *ragged),
        "OpenVINO bf16, sorted, streams": openvino("bf16", "--sorted", *ragged, *streams),
        "PyTorch eager bf16": torch("bf16", half, *ragged),
        "PyTorch eager bf16, sorted": torch("bf16", half, "--sorted", *ragged),
        **({"OpenVINO f32, streams": openvino("f32", *ragged, *streams),
            "OpenVINO f32, sorted, streams": openvino("f32", "--sorted", *ragged, *streams)} if SLOW_BF16 else {}),
    }, "16,900; ≥ 2.1× the best padded; ≥ 1.05× the best sorted", models="small")  # fmt: skip
    yield Row("ragged", "the same, int8", ["infer", *ragged, "--precision", "int8"], {
        "OpenVINO int8": openvino("int8", *ragged), "OpenVINO int8, streams": openvino("int8", *ragged, *streams),
        "OpenVINO int8, sorted": openvino("int8", "--sorted", *ragged),
        "OpenVINO int8, sorted, streams": openvino("int8", "--sorted", *ragged, *streams),
        "ONNX Runtime int8": onnxruntime("int8", *ragged),
        "ONNX Runtime int8, sorted": onnxruntime("int8", "--sorted", *ragged),
    }, models="small")  # fmt: skip

    for precision, target in [("f32", "2,110; ≥ 1.7× PyTorch at its best"),
                              ("bf16", "3,870; ≥ 2.4× PyTorch at its best; memory 600 MB, ≤ 30% of PyTorch's")]:  # fmt: skip
        step = ["--preset", "small", "--batch", "16", "--seq", "128", "--precision"]
        peers = {
            f"PyTorch eager {precision}": ["pretrain_step.py", *step, precision],
            f"PyTorch compiled {precision}": ["pretrain_step.py", *step, precision, "--compile"],
        }
        if precision == "bf16":  # not on every processor the faster one
            peers["PyTorch eager f32"] = ["pretrain_step.py", *step, "f32"]
        if precision == "bf16" and SLOW_BF16:
            peers["PyTorch eager f16"] = ["pretrain_step.py", *step, "f16"]
        yield Row("train", f"pre-train step 16×128 {precision}", ["train", *step, precision], peers, target)

    step = ["--preset", "small", "--batch", str(BATCH), "--lengths", str(LENGTHS_OF_SOME)]
    yield Row("finetune", f"fine-tune step, SST-2 dev lengths, {SOME} batches of {BATCH}, bf16", ["finetune", *step, "--precision", "bf16"], {
        "PyTorch eager bf16": ["finetune_step.py", *step, "--precision", "bf16"],
        "PyTorch eager bf16, sorted": ["finetune_step.py", *step, "--precision", "bf16", "--sorted"],
        "PyTorch eager f32": ["finetune_step.py", *step, "--precision", "f32"],
        "PyTorch compiled bf16": ["finetune_step.py", *step, "--precision", "bf16", "--compile"],
        **({"PyTorch eager f16": ["finetune_step.py", *step, "--precision", "f16"]} if SLOW_BF16 else {}),
    }, "4,200; ≥ 3.8× PyTorch")  # fmt: skip

    for precision in ("bf16", "int8"):
        ours, shape = infer(8, 128, precision, "base")
        yield Row("base", f"`base` infer 8×128 {precision}", ours, {
            f"OpenVINO {precision}": openvino(precision, *shape),
            f"OpenVINO {precision}, streams": openvino(precision, *shape, *streams),
            **({"OpenVINO f32, streams": openvino("f32", *shape, *streams)} if SLOW_BF16 and precision == "bf16" else {}),
        }, "≥ 1.1× OpenVINO", models="base")  # fmt: skip

    vocabulary, texts = VOCABULARY, sorted(DATA.glob("pretrain/en_*.txt"))
    if not vocabulary.exists() or not texts:
        vocabulary, texts = EMBEDDED / "tokenizer/vocab.txt", [EMBEDDED / "text.txt"]
    given = ["--input", *map(str, texts)]
    name = "text to shards" if texts[0].is_relative_to(DATA) else "text to shards, the embedded text"
    yield Row("prepare", name, ["prepare", "--tokenizer", str(vocabulary), *given], {
        "tokenizers encode_batch": ["prepare_text.py", "--peer", "tokenizers", "--vocab", str(vocabulary), *given],
        "datasets map": ["prepare_text.py", "--peer", "datasets", "--vocab", str(vocabulary), *given],
    }, "≥ 1.0× tokenizers", "mb_per_s")  # fmt: skip

    for precision in ("f32", "bf16", "int8"):
        load = ["load.py", "--models", str(MODELS), "--preset", "small", "--precision", precision, "--peer"]
        peers = {
            f"OpenVINO {precision}": [*load, "openvino"],
            f"OpenVINO {precision}, cached": [*load, "openvino", "--cached"],
        }
        if precision != "bf16":
            peers[f"ONNX Runtime {precision}"] = [*load, "onnxruntime"]
        if precision != "int8":
            peers[f"transformers {precision}"] = [*load, "torch"]
        ours = ["load", "--preset", "small", "--stored", precision, "--precision", precision]
        target = "60 ms" if precision == "f32" else ""
        yield Row("load", f"load `small`, disk to first answer, {precision}", ours, peers, target, "ms", models="small")


GROUPS = ["infer", "latency", "ragged", "train", "finetune", "base", "prepare", "load", "threads"]


class Failed(Exception):
    pass


def run(command: list[str]) -> str:
    """Stdout of a command. Nothing that would change the measurement is taken from the environment."""
    dropped = ("ELECTRA_ISA", "ELECTRA_DEVICE", "ELECTRA_PRECISION", "ELECTRA_THREADS", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        why = next((line for line in lines if line.startswith("error")), lines[-1])
        raise Failed(f"`{' '.join(command)}`: exit code {done.returncode}: {why}")
    return done.stdout


def others_busy() -> float:
    """Share of the processors' time that others take, over a second in which we sleep."""

    def read() -> tuple[int, int]:
        numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(numbers[:8]), numbers[3] + numbers[4]

    if not Path("/proc/stat").exists():
        return 0.0
    (total, idle), _, (later, idle_later) = read(), time.sleep(1), read()
    return 1 - (idle_later - idle) / max(1, later - total)


class Kept:
    """Measurements that are done, one JSON object a line."""

    def __init__(self, path: Path, fixed: dict[str, Any]):
        self.path, self.fixed = path, fixed
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {self.key(m): m["result"] for m in map(json.loads, lines) if fixed.items() <= m.items()}

    @staticmethod
    def key(m: dict[str, Any]) -> tuple[str, str, int]:
        return m["row"], m["side"], m["round"]

    def get(self, row: str, side: str, round: int) -> dict[str, Any] | None:
        return self.done.get((row, side, round))

    def measure(self, row: str, side: str, round: int, command: list[str], busy: float = 0.0) -> None:
        """Runs the command unless its result is there; `busy` is the share that others had just before the row."""
        if self.get(row, side, round) is not None:
            return
        result = json.loads(run(command).splitlines()[-1]) | {"others_busy": float(f"{busy:.2f}")}
        result["date"] = f"{datetime.date.today():%Y-%m-%d}"
        measurement = {"row": row, "side": side, "round": round, "result": result} | self.fixed
        with self.path.open("a") as file:
            file.write(json.dumps(measurement) + "\n")
        self.done[self.key(measurement)] = result


def spread(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 1 if statistics.median(values) >= 10 else 2
    middle, least, most = (f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})"


class Comparison:
    def __init__(self, args: argparse.Namespace, kept: Kept):
        self.args, self.kept = args, kept
        self.failures: dict[tuple[str, str], str] = {}

    def command(self, row: Row, side: str) -> list[str]:
        how = ["--threads", str(self.args.threads), "--repetitions", str(self.args.repetitions)]
        if row.group not in ("prepare", "load") and self.args.seconds is not None:
            how += ["--seconds", str(self.args.seconds)]
        if side == "electra":
            return [self.args.electra, "bench", *row.ours, *how, "--json"]
        script, *options = row.peers[side]
        return [sys.executable, str(PEERS / script), *options, *how]

    def missing(self, row: Row, side: str) -> list[int]:
        return [i for i in range(self.args.rounds) if self.kept.get(row.name, side, i) is None]

    def measure(self, row: Row) -> None:
        """All rounds of a row, both sides in turn. A side that fails is left out and said."""
        sides = ["electra", *row.peers]
        if not any(self.missing(row, side) for side in sides):
            return print(f"{row.name}: measured already", file=sys.stderr)
        if str(LENGTHS_OF_SOME) in row.ours:
            write_lengths_of_some()
        if str(EMBEDDED / "text.txt") in row.ours and not EMBEDDED.exists():
            part = EMBEDDED.with_name(f"{EMBEDDED.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            run([self.args.electra, "quickstart", "--minutes", "0.05", "--out", str(part)])
            part.rename(EMBEDDED)
        if row.models:
            run([sys.executable, str(PEERS / "export_model.py"), "--preset", row.models, "--models", str(MODELS)])
        if (busy := others_busy()) > BUSY:
            print(f"warning: others take {busy:.0%} of the processors", file=sys.stderr)
        for round in range(self.args.rounds):
            for side in sides:
                if (row.name, side) in self.failures or self.kept.get(row.name, side, round) is not None:
                    continue
                print(f"{row.name}, round {round + 1} of {self.args.rounds}: {side}", file=sys.stderr, flush=True)
                try:
                    self.kept.measure(row.name, side, round, self.command(row, side), busy)
                except Failed as failed:
                    self.failures[row.name, side] = str(failed)
                    print(f"  failed: {failed}", file=sys.stderr)

    def values(self, row: Row, side: str, measure: str) -> list[float]:
        results = [self.kept.get(row.name, side, i) for i in range(self.args.rounds)]
        return [r[measure] for r in results if r and r.get(measure) is not None]

    def cell(self, row: Row, side: str) -> str:
        values = self.values(row, side, row.measure)
        return spread(values) if values else "–"

    def ratio(self, row: Row, side: str) -> str:
        ours, theirs = (self.values(row, s, row.measure) for s in ("electra", side))
        if not ours or not theirs:
            return "–"
        pairs = list(zip(theirs, ours) if row.less_is_better else zip(ours, theirs))
        return f"{statistics.median(a / b for a, b in pairs):.2f}×"

    def megabytes(self, row: Row, side: str) -> str:
        values = self.values(row, side, "peak_rss_bytes")
        return f"{statistics.median(values) / 1e6:,.0f}" if values else "–"

    def lines(self, row: Row) -> Iterator[str]:
        unit = {"tokens_per_s": "tokens/s", "ms": "ms", "mb_per_s": "MB/s"}[row.measure]
        peaks = self.values(row, "electra", "fraction_of_peak")
        share = f", {statistics.median(peaks):.0%} of peak" if peaks else ""
        results = [self.kept.get(row.name, "electra", i) for i in range(self.args.rounds)]
        used = {r["precision"] for r in results if r and "precision" in r and "--precision" in row.ours}
        for precision in sorted(used - set(row.ours)):
            share += f", computed in {precision}"
        if data := self.values(row, "electra", "data_ms"):
            times = self.values(row, "electra", "ms")
            share += f", loading, masking and packing {statistics.median(data) / statistics.median(times):.2%}"
        busy = max((b for side in ("electra", *row.peers) for b in self.values(row, side, "others_busy")), default=0.0)
        note = f" (others busy: {busy:.0%})" if busy > BUSY else ""
        head = f"| {row.name}, {unit}{note} | {row.target}"
        yield f"{head} | **electra**{share} | {self.cell(row, 'electra')} | | {self.megabytes(row, 'electra')} |"
        for side in row.peers:
            yield f"| | | {side} | {self.cell(row, side)} | {self.ratio(row, side)} | {self.megabytes(row, side)} |"


def threads_row(args: argparse.Namespace, kept: Kept) -> Iterator[str]:
    """What a second thread gains, of what the registers gain from it."""
    for name, subject in [("infer 32×128 bf16", "infer"), ("pre-train step 16×128 bf16", "train")]:
        gains = []
        for round in range(args.rounds):
            for count in (1, 2):
                command = [args.electra, "bench", subject, "--precision", "bf16", "--threads", str(count), "--json"]
                command += ["--repetitions", str(args.repetitions)]
                if args.seconds is not None:
                    command += ["--seconds", str(args.seconds)]
                print(f"{name}, round {round + 1} of {args.rounds}: {count} threads", file=sys.stderr, flush=True)
                kept.measure(f"threads, {name}", f"{count} threads", round, command)
            one, two = (kept.get(f"threads, {name}", f"{count} threads", round) or {} for count in (1, 2))
            gained = two["tokens_per_s"] / one["tokens_per_s"]
            gains.append((gained, gained * one["gemm_peak_gflops"] / two["gemm_peak_gflops"]))
        whole, share = ([gain[i] for gain in gains] for i in (0, 1))
        yield f"| 1 → 2 threads, {name} | ≥ 0.95× of the registers' gain | **electra** | {spread(whole)}× | {statistics.median(share):.2f}× of the registers' | |"


def write_lengths_of_some() -> None:
    """Full batches, spread over all."""
    lines = LENGTHS.read_text().splitlines(keepends=True)
    full = len(lines) // BATCH
    starts = [i * full // SOME * BATCH for i in range(SOME)]
    LENGTHS_OF_SOME.write_text("".join(line for start in starts for line in lines[start : start + BATCH]))


def processors() -> list[str]:
    """The name of each."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return [line.split(":")[1].strip() for line in lines if line.startswith("model name")]


def scripts() -> str:
    """A hash of what runs the peers."""
    files = [Path(__file__), *sorted(PEERS.glob("*.py")), LENGTHS]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def machine() -> Iterator[str]:
    cpu = processors()
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8")
    sets = [name for name in known if name in cpu_flags()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"- {cpu[0]}, {len(cpu)} cores seen, {memory:.0f} GiB, {', '.join(sets)}"
    yield f"- {platform.system()} {platform.release()}, Python {platform.python_version()}, {run(['rustc', '--version']).strip()}"
    yield "- " + ", ".join(f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} [default: all]")
    p.add_argument("--electra", default="target/release/electra", help=argparse.SUPPRESS)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--repetitions", type=int, default=3, help="within a process")
    p.add_argument("--seconds", type=float, help="of a repetition, about [default: as each command has it]")
    p.add_argument("--without", metavar="WORD", action="append", default=[],
                   help="leave out peers with this in their name, such as compiled; may be given again")
    p.add_argument("--fresh", action="store_true", help="forget what was measured before")
    p.add_argument("--out", type=Path, help="where the table goes [default: results.md in $ELECTRA_BENCH_DIR]")
    p.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if unknown := [group for group in args.groups if group not in GROUPS]:
        p.error(f"there is no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if args.check:
        return
    groups = args.groups or GROUPS
    WORK.mkdir(parents=True, exist_ok=True)
    fixed = {
        "build": hashlib.sha256(Path(args.electra).read_bytes()).hexdigest()[:16],
        "peers": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.node()}, {processors()[0]}", "scripts": scripts(),
        "threads": args.threads, "repetitions": args.repetitions, "seconds": args.seconds,
    }  # fmt: skip
    path = WORK / "measurements.jsonl"
    if args.fresh:
        path.unlink(missing_ok=True)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.1f}: something else is or was busy", file=sys.stderr)
    kept = Kept(path, fixed)
    comparison = Comparison(args, kept)
    left_out: list[str] = []
    chosen = [row for row in rows(args.threads) if row.group in groups]
    for row in chosen:
        for side in [side for side in row.peers if any(word in side for word in args.without)]:
            del row.peers[side]
            left_out.append(f"- {row.name}, {side}: left out")
    out = args.out or WORK / "results.md"
    table: list[str] = []

    def write() -> None:
        dates = sorted({result["date"] for result in kept.done.values()}) or ["nothing measured yet"]
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        head = [
            f"{args.threads} threads, {args.rounds} rounds of {args.repetitions} repetitions, ours and theirs in turn; "
            f"{when}; load average at the beginning {load:.2f}.", "", *machine(), "",
            "Median (least–most) over the rounds; the ratio is the median of the rounds' ratios.", "",
            "| what | target | who | measured | electra against it | peak MB |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        failures = [f"- {row}, {side}: {why}" for (row, side), why in comparison.failures.items()] + left_out
        tail = ["", "Not measured:", "", *failures] if failures else []
        out.write_text("\n".join([*head, *table, *tail]) + "\n", "utf-8")

    for row in chosen:
        comparison.measure(row)
        table.extend(comparison.lines(row))
        write()
    if "threads" in groups:
        try:
            table.extend(threads_row(args, kept))
        except Failed as failed:
            comparison.failures["threads", "electra"] = str(failed)
        write()
    print(out.read_text("utf-8"))
    print(f"written to {out}", file=sys.stderr)
    sys.exit(1 if comparison.failures else 0)


if __name__ == "__main__":
    main()
