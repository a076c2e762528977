#!/usr/bin/env bash
# Measure everything that needs a CUDA GPU, in under ten minutes, from a source tree:
#   benchmarks/gpu_check.sh [DIRECTORY FOR THE JSON, default gpu_check]
# What requires a missing package (spandrel, spandrel_extra_arches, pytest) is reported and left out.
# Exit status: 1 if a part failed, 2 without a GPU.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
mkdir -p "$out" || exit 2
export PYTHONUNBUFFERED=1
python=${PYTHON:-$(command -v python3 || command -v python)}
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$seconds" "$@" || failed+=("$name (exit $?)")
}

if ! "$python" -c 'import torch, triton; torch.zeros(1, device="cuda")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)' 2>/dev/null; then
    echo "gpu_check.sh: requires a CUDA GPU, torch and triton" >&2
    exit 2
fi

part "accuracy" 130 "$python" benchmarks/accuracy.py --device cuda --backends triton tiled --json "$out/accuracy.json"
part "operator" 240 "$python" benchmarks/ops.py --device cuda --batch 8 --json "$out/ops.json"
part "networks, 720p" 150 "$python" benchmarks/speed.py --device cuda --part inference --only bf16 \
    --size 720 1280 --json "$out/speed.json"
part "training: loop and bare step" 280 "$python" benchmarks/engine.py --batch 16x192 64x128 \
    --warm-up 20 --steps 40 --force train:compile=true --json "$out/engine.json"
if "$python" -c 'import pytest' 2>/dev/null; then
    part "tests" 90 "$python" -m pytest -q tests/ops/test_triton.py tests/degradations/test_gpu.py
else
    echo "left out: tests (pip install pytest)"
fi

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
