"""Every key of an option file: its type, its default, what it does.

A section that belongs to somebody else's class (its ``type`` is not ours) keeps whatever keys it has.
"""

from __future__ import annotations

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
        raise ValueError(f"must be a whole number from {least}")

    return check


Count = Annotated[int, BeforeValidator(_from(1)), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_from(0)), Field(ge=0)]
Integer = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
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
    type: Literal["disk", "lmdb", "memcached", "petrel"] = _key("disk", "where the files are")


class Metric(Section):
    type: str = _key(..., "calculate_psnr or calculate_ssim, or the same with _clamped")
    crop_border: Size = _key(0, "pixels left out at every edge")
    test_y_channel: bool = _key(False, "compare luma (BT.601) only, as is usual for deraining")
    input_order: Literal["HWC"] = _key("HWC", "as BasicSR's option files have it")
    better: Literal["higher", "lower"] = _key("higher", "which way is better")


class Lpips(Section):
    type: Literal["calculate_lpips"] = _key(..., "learned perceptual distance")
    net: Literal["alex", "vgg", "squeeze"] = _key("alex", "the trained network that it compares in")
    weights: str | None = _key(None, "that network's ImageNet weights; null: torch hub's folder, no download")
    crop_border: Size = _key(0, "pixels left out at every edge")
    better: Literal["lower"] = _key("lower", "which way is better")


METRICS: dict[str, type[BaseModel]] = {
    "calculate_lpips": Lpips,
    **{f"calculate_{m}{c}": Metric for m in ("psnr", "ssim") for c in ("", "_clamped")},
}


class _Crops(Section):
    name: Text | None = _key(None, "how the log calls it; null: its key under datasets")
    type: str = _key(..., "class")
    io_backend: Backend = _key(Backend(), "disk or lmdb")
    in_ch: Literal[1, 3] = _key(3, "channels to read: 1 gray, 3 colour")
    cache_images: bool = _key(False, "keep decoded images in memory")
    geometric_augs: bool | None = _key(None, "train on a random one of the 8 flips and turns")
    use_hflip: bool = _key(False, "stock BasicSR's name for half of geometric_augs; does the same")
    use_rot: bool = _key(False, "the other half")
    gt_size: Count | None = _key(None, "side of the training crop, pixels")
    batch_size_per_gpu: Count | None = _key(None, "images per step and process")
    gt_sizes: Counts | None = _key(None, "progressive training: crop of each stage")
    mini_batch_sizes: Counts | None = _key(None, "batch per process of each stage")
    iters: Counts | None = _key(None, "iterations of each stage; the last goes on")
    num_worker_per_gpu: Size = _key(0, "processes that load data; they live for the whole run")
    use_shuffle: bool = _key(True, "another order every epoch")
    mean: list[float] | None = _key(None, "not supported")
    std: list[float] | None = _key(None, "not supported")
    dataset_enlarge_ratio: Number | Literal["auto"] | None = _key(None, "without effect: epochs run on")
    prefetch_mode: Literal["cpu", "cuda"] | None = _key(None, "without effect: the workers prefetch")
    num_prefetch_queue: Count | None = _key(None, "without effect")
    pin_memory: bool | None = _key(None, "without effect: done with CUDA")
    persistent_workers: bool | None = _key(None, "without effect: they always are")


class _Dataset(_Crops):
    dataroot_gt: str | None = _key(None, "clean images: a folder, *.lmdb, or package:PACKAGE/FOLDER")
    dataroot_lq: str | None = _key(None, "degraded images, where they are not made from the clean ones")
    meta_info_file: str | None = _key(None, "text file that lists the names to use")
    files: list[str] | None = _key(None, "the names to use")
    filename_tmpl: str = _key("{}", "name of a degraded image for the name of a clean one")
    pad_small: bool = _key(False, "reflect images smaller than the crop, instead of refusing them")
    reduce: Count = _key(1, "reduce large clean images by a random whole factor up to this before cropping")


class Paired(_Dataset):
    type: Literal["Dataset_PairedImage"] = _key(..., "degraded images beside clean ones")


class Gaussian(_Dataset):
    type: Literal["Dataset_GaussianDenoising"] = _key(..., "clean images; white noise is added")
    sigma_type: Literal["constant", "random", "choice"] = _key("constant", "how training noise is drawn")
    sigma_range: Numbers | None = _key(None, "its standard deviation in 0..255: one, two bounds, or a choice")
    sigma_test: Annotated[float, Field(ge=0)] | None = _key(None, "that of validation and test")


