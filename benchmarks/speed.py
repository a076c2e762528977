"""How long KBNet takes beside its peers: whole networks, inference and training, interleaved in one run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.nn.layers import LayerNorm2d

LIGHTWEIGHT = {"lightweight": True, "ffn_scale": 1.5}
NAFNET_SIDD = {
    "img_channel": 3,
    "width": 64,
    "middle_blk_num": 12,
    "enc_blk_nums": [2, 2, 4, 8],
    "dec_blk_nums": [2, 2, 2, 2],
}
RESTORMER = {  # deraining and deblurring, KBNet_l's own tasks
    "inp_channels": 3,
    "out_channels": 3,
    "dim": 48,
    "num_blocks": [4, 6, 6, 8],
    "num_refinement_blocks": 4,
    "heads": [1, 2, 4, 8],
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
    "dual_pixel_task": False,
}


def nafnet() -> nn.Module:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(**NAFNET_SIDD)


def restormer() -> nn.Module:
    from spandrel_extra_arches.architectures.Restormer import Restormer

    return Restormer(**RESTORMER)


def released_s() -> nn.Module:
    from spandrel.architectures.KBNet import KBNet_s as Released

    return Released(**LIGHTWEIGHT)


def released_l() -> nn.Module:
    from spandrel.architectures.KBNet import KBNet_l as Released

    return Released()


def with_care(network: nn.Module) -> nn.Module:
    """Give a peer what ours has: channels-last memory and torch's fused layer normalisation."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            kind = type(child).__name__
            if kind == "LayerNorm2d":  # NAFNet
                setattr(parent, name, _fused(child.weight, child.bias, child.eps))
            elif kind == "LayerNorm" and hasattr(child, "body"):  # Restormer
                setattr(parent, name, _fused(child.body.weight, child.body.bias, 1e-5))
    return network.to(memory_format=torch.channels_last)


def _fused(weight: Tensor, bias: Tensor, eps: float) -> LayerNorm2d:
    norm = LayerNorm2d(len(weight), eps)
    norm.weight, norm.bias = weight, bias
    return norm


@dataclass(frozen=True)
class Candidate:
    build: Callable[[], nn.Module]
    dtype: torch.dtype = torch.float32
    care: bool = False
    needs: str = ""


CANDIDATES = {
    "NAFNet-w64 as released": Candidate(nafnet, needs="spandrel"),
    "NAFNet-w64 with care": Candidate(nafnet, care=True, needs="spandrel"),
    "KBNet_s as released": Candidate(released_s, needs="spandrel"),
    "KBNet_s": Candidate(lambda: KBNet_s(**LIGHTWEIGHT)),
    "KBNet_s bf16": Candidate(lambda: KBNet_s(**LIGHTWEIGHT), torch.bfloat16),
    "NAFNet-w64 with care bf16": Candidate(nafnet, torch.bfloat16, care=True, needs="spandrel"),
    "Restormer as released": Candidate(restormer, needs="spandrel_extra_arches"),
    "Restormer with care": Candidate(restormer, care=True, needs="spandrel_extra_arches"),
    "Restormer with care bf16": Candidate(
        restormer, torch.bfloat16, care=True, needs="spandrel_extra_arches"
    ),
    "KBNet_l as released": Candidate(released_l, needs="spandrel"),
    "KBNet_l": Candidate(KBNet_l),
    "KBNet_l bf16": Candidate(KBNet_l, torch.bfloat16),
}
PEERS = {"KBNet_s": "NAFNet-w64", "KBNet_l": "Restormer"}
TRAINING = {"KBNet_s as released": released_s, "KBNet_s": CANDIDATES["KBNet_s"].build}
TRAINING_BATCH, TRAINING_CROP = 8, 128


def inference(name: str, size: tuple[int, int], device: str) -> Callable[[], Tensor]:
    """A call that restores one image of `size` with the candidate."""
    candidate = CANDIDATES[name]
    network = candidate.build().eval()
    if candidate.care:
        network = with_care(network)
    network = network.to(device, candidate.dtype)
    image = torch.rand(1, 3, *size, device=device, dtype=candidate.dtype)
    if candidate.care:
        image = image.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            return network(image)

    return call


