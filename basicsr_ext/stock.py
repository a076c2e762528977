"""BasicSR's own models on any device: without CUDA, and without the extensions that it compiles for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

from kbnet_plugin.errors import BadInput, one_line

from .base_model import BaseModelFixes, unwrap


class _Here(TorchFunctionMode):
    """Keeps on `device` what a model asks CUDA for, by ``.cuda()`` or ``device="cuda"``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cuda:
            return args[0].to(self.device)
        if func is Tensor.to:
            args = tuple(self._place(a) for a in args)
        if func is Tensor.view and not any(isinstance(a, torch.dtype) for a in args):
            func = Tensor.reshape  # operations on the CPU keep layouts that cannot be viewed
        if "device" in kwargs:
            kwargs = kwargs | {"device": self._place(kwargs["device"])}
        return func(*args, **kwargs)

    def _place(self, value: Any) -> Any:
        named = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
        return self.device if named else value


class StockModel(BaseModelFixes):
    """Makes a model of BasicSR or of a plugin work on the device of the options."""

    _resumed = False

    def __init__(self, opt: Any) -> None:
        with _here(torch.device("cuda" if opt["num_gpu"] else "cpu")):
            super().__init__(opt)  # type: ignore[call-arg]

    def feed_data(self, data: dict[str, Any]) -> None:
        # Copies to a GPU are new tensors; without them, the video models change the shape of these too.
        own = {k: v.view_as(v) if isinstance(v, Tensor) else v for k, v in data.items()}
        if "gt" not in data:
            vars(self).pop("gt", None)  # of the last batch: validation would show it beside this image
        with self._in_place():
            super().feed_data(own)  # type: ignore[misc]

    def optimize_parameters(self, current_iter: int) -> None:
        if self._resumed:
            self._resumed = False
            self._freeze_again(current_iter)
        with self._in_place():
            super().optimize_parameters(current_iter)  # type: ignore[misc]

    def test(self) -> None:
        with self._in_place():
            super().test()  # type: ignore[misc]

    def validation(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_place():
            return super().validation(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Compute on the device of the options; an error in BasicSR's own code becomes one line."""
        try:
            with _here(self.device):
                yield
        except _MISTAKES as error:
            text = f"{type(error).__name__}: {one_line(error)}"
            # Running out of memory and the loss of another process have messages of their own.
            special = isinstance(error, (BadInput, torch.OutOfMemoryError)) or "allocate memory" in text
            if special or self.opt["dist"] or not type(self).__bases__[-1].__module__.startswith("basicsr."):
                raise
            raise BadInput(f"{self.opt['model_type']}: {text}") from error

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        super().resume_training(resume_state)
        self._resumed = True

    def _freeze_again(self, current_iter: int) -> None:
        """Repeat what BasicSR's video models do in step 1 only: freeze the weights that train later."""
        for until, parts, within in (
            ("fix_flow_iter", ("spynet", "edvr"), True),
            ("train_tsa_iter", ("fusion",), False),  # all but these
        ):
            if 1 < current_iter < (getattr(self, until, None) or 0):
                for name, weight in unwrap(self.net_g).named_parameters():  # type: ignore[attr-defined]
                    weight.requires_grad_(any(part in name for part in parts) != within)


_MISTAKES = (RuntimeError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)


def _here(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "cuda" else _Here(device)


def install() -> None:
    """Replace the functions of BasicSR that require its compiled extensions; may be called again."""
    # By name: the packages hide these modules behind functions of the same names.
    dcn = import_module("basicsr.ops.dcn.deform_conv")
    fused = import_module("basicsr.ops.fused_act.fused_act")
    upfirdn = import_module("basicsr.ops.upfirdn2d.upfirdn2d")
    if getattr(dcn, "kbnet_replaced", False):
        return
    dcn.kbnet_replaced = True  # type: ignore[attr-defined]
    for name, function in (
        ("deform_conv", _choose(dcn.deform_conv, _deform_conv, dcn)),
        ("modulated_deform_conv", _choose(dcn.modulated_deform_conv, _modulated_deform_conv, dcn)),
    ):
        setattr(dcn, name, function)
        setattr(import_module("basicsr.ops.dcn"), name, function)
    # Other modules have imported the functions that call these two classes.
    leaky = _choose(fused.FusedLeakyReLUFunction.apply, _fused_leaky_relu, fused)
    fused.FusedLeakyReLUFunction = SimpleNamespace(apply=leaky)  # type: ignore[attr-defined]
    filtering = _choose(upfirdn.UpFirDn2d.apply, partial(_upfirdn2d, upfirdn.upfirdn2d_native), upfirdn)
    upfirdn.UpFirDn2d = SimpleNamespace(apply=filtering)  # type: ignore[attr-defined]
    _align_without_cuda(import_module("basicsr.archs.basicvsrpp_arch").BasicVSRPlusPlus)


def _choose(theirs: Callable[..., Tensor], ours: Callable[..., Tensor], module: ModuleType) -> Any:
    """Use BasicSR's function where its extension is compiled and the image is on a GPU, else `ours`."""
    compiled = hasattr(module, f"{module.__name__.rpartition('.')[2]}_ext")

    def chosen(image: Tensor, *args: Any) -> Tensor:
        return (theirs if compiled and image.is_cuda else ours)(image, *args)

    return chosen


def _deform_conv(
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *_: int,
) -> Tensor:
    return deform_conv2d(image, offset, weight, None, stride, padding, dilation)


def _modulated_deform_conv(
    image: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *_: int,
) -> Tensor:
    return deform_conv2d(image, offset, weight, bias, stride, padding, dilation, mask)


def _fused_leaky_relu(image: Tensor, bias: Tensor, negative_slope: float, scale: float) -> Tensor:
    return scale * F.leaky_relu(image + bias.view(1, -1, *[1] * (image.ndim - 2)), negative_slope)


def _upfirdn2d(
    native: Callable[..., Tensor], image: Tensor, kernel: Tensor, up: Any, down: Any, pad: Any
) -> Tensor:
    return native(image, kernel, *up, *down, *pad, *pad)


def _align_without_cuda(cls: Any) -> None:
    """Let BasicVSR++ have its alignment on the CPU too, which it leaves out where CUDA is missing."""
    build = cls.__init__

    @wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with patch.object(torch.cuda, "is_available", return_value=True):
            build(self, *args, **kwargs)

    cls.__init__ = init
