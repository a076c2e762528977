"""Make the OME-XML of a result: that of its source, or a new one."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from ...errors import one_line
from ..formats import import_optional
from ..metadata import Frame, Metadata
from ..ome_xml import OmeInfo, check_xml, find_colors, parse_number, read_ome
from ..units import is_length, is_time, to_name, to_symbol

PIXEL_TYPES = {name: name for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32")}
PIXEL_TYPES |= {"float32": "float", "float64": "double", "bool": "bit"}
"""From each dtype that OME-XML has to its name there."""

_FIELDS = {"X": "physical_size_x", "Y": "physical_size_y", "Z": "physical_size_z", "T": "time_increment"}
_POSITIONS = {"X": "position_x", "Y": "position_y", "Z": "position_z", "T": "delta_t"}
_UNIT_TYPES = "Length", "Time", "ElectricPotential", "Frequency", "Power", "Pressure", "Temperature"
_NAMESPACE = "kbnet"  # of the annotation that says what was done


def make_ome(frames: Sequence[Frame]) -> tuple[str, tuple[str, ...]]:
    """Make the OME-XML of a TIFF, from that of its source if there is one.

    Parameters
    ----------
    frames : sequence of Frame
        Its images in the order in which their planes are written, each with its axes in the order in which
        they are stored: Y and X last, followed only by S.

    Returns
    -------
    xml : str
        Valid by the schema of 2016-06.
    notes : tuple of str
        What of the source's OME-XML was changed or dropped.

    Raises
    ------
    ValueError
        If ome-types is not installed; the message names the extra.

    References
    ----------
    .. [1] https://ome-model.readthedocs.io/en/stable/ome-tiff/specification.html
    """
    import_ome_types()
    source = next((frame.metadata.ome for frame in frames if frame.metadata.ome), None)
    parsed, notes = _parse(source) if source else (None, [])
    xml = _build(frames, parsed, source)
    if parsed is not None and (problem := _find_problem(xml)):
        notes.append(f"OME-XML made anew, as that of the source is invalid ({problem})")
        xml = _build(frames, None, None)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}', tuple(dict.fromkeys(notes))


def import_ome_types() -> Any:
    """Import ome-types; ValueError, which names the extra, if it is not installed."""
    return import_optional("ome_types", "OME-TIFF needs", "arrays")


def _parse(xml: str) -> tuple[Any, list[str]]:
    notes: list[str] = []

    def repair(tree: Any) -> Any:
        notes.extend(_repair(tree.getroot()))
        return tree

    try:
        text = check_xml(xml).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about identifiers and references, which are checked at the end
            return import_ome_types().from_xml(text, transformations=[repair]), notes
    except Exception as error:  # strangers' files break parsers in all ways
        return None, [f"OME-XML made anew, as that of the source is invalid ({one_line(error, 100)})"]


def _repair(root: Any) -> list[str]:
    model = import_ome_types().model
    allowed = {unit.value for kind in _UNIT_TYPES for unit in getattr(model, f"Units{kind}")}
    notes = []
    for element in root.iter():
        if not isinstance(element.tag, str) or "openmicroscopy" not in element.tag:
            continue  # a comment, or something of another language
        for key, value in list(element.attrib.items()):
            if re.fullmatch("PhysicalSize[XYZ]", key) and not (parse_number(value) or 0) > 0:
                notes.append(f"{key} {value!r} dropped")
                del element.attrib[key]
            elif re.fullmatch(".+Unit", key) and value not in allowed:
                symbol = to_symbol(to_name(value) or "")
                if symbol:
                    element.attrib[key] = symbol
                    notes.append(f"unit {value!r} written as {symbol!r}")
                else:
                    del element.attrib[key]
                    element.attrib.pop(key.removesuffix("Unit"), None)
                    notes.append(f"{key.removesuffix('Unit')} dropped, as its unit {value!r} is unknown")
    return notes


def _find_problem(xml: str) -> str:
    try:
        import_ome_types().validate_xml(xml)
    except ImportError:  # neither lxml nor xmlschema is installed
        return ""
    except Exception as error:
        return one_line(error, 200)
    return ""


def _build(frames: Sequence[Frame], ome: Any, source: str | None) -> str:
    model = import_ome_types().model
    known = [] if ome is None else list(ome.images)
    ome = model.OME() if ome is None else ome
    namespaces = {a.id: (a.namespace or "").lower() for a in ome.structured_annotations or ()}
    images: list[Any] = []
    first = 0
    for number, frame in enumerate(frames):
        place = frame.metadata.ome_image
        if known and frame.metadata.ome == source and place < len(known):
            image = known[place]
            if sum(other.metadata.ome_image == place for other in frames) > 1:
                image = image.model_copy(deep=True)
        else:
            image = _fresh(model, number, frame)
        _store(model, image, frame, first, namespaces)
        _fill(model, image.pixels, frame.metadata)
        images.append(image)
        first += _planes(frame)
    ome.images = images
    ome.uuid = ome.binary_only = None
    _number_uniquely(images, {image.id for image in known})
    _drop_references(ome, {image.id for image in images})
    _annotate(model, ome, frames)
    xml: str = ome.to_xml()
    return xml


def _planes(frame: Frame) -> int:
    """Return the number of planes."""
    return math.prod(n for a, n in zip(str(frame.metadata.axes), frame.shape, strict=True) if a in "TZC")


def _fresh(model: Any, number: int, frame: Frame) -> Any:
    metadata = frame.metadata
    info = read_ome(metadata.ome, metadata.ome_image) if metadata.ome else OmeInfo()
    pixels = model.Pixels(
        id=f"Pixels:{number}",
        dimension_order="XYCZT",
        type="uint8",
        size_x=1,
        size_y=1,
        size_z=1,
        size_c=1,
        size_t=1,
    )
    return model.Image(
        id=f"Image:{number}",
        name=_clean(metadata.text.get("Title") or info.name or metadata.path) or None,
        description=_clean(metadata.description or info.description) or None,
        pixels=pixels,
    )


def _clean(text: str | None) -> str:
    """Remove the characters that XML cannot contain."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text or "")