class PoissonGaussian(_Dataset):
    type: Literal["Dataset_PoissonGaussianDenoising"] = _key(..., "clean images; sensor noise is added")
    domain: Literal["camera", "microscope"] = _key("camera", "camera: in linear light of sRGB; or directly")
    gain_range: Numbers | None = _key(None, "variance per intensity (0..1): one, or two bounds (log-uniform)")
    read_noise_range: Numbers | None = _key(None, "standard deviation at zero (0..1): one, or two bounds")
    fluorescence: Share = _key(0.0, "share of training crops made dark with sparse bright structures")
    gain_test: Annotated[float, Field(ge=0)] | None = _key(None, "gain in validation and test")
    read_noise_test: Annotated[float, Field(ge=0)] | None = _key(None, "read noise in validation and test")


class DualPixel(_Dataset):
    type: Literal["Dataset_DefocusDeblur_DualPixel_16bit"] = _key(..., "left and right view, clean image")
    dataroot_lqL: str | None = _key(None, "left views")  # noqa: N815 - the released files' names
    dataroot_lqR: str | None = _key(None, "right views")  # noqa: N815


class _Noisy(_Crops):
    dataroot_lq: str = _key(..., "noisy stack or picture (.npy, TIFF, OME-Zarr, PNG), or a folder")
    in_ch: Literal[1, 3] = _key(1, "channels that the network sees together: 1, or 3 colours")
    axes: str | None = _key(None, "a letter of T Z C S Y X for every axis; null: as file or shape say")
    range: list[Number] | None = _key(None, "the two values that become 0 and 1; null: found from the pixels")


class BlindSpot(_Noisy):
    type: Literal["Dataset_BlindSpot"] = _key(..., "noisy pictures; a few pixels are hidden (Noise2Void)")
    masked_pixel_percentage: Annotated[float, Field(gt=0, le=100)] | None = _key(
        None, "how many pixels are masked, in percent; null: 10"
    )
    strategy: Literal["median", "uniform"] | None = _key(None, "what replaces them; null: median")


class PlanePairs(_Noisy):
    type: Literal["Dataset_PlanePairs"] = _key(..., "noisy planes that show the same twice (Noise2Noise)")
    dataroot_gt: str | None = _key(None, "a second recording, plane for plane; null: planes that follow")
    pair_axis: Literal["T", "Z", "C"] | None = _key(None, "axis along which they follow; null: T, or else Z")


class KBNetS(Section):
    type: Literal["KBNet_s"] = _key(..., "the small network")
    img_channel: Count = _key(3, "channels of the image")
    width: Count = _key(64, "channels at full resolution, a multiple of 4")
    middle_blk_num: Size = _key(12, "blocks at the lowest resolution")
    enc_blk_nums: list[Size] = _key([2, 2, 4, 8], "blocks of each level on the way down")
    dec_blk_nums: list[Size] = _key([2, 2, 2, 2], "blocks of each level on the way up")
    basicblock: str = _key("KBBlock_s", "kind of block")
    lightweight: bool = _key(False, "depthwise 3 x 3 instead of grouped 5 x 5 convolutions")
    ffn_scale: Positive = _key(2, "widening of the feed-forward part")


class KBNetL(Section):
    type: Literal["KBNet_l"] = _key(..., "the large network")
    inp_channels: Count = _key(3, "channels that come in; 6 for dual-pixel")
    out_channels: Count = _key(3, "channels that go out")
    dim: Count = _key(48, "channels at full resolution")
    num_blocks: list[Size] = _key([4, 6, 6, 8], "blocks of each level")
    num_refinement_blocks: Size = _key(4, "blocks at the end")
    heads: list[Count] = _key([1, 2, 4, 8], "attention heads of each level")
    ffn_expansion_factor: Positive = _key(1.5, "widening of the feed-forward part")
    bias: bool = _key(False, "convolutions with a bias")
    blockname: str = _key("KBBlock_l", "kind of block")


BY_TYPE: dict[str, dict[str, type[BaseModel]]] = {
    "dataset": {get_args(c.model_fields["type"].annotation)[0]: c
                for c in (Paired, Gaussian, PoissonGaussian, DualPixel, BlindSpot, PlanePairs)},
    "network": {"KBNet_s": KBNetS, "KBNet_l": KBNetL},
    "metric": METRICS,
}  # fmt: skip
"""Our classes, and the few others whose keys are checked because they swallow unknown ones."""


class Mixing(Section):
    mixup: bool = _key(False, "blend each image with another one of the batch")
    mixup_beta: Positive = _key(1.2, "both parameters of the share's beta distribution")
    use_identity: bool = _key(False, "leave half of the batches as they are")


class Path(Section):
    pretrain_network_g: str | None = _key(None, "weights to start from, or to test")
    param_key_g: str | None = _key(None, "their key in the file (params, params_ema, ...); null finds it")
    strict_load_g: bool = _key(True, "false: take only the tensors that fit")
    resume_state: str | None = _key(None, "training state to go on from; --auto_resume finds the last")
    experiments_root: str | None = _key(None, "null: ./experiments")
    results_root: str | None = _key(None, "null: ./results")
    ignore_resume_networks: str | list[str] | None = _key(None, "without effect here")


