#!/usr/bin/env bash
# Ours on an NVIDIA GPU: is it right, and how fast beside PyTorch.
#
#   bash bench/gpu.sh check       operators, a network in training, and runs of the binary against the CPU
#   bash bench/gpu.sh pretrain    pre-training beside PyTorch
#   bash bench/gpu.sh rest        inference and fine-tuning on ragged lengths beside PyTorch
#
# Each part is one call of less than nine minutes. Needs no network and no Rust: a release binary built with
# `cargo build --release --features cuda`, and Python with PyTorch and transformers for the last two. All that a part's
# commands say is kept in one file, OUT/PART.log; the end of each is shown. Compiled kernels are kept in OUT/cache unless
# XDG_CACHE_HOME is set.
#
#   ELECTRA   the binary                  [default: target/release/electra]
#   PYTHON    the interpreter             [default: python3]
#   OUT       where all output is kept    [default: bench/results/gpu]

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
electra="${ELECTRA:-target/release/electra}"
python="${PYTHON:-python3}"
out="${OUT:-bench/results/gpu}"
mkdir -p "$out"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$(cd "$out" && pwd)/cache}"
log="$out/${1:-none}.log"
failed=()

try() { # NAME COMMAND...: runs it, keeps its output, says how it ended
  local name="$1" begin=$SECONDS status shown=8 said
  shift
  said="$(mktemp)"
  "$@" >"$said" 2>&1
  status=$?
  if [ "$status" -ne 0 ]; then
    failed+=("$name")
    shown=30
  fi
  { echo "=== $name"; cat "$said"; } >>"$log"
  echo "=== $name"
  # Of a part that compares speeds the table is the end.
  tail -n "$([ "$name" = "$part" ] && echo 60 || echo "$shown")" "$said" | cut -c1-400
  echo "=== $name: exit code $status, $((SECONDS - begin)) s" | tee -a "$log"
  rm -f "$said"
}

# The same short run, on the repository's own text.
train() { # DIRECTORY OPTIONS...
  local dir="$1"
  shift
  "$electra" pretrain --preset tiny --set num_train_steps=60 --set num_warmup_steps=10 --set train_batch_size=8 \
    --set save_checkpoints_steps=30 --set eval_steps=30 --set held_out=0.1 --data "$work/data" --out "$dir" "$@"
}

agree() { # A B BOUND: whether two runs' losses differ by at most the bound, in the mean over all steps; 0: in no digit
  "$python" - "$1/metrics.jsonl" "$2/metrics.jsonl" "$3" <<'PYTHON'
import json, sys
runs = [[json.loads(line) for line in open(path)] for path in sys.argv[1:3]]
bound, worst = float(sys.argv[3]), 0.0
assert len(runs[0]) == len(runs[1]) > 0, "different numbers of lines"
times = {"tokens_per_s", "eval_seconds"}
for key in ("mlm_loss", "rtd_loss", "eval_mlm_loss"):
    a, b = ([line[key] for line in run if key in line] for run in runs)
    if key == "rtd_loss":  # Its first steps hang on which tokens were sampled.
        a, b = a[len(a) // 2 :], b[len(b) // 2 :]
    worst = max(worst, abs(sum(a) - sum(b)) / sum(a))
if bound == 0:
    same = [[{k: v for k, v in line.items() if k not in times} for line in run] for run in runs]
    assert same[0] == same[1], "the runs differ"
print(f"{len(runs[0])} lines, greatest relative difference of means {worst:.2e}, bound {bound:g}")
sys.exit(worst > bound)
PYTHON
}

check() {
  work="$(mktemp -d)"
  try devices "$electra" info --devices
  for precision in f32 tf32 bf16; do
    try "selftest-$precision" "$electra" info --selftest --device cuda --precision "$precision"
  done
  try vocab "$electra" vocab --input README.md CONTRIBUTING.md docs/*.md --format txt --size 1000 --out "$work/vocab"
  try prepare "$electra" prepare --input README.md CONTRIBUTING.md docs/*.md --format txt --tokenizer "$work/vocab" --out "$work/data"
  try train-cpu-f32 train "$work/cpu" --device cpu --precision f32
  try train-cuda-f32 train "$work/cuda" --device cuda --precision f32
  try agree-f32 agree "$work/cpu" "$work/cuda" 0.01
  try train-cuda-bf16 train "$work/bf16" --device cuda --precision bf16
  try agree-bf16 agree "$work/cpu" "$work/bf16" 0.03
  try train-cuda-bf16-again train "$work/again" --device cuda --precision bf16
  try same-bits agree "$work/bf16" "$work/again" 0
  # A checkpoint of the CPU goes on on the device, and one of the device on the CPU.
  for pair in "cpu cuda" "cuda cpu"; do
    read -r first second <<<"$pair"
    mkdir -p "$work/$first-$second/checkpoints"
    cp -r "$work/$first/." "$work/$first-$second/"
    rm -rf "$work/$first-$second/checkpoints/step-"*60
    try "resume-$first-on-$second" train "$work/$first-$second" --device "$second" --precision f32
    try "agree-$first-$second" agree "$work/cpu" "$work/$first-$second" 0.01
  done
  echo "The old boat [MASK] on the river." >"$work/text"
  for device in cpu cuda; do
    try "predict-$device" "$electra" predict --model "$work/cpu/discriminator" --as detect --input "$work/text" --device "$device"
    try "fill-$device" "$electra" predict --model "$work/cpu/generator" --as fill --input "$work/text" --device "$device"
  done
  rm -rf "$work"
}

part="${1:-}"
case "$part" in
  check | pretrain | rest) : >"$log" ;;
esac
case "$part" in
  check) check ;;
  pretrain | rest) try "$1" "$python" bench/peers/gpu_compare.py "$1" --electra "$electra" --out "$out" --seconds 500 ;;
  *)
    echo "usage: bash bench/gpu.sh check|pretrain|rest" >&2
    exit 2
    ;;
esac
if [ "${#failed[@]}" -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all passed"
