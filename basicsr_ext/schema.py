"""Every key of an option file: its type, default and meaning.

A section for another package's class (its ``type`` is not ours) may have any keys.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from kbnet_plugin.errors import BadInput, nearest

MODEL = "ImageCleanModel"


def _whole(value: Any) -> Any:
    # BasicSR's files write whole numbers as floats (!!float 4e3).
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError("must be a whole number")
    return int(value)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


def _from(least: int) -> Any:
    def check(value: Any) -> Any:
        try:
            if (number := _whole(value)) >= least:
                return number
        except (ValueError, OverflowError):
            pass
        raise ValueError(f"must be a whole number of at least {least}")

    return check


Count = Annotated[int, BeforeValidator(_from(1)), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_from(0)), Field(ge=0)]
Integer = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, (int, float)) else v)]


def _one_or_more(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "array", "items": {"type": kind}}]})


Counts = Annotated[list[Count], BeforeValidator(_listed), _one_or_more("integer")]
Numbers = Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_listed), _one_or_more("number")]


def _key(default: Any, text: str) -> Any:
    return Field(default, description=text)


class Section(BaseModel):
    """Keys and values, nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Typed(BaseModel):
    """The name of a class and its arguments, which the class itself checks."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = _key(..., "name of the class; the other keys are its arguments")


class Backend(Typed):
    type: Literal["disk", "lmdb", "memcached", "petrel"] = _key("disk", "storage of the images")


class Step(Typed):
    type: str = _key(..., "name of a degradation; the other keys are its arguments")
    prob: Fraction = _key(1.0, "probability with which a sample is degraded")


class Metric(Section):
    type: str = _key(..., "calculate_psnr or calculate_ssim, or either with _clamped")
    crop_border: Size = _key(0, "pixels to leave out at each edge")
    test_y_channel: bool = _key(False, "compare luma (BT.601) only, as usual for deraining")
    input_order: Literal["HWC"] = _key("HWC", "the only order; BasicSR's option files contain the key")
    better: Literal["higher", "lower"] = _key("higher", "which values are better")


class Lpips(Section):
    type: Literal["calculate_lpips"] = _key(..., "learned perceptual distance")
    net: Literal["alex", "vgg", "squeeze"] = _key("alex", "network whose features are compared")
    weights: str | None = _key(None, "its ImageNet weights; null: those in torch hub's folder (no download)")
    crop_border: Size = _key(0, "pixels to leave out at each edge")
    better: Literal["lower"] = _key("lower", "which values are better")


class Niqe(Section):
    type: Literal["calculate_niqe"] = _key(..., "natural image quality evaluator; needs no ground truth")
    crop_border: Size = _key(0, "pixels to leave out at each edge")
    convert_to: Literal["y", "gray"] = _key("y", "what to measure of colour: luma (BT.601), or gray")
    input_order: Literal["HWC"] = _key("HWC", "the only order; BasicSR's option files contain the key")
    better: Literal["lower"] = _key("lower", "which values are better")


METRICS: dict[str, type[BaseModel]] = {
    "calculate_lpips": Lpips,
    "calculate_niqe": Niqe,
    **{f"calculate_{m}{c}": Metric for m in ("psnr", "ssim") for c in ("", "_clamped")},
}


class _Crops(Section):
    name: Text | None = _key(None, "name in the log; null: the key under datasets")
    type: str = _key(..., "name of the class")
    io_backend: Backend = _key(Backend(), "storage: disk or lmdb")
    in_ch: Literal[1, 3] = _key(3, "channels to read: 1 (gray) or 3 (colour)")
    cache_images: bool = _key(False, "keep decoded images in memory")
    geometric_augs: bool | None = _key(None, "flip and rotate at random in training (8 ways)")
    use_hflip: bool = _key(False, "BasicSR's key for flips; same as geometric_augs")
    use_rot: bool = _key(False, "BasicSR's key for rotations; same as geometric_augs")
    gt_size: Count | None = _key(None, "side of the training crop in pixels")
    batch_size_per_gpu: Count | None = _key(None, "images per step and process")
    gt_sizes: Counts | None = _key(None, "progressive training: crop size of each stage")
    mini_batch_sizes: Counts | None = _key(None, "batch size per process of each stage")
    iters: Counts | None = _key(None, "iterations of each stage; the last has no end")
    num_worker_per_gpu: Size = _key(0, "worker processes that load data; none with device_images")
    use_shuffle: bool = _key(True, "shuffle the images in every epoch")
    mean: list[float] | None = _key(None, "not supported")
    std: list[float] | None = _key(None, "not supported")
    dataset_enlarge_ratio: Number | Literal["auto"] | None = _key(None, "no effect: no pause between epochs")
    prefetch_mode: Literal["cpu", "cuda"] | None = _key(None, "no effect: the workers prefetch")
    num_prefetch_queue: Count | None = _key(None, "no effect")
    pin_memory: bool | None = _key(None, "no effect: always on with CUDA")
    persistent_workers: bool | None = _key(None, "no effect: always on")


class _Dataset(_Crops):
    dataroot_gt: str | None = _key(None, "clean images: a folder, *.lmdb, or package:PACKAGE/FOLDER")
    dataroot_lq: str | None = _key(None, "degraded images, unless made from the clean ones")
    meta_info_file: str | None = _key(
        None, "text file with the names to use, one per line, or 'clean, degraded'"
    )
    files: list[str] | None = _key(None, "names to use")
    filename_tmpl: str = _key("{}", "name of the degraded image, given that of the clean one")
    range: list[Number] | None = _key(
        None,
        "the two values that become 0 and 1; null: 0 and the largest of the files' bits, floats as they are",
    )
    pad_small: bool = _key(False, "pad images smaller than the crop by reflection, instead of refusing them")
    device_images: Literal["auto"] | bool = _key(
        "auto", "keep decoded training images on the device and make batches there; auto: if they fit"
    )
    reduce: Count = _key(1, "before cropping, reduce large clean images by a random whole factor up to this")


class Paired(_Dataset):
    type: Literal["Dataset_PairedImage"] = _key(..., "pairs of degraded and clean images")


class Gaussian(_Dataset):
    type: Literal["Dataset_GaussianDenoising"] = _key(..., "clean images with white noise added")
    sigma_type: Literal["constant", "random", "choice"] = _key("constant", "how training noise is drawn")
    sigma_range: Numbers | None = _key(None, "its standard deviation (0..255): one, two bounds, or a list")
    sigma_test: Annotated[float, Field(ge=0)] | None = _key(None, "standard deviation in validation and test")


class PoissonGaussian(_Dataset):
    type: Literal["Dataset_PoissonGaussianDenoising"] = _key(..., "clean images with sensor noise added")
    domain: Literal["camera", "microscope"] = _key("camera", "camera: in linear light; microscope: directly")
    gain_range: Numbers | None = _key(None, "variance per unit of intensity (0..1): one, or two bounds")
    read_noise_range: Numbers | None = _key(None, "standard deviation in the dark (0..1): one, or two bounds")
    fluorescence: Fraction = _key(0.0, "fraction of training crops made dark with sparse bright structures")
    gain_test: Annotated[float, Field(ge=0)] | None = _key(None, "gain in validation and test")
    read_noise_test: Annotated[float, Field(ge=0)] | None = _key(None, "read noise in validation and test")


class DualPixel(_Dataset):
    type: Literal["Dataset_DefocusDeblur_DualPixel_16bit"] = _key(..., "left and right views, clean images")
    dataroot_lqL: str | None = _key(None, "left views")  # noqa: N815 - the released files' names
    dataroot_lqR: str | None = _key(None, "right views")  # noqa: N815


class CleanImages(_Dataset):
    type: Literal["Dataset_CleanImages"] = _key(..., "clean images, degraded by a list of steps")
    degradations: list[Step] = _key(..., "steps in order: type, prob (default 1), and the type's arguments")


class _Noisy(_Crops):
    dataroot_lq: str = _key(..., "noisy stack or picture (.npy, TIFF, OME-Zarr, PNG), or a folder of them")
    in_ch: Literal[1, 3] = _key(1, "channels per sample: 1, or 3 for colour")
    axes: str | None = _key(None, "a letter of T Z C S Y X for each axis; null: from the file or its shape")
    range: list[Number] | None = _key(None, "the two values that become 0 and 1; null: from the pixels")


class BlindSpot(_Noisy):
    type: Literal["Dataset_BlindSpot"] = _key(..., "noisy planes with a few pixels masked (Noise2Void)")
    masked_pixel_percentage: Annotated[float, Field(gt=0, le=100)] | None = _key(
        None, "percentage of pixels to mask; null: 10"
    )
    strategy: Literal["median", "uniform"] | None = _key(None, "how masked pixels are replaced; null: median")
    correlated: Literal["horizontal", "vertical"] | None = _key(
        None, "direction in which neighbouring pixels share their noise; null: none"
    )


class PlanePairs(_Noisy):
    type: Literal["Dataset_PlanePairs"] = _key(..., "pairs of noisy planes of the same scene (Noise2Noise)")
    dataroot_gt: str | None = _key(None, "a second recording, plane for plane; null: pair successive planes")
    pair_axis: Literal["T", "Z", "C"] | None = _key(None, "axis along which to pair planes; null: T, else Z")


class KBNetS(Section):
    type: Literal["KBNet_s"] = _key(..., "the small network")
    img_channel: Count = _key(3, "image channels")
    width: Count = _key(64, "channels at full resolution, a multiple of 4")
    middle_blk_num: Size = _key(12, "blocks at the lowest resolution")
    enc_blk_nums: list[Size] = _key([2, 2, 4, 8], "blocks of each encoder level")
    dec_blk_nums: list[Size] = _key([2, 2, 2, 2], "blocks of each decoder level")
    basicblock: str = _key("KBBlock_s", "type of block")
    lightweight: bool = _key(False, "depthwise 3 x 3 instead of grouped 5 x 5 convolutions")
    ffn_scale: Positive = _key(2, "expansion of the feed-forward layers")
    bases: Count = _key(32, "kernels that the attention mixes at each pixel")
    per_group: Count = _key(4, "channels in a group of the attention")
    fold: Count = _key(1, "pixels of each side that become one in the first convolution")


class KBNetL(Section):
    type: Literal["KBNet_l"] = _key(..., "the large network")
    inp_channels: Count = _key(3, "input channels; 6 for dual-pixel")
    out_channels: Count = _key(3, "output channels")
    dim: Count = _key(48, "channels at full resolution")
    num_blocks: list[Size] = _key([4, 6, 6, 8], "blocks of each level")
    num_refinement_blocks: Size = _key(4, "final blocks at full resolution")
    heads: list[Count] = _key([1, 2, 4, 8], "attention heads of each level")
    ffn_expansion_factor: Positive = _key(1.5, "expansion of the feed-forward layers")
    bias: bool = _key(False, "use biases in convolutions")
    blockname: str = _key("KBBlock_l", "type of block")


BY_TYPE: dict[str, dict[str, type[BaseModel]]] = {
    "dataset": {get_args(c.model_fields["type"].annotation)[0]: c
                for c in (Paired, Gaussian, PoissonGaussian, DualPixel, CleanImages, BlindSpot, PlanePairs)},
    "network": {"KBNet_s": KBNetS, "KBNet_l": KBNetL},
    "metric": METRICS,
}  # fmt: skip
"""Our classes, and those metrics of BasicSR that would silently accept unknown keys."""


class Mixing(Section):
    mixup: bool = _key(False, "blend each image with another one in the batch")
    mixup_beta: Positive = _key(1.2, "both parameters of the beta distribution of the blending weight")
    use_identity: bool = _key(False, "leave half of the batches unchanged")


class Path(Section):
    pretrain_network_g: str | None = _key(None, "weights to start from, or to test")
    param_key_g: str | None = _key(None, "their key in the file (params, params_ema, ...); null: find it")
    strict_load_g: bool = _key(True, "false: load only the tensors that fit")
    resume_state: str | None = _key(None, "training state to resume from; --auto_resume finds the last")
    experiments_root: str | None = _key(None, "folder of all experiments; null: ./experiments")
    results_root: str | None = _key(None, "folder of all test results; null: ./results")
    ignore_resume_networks: str | list[str] | None = _key(None, "no effect")


class Train(Section):
    total_iter: Count = _key(..., "number of steps")
    optim_g: Typed | None = _key(None, "optimizer: AdamW or another of torch's, with lr and other arguments")
    scheduler: Typed | None = _key(None, "schedule: CosineAnnealingRestartCyclicLR, or BasicSR's or torch's")
    warmup_iter: Integer = _key(-1, "steps over which the learning rate rises from 0; -1: none")
    pixel_opt: Typed | None = _key(None, "loss: L1Loss, CharbonnierLoss, PSNRLoss, FrequencyLoss, ...")
    frequency_opt: Typed | None = _key(None, "second loss to add, e.g. FrequencyLoss")
    ema_decay: Fraction = _key(0.0, "decay of averaged weights (lower at first), used in validation; 0: off")
    use_grad_clip: bool | None = _key(None, "clip the gradient's norm")
    grad_clip: Positive | None = _key(None, "norm to clip to; null: 0.01 with use_grad_clip, else none")
    mixing_augs: Mixing | None = _key(None, "mixup")
    accumulate: Count = _key(1, "batches per step, with averaged gradients; multiplies the batch size")
    precision: Literal["fp32", "bf16", "fp16"] = _key(
        "fp32", "precision of products (autocast); on CPUs without AMX, bf16 is fp32"
    )
    compile: bool = _key(False, "compile the network with torch.compile")
    channels_last: bool = _key(False, "memory format; often faster with convolutions on GPUs")
    activation_checkpointing: bool = _key(False, "recompute activations of blocks to save memory")
    on_nan: Literal["stop", "skip"] = _key("stop", "when the loss is not finite: stop, or skip the batch")


class Val(Section):
    val_freq: Count = _key(5000, "iterations between validations")
    metrics: dict[str, Any] | None = _key(None, "metrics under any name: type and arguments")
    use_image: bool = _key(True, "metrics on 8-bit images; false: on floats; clamped in either case")
    tile: Count | None = _key(None, "restore larger images in tiles of this size; null: no tiles")
    tile_overlap: Size = _key(32, "pixels of context around each tile")
    window_size: Count | None = _key(None, "pad images by reflection to a multiple of this")
    samples: Size = _key(2, "images of each set to save as 'input | output | target'")
    save_img: bool = _key(False, "save all restored images")
    suffix: str | None = _key(None, "suffix of saved images' names; null: the experiment's name")
    pbar: bool | None = _key(None, "no effect: terminals always show a progress bar")
    rgb2bgr: bool | None = _key(None, "no effect: images are always saved in the right channel order")
    max_minibatch: Count | None = _key(None, "no effect, as in the released code; see tile")


class Wandb(Section):
    project: str | None = _key(None, "project; null: off")
    resume_id: str | None = _key(None, "ID of the run to resume")


class Logger(Section):
    print_freq: Count = _key(100, "iterations between log lines")
    save_checkpoint_freq: Count = _key(5000, "iterations between checkpoints")
    keep_checkpoints: Count | None = _key(
        5, "checkpoints to keep besides the best; null: all, as other models than ImageCleanModel by default"
    )
    use_tb_logger: bool = _key(False, "write TensorBoard logs")
    wandb: Wandb | None = _key(None, "mirror TensorBoard, which is then on, to Weights & Biases")


class Distributed(Section):
    backend: str | None = _key(None, "no effect: NCCL with CUDA, else gloo")
    port: Integer | None = _key(None, "no effect: set torchrun's --master_port")


class OptionFile(Section):
    name: Text = _key(..., "name of the experiment and its folder")
    model_type: str = _key(..., f"{MODEL}, or a model of BasicSR or a plugin, with any keys of its own")
    scale: Count = _key(1, "how many times larger the network's output is than its input")
    num_gpu: Literal["auto"] | Size = _key("auto", "0: CPU; otherwise one process uses one GPU")
    manual_seed: Integer | None = _key(0, "seed of all random numbers")
    deterministic: bool = _key(False, "only algorithms that repeat bit for bit; slower on GPUs")
    find_unused_parameters: bool = _key(False, "for networks that do not use all weights in each step")
    network_g: dict[str, Any] = _key(..., "the network: type and arguments")
    datasets: dict[str, Any] = _key(..., "train, val or val_*, test or test_*: type and keys; null: off")
    path: Path | None = _key(None, "weights and folders")
    train: Train | None = _key(None, "training")
    val: Val | None = _key(None, "validation and test")
    logger: Logger = _key(Logger(), "log and checkpoints")
    dist_params: Distributed | None = _key(None, "BasicSR's key; no effect")


SETS = r"^(train$|(val|test)($|[_\d]))"
"""Keys under ``datasets``, as a regular expression."""

OURS_ONLY = {
    "train": (
        "accumulate", "precision", "compile", "channels_last", "activation_checkpointing", "on_nan",
        "mixing_augs", "use_grad_clip", "grad_clip", "frequency_opt",
    ),
    "val": ("tile", "window_size"),
}  # fmt: skip
"""Keys that other models would silently ignore."""

_PER_NETWORK = re.compile(r"(pretrain_network|param_key|strict_load)_\w+")


def check(options: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Validate an option file and fill in the defaults.

    Raises
    ------
    BadInput
        If a key is unknown or missing, or a value has the wrong type; the message names the file, the key and
        the nearest known key.
    """
    given = dict(options)
    networks = {k: given.pop(k) for k in list(given) if str(k).startswith("network_") and k != "network_g"}
    free = given.get("model_type") not in (MODEL, None)
    own: dict[str, Any] = {}
    if given.setdefault("path", {}) is None:
        given["path"] = {}
    if isinstance(given["path"], dict):
        given["path"] = dict(given["path"])  # other networks have such keys too
        for key in [k for k in given["path"] if _PER_NETWORK.fullmatch(str(k)) and not str(k).endswith("_g")]:
            own[key] = given["path"].pop(key)
    checked = _validate(OptionFile, given, source, (), free=free)
    checked["path"] = {k: v for k, v in ((checked["path"] or {}) | own).items() if v is not None}
    for key, network in {"network_g": checked["network_g"], **networks}.items():
        checked[key] = _by_type("network", network, source, (key,))
    for label, dataset in checked["datasets"].items():
        if dataset is not None:
            checked["datasets"][label] = _by_type("dataset", dataset, source, ("datasets", label))
    for label, metric in ((checked["val"] or {}).get("metrics") or {}).items():
        checked["val"]["metrics"][label] = _by_type("metric", metric, source, ("val", "metrics", label))
    return checked