class Train(Section):
    total_iter: Count = _key(..., "steps; exactly so many are made")
    optim_g: Typed | None = _key(None, "optimizer: AdamW, Adam or torch's others; lr and arguments")
    scheduler: Typed | None = _key(None, "learning rate: CosineAnnealingRestartCyclicLR, BasicSR's, torch's")
    warmup_iter: Integer = _key(-1, "steps over which the rate rises from 0; -1: none")
    pixel_opt: Typed | None = _key(None, "loss: L1Loss, CharbonnierLoss, PSNRLoss, FrequencyLoss, ...")
    frequency_opt: Typed | None = _key(None, "a second loss that is added, e.g. FrequencyLoss")
    ema_decay: Share = _key(0.0, "averaging of the weights, shorter at first; used in validation; 0: off")
    use_grad_clip: bool | None = _key(None, "clip the gradient's norm")
    grad_clip: Positive | None = _key(None, "to this; null: 0.01 with use_grad_clip, else not at all")
    mixing_augs: Mixing | None = _key(None, "mixup")
    accumulate: Count = _key(1, "batches per step: their gradients are averaged; multiplies the batch")
    precision: Literal["fp32", "bf16", "fp16"] = _key("fp32", "of the arithmetic (autocast)")
    compile: bool = _key(False, "torch.compile the network")
    channels_last: bool = _key(False, "memory format; often faster with convolutions on GPUs")
    activation_checkpointing: bool = _key(False, "compute blocks twice instead of keeping their activations")
    on_nan: Literal["stop", "skip"] = _key("stop", "when the loss is not finite: end, or leave the batch out")


class Val(Section):
    val_freq: Count = _key(5000, "iterations between validations")
    metrics: dict[str, Any] | None = _key(None, "by any name: type and arguments")
    use_image: bool = _key(True, "metrics on rounded 8-bit images; false: on floats; clamped in either case")
    tile: Count | None = _key(None, "restore larger images in tiles of this side; null: whole")
    tile_overlap: Size = _key(32, "width of the context around a tile's result")
    window_size: Count | None = _key(None, "reflect images to a multiple of it")
    samples: Size = _key(2, "pictures 'input | output | target' kept of the first images of every set")
    save_img: bool = _key(False, "save every restored image of every validation")
    suffix: str | None = _key(None, "end of the names of saved images; null: the experiment's name")
    pbar: bool | None = _key(None, "without effect: there is one on a terminal")
    rgb2bgr: bool | None = _key(None, "without effect: pictures are always saved in the right order")
    max_minibatch: Count | None = _key(None, "without effect, as in the code it was released with; see tile")


class Wandb(Section):
    project: str | None = _key(None, "project; null: off")
    resume_id: str | None = _key(None, "run to go on with")


class Logger(Section):
    print_freq: Count = _key(100, "iterations between lines of the log")
    save_checkpoint_freq: Count = _key(5000, "iterations between checkpoints")
    keep_checkpoints: Count | None = _key(5, "older ones are removed, except the best; null: keep all")
    use_tb_logger: bool = _key(False, "write for TensorBoard")
    wandb: Wandb | None = _key(None, "mirror TensorBoard to Weights & Biases")


class Distributed(Section):
    backend: str | None = _key(None, "without effect: NCCL with CUDA, gloo without")
    port: Integer | None = _key(None, "without effect: torchrun's --master_port")


