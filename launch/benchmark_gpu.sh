#!/usr/bin/env bash
# Times training on one GPU, optionally next to the official PyTorch code, in a few minutes. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
benchmark_gpu.sh [options]

  --out DIR        where results.json, results.md and the logs go (benchmark_gpu)
  --limit SECONDS  of all of it; cases that it does not reach are named in the results (420)
  --official DIR   a checkout of github.com/taldatech/soft-intro-vae-pytorch, to time its step too; needs torch
  --only PATTERN   cases whose names match this regular expression
  --list           print the cases in their order, run none
  --tiny           all of it on the CPU with tiny networks, to see whether it works

by environment: PYTHON, with jax for CUDA, flax, optax and ml_collections (python3)
exit codes: 0 the results are written; 2 something to correct first; 130, 143 stopped, with the results so far
END
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
for option; do
  [[ $option != --help && $option != -h ]] || { usage && exit 0; }
done
command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not there: name a Python that has jax"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -u "$root/launch/benchmark_gpu.py" "$@"
