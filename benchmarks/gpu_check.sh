#!/usr/bin/env bash
# Measure everything that needs a CUDA GPU, in under six minutes, from a source tree:
#   benchmarks/gpu_check.sh [DIRECTORY FOR THE JSON, default gpu_check]
# The parts' limits, below, add up to 345 seconds. Torch, Triton and numpy suffice; what more packages would add is
# reported and left out: peers beside FFDNet (spandrel, spandrel_extra_arches), local pooling and PSNR of the shipped
# models (pip install 'kbnet[bench]'), the training loop (pip install 'kbnet[train]') and tests (pip install pytest).
# With KBNET_DATA, FFDNet has its weights.
# Exit status: 1 if a part failed, 2 without a GPU.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
mkdir -p "$out" || exit 2
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$(command -v python3 || command -v python)}
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    printf '\n== %s\n' "$name"
    timeout -k 1 "$seconds" "$@" || failed+=("$name (exit $?)")
}

has() { # MODULES: whether all of them are installed
    "$python" -c 'import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))' "$@"
}

if ! "$python" -c 'import torch, triton; torch.zeros(1, device="cuda")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)' 2>/dev/null; then
    echo "gpu_check.sh: requires a CUDA GPU, torch and triton" >&2
    exit 2
fi

part "accuracy" 45 "$python" benchmarks/accuracy.py --device cuda --backends triton tiled --json "$out/accuracy.json"
part "operator" 80 "$python" benchmarks/ops.py --device cuda --batch 8 --repeats 5 --json "$out/ops.json"
part "networks, 720p" 55 "$python" benchmarks/speed.py --device cuda --part inference --only bf16 \
    --size 720 1280 --json "$out/speed.json"
part "shipped models, 12 megapixels" 60 "$python" benchmarks/speed.py --device cuda --part shipped \
    --only denoise- ffdnet --size 3000 4000 --images 4 --json "$out/speed-shipped.json"
part "training step" 35 "$python" benchmarks/speed.py --device cuda --part training --json "$out/training.json"
if has basicsr cv2 skimage pydantic yaml; then
    part "training loop and bare step" 45 "$python" benchmarks/engine.py --batch 16x192 \
        --warm-up 20 --steps 30 --force train:compile=true --json "$out/engine.json"
else
    echo "left out: training loop (pip install 'kbnet[train]')"
fi
if has pytest; then
    part "tests" 25 "$python" -m pytest -q tests/ops/test_triton.py tests/degradations/test_gpu.py
else
    echo "left out: tests (pip install pytest)"
fi

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
