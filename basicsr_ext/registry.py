"""Registers our classes, and those of other packages, where BasicSR looks up names."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from copy import deepcopy
from importlib.metadata import entry_points
from typing import Any

with warnings.catch_warnings():
    # BasicSR and its dependencies use deprecated names, which users cannot change.
    warnings.simplefilter("ignore")
    try:
        import basicsr
        from basicsr.utils import registry as registries
    except ImportError as error:
        from kbnet_plugin.errors import BadInput, one_line

        raise BadInput(
            f"BasicSR >= 1.4.2 is required: pip install 'kbnet[train]' ({one_line(error)})"
        ) from error

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.degradations import Pipeline
from kbnet_plugin.errors import BadInput, nearest, one_line

from . import datasets, forks, losses, metrics, model, recorrupted, selfsup_datasets, stock
from .base_model import ALIASES, BaseModelFixes, scheduler_classes
from .files import use_shared_lmdb
from .options import Options
from .schema import OURS_ONLY

logger = logging.getLogger("basicsr")

GROUP = "basicsr.plugins"
"""Entry-point group: modules that register their networks, datasets, models, losses or metrics on import."""

OURS: dict[str, tuple[Any, ...]] = {
    "ARCH_REGISTRY": (KBNet_s, KBNet_l),
    "DATASET_REGISTRY": (
        datasets.Dataset_PairedImage,
        datasets.Dataset_GaussianDenoising,
        datasets.Dataset_PoissonGaussianDenoising,
        datasets.Dataset_DefocusDeblur_DualPixel_16bit,
        datasets.Dataset_CleanImages,
        selfsup_datasets.Dataset_BlindSpot,
        selfsup_datasets.Dataset_PlanePairs,
        recorrupted.Dataset_NoisyPlanes,
    ),
    "MODEL_REGISTRY": (model.ImageCleanModel, recorrupted.RecorruptedModel),
    "LOSS_REGISTRY": (losses.PSNRLoss, losses.FrequencyLoss, losses.BlindSpotLoss),
    "METRIC_REGISTRY": (
        metrics.calculate_psnr_clamped,
        metrics.calculate_ssim_clamped,
        metrics.calculate_lpips,
    ),
}


def register() -> None:
    """Register our classes, then import the plugins of other packages; may be called again."""
    use_shared_lmdb()
    stock.install()
    for name, objects in OURS.items():
        registry = getattr(registries, name)
        for item in objects:
            taken = registry._obj_map.get(item.__name__)
            if taken is None:
                registry.register(item)
            elif taken is not item:
                logger.warning(
                    "%s is already registered by %s, which is kept", item.__name__, taken.__module__
                )
    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:
            logger.warning(
                "the BasicSR plugin %s (%s) failed to load: %s", plugin.name, plugin.value, one_line(error)
            )
    for name, cls in forks.MODELS.items():  # last, as a plugin may have the class itself
        if name not in registries.MODEL_REGISTRY:
            registries.MODEL_REGISTRY.register(cls)


def check_names(options: Options, source: object) -> None:
    """Raise `BadInput`, with the nearest known name, if a type in the options is not registered."""
    _known("MODEL_REGISTRY", options, "model_type", f"{source}: model_type")
    cls = registries.MODEL_REGISTRY.get(options["model_type"])
    mine = issubclass(cls, model.ImageCleanModel)
    for section, keys in ({} if mine else OURS_ONLY).items():
        given = [k for k, v in (options["as_given"].get(section) or {}).items() if k in keys and v]
        if given:
            raise BadInput(
                f"{source}: {section}.{given[0]}: {options['model_type']} would ignore it; remove it, "
                "or use model_type: ImageCleanModel"
            )
    for key, network in options.items():
        if key.startswith("network_") and isinstance(network, dict):
            _known("ARCH_REGISTRY", network, "type", f"{source}: {key}.type")
            if not mine and options["is_train"] and not _reads(cls, key):
                options["notes"].append(f"{key} has no effect: {options['model_type']} has no such network")
    for label, dataset in options["datasets"].items():
        _known("DATASET_REGISTRY", dataset, "type", f"{source}: datasets.{label}.type")
        if dataset["type"] == datasets.Dataset_CleanImages.__name__:
            try:
                Pipeline(dataset["degradations"])
            except BadInput as error:
                raise BadInput(f"{source}: datasets.{label}.{one_line(error)}") from error
    for key, loss in (options.get("train") or {}).items():
        if key.endswith("_opt") and isinstance(loss, dict) and options["is_train"]:
            _known("LOSS_REGISTRY", loss, "type", f"{source}: train.{key}.type")
            if not mine and not _reads(cls, key):
                options["notes"].append(
                    f"train.{key} has no effect: {options['model_type']} has no such loss"
                )
    for key, metric in ((options.get("val") or {}).get("metrics") or {}).items():
        _known("METRIC_REGISTRY", metric, "type", f"{source}: val.metrics.{key}.type")
    for metric in ((options.get("val") or {}).get("metrics") or {}).values():
        if metric["type"] == "calculate_lpips":
            metrics.lpips_network(metric.get("net", "alex"), metric.get("weights"))  # fail before training
    if options["is_train"] and (scheduler := options["train"].get("scheduler")):
        known = {*scheduler_classes(), *ALIASES}
        if scheduler.get("type") not in known:
            name = scheduler.get("type")
            raise BadInput(f"{source}: train.scheduler.type: unknown name {name!r}{nearest(name, known)}")


def _reads(cls: type, key: str) -> bool:
    """Return whether the code of a model mentions a key of the options, as far as it can be read."""
    modules = {base.__module__ for base in cls.__mro__ if base is not object}
    try:
        texts = [inspect.getsource(sys.modules[name]) for name in modules]
    except (OSError, TypeError, KeyError):
        return True
    return any(f"'{key}'" in text or f'"{key}"' in text for text in texts)


def _known(registry: str, section: Options, key: str, where: str) -> None:
    name, known = section.get(key), set(getattr(registries, registry).keys())
    if name in known:
        return
    if f"{name}_basicsr" in known:
        section[key] = f"{name}_basicsr"  # BasicSR would find it too, but print a line
        return
    if registry == "ARCH_REGISTRY":
        try:
            found = forks.network(str(name))
        except BadInput as error:
            raise BadInput(f"{where}: {one_line(error)}") from error
        if found is not None:
            registries.ARCH_REGISTRY.register(found)
            return
    raise BadInput(f"{where}: unknown name {name!r}{nearest(name, known)}")


def build_model(options: Options) -> Any:
    """Build the model of the options; classes of BasicSR and of plugins get `StockModel` mixed in."""
    cls = registries.MODEL_REGISTRY.get(options["model_type"])
    if not issubclass(cls, BaseModelFixes):
        cls = type(cls.__name__, (stock.StockModel, cls), {})
    try:
        return cls(deepcopy(options))
    except BadInput:
        raise
    except (TypeError, ValueError, LookupError, AssertionError, NotImplementedError, OSError) as error:
        missing = "missing key " if isinstance(error, KeyError) else ""
        raise BadInput(
            f"{options['model_type']} cannot be built from these options: "
            f"{missing}{one_line(error) or type(error).__name__}"
        ) from error


def version() -> str:
    """Return BasicSR's version and folder for the log."""
    return f"BasicSR {basicsr.__version__} ({basicsr.__path__[0]})"