def training(name: str, device: str) -> Callable[[], None]:
    """A call that takes one AdamW step on `TRAINING_BATCH` crops."""
    network = TRAINING[name]().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4, fused=True)
    noisy, clean = torch.rand(2, TRAINING_BATCH, 3, TRAINING_CROP, TRAINING_CROP, device=device)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.l1_loss(network(noisy), clean).backward()
        optimizer.step()

    return call


def available(names: list[str], wanted: list[str] | None) -> list[str]:
    """Names whose package is there, in order; says which are left out."""
    found = []
    for name in names:
        needs = CANDIDATES[name].needs
        if wanted and not any(w.lower() in name.lower() for w in wanted):
            continue
        if needs and importlib.util.find_spec(needs) is None:
            print(f"left out: {name} (pip install {needs})", file=sys.stderr)
            continue
        found.append(name)
    return found


def ratio_to_peer(name: str, peer_suffix: str, timings: dict[str, measure.Timing]) -> str:
    """Time beside the peer of a KBNet: "as released", or "with care" in the same precision."""
    network = name.split()[0]
    precision = " bf16" if peer_suffix == "with care" and name.endswith("bf16") else ""
    peer = f"{PEERS.get(network)} {peer_suffix}{precision}"
    return f"{timings[name].median / timings[peer].median:.2f}x" if peer in timings else "-"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python benchmarks/speed.py\n"
        "  python benchmarks/speed.py --only kbnet_s nafnet --repeats 9\n"
        "  python benchmarks/speed.py --device cuda --size 720 1280 --json speed.json",
    )
    parser.add_argument("--size", nargs=2, type=int, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="candidates whose name holds one of the words"
    )
    parser.add_argument("--part", choices=("inference", "training", "all"), default="all")
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the fresh processes that measure memory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--peak", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    size = tuple(args.size)

    def prepare(part: str, name: str) -> Callable[[], Any]:
        return inference(name, size, args.device) if part == "inference" else training(name, args.device)

    if args.peak:
        call = prepare(*args.peak)
        if args.peak[0] == "training":
            call()  # the optimizer's state and the gradients are there from the second step on
        print(json.dumps(measure.peak_extra_memory(call, args.device)))
        return 0

    result: dict[str, Any] = {"provenance": measure.provenance(args.device)}
    for part in ("inference", "training") if args.part == "all" else (args.part,):
        names = available(list(CANDIDATES if part == "inference" else TRAINING), args.only)
        if not names:
            continue
        timings = measure.interleave({n: prepare(part, n) for n in names}, args.repeats, args.device)
        shape = ["--size", str(size[0]), str(size[1]), "--device", args.device]
        memory = {
            n: None if args.no_memory else measure.in_fresh_process(__file__, "--peak", part, n, *shape)
            for n in names
        }
        header = ["network", "median (quartiles)", "beside released", "peak extra"]
        if part == "inference":
            header[3:3] = ["beside peer as released", "beside peer with care"]
        rows = []
        for name in names:
            released = f"{name.split()[0]} as released"
            row = [
                name,
                str(timings[name]),
                f"{timings[name].median / timings[released].median:.2f}x" if released in timings else "-",
                "not measured" if memory[name] is None else f"{memory[name] / 2**20:.0f} MiB",
            ]
            if part == "inference":
                row[3:3] = [ratio_to_peer(name, suffix, timings) for suffix in ("as released", "with care")]
            rows.append(row)
        what = (
            f"Inference, 1x3x{size[0]}x{size[1]}; times beside others are ratios, below 1 is faster"
            if part == "inference"
            else f"Training step, {TRAINING_BATCH}x3x{TRAINING_CROP}x{TRAINING_CROP}, fused AdamW"
        )
        print(f"\n{what}\n\n{measure.table(header, rows)}")
        result[part] = {n: {"seconds": timings[n], "peak_extra_bytes": memory[n]} for n in names}
    p = result["provenance"]
    print(f"\n{p['command']}\n{p['date']}, {p['device']}, {p['threads']} threads, torch {p['torch']}")
    if args.json:
        measure.write_json(args.json, **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
