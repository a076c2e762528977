"""From tables to measurements: what each cell needs, whether it is available, and how it is measured."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kbnet_plugin import __version__
from kbnet_plugin.errors import BadInput, nearest
from kbnet_plugin.zoo.locations import SHIPPED

from . import candidates, costs, measure, networks, protocols, results, sets
from .store import Store
from .tables import Column, Measure, Row, Suite, Table

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Job:
    """One measurement, which may fill several cells.

    Attributes
    ----------
    label : str
        What is measured, for people.
    depends : dict
        Everything that can change the result; its hash is the job's key.
    units : int
        Number of steps that `work` reports by calling tick.
    alone : bool
        Whether nothing else may run at the same time.
    work : callable
        From (store, key, tick) to {"values": {name: number}, "spread": {name: number}}.
    provenance : dict
        Weights, data and protocol, as far as they are known beforehand.
    """

    label: str
    depends: Mapping[str, Any]
    units: int
    alone: bool
    work: Callable[[Store, str, Tick], dict[str, Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.depends, sort_keys=True).encode()).hexdigest()[:20]


Plan = dict[tuple[str, str, str], results.Measured | tuple[Job, str]]
"""By table, row and column: a result that is known already, or the job and the name of its value."""


class Planner:
    """Finds data and weights, and turns cells into jobs."""

    def __init__(self, suite: Suite, data: Path | None, weights: Path | None, device: str) -> None:
        self.suite, self.data, self.device = suite, data, device
        self.folders = [f for f in (weights, data / "peers" if data else None) if f is not None]
        self._jobs: dict[str, Job] = {}
        # Cached per planner: files may change between two plans of one process.
        self.dataset = cache(self._dataset)
        self.sha256 = cache(_sha256)
        self.load = lru_cache(maxsize=1)(networks.load)  # the next job often has the same network

    def plan(
        self,
        table: Table,
        rows: Sequence[Row],
        wanted: Callable[[Row, Column], bool] = lambda row, column: True,
    ) -> Plan:
        """Return the job of each wanted cell of these rows, or why there is none."""
        found: Plan = {}
        timed = [r for r in rows if r.measure and r.measure.candidate]
        for row in rows:
            for column in table.chosen(row):
                if row.measure is None or not wanted(row, column):
                    continue
                try:
                    cell = self._cell(table, row, row.measure, column, timed)
                except NotThereError as missing:
                    cell = results.Measured("not measured", reason=str(missing))
                except (BadInput, FileNotFoundError) as error:
                    cell = results.Measured("failed", reason=str(error))
                if cell is not None:
                    found[table.name, row.name, column.key] = cell
        return found

    def _cell(
        self, table: Table, row: Row, how: Measure, column: Column, timed: Sequence[Row]
    ) -> results.Measured | tuple[Job, str] | None:
        where = f"{table.name}/{row.name}"
        if column.metric and not how.candidate and (how.input or how.automatic or how.weights or how.zoo):
            return self._quality(table, row, how, column), column.metric
        if column.cost and (how.network or how.zoo or how.weights):
            size = self._size(column, how)
            return self._cost(table, where, how, size, column.cost in _MEMORY), column.cost
        if column.speed and how.candidate:
            self._candidate(how.candidate)
            return self._speed(table, timed), f"{how.candidate} {column.speed}"
        return None

    def _dataset(self, name: str) -> sets.Dataset:
        description = self.suite.datasets[name]
        found = sets.find(name, description, self.data)
        if found is None:
            raise NotThereError(f"needs data: {name} ({description.where})")
        return found

    def find_weights(self, how: Measure, **fields: Any) -> Path:
        """Return the file of a row's weights.

        Raises
        ------
        NotThereError
            If it is missing.
        """
        if how.zoo:
            try:
                from kbnet_plugin import zoo

                return Path(zoo.get_model(how.zoo).path)
            except (ImportError, ValueError):
                raise NotThereError(f"needs a shipped model: {how.zoo}") from None
        name = (how.weights or "").format(**fields)
        if Path(name).is_absolute():
            return Path(name)
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise NotThereError(f"needs weights: {name}{f' ({how.where})' if how.where else ''}")

    def _quality(self, table: Table, row: Row, how: Measure, column: Column) -> Job:
        protocol_name = column.protocol or table.protocol or ""
        protocol = protocols.PROTOCOLS[protocol_name]
        assert column.dataset is not None
        dataset = self.dataset(column.dataset)
        alike = [
            c.metric
            for c in table.chosen(row)
            if (c.dataset, c.sigma, c.protocol) == (column.dataset, column.sigma, column.protocol)
        ]
        metrics = tuple(m for m in protocols.METRICS if m in alike and (m != "lpips" or not _no_lpips()))
        if column.metric == "lpips" and (missing := _no_lpips()):
            raise NotThereError(missing)
        sigma = None if column.sigma is None else float(column.sigma)
        fixed = how.input or how.automatic
        path = None if fixed else self.find_weights(how, sigma=f"{sigma:g}" if sigma else "")
        depends = {
            "measurement": "quality",
            "code": _code(
                "benchmarks/harness/protocols.py",
                "benchmarks/harness/sets.py",
                "benchmarks/harness/networks.py",
                "kbnet_plugin/arrays/degradations.py",
                "kbnet_plugin/arrays/tiling.py",
                "kbnet_plugin/inference/tiled.py",
                function=_evaluate,
            ),
            "weights": _automatic(self.sha256) if how.automatic else path and self.sha256(path),
            "expected": how.network,
            "data": dataset.sha256,
            "order": [i.name for i in dataset.items],
            "channels": dataset.description.channels,
            "sigma": sigma,
            "protocol": asdict(protocol),
            "metrics": metrics,
        }
        level = f" σ {sigma:g}" if sigma else ""
        provenance = {
            "weights": None if path is None else path.name,
            "weights_sha256": depends["weights"],
            "data": f"{dataset.name} ({len(dataset.items)} images)",
            "data_sha256": dataset.sha256,
            "protocol": f"{protocol_name}: {protocol.text}",
        }

        def work(store: Store, key: str, tick: Tick) -> dict[str, Any]:
            if how.automatic:
                network = networks.automatic(self.device)
            else:
                network = networks.untouched() if path is None else self._network(path, how.network)
            return _evaluate(network, dataset, sigma, protocol, metrics, store, key, tick)

        where = f"{table.name}/{row.name}/{column.key}"
        return self._job(where, f"{dataset.name}{level}", depends, len(dataset.items), work, provenance)

    def _network(self, path: Path, expected: str | None) -> networks.Network:
        network = self.load(path, self.device)
        if expected not in (None, network.name):
            raise BadInput(
                f"{path} contains a {network.name}, but the row is {expected}; give it weights of its own"
            )
        return network

    def _size(self, column: Column, how: Measure) -> tuple[int, int]:
        size = column.size
        if column.size_of is not None:
            known = self.suite.datasets[column.size_of].size
            size = known or self.dataset(column.size_of).mean_size
        size = tuple(-(-side // how.multiple) * how.multiple for side in sorted(size))  # type: ignore[assignment]
        return (max(size), max(size)) if how.square else size

    def _cost(self, table: Table, where: str, how: Measure, size: tuple[int, int], memory: bool) -> Job:
        memory = memory or any(
            c.cost in _MEMORY and self._size(c, how) == size
            for c in table.columns
            if c.cost and not c.size_of
        )
        path = None if how.network else self.find_weights(how, sigma="")
        depends = {
            "measurement": "cost",
            "code": _code(
                "benchmarks/harness/costs.py",
                "benchmarks/harness/networks.py",
                "kbnet_plugin/cost.py",
                "kbnet_plugin/nn/cost.py",
            ),
            "network": how.network or self.sha256(path or Path()),
            "arguments": how.arguments,
            "size": size,
            "memory": memory,
        }
        if how.network not in (None, "KBNet_s", "KBNet_l", "DnCNN", "FFDNet", "ADNet"):
            try:
                networks.architecture(how.network)
            except ModuleNotFoundError as error:
                raise NotThereError(f"needs a package: pip install {error}") from None

        def work(store: Store, key: str, tick: Tick) -> dict[str, Any]:
            if path is not None:
                found = self.load(path, "cpu")
                module, channels = found.module, found.channels
            else:
                module, channels = networks.build(how.network or "", how.arguments)
            return {"values": costs.count(module, size, channels, memory=memory)}

        what = f"cost at {size[0]} x {size[1]}"
        protocol = f"one image of {size[0]} x {size[1]} pixels, counted by torch's FLOP counter"
        provenance = {"network": how.network, "arguments": how.arguments, "protocol": protocol}
        return self._job(where, what, depends, 1, work, provenance)

    def _candidate(self, name: str) -> None:
        if name not in candidates.CANDIDATES:
            raise BadInput(f"no candidate {name!r}{nearest(name, candidates.CANDIDATES)}")
        needs = candidates.CANDIDATES[name].needs
        if needs and importlib.util.find_spec(needs) is None:
            raise NotThereError(f"needs a package: pip install {needs}")

    def _speed(self, table: Table, timed: Sequence[Row]) -> Job:
        names = []
        for row in timed:
            assert row.measure is not None
            name = row.measure.candidate or ""
            try:
                self._candidate(name)
            except (NotThereError, BadInput):
                continue
            names.append(name)
        size, rounds = table.speed.size, table.speed.rounds
        here = measure.provenance(self.device)
        depends = {
            "measurement": "speed",
            "code": _code(
                "benchmarks/harness/candidates.py",
                "benchmarks/harness/measure.py",
                "benchmarks/harness/networks.py",
            ),
            "candidates": names,
            "size": size,
            "rounds": rounds,
            "machine": [here[k] for k in ("device", "threads", "torch")],
        }
        columns = {c.speed for c in table.columns}

        def work(store: Store, key: str, tick: Tick) -> dict[str, Any]:
            calls = {n: candidates.inference(n, size, self.device) for n in names}
            timings = measure.interleave(calls, rounds, self.device)
            calls.clear()
            values = {f"{n} seconds": t.median for n, t in timings.items()}
            spread = {f"{n} seconds": (t.high - t.low) / 2 for n, t in timings.items()}
            tick(1)
            for name in names if "memory" in columns else ():
                peak = candidates.peak_memory("inference", name, size, self.device)
                values[f"{name} memory"] = peak / 2**20
                tick(1)
            return {"values": values, "spread": spread}

        protocol = (
            f"one 3x{size[0]}x{size[1]} image, medians of {rounds} interleaved rounds after a warm-up round"
        )
        label = f"{len(names)} network{'s' * (len(names) != 1)}, {size[0]} x {size[1]}"
        units = 1 + len(names) * ("memory" in columns)
        return self._job(table.name, label, depends, units, work, {"protocol": protocol}, alone=True)

    def _job(
        self,
        where: str,
        what: str,
        depends: Mapping[str, Any],
        units: int,
        work: Callable[[Store, str, Tick], dict[str, Any]],
        provenance: Mapping[str, Any],
        *,
        alone: bool = False,
    ) -> Job:
        command = f"python benchmarks/run_all.py --only {_quoted(where)}"
        label = "/".join(where.split("/")[:2])
        job = Job(f"{label}: {what}", depends, units, alone, work, {"command": command, **provenance})
        return self._jobs.setdefault(job.key, job)  # cells that depend on the same things share a job


class NotThereError(Exception):
    """Something that a measurement needs is missing, which is no error."""


_MEMORY = ("memory_inference", "memory_training")


def do(job: Job, store: Store, device: str, tick: Tick) -> None:
    """Measure, and keep the result."""
    began = time.perf_counter()
    found = job.work(store, job.key, tick)
    here = measure.provenance(device)
    provenance = {
        **job.provenance,
        "date": here["date"],
        "device": here["device"],
        "threads": here["threads"],
        "versions": _versions(),
        "seconds": round(found.pop("seconds", time.perf_counter() - began), 2),
    }
    store.write(job.key, {**found, "provenance": provenance})


def measured(
    cell: results.Measured | tuple[Job, str], store: Store, failures: Mapping[str, str]
) -> results.Measured:
    """Return the outcome of a planned cell."""
    if isinstance(cell, results.Measured):
        return cell
    job, name = cell
    if (content := store.read(job.key)) is not None:
        return results.Measured(
            "measured",
            content["values"][name],
            content.get("spread", {}).get(name),
            provenance=content["provenance"],
        )
    if job.key in failures:
        return results.Measured("failed", reason=failures[job.key], provenance=dict(job.provenance))
    return results.Measured("not measured", reason="not yet; run the same command again")


def _evaluate(
    network: networks.Network,
    dataset: sets.Dataset,
    sigma: float | None,
    protocol: protocols.Protocol,
    metrics: Sequence[str],
    store: Store,
    key: str,
    tick: Tick,
) -> dict[str, Any]:
    parts = store.parts(key)
    tick(len(parts))
    for index, item in enumerate(dataset.items):
        if index < len(parts):
            continue
        began = time.perf_counter()
        given, truth = item.load(dataset.description.channels)
        if sigma is not None:
            given = protocols.noisy(truth, sigma, index, protocol)
        elif given is None:
            raise BadInput(f"{dataset.name} has only clean images; the column must name a sigma")
        restored = (
            given
            if network.channels == 0
            else network.restore(given, sigma, tile=protocol.tile, halo=protocol.halo)
        )
        values = protocols.compare(restored, truth, metrics, protocol)
        part = {"image": item.name, **values, "seconds": time.perf_counter() - began}
        parts.append(part)
        if index == 0:
            store.keep_picture(key, given=given, restored=restored, truth=truth)
        store.add_part(key, part)
        tick(1)
    return {
        "values": {m: sum(p[m] for p in parts) / len(parts) for m in metrics},
        "images": parts,
        "seconds": sum(p["seconds"] for p in parts),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _automatic(sha256: Callable[[Path], str]) -> str:
    """Hash what the automatic choice depends on: shipped models, and the code that chooses and restores."""
    models = ",".join(sha256(path) for path in sorted(SHIPPED.glob("*.safetensors")))
    package = measure.ROOT / "kbnet_plugin"
    sources = [*package.glob("arrays/*.py"), *package.glob("inference/*.py"), package / "nn" / "pooling.py"]
    return f"{models} {_code(*(str(path.relative_to(measure.ROOT)) for path in sorted(sources)))}"


@cache
def _code(*files: str, function: Callable[..., Any] | None = None) -> str:
    """Hash the code that measures, so that results of older code are not reused."""
    digest = hashlib.sha256(__version__.encode())
    if function is not None:
        digest.update(inspect.getsource(function).encode())
    for name in files:
        digest.update((measure.ROOT / name).read_bytes())
    return digest.hexdigest()[:12]


@cache
def _no_lpips() -> str:
    """Return why LPIPS cannot be measured, or an empty string."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from basicsr_ext.metrics import lpips_network
        lpips_network("alex", None)
    except (BadInput, ImportError):
        return "needs weights: torchvision's alexnet-owt-*.pth in torch hub's folder, for LPIPS"
    return ""


@cache
def _versions() -> dict[str, str]:
    found = {"kbnet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "scikit-image", "spandrel", "spandrel_extra_arches", "lpips"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
