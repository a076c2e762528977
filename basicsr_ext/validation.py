"""Validation: restore the images of a set, measure and show them, with our model or any other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import imwrite
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.inference.tiled import run_tiled
from kbnet_plugin.nn.layers import pad_to_multiple

from . import dist
from .base_model import unwrap
from .metrics import to_image
from .options import Options
from .val_sets import Named, check_finite, show_sample, shown_name, usable

logger = logging.getLogger("basicsr")

_HALO = 32
"""Pixels of context around a tile, unless ``val.tile_overlap`` is set."""


class Validation:
    """The part of our model that validates and tests."""

    opt: Options
    is_train: bool
    net_g: Any
    net_g_ema: nn.Module | None
    lq: Tensor
    gt: Tensor | None
    output: Tensor
    best_metric_results: dict[str, Any]

    @torch.no_grad()
    def test(self) -> None:
        """Restore `lq`, with the averaged weights if there are any."""
        net = unwrap(self.net_g) if self.net_g_ema is None else self.net_g_ema
        training = net.training
        net.eval()
        try:
            # Images come in many sizes, and compiling for each takes long.
            with torch.compiler.set_stance("force_eager"):
                self.output = self._restore(net, self.lq)
        finally:
            net.train(training)

    def _restore(self, net: nn.Module, image: Tensor) -> Tensor:
        """Restore (B, C, H, W), in overlapping tiles if it is larger than ``val.tile``."""
        val, scale = self.opt["val"], int(self.opt.get("scale") or 1)
        window = int(val.get("window_size") or 1)

        def run(part: Tensor) -> Tensor:
            rows, columns = part.shape[-2:]
            output = net(pad_to_multiple(part, window, "reflect"))  # in float32, as tests and users run it
            output = output[-1] if isinstance(output, (list, tuple)) else output
            return output[..., : rows * scale, : columns * scale].float()

        return run_tiled(run, image, val.get("tile"), val.get("tile_overlap", _HALO), scale=scale)

    def validation(
        self, dataloader: DataLoader[Any], current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> dict[str, float]:
        """Compute the mean of every metric over a dataset; each process takes some of its images."""
        dataset: Any = dataloader.dataset
        name = dataset.opt["name"]
        metrics = self.opt["val"].get("metrics") or {}
        rank, world = self.opt["rank"], self.opt["world_size"]
        mine = range(rank, len(dataset), world)  # none, if there are more processes than images
        sums = dict.fromkeys(metrics, 0.0)
        counts = dict.fromkeys(metrics, 0)
        bar = tqdm(
            DataLoader(dataset, sampler=mine), name, leave=False, delay=1, disable=None if rank == 0 else True
        )
        for data, number in zip(bar, mine, strict=True):
            self.feed_data(data)  # type: ignore[attr-defined]
            path = data["lq_path"][0]
            try:
                self.test()
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise BadInput(
                    f"datasets {name}: {path}: out of memory for "
                    f"{self.lq.shape[-1]}x{self.lq.shape[-2]} pixels; set or lower val.tile"
                ) from error
            except (RuntimeError, ValueError) as error:
                raise BadInput(f"datasets {name}: {path}: {one_line(error)}") from error
            check_finite(name, path, self.output, self.lq, self.gt)
            shown = shown_name(self.opt, dataset, path)
            if save_img:
                imwrite(to_image(self.output, rounded=True), self._picture(name, shown, current_iter))
            if self.is_train and number < int(self.opt["val"].get("samples") or 0):
                images = [self.lq, self.output, *([] if self.gt is None else [self.gt])]
                show_sample(self.opt, name, shown, images, tb_logger, current_iter)
            for metric, value in self._measure(metrics, f"datasets {name}: {path}").items():
                sums[metric] += value
                counts[metric] += 1
        found = dist.total(torch.tensor([*sums.values(), *counts.values()], dtype=torch.float64)).tolist()
        totals = zip(metrics, found, found[len(metrics) :], strict=False)
        results = {metric: value / count for metric, value, count in totals if count}
        self._report(name, results, len(dataset), current_iter, tb_logger)
        return results

    def _measure(self, metrics: Mapping[str, Any], where: str) -> dict[str, float]:
        rounded = bool(self.opt["val"].get("use_image", True))
        images = {"img": to_image(self.output, rounded=rounded)}
        if self.gt is not None:
            images["img2"] = to_image(self.gt, rounded=rounded)
        values = {}
        for name, options in usable(metrics, truth=self.gt is not None).items():
            try:
                values[name] = float(calculate_metric(images, options))
            except Exception as error:  # of any package's function
                raise BadInput(f"{where}: val.metrics.{name}: {one_line(error)}") from error
            if values[name] != values[name]:
                raise BadInput(f"{where}: val.metrics.{name} is NaN; replace or remove the image")
        return values

    def _picture(self, name: str, shown: str, current_iter: int | str) -> str:
        if self.is_train:
            parts = [shown, f"{shown}_{current_iter}.png"]
        else:
            parts = [name, f"{shown}_{self.opt['val'].get('suffix') or self.opt['name']}.png"]
        return os.path.join(self.opt["path"]["visualization"], *parts)

    def _report(
        self, name: str, results: dict[str, float], images: int, current_iter: int | str, tb_logger: Any
    ) -> None:
        if self.is_train and results:
            _forget_others(self, name, results)
            self._initialize_best_metric_results(name)  # type: ignore[attr-defined]
            known = self.best_metric_results[name]
            self.best_metric_results[name] = {metric: known[metric] for metric in results}
            for metric, value in results.items():
                self._update_best_metric_result(name, metric, value, current_iter)  # type: ignore[attr-defined]
        self.results = {**getattr(self, "results", {}), name: results}
        if self.opt["rank"] != 0:  # which may have restored no image
            return
        text = []
        for metric, value in results.items():
            entry = f"{metric} {value:.4f}{self._protocol(metric)}"
            if self.is_train:
                best = self.best_metric_results[name][metric]
                entry += f" (best {best['val']:.4f} at iter {best['iter']:,})"
            text.append(entry)
            if tb_logger:
                tb_logger.add_scalar(f"metrics/{name}/{metric}", value, current_iter)
        none = "no ground truth to measure against" if self.opt["val"].get("metrics") else "no metrics set"
        logger.info("%s, %d image(s): %s", name, images, ", ".join(text) or none)

    def _protocol(self, metric: str) -> str:
        """Describe how a metric was measured, as values of different protocols cannot be compared."""
        val = self.opt["val"]
        options = val["metrics"][metric]
        if "lpips" in options["type"]:
            return f" [{options.get('net', 'alex')}]"
        luma = options.get("test_y_channel") or options.get("convert_to") == "y"
        colour = self.output.shape[1] == 3
        channels = "gray" if not colour else "Y" if luma else "RGB"
        border = f", border {options['crop_border']}" if options.get("crop_border") else ""
        return f" [{channels}, {'uint8' if val.get('use_image', True) else 'float'}{border}]"


def validate(
    model: Any, loader: DataLoader[Any], iteration: int | str, writer: Any, save_img: bool
) -> dict[str, float]:
    """Validate any model on a set.

    Parameters
    ----------
    model : BaseModelFixes
        Ours, or one of BasicSR or of a plugin.
    loader : DataLoader
    iteration : int or str
        Or, in tests, the name of the experiment.
    writer : SummaryWriter or None
    save_img : bool
        Save all restored images.

    Returns
    -------
    dict
        Its figures by metric. Those of other models are what they write to TensorBoard; they have none in
        processes that take no part.
    """
    if isinstance(model, Validation):
        return model.validation(loader, iteration, writer, save_img)
    dataset: Any = loader.dataset
    name, val = dataset.opt["name"], model.opt["val"]
    if name not in (truths := vars(model).setdefault("with_truth", {})):
        truths[name] = "gt" in dataset[0]
    before = val.get("metrics")
    metrics = usable(before, truth=truths[name]) or None
    val["metrics"] = metrics
    vars(model).pop("metric_results", None)  # of another set, whose metrics may be others
    if metrics:
        _forget_others(model, name, metrics)
    named = Named(model.opt, loader)
    recorder = _Recorder(writer, f"metrics/{name}/", metrics or {})
    try:
        with _watched(model, named, name, writer, iteration):
            model.validation(named, iteration, recorder if model.opt["rank"] == 0 else None, save_img)
    finally:
        val["metrics"] = before
    return recorder.figures


class _Recorder:
    """A TensorBoard writer that remembers the figures of a set, for the history."""

    def __init__(self, writer: Any, prefix: str, metrics: Mapping[str, Any]) -> None:
        self.writer, self.prefix, self.metrics = writer, prefix, metrics
        self.figures: dict[str, float] = {}

    def add_scalar(self, tag: str, value: Any, iteration: Any = None, *more: Any, **named: Any) -> None:
        if tag.startswith("metrics/"):
            metric = tag.removeprefix(self.prefix).removeprefix("metrics/")  # video models leave out the set
            tag = f"{self.prefix}{metric}"
            if metric in self.metrics:
                self.figures[metric] = float(value)
        if self.writer is not None:
            self.writer.add_scalar(tag, value, iteration, *more, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name) if self.writer is not None else lambda *_, **__: None


@contextmanager
def _watched(model: Any, named: Named, name: str, writer: Any, iteration: int | str) -> Iterator[None]:
    """Check the images that another model restores, and show the first of them."""
    original = model.get_current_visuals
    samples = int(model.opt["val"].get("samples") or 0) if model.opt["is_train"] else 0

    def visuals() -> Any:
        found = original()
        if not isinstance(found, dict) or not isinstance(result := found.get("result"), Tensor):
            return found
        lq, gt = found.get("lq"), found.get("gt")
        check_finite(name, named.path or "an image", result, lq, gt)
        if named.number < samples and named.path and model.opt["rank"] == 0 and result.ndim == 4:
            images = [t for t in (lq, result, gt) if isinstance(t, Tensor)]
            shown = shown_name(model.opt, named.dataset, named.path)
            show_sample(model.opt, name, shown, images, writer, iteration)
        return found

    model.get_current_visuals = visuals
    try:
        yield
    finally:
        del model.get_current_visuals


def _forget_others(model: Any, name: str, metrics: Mapping[str, Any]) -> None:
    """Drop the best figures of a set that was resumed with other metrics."""
    known = getattr(model, "best_metric_results", {})
    if name in known and known[name].keys() != metrics.keys():
        del known[name]