def _by_type(kind: str, section: Any, source: object, where: tuple[Any, ...]) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise BadInput(f"{source}: {_dotted(where)} must be a section of keys and values, not {section!r}")
    cls = BY_TYPE[kind].get(str(section.get("type")), Typed)
    checked = _validate(cls, section, source, where)
    # Only datasets and metrics get defaults, except null; arguments of other classes stay as given.
    filled = kind in ("dataset", "metric")
    return {k: v for k, v in checked.items() if k in section or (filled and v is not None)}


def _validate(
    cls: type[BaseModel], data: Mapping[str, Any], source: object, where: tuple[Any, ...], free: bool = False
) -> dict[str, Any]:
    try:
        return cls.model_validate(dict(data)).model_dump()
    except ValidationError as error:
        problems = error.errors(include_url=False)
    unknown = [p["loc"] for p in problems if p["type"] == "extra_forbidden"]
    # A misspelt required key is also missing; report the misspelling.
    for problem in sorted(problems, key=lambda p: p["type"] != "extra_forbidden"):
        if problem["type"] == "extra_forbidden":
            if free and _foreign(problem["loc"]):
                continue
            *outer, key = problem["loc"]
            known = _class_at(cls, outer).model_fields
            raise BadInput(f"{source}: unknown key {_dotted((*where, *outer, key))}{nearest(key, known)}")
        place = _real(problem["loc"], data)
        if problem["type"] == "missing":
            *outer, key = problem["loc"]
            near = nearest(key, [u[-1] for u in unknown if list(u[:-1]) == outer]) if unknown else ""
            inside = f"{_dotted((*where, *outer))}: " if where or outer else ""
            raise BadInput(f"{source}: {inside}the key {key!r} is missing{near if 'did you' in near else ''}")
        expected = " or ".join(
            dict.fromkeys(_expected(p) for p in problems if _real(p["loc"], data) == place)
        )
        raise BadInput(f"{source}: {_dotted((*where, *place))} must be {expected}, not {_at(data, place)!r}")
    # The unknown keys are another model's: check the rest, then put them back.
    known_data = _without(data, unknown)
    checked = _validate(cls, known_data, source, where)
    for *outer, key in unknown:
        inner: Any = checked
        origin: Any = data
        for part in outer:
            inner, origin = inner[part], origin[part]
        inner[key] = origin[key]
    return checked