def _store(model: Any, image: Any, frame: Frame, first: int, namespaces: Mapping[str, str]) -> None:
    """Describe how the pixels of an image are stored."""
    axes, pixels = str(frame.metadata.axes), image.pixels
    length = {a: int(n) for a, n in zip(axes, frame.shape, strict=True)}
    stack = [a for a in axes if a in "TZC"]
    samples, channels = length.get("S", 1), length.get("C", 1)
    order = "XY" + "".join(reversed(stack)) + "".join(a for a in "CZT" if a not in stack)
    before = pixels.size_z, pixels.size_c, pixels.size_t
    pixels.dimension_order, pixels.type = order, PIXEL_TYPES[np.dtype(frame.dtype).name]
    pixels.size_x, pixels.size_y = length["X"], length["Y"]
    pixels.size_z, pixels.size_t = length.get("Z", 1), length.get("T", 1)
    pixels.size_c = channels * samples
    if (pixels.size_z, pixels.size_c, pixels.size_t) != before:
        # Annotations named modulo divide an axis of the source, which reading made two axes.
        image.annotation_refs = [r for r in image.annotation_refs if "modulo" not in namespaces.get(r.id, "")]
    pixels.significant_bits = pixels.interleaved = pixels.big_endian = pixels.metadata_only = None
    pixels.bin_data_blocks = []
    pixels.tiff_data_blocks = [model.TiffData(ifd=first, plane_count=_planes(frame))]
    if len(pixels.channels) != channels:
        pixels.channels = [
            model.Channel(id=f"Channel:{pixels.id.removeprefix('Pixels:')}:{n}") for n in range(channels)
        ]
    for channel in pixels.channels:
        channel.samples_per_pixel = samples
    pixels.planes = [
        plane
        for plane in pixels.planes
        if plane.the_c < channels and plane.the_z < pixels.size_z and plane.the_t < pixels.size_t
    ]


def _fill(model: Any, pixels: Any, metadata: Metadata) -> None:
    """Add what the metadata know and the OME-XML does not."""
    for axis, name in _FIELDS.items():
        size, unit = metadata.sizes.get(axis, (0.0, None))
        known = unit is not None and _fits(axis, unit) and math.isfinite(size) and size > 0
        if unit is not None and known and getattr(pixels, name) is None:
            setattr(pixels, name, size)
            setattr(pixels, f"{name}_unit", to_symbol(unit))
    names, colors = metadata.channels, find_colors(metadata)
    for number, channel in enumerate(pixels.channels):
        if channel.name is None and len(names) == len(pixels.channels):
            channel.name = _clean(names[number]) or None
        if "color" not in channel.model_fields_set and number < len(colors) and colors[number]:
            channel.color = f"#{colors[number]}"
    positions: dict[str, Any] = {}
    for axis, name in _POSITIONS.items():
        _, unit = metadata.sizes.get(axis, (0.0, None))
        if axis in metadata.offsets and unit and _fits(axis, unit):
            positions |= {name: metadata.offsets[axis], f"{name}_unit": to_symbol(unit)}
    if positions and not pixels.planes:
        pixels.planes = [model.Plane(the_z=0, the_c=0, the_t=0, **positions)]


def _fits(axis: str, unit: str) -> bool:
    return is_time(unit) if axis == "T" else is_length(unit)


def _number_uniquely(images: Sequence[Any], taken: set[str]) -> None:
    parts = [part for image in images for part in (image, image.pixels, *image.pixels.channels)]
    taken = taken | {part.id for part in parts}
    seen: set[str] = set()
    for part in parts:
        if part.id in seen:
            kind = type(part).__name__
            part.id = next(i for n in count() if (i := f"{kind}:{n}") not in taken)
        taken.add(part.id)
        seen.add(part.id)


def _drop_references(ome: Any, kept: set[str]) -> None:
    """Drop references to images that are not in the file."""
    for holder in (*ome.datasets, *ome.folders):
        holder.image_refs = [reference for reference in holder.image_refs if reference.id in kept]
    for plate in ome.plates:
        for well in plate.wells:
            for sample in well.well_samples:
                if sample.image_ref is not None and sample.image_ref.id not in kept:
                    sample.image_ref = None


def _annotate(model: Any, ome: Any, frames: Sequence[Frame]) -> None:
    """Record what was done to the images."""
    annotations = ome.structured_annotations or model.StructuredAnnotations()
    taken = {annotation.id for annotation in annotations}
    written: dict[tuple[tuple[str, str], ...], str] = {}
    for image, frame in zip(ome.images, frames, strict=True):
        items = tuple((_clean(str(k)), _clean(str(v))) for k, v in frame.metadata.history.items())
        if not items:
            continue
        if items not in written:
            written[items] = next(i for n in count() if (i := f"Annotation:kbnet:{n}") not in taken)
            taken.add(written[items])
            value = model.Map(ms=[model.Map.M(k=k, value=v) for k, v in items])
            done = model.MapAnnotation(id=written[items], namespace=_NAMESPACE, value=value)
            annotations.map_annotations = [*annotations.map_annotations, done]
            ome.creator = dict(items).get("software", ome.creator)
        image.annotation_refs = [*image.annotation_refs, model.AnnotationRef(id=written[items])]
    if len(annotations):
        ome.structured_annotations = annotations
