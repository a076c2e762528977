"""Compare the throughput of this package's training loop with stock BasicSR's.

Network, data and batch are the same. The loops take turns in processes of their own, and figures are medians
over the rounds. Time is measured between the first and the last step: it excludes the start of Python and
includes that of the workers in every epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RUN = """
import sys, time
from basicsr_ext import registry
registry.register()
loop, file, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
times = []
if loop == "ours":
    from basicsr_ext.model import ImageCleanModel as Model
else:
    from basicsr.models.sr_model import SRModel as Model
step = Model.optimize_parameters
def timed(self, i):
    step(self, i)
    times.append(time.perf_counter())
Model.optimize_parameters = timed
sys.argv = ["basicsr", "-opt", file]
if loop == "ours":
    from basicsr_ext.__main__ import main
    assert main(["train", "-opt", file]) == 0
else:
    from basicsr.train import train_pipeline
    train_pipeline(".")
del times[:2]  # warm-up
print("RATE", 8 * (len(times) - 1) / (times[-1] - times[0]), len(times) + 2)
"""
OPTIONS = """
name: {name}
model_type: {model}
scale: 1
num_gpu: {gpus}
manual_seed: 0
datasets:
  train:
    name: train
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    io_backend: {{type: disk}}
    gt_size: 64
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: 8
    dataset_enlarge_ratio: {enlarge}
network_g:
  {{type: KBNet_s, width: 16, enc_blk_nums: [1, 1], middle_blk_num: 2, dec_blk_nums: [1, 1],
   lightweight: true, ffn_scale: 1.5}}
path: {{strict_load_g: true}}
train:
  ema_decay: 0.98
  optim_g: {{type: Adam, lr: 0.002, betas: [0.9, 0.99]}}
  scheduler: {{type: MultiStepLR, milestones: [100000], gamma: 0.5}}
  total_iter: {steps}
  warmup_iter: -1
  pixel_opt: {{type: L1Loss, loss_weight: 1.0, reduction: mean}}
{more}
logger: {{print_freq: 1000, save_checkpoint_freq: 100000, use_tb_logger: false}}
"""
CASES = {
    "stock loop, 1 copy of the data": ("stock", "SRModel", 1, ""),
    "stock loop, data listed 100 times": ("stock", "SRModel", 100, ""),
    "this loop": ("ours", "ImageCleanModel", 1, ""),
    "this loop, bf16": ("ours", "ImageCleanModel", 1, "  precision: bf16"),
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of a training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--gpus", type=int, default=0, help="0 for the CPU (default: %(default)s)")
    args = parser.parse_args()
    found: dict[str, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        _pictures(Path(folder))
        for number in range(args.rounds):
            for case, (loop, model, enlarge, more) in CASES.items():
                # The stock loop stops early, all the more so with short epochs.
                steps = args.steps * 3 if (loop, enlarge) == ("stock", 1) else args.steps
                name = f"{loop}{number}"
                text = OPTIONS.format(
                    name=name, model=model, gpus=args.gpus, enlarge=enlarge, steps=steps, more=more
                )
                Path(folder, "o.yml").write_text(text)
                done = subprocess.run(
                    [sys.executable, "-c", RUN, loop, "o.yml", str(steps)],
                    cwd=folder,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    capture_output=True,
                    text=True,
                )
                line = next((x for x in done.stdout.splitlines() if x.startswith("RATE")), None)
                if line is None:
                    raise SystemExit(f"{case} failed: {done.stderr.strip().splitlines()[-1:]}")
                found[case].append(float(line.split()[1]))
                print(f"round {number + 1}  {case:36} {found[case][-1]:7.2f} images/s", flush=True)
    base = found["stock loop, data listed 100 times"]
    for case, rates in found.items():
        ratio = statistics.median(a / b for a, b in zip(rates, base, strict=True))
        print(f"{case:36} {statistics.median(rates):7.2f} images/s  x {ratio:.2f}")


def _pictures(folder: Path) -> None:
    import cv2
    import numpy as np

    from kbnet_plugin.arrays.degradations import add_gaussian

    generator = np.random.default_rng(0)
    for role in ("gt", "lq"):
        (folder / role).mkdir()
    for number in range(10):
        small = generator.random((30, 40, 3)).astype(np.float32)
        clean = cv2.resize(small, (640, 480)) * 255
        cv2.imwrite(str(folder / "gt" / f"{number}.png"), clean.astype(np.uint8))
        noisy = add_gaussian(clean, 25, generator).clip(0, 255)
        cv2.imwrite(str(folder / "lq" / f"{number}.png"), noisy.astype(np.uint8))


if __name__ == "__main__":
    main()