def _foreign(loc: tuple[Any, ...]) -> bool:
    """Return whether other models may have their own keys here."""
    return len(loc) == 1 or loc[0] in ("train", "val", "path", "dist_params")


def _without(data: Mapping[str, Any], unknown: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for *outer, key in unknown:
        at = copy
        for part in outer:
            at[part] = dict(at[part])
            at = at[part]
        del at[key]
    return copy


def _class_at(cls: type[BaseModel], loc: Iterable[Any]) -> type[BaseModel]:
    for part in loc:
        annotation = cls.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        cls = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return cls


def _real(loc: tuple[Any, ...], data: Any) -> tuple[Any, ...]:
    """Return the part of an error's location that the data has; the rest names alternatives of a type."""
    for depth, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return loc[:depth]
    return loc


def _at(data: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        data = data[part]
    return data


def _expected(problem: Any) -> str:
    if problem["type"] in ("model_type", "dict_type"):
        return "a section of keys and values"
    text = re.sub(r"^(Value error, )?(Input should be|must be)\s*", "", problem["msg"])
    return re.sub(r"^a valid ", "a ", text).replace("a boolean", "true or false").replace("a string", "text")


def _dotted(where: Iterable[Any]) -> str:
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def notes(options: Mapping[str, Any]) -> list[str]:
    """List settings that have no effect, or are read differently than written."""
    found = []
    val = options.get("val") or {}
    if val.get("max_minibatch"):
        found.append("val.max_minibatch has no effect, as in the released code; val.tile saves memory")
    if val.get("rgb2bgr") is False:
        found.append("val.rgb2bgr has no effect: images are always saved in the right channel order")
    for label, dataset in options["datasets"].items():
        if dataset is None or dataset.get("type") not in BY_TYPE["dataset"]:
            continue
        where = f"datasets.{label}"
        if dataset.get("prefetch_mode"):
            found.append(f"{where}.prefetch_mode has no effect: the workers prefetch")
        if dataset.get("dataset_enlarge_ratio") not in (None, 1):
            found.append(f"{where}.dataset_enlarge_ratio has no effect: there is no pause between epochs")
        if dataset.get("sigma_type") == "random" and len(dataset.get("sigma_range") or []) == 1:
            bound = dataset["sigma_range"][0]
            found.append(f"{where}: sigma_type random with one number is read as 0..{bound:g}")
        if dataset["io_backend"]["type"] == "petrel":
            found.append(f"{where}.io_backend petrel was the authors' private storage: using disk or lmdb")
        if dataset.get("mini_batch_sizes") and dataset.get("batch_size_per_gpu"):
            found.append(f"{where}.batch_size_per_gpu has no effect: mini_batch_sizes replaces it")
    if options.get("dist_params"):
        found.append("dist_params has no effect: torchrun sets the port, the device determines the backend")
    return found


def describe() -> str:
    """Return the schema as text: sections, keys, defaults and descriptions."""
    lines: list[str] = []

    def section(title: str, cls: type[BaseModel]) -> None:
        lines.extend(["", f"{title}:"])
        for name, field in cls.model_fields.items():
            if field.is_required():
                default = "(required)"
            else:
                plain = field.default.model_dump() if isinstance(field.default, BaseModel) else field.default
                default = "..." if isinstance(field.default, Logger) else json.dumps(plain)
            lines.append(f"  {name + ':':26}{default:14}  # {field.description}")

    section("options", OptionFile)
    section("path", Path)
    section("train", Train)
    section("train.mixing_augs", Mixing)
    section("val", Val)
    section("val.metrics.*, type calculate_psnr", Metric)
    section("val.metrics.*, type calculate_lpips", Lpips)
    section("val.metrics.*, type calculate_niqe", Niqe)
    section("logger", Logger)
    for kind, title in (("network", "network_g"), ("dataset", "datasets.*")):
        for name, cls in BY_TYPE[kind].items():
            section(f"{title}, type {name}", cls)
    section("datasets.*.degradations[*]", Step)
    lines.extend(["", "datasets.*.degradations[*], arguments of each type:"])
    from kbnet_plugin.degradations import DEGRADATIONS  # imports torch, which takes seconds

    for name, step in DEGRADATIONS.items():
        arguments = ", ".join(inspect.signature(step).parameters)
        lines.append(f"  {name + ':':26}{arguments}  # {(inspect.getdoc(step) or '').splitlines()[0]}")
    return "\n".join(lines[1:]) + "\n"


def json_schema() -> dict[str, Any]:
    """Build a JSON schema of option files for editors: strict for our classes, open for all others."""
    strict = OptionFile.model_json_schema(ref_template="#/$defs/{model}")
    definitions = strict.pop("$defs")

    def chosen(kind: str) -> dict[str, Any]:
        cases = []
        for name, cls in BY_TYPE[kind].items():
            schema = cls.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(schema.pop("$defs", {}))
            definitions[cls.__name__] = schema
            condition = {"properties": {"type": {"const": name}}, "required": ["type"]}
            cases.append({"if": condition, "then": {"$ref": f"#/$defs/{cls.__name__}"}})
        return {
            "type": ["object", "null"],
            "required": ["type"],
            "properties": {"type": {"type": "string"}},
            "allOf": cases,
        }

    network = chosen("network")
    strict["properties"]["network_g"] = network
    strict["patternProperties"] = {"^network_[^g]": network}
    strict["properties"]["datasets"] = {
        "type": "object",
        "patternProperties": {SETS: chosen("dataset")},
        "additionalProperties": False,
    }
    metrics = {"type": ["object", "null"], "additionalProperties": chosen("metric")}
    definitions["Val"]["properties"]["metrics"] = metrics
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "KBNet option file",
        "if": {"properties": {"model_type": {"const": MODEL}}},
        "then": strict,
        "else": {"type": "object", "required": ["name", "network_g", "datasets"]},
        "$defs": definitions,
    }


def json_text() -> str:
    """Return `json_schema` as text, as in options.schema.json."""
    return json.dumps(json_schema(), indent=1) + "\n"
