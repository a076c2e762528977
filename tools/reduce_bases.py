"""Make the start of a smaller KBNet_s from a trained one: fewer bases, other numbers of blocks.

The kernels that a block makes at the pixels of noisy photographs lie near a subspace. Its main directions
become the new bases, and the layers that gave the coefficients of the old ones give theirs, exactly: both are
linear. Blocks that the source lacks are added with scales of 0, so that they change nothing at first; of a
level with fewer blocks, the first stay.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbnet_plugin import KBNet_s, load_network, save_network
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.io.images import read_image
from kbnet_plugin.nn import kbnet_s
from kbnet_plugin.zoo.architectures import identify
from tools.publish import half

CROP, CROPS, SIGMA = 160, 24, 55
Moments = dict[int, tuple[Tensor, Tensor]]
"""Of each block, by the id of its bases: E[a a'] of its coefficients a, and E[x^2] of its features."""


def pictures(data: Path) -> list[Path]:
    """List the training photographs of BSDS500."""
    listed = (Path(__file__).parent.parent / "options/zoo/photographs.txt").read_text("utf-8").splitlines()
    return [Path(data, "train", name) for name in listed if name.startswith("BSDS500/")]


def crops(files: Sequence[Path], channels: int, sigma: float = SIGMA) -> list[Tensor]:
    """Cut crops, (1, channels, 160, 160), from random files, with noise of up to `sigma` (of 255)."""
    rng = np.random.default_rng(0)
    found: list[Tensor] = []
    for path in rng.choice(np.array(files, object), CROPS):
        image, _ = read_image(path)
        image = image.astype(np.float32) / np.iinfo(image.dtype).max
        image = image[..., :3] if channels == 3 else image[..., :3].mean(-1, keepdims=True)
        y, x = (int(rng.integers(n - CROP + 1)) for n in image.shape[:2])
        noisy = image[y : y + CROP, x : x + CROP]
        noisy = noisy + rng.standard_normal(noisy.shape, np.float32) * rng.uniform(0, sigma) / 255
        found.append(torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous())
    return found


def moments(network: KBNet_s, images: Sequence[Tensor]) -> Moments:
    """Run a network on images and average over all pixels."""
    seen: dict[int, list[Any]] = defaultdict(lambda: [0, 0, 0])
    attention = kbnet_s.kernel_basis_attention

    def watched(x: Tensor, mix: Tensor, w: Tensor, b: Tensor, groups: int) -> Tensor:
        a, f = (t.permute(0, 2, 3, 1).flatten(0, 2).double() for t in (mix, x))
        sums = seen[id(w)]
        for i, more in enumerate((a.T @ a, f.square().sum(0), len(a))):
            sums[i] = sums[i] + more
        return attention(x, mix, w, b, groups)

    fused = kbnet_s.block.wanted
    try:
        kbnet_s.kernel_basis_attention = watched  # type: ignore[assignment]
        kbnet_s.block.wanted = lambda x: False
        with torch.no_grad():
            for image in images:
                network(image)
    finally:
        kbnet_s.kernel_basis_attention, kbnet_s.block.wanted = attention, fused
    return {key: (a / count, x / count) for key, (a, x, count) in seen.items()}


def reduced(block: kbnet_s.KBBlock_s, second: Tensor, energy: Tensor, bases: int) -> dict[str, Tensor]:
    """Return those tensors of a block that differ with fewer bases."""
    w, b = (p.detach()[0].double() for p in (block.w, block.b))
    per_group = w.shape[1] // len(energy) // 9
    # A weight counts as much as the feature that it multiplies.
    size = energy.sqrt().view(-1, 1, per_group, 1).expand(-1, per_group, -1, 9).reshape(-1)
    kernels = torch.cat([w * size, b], 1)
    values, vectors = torch.linalg.eigh(second)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    directions = torch.linalg.svd(root @ kernels, full_matrices=False).Vh[:bases].T
    to_new = kernels @ directions
    # Coefficients as large as the old ones, so that learning rates suit them.
    length = (to_new.T @ second @ to_new).diagonal().clamp(min=1e-12).sqrt()
    factor = second.diagonal().mean().sqrt() / length
    to_new, new = to_new * factor, (directions / factor).T
    scale = block.attgamma.detach().flatten().double()
    last, pointwise = block.conv2[2], block.conv211

    def project(weight: Tensor) -> Tensor:
        return (to_new.T @ weight.detach().double().flatten(1)).reshape(bases, *weight.shape[1:])

    found = {
        "w": (new[:, : w.shape[1]] / size)[None],
        "b": new[:, w.shape[1] :][None],
        "conv211.weight": project(pointwise.weight),
        "conv211.bias": project(pointwise.bias[:, None])[:, 0],
        "conv2.2.weight": project(last.weight * scale[:, None, None, None]),
        "conv2.2.bias": project((last.bias * scale)[:, None])[:, 0],
        "attgamma": torch.ones(1, bases, 1, 1),
    }
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def started(source: KBNet_s, images: Sequence[Tensor], **changes: Any) -> KBNet_s:
    """Make a network with other `bases` or numbers of blocks that computes nearly the same.

    Parameters
    ----------
    source : KBNet_s
    images : sequence of Tensor
        Typical inputs, (1, C, H, W).
    **changes
        Arguments of `KBNet_s` that differ.
    """
    given = identify(source.state_dict())[1]
    arguments = given | changes
    network = KBNet_s(**arguments).eval()
    tensors = network.state_dict()
    known = source.state_dict()
    of_blocks = moments(source, images) if arguments["bases"] != given["bases"] else {}
    for name, module in source.named_modules():
        if isinstance(module, kbnet_s.KBBlock_s) and of_blocks:
            new = reduced(module, *of_blocks[id(module.w)], arguments["bases"])
            known.update({f"{name}.{key}": tensor for key, tensor in new.items()})
    for name in tensors:
        if name in known:
            tensors[name] = known[name]
        elif name.endswith((".beta", ".gamma")):
            tensors[name] = torch.zeros_like(tensors[name])
    network.load_state_dict(tensors)
    return network


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=(
            "example: python tools/reduce_bases.py kbnet_plugin/zoo/data/denoise-color.safetensors "
            "start.safetensors --data DATA --bases 16 --middle 3 --encoders 1 2 2 --decoders 2 2 2"
        ),
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("KBNET_DATA"), help="data root")
    parser.add_argument("--bases", type=int, required=True)
    parser.add_argument("--middle", type=int, help="blocks at the lowest resolution")
    parser.add_argument("--encoders", type=int, nargs="+", help="blocks of each level on the way down")
    parser.add_argument("--decoders", type=int, nargs="+", help="and on the way up, the lowest first")
    args = parser.parse_args(argv)
    try:
        if not args.data:
            raise BadInput("the photographs are missing: name the data root with --data or KBNET_DATA")
        source = load_network(args.source)
        if not isinstance(source, KBNet_s):
            raise BadInput(f"{args.source}: not a KBNet_s")
        counts = {"middle_blk_num": args.middle, "enc_blk_nums": args.encoders, "dec_blk_nums": args.decoders}
        changes = {key: value for key, value in counts.items() if value is not None}
        network = started(source, crops(pictures(args.data), source.img_channel), bases=args.bases, **changes)
        save_network(half(network), args.output)
    except (BadInput, ValueError, OSError) as error:
        print(f"reduce_bases: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{args.output}: {sum(p.numel() for p in network.parameters()):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
