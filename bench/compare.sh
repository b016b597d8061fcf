#!/usr/bin/env bash
# Measures electra beside its peers on this machine and writes a table: `bench/compare.sh [GROUP...]`.
#
#     bench/compare.sh                      # everything
#     bench/compare.sh infer latency        # some groups; `bench/compare.sh --help` lists them
#
# Builds electra, installs the peers of bench/peers/requirements-bench.txt into a virtual environment outside the
# repository, and runs both sides in turn. What is measured is kept: the same command goes on where it stopped.
# Needs Rust, a C++ compiler (for torch.compile) and Python 3.11 or later with venv.
#
#   ELECTRA_BENCH_VENV    where the environment is             [default: ~/.cache/electra-bench-venv]
#   ELECTRA_BENCH_DIR     where models and measurements are    [default: ~/.cache/electra-bench]
#   ELECTRA_BENCH_DATA    the development data                 [default: ../shared/data beside the repository]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${ELECTRA_BENCH_VENV:-$HOME/.cache/electra-bench-venv}"
export ELECTRA_BENCH_DIR="${ELECTRA_BENCH_DIR:-$HOME/.cache/electra-bench}"
export ELECTRA_BENCH_DATA="${ELECTRA_BENCH_DATA:-$PWD/../shared/data}"
requirements=bench/peers/requirements-bench.txt

installed() { # whether the environment has exactly the pinned versions
  [ -x "$venv/bin/python" ] && "$venv/bin/python" - bench/peers/requirements.txt "$requirements" <<'PYTHON'
import importlib.metadata, sys
for path in sys.argv[1:]:
    for line in open(path):
        name, _, version = line.strip().partition("==")
        try:
            if version and importlib.metadata.version(name).partition("+")[0] != version:
                sys.exit(f"{name} is not {version}")
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"{name} is not installed")
PYTHON
}

for argument in "$@"; do # help needs neither build nor peers
  case "$argument" in
    -h | --help) exec python3 bench/compare.py --help ;;
  esac
done
python3 bench/compare.py --check "$@" # nor does a mistake

cargo build --release
if ! installed; then
  python=python3
  if command -v python3.11 >/dev/null; then
    python=python3.11
  fi
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
  installed
fi
exec "$venv/bin/python" bench/compare.py --electra "${CARGO_TARGET_DIR:-target}/release/electra" "$@"
