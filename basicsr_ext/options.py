"""Read option files safely, apply overrides from the command line, fill in defaults."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from kbnet_plugin.errors import BadInput, nearest

from . import aliases, schema

Options = dict[str, Any]


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML is untyped
    """Safe YAML in which 1e-4 is a number and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML without Python objects; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def find_options(option_file: str) -> str:
    """Return the path of an option file: a path stays as it is, ``kbnet_sidd`` means the file that ships."""
    if "." in option_file or Path(option_file).name != option_file or os.path.exists(option_file):
        return option_file
    folder = Path(__file__).with_name("option_files")  # in an installed package
    if not folder.is_dir():
        folder = Path(__file__).parents[1] / "options"
    shipped = {path.stem: path for path in folder.glob("*.yml")}
    if option_file not in shipped:
        raise BadInput(
            f"no option file {option_file} is here or ships with kbnet{nearest(option_file, shipped)}"
        )
    return str(shipped[option_file])


def read_options(path: str | Path, force: Sequence[str] = ()) -> Options:
    """Read an option file and apply ``a:b=value`` overrides, whose values are YAML too."""
    try:
        options = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read the option file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not a text file; -opt requires an option file in YAML") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: {_where(error)}") from error
    if not isinstance(options, dict):
        raise BadInput(f"{path} contains no options; -opt requires a YAML mapping as in options/*.yml")
    for entry in force:
        _override(options, entry)
    return options


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}: {problem}" if mark else " ".join(problem.split())


