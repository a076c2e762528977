"""The report: nothing is lost, nothing is mistaken for something else, nothing loads from elsewhere."""

from __future__ import annotations

import pytest

from benchmarks.results import Cell, Column, Measured, Published, Row, Table

PROVENANCE = {
    "command": "python benchmarks/run_all.py --only gaussian_color",
    "device": "an invented CPU",
    "threads": 2,
    "versions": {"torch": "0.0.1", "numpy": "0.0.2"},
    "weights_sha256": "0123456789ab" + 52 * "c",
    "protocol": "gaussian: σ of 255, seed 0, not clipped",
}
REASON = "needs weights: gau_color_15.pth, from https://example.org/weights?a=1&b=2"


def measured(value: float, spread: float | None = None, **facts) -> Measured:
    return Measured("measured", value, spread, provenance=PROVENANCE | facts)


def gaussian() -> Table:
    """Invented numbers in every state that a cell can have."""
    columns = [Column("params", "parameters", unit="M", better="lower")]
    columns += [
        Column(f"{name}-{sigma}", f"σ {sigma}", name, "dB", better="higher")
        for name in ("CBSD68", "Kodak24", "McMaster", "Urban100")
        for sigma in (15, 25, 50)
    ]
    keys = [c.key for c in columns]
    peer = {key: Cell(Published(30.1 + i / 4, "IMG SwinIR")) for i, key in enumerate(keys[1:])}
    small = {
        key: Cell(
            Published(33.9 - i / 4, "IMG GRL"),
            measured(33.891 - i / 4, seconds=3.25, date=f"2000-01-{i + 1:02}"),
            0.02,
        )
        for i, key in enumerate(keys[1:])
    }
    kbnet = {
        key: Cell(Published(34.41 if i == 0 else None, "PWC"), Measured("not measured", reason=REASON))
        for i, key in enumerate(keys[1:])
    }
    kbnet["CBSD68-25"] = Cell(Published(31.8, "PWC"), measured(31.66, 0.0312), 0.02)
    kbnet["CBSD68-50"] = Cell(
        Published(28.62, "PWC", "mean of | two"),
        Measured("failed", reason="RuntimeError: <b>out</b> of memory"),
    )
    return Table(
        "gaussian_color",
        "Gaussian noise, colour",
        "PSNR in dB with white noise of the given standard deviation, mean over the images.",
        tuple(columns),
        (
            Row("noisy input", cells={k: Cell(None, measured(24.6 - i / 2)) for i, k in enumerate(keys[1:])}),
            Row(
                "KBNet_s",
                "a network of its own for each level",
                True,
                {"params": Cell(Published(142, "CODE"), measured(141.97)), **kbnet},
            ),
            Row("DnCNN", cells={"params": Cell(Published(0.56, "IMG GRL"), measured(0.5584), 0.01), **small}),
            Row("BM3D", cells=peer),
        ),
        {
            "PWC": "a listing of the paper",
            "CODE": "counted in the code, https://github.com/zhangyi-3/KBNet",
            "IMG SwinIR": "table images in https://github.com/JingyunLiang/SwinIR (figs/)",
            "IMG GRL": "table images elsewhere",
        },
    )


def complexity() -> Table:
    columns = (
        Column("published", "published convention", "MACs", "G", 1, "lower"),
        Column("full", "in full", "MACs", "G", 1, "lower"),
        Column("memory", "training", "activations", "MiB", 0, "lower"),
    )
    names = {
        "KBNet_s": (68.7, 117.3, 3123),
        "NAFNet-w64": (63.2, 63.2, 1894),
        "Restormer": (141.0, 154.9, 2950),
    }
    return Table(
        "complexity",
        "Complexity",
        "One 3x256x256 image. The columns differ by work that hook-based counters do not see.",
        columns,
        tuple(
            Row(
                name,
                ours=name == "KBNet_s",
                cells={
                    c.key: Cell(None, measured(v, protocol="counted"))
                    for c, v in zip(columns, values, strict=True)
                },
            )
            for name, values in names.items()
        ),
    )