class OptionFile(Section):
    name: Text = _key(..., "of the experiment and its folder")
    model_type: str = _key(..., f"{MODEL}, or BasicSR's or a plugin's, whose own keys are then free")
    scale: Count = _key(1, "how many times larger the network's output is than its input")
    num_gpu: Literal["auto"] | Size = _key("auto", "0: CPU; otherwise one process uses one GPU")
    manual_seed: Integer | None = _key(0, "of everything random")
    deterministic: bool = _key(False, "only algorithms that repeat bit for bit (GPU: slower)")
    find_unused_parameters: bool = _key(False, "for networks that do not use all weights in each step")
    network_g: dict[str, Any] = _key(..., "the network: type and arguments")
    datasets: dict[str, Any] = _key(..., "train, val*, test*: a type and its keys each; null: off")
    path: Path | None = _key(None, "weights and folders")
    train: Train | None = _key(None, "training")
    val: Val | None = _key(None, "validation and test")
    logger: Logger = _key(Logger(), "log and checkpoints")
    dist_params: Distributed | None = _key(None, "of stock BasicSR")


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
        For an unknown key, a wrong type or a missing key; it names file, key and the nearest known key.
    """
    given = dict(options)
    networks = {k: given.pop(k) for k in list(given) if str(k).startswith("network_") and k != "network_g"}
    free = given.get("model_type") not in (MODEL, None)
    own: dict[str, Any] = {}
    if given.setdefault("path", {}) is None:
        given["path"] = {}
    if isinstance(given["path"], dict):
        given["path"] = dict(given["path"])  # networks besides g have their keys too
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
    # Null is as good as left out; arguments of classes stay as few as they were given.
    return {k: v for k, v in checked.items() if k in section or (kind == "dataset" and v is not None)}


def _validate(
    cls: type[BaseModel], data: Mapping[str, Any], source: object, where: tuple[Any, ...], free: bool = False
) -> dict[str, Any]:
    try:
        return cls.model_validate(dict(data)).model_dump()
    except ValidationError as error:
        problems = error.errors(include_url=False)
    surplus = [p["loc"] for p in problems if p["type"] == "extra_forbidden"]
    # A misspelt key is also a missing one: the first says more.
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
            near = nearest(key, [s[-1] for s in surplus if list(s[:-1]) == outer]) if surplus else ""
            inside = f"{_dotted((*where, *outer))}: " if where or outer else ""
            raise BadInput(f"{source}: {inside}the key {key!r} is missing{near if 'did you' in near else ''}")
        said = " or ".join(dict.fromkeys(_said(p) for p in problems if _real(p["loc"], data) == place))
        raise BadInput(f"{source}: {_dotted((*where, *place))} must be {said}, not {_at(data, place)!r}")
    # Only keys of somebody else's model were unknown: check the rest, then put them back.
    known_data = _without(data, surplus)
    checked = _validate(cls, known_data, source, where)
    for *outer, key in surplus:
        inner, origin = checked, data
        for part in outer:
            inner, origin = inner[part], origin[part]
        inner[key] = origin[key]
    return checked


def _foreign(loc: tuple[Any, ...]) -> bool:
    """Whether a model may have keys of its own there."""
    return len(loc) == 1 or loc[0] in ("train", "val", "path", "dist_params")


def _without(data: Mapping[str, Any], surplus: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for *outer, key in surplus:
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
    """The part of an error's place that is in the data; the rest names alternatives of a type."""
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


def _said(problem: Any) -> str:
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
    """What the file asks for that is without effect here, or read differently than written."""
    said = []
    val = options.get("val") or {}
    if val.get("max_minibatch"):
        said.append("val.max_minibatch has no effect (nor where it was released); val.tile saves memory")
    if val.get("rgb2bgr") is False:
        said.append("val.rgb2bgr has no effect: pictures are always saved in the right order of channels")
    for label, dataset in options["datasets"].items():
        if dataset is None or dataset.get("type") not in BY_TYPE["dataset"]:
            continue
        where = f"datasets.{label}"
        if dataset.get("prefetch_mode"):
            said.append(f"{where}.prefetch_mode has no effect: the workers prefetch")
        if dataset.get("dataset_enlarge_ratio") not in (None, 1):
            said.append(f"{where}.dataset_enlarge_ratio has no effect: epochs run on without a pause")
        if dataset.get("sigma_type") == "random" and len(dataset.get("sigma_range") or []) == 1:
            bound = dataset["sigma_range"][0]
            said.append(f"{where}: sigma_type random with one number is read as 0..{bound:g}")
        if dataset["io_backend"]["type"] == "petrel":
            said.append(f"{where}.io_backend petrel was the authors' private storage: read from disk or lmdb")
        if dataset.get("mini_batch_sizes") and dataset.get("batch_size_per_gpu"):
            said.append(f"{where}.batch_size_per_gpu gives way to mini_batch_sizes")
    if options.get("dist_params"):
        said.append("dist_params has no effect: torchrun chooses the port, the device the backend")
    return said


def describe() -> str:
    """The schema as text: sections, keys, defaults, meaning."""
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

    for name, cls in (("options", OptionFile), ("path", Path), ("train", Train)):
        section(name, cls)
    section("train.mixing_augs", Mixing)
    section("val", Val)
    for name, cls in (("calculate_psnr", Metric), ("calculate_lpips", Lpips)):
        section(f"val.metrics.*, type {name}", cls)
    section("logger", Logger)
    for kind, title in (("network", "network_g"), ("dataset", "datasets.*")):
        for name, cls in BY_TYPE[kind].items():
            section(f"{title}, type {name}", cls)
    return "\n".join(lines[1:]) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON schema of an option file, for editors: exact for our model, datasets and networks, else free."""
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
        "patternProperties": {"^(train|val|test)(_.*)?$": chosen("dataset")},
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
    """`json_schema` as it ships in options.schema.json."""
    return json.dumps(json_schema(), indent=1) + "\n"