def _override(options: Options, entry: str) -> None:
    keys, equals, text = entry.partition("=")
    if not equals or not keys.strip():
        raise BadInput(f"--force_yml {entry}: write it as section:key=value")
    *sections, last = (k.strip() for k in keys.split(":"))
    at: Any = options
    for depth, section in enumerate(sections):
        if not isinstance(at, dict) or section not in at:
            hint = nearest(section, at) if isinstance(at, dict) else ""
            raise BadInput(f"--force_yml {entry}: no section {':'.join(sections[: depth + 1])!r}{hint}")
        at = at[section]
    if not isinstance(at, dict):
        raise BadInput(f"--force_yml {entry}: {':'.join(sections)!r} is a value, not a section")
    try:
        at[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--force_yml {entry}: {_where(error)}") from error


def prepare_options(options: Options, source: str | Path, *, train: bool) -> Options:
    """Check the options against the schema, fill in defaults and make the paths absolute.

    Relative paths start at the working directory, as BasicSR's users expect.
    """
    as_given = json.loads(json.dumps(options, default=str))  # plain values, for training states
    options, renamed = aliases.translate(options)
    options = schema.check(options, source)
    options["as_given"] = as_given
    if train and options["train"] is None:
        raise BadInput(f"{source}: the key 'train' is missing")
    if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", options["name"]):
        raise BadInput(f"{source}: name {options['name']!r} must be a valid folder name")
    options["is_train"] = train
    options["root_path"] = os.getcwd()
    options["manual_seed"] = options["manual_seed"] or 0
    if options["val"] is None and not train:
        options["val"] = schema.Val().model_dump()
    options["notes"] = renamed + schema.notes(options)
    _prepare_datasets(options, source)
    if train:
        _prepare_logger(options, source)
    _prepare_paths(options)
    return options


def count(section: Options, key: str, where: str) -> int:
    """Read a whole number of at least 1; BasicSR's files write many as floats (``!!float 4e3``)."""
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise BadInput(f"{where}.{key} must be a whole number of at least 1, not {value!r}")
    return int(value)


def _prepare_datasets(options: Options, source: str | Path) -> None:
    kept = {}
    for label, dataset in options["datasets"].items():
        if not (match := re.match(schema.SETS, str(label))):
            raise BadInput(
                f"{source}: datasets.{label}: a set is called train, val or test, the last two perhaps with "
                "an ending, as in val_2 or test_Set5"
            )
        if dataset is None:
            continue  # switched off, e.g. by --force_yml datasets:val=null
        phase = match[2] or "train"
        used = phase != "test" if options["is_train"] else phase != "train"
        if used:
            dataset.update(phase=phase, scale=options["scale"])
            dataset["name"] = dataset.get("name") or label
            dataset["io_backend"] = dataset.get("io_backend") or {"type": "disk"}
            if dataset["io_backend"].get("type") == "petrel":
                stored = all(str(v).endswith(".lmdb") for k, v in dataset.items() if k.startswith("dataroot"))
                dataset["io_backend"] = {"type": "lmdb" if stored else "disk"}
            kept[label] = dataset
    if not options["is_train"] and any(d["phase"] == "test" for d in kept.values()):
        kept = {label: d for label, d in kept.items() if d["phase"] == "test"}
    if options["is_train"] and "train" not in kept:
        raise BadInput(f"{source}: datasets.train is missing")
    if not kept:
        raise BadInput(f"{source}: datasets has no val or test set to test on")
    _tell_apart(kept, options["notes"])
    for label, dataset in kept.items():
        for key, value in dataset.items():
            if not (key.startswith("dataroot") or key == "meta_info_file"):
                continue
            if value is None or str(value).lower() == "none":  # as in the released files
                dataset[key] = None
            else:
                dataset[key] = _existing(str(value), f"{source}: datasets.{label}.{key}", source)
    options["datasets"] = kept


def _tell_apart(datasets: Options, notes: list[str]) -> None:
    """Give validation sets of one name different ones: it is in their figures, plots and pictures."""
    known: dict[str, str] = {}
    for label, dataset in datasets.items():
        if dataset["phase"] == "train":
            continue
        if (name := str(dataset["name"])) in known:
            dataset["name"] = f"{name}-{label}"
            notes.append(
                f"datasets.{label} has the name of datasets.{known[name]}, {name}: shown as {dataset['name']}"
            )
        known[str(dataset["name"])] = label


def _prepare_logger(options: Options, source: str | Path) -> None:
    settings = options["logger"]
    if (settings["wandb"] or {}).get("project"):
        if importlib.util.find_spec("wandb") is None:
            raise BadInput(
                f"{source}: logger.wandb.project: the Python package wandb is not installed; "
                "pip install wandb, or set the project to null"
            )
        settings["use_tb_logger"] = True
    if settings["use_tb_logger"] and importlib.util.find_spec("tensorboard") is None:
        raise BadInput(
            f"{source}: logger.use_tb_logger: the Python package tensorboard is not installed; "
            "pip install tensorboard, or set it to false"
        )


def _existing(value: str, where: str, source: str | Path) -> str:
    if "://" in value:
        raise BadInput(
            f"{where}: {value} is the authors' private storage, which nobody else can read; "
            "set it to a folder (io_backend: {type: disk}) or an lmdb"
        )
    path = os.path.expanduser(os.path.expandvars(value))
    if unset := re.search(r"\$\{?(\w+)", path):
        raise BadInput(
            f"{where}: the environment variable {unset[1]} is not set; set it to the data's folder"
        )
    if path.startswith("package:"):
        path = _inside_package(path.removeprefix("package:"), where)
    if not os.path.exists(path):
        hint = "set it to the folder of your data"
        if _describes_data(source):
            hint = f"the comments in {source} say where to get the data and how to arrange it"
        raise BadInput(f"{where}: {path} does not exist; {hint}")
    return path


def _describes_data(source: str | Path) -> bool:
    """Return whether the comments before the first key have a paragraph 'Data', as those of options/ do."""
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    head = re.match(r"(#.*\n|\s*\n)*", text)
    return bool(head and re.search(r"^# *Data\b", head[0], re.MULTILINE))


def _inside_package(path: str, where: str) -> str:
    """Find a folder such as ``skimage/data`` of an installed package without importing the package."""
    name, _, rest = path.partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"{where}: the Python package {name} is not installed; pip install 'kbnet[train]'")
    return os.path.join(next(iter(spec.submodule_search_locations)), *rest.split("/"))


def _prepare_paths(options: Options) -> None:
    path = options["path"] = options.get("path") or {}
    for key, value in path.items():
        if value is not None and ("pretrain_network" in key or key == "resume_state"):
            path[key] = os.path.expanduser(os.path.expandvars(str(value)))
    root = options["root_path"]
    # BasicSR lays out <root>/experiments/<name>/... and <root>/results/<name>/...
    experiments = os.path.expanduser(path.get("experiments_root") or os.path.join(root, "experiments"))
    experiment = os.path.join(os.path.abspath(experiments), options["name"])
    results = os.path.expanduser(path.get("results_root") or os.path.join(root, "results"))
    path["experiments_root"] = experiment
    path["models"] = os.path.join(experiment, "models")
    path["training_states"] = os.path.join(experiment, "training_states")
    path["results_root"] = os.path.join(os.path.abspath(results), options["name"])
    path["log"] = experiment if options["is_train"] else path["results_root"]
    path["visualization"] = os.path.join(path["log"], "visualization")
