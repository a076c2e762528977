"""OME-XML of every source keeps what it says, and every OME-XML written is valid."""

from __future__ import annotations

import re
import sys
from itertools import pairwise

import numpy as np
import ome_types
import pytest
import tifffile

from kbnet_plugin.io.metadata import Frame, Metadata
from kbnet_plugin.io.ome_xml import read_ome
from kbnet_plugin.io.tiff.ome_document import PIXEL_TYPES, make_ome

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/{}"{}>'
HISTORY = {"software": "kbnet 0.9", "model": "denoise-gray", "range": "0 to 255"}


def ome(images, tail="", year="2016-06", extra=""):
    return HEAD.format(year, extra) + images + tail + "</OME>"


def image(number=0, sizes="", inner="", before="", after="", channels=2, z=3):
    listed = "".join(
        f'<Channel ID="Channel:{number}:{c}" Name="{name}" Color="{color}" SamplesPerPixel="1" '
        'EmissionWavelength="461.0" EmissionWavelengthUnit="nm"/>'
        for c, (name, color) in enumerate([("DAPI", 0x0000FFFF), ("GFP", 0x00FF00FF)][:channels])
    )
    return (
        f'<Image ID="Image:{number}" Name="cells {number}">{before}<Pixels ID="Pixels:{number}" '
        f'DimensionOrder="XYZCT" Type="uint16" SignificantBits="12" SizeX="8" SizeY="6" '
        f'SizeZ="{z}" SizeT="1" SizeC="{channels}" BigEndian="true" {sizes}>{listed}'
        f'<TiffData IFD="7" FirstZ="0"><UUID FileName="old.ome.tif">'
        "urn:uuid:11111111-1111-1111-1111-111111111111</UUID></TiffData>"
        f"{inner}</Pixels>{after}</Image>"
    )


PLANES = "".join(
    f'<Plane TheZ="{z}" TheC="{c}" TheT="0" DeltaT="0.{z}{c}" PositionX="12.5" PositionXUnit="µm"/>'
    for z in range(3)
    for c in range(2)
)
FULL = ome(
    image(sizes='PhysicalSizeX="0.5" PhysicalSizeY="0.25" PhysicalSizeZ="2" TimeIncrement="3"', inner=PLANES),
    '<StructuredAnnotations><XMLAnnotation ID="Annotation:0" Namespace="lab"><Value>'
    '<a:b xmlns:a="urn:lab" c="1">kept</a:b></Value></XMLAnnotation></StructuredAnnotations>'
    '<ROI ID="ROI:0"><Union><Rectangle ID="Shape:0" X="1" Y="1" Width="2" Height="2"/></Union></ROI>',
)


def frame(shape=(2, 3, 6, 8), axes="CZYX", dtype="uint16", **fields):
    return Frame(shape, np.dtype(dtype), Metadata(axes=axes, form="ome", history=HISTORY, **fields))


def valid(xml):
    assert xml.startswith("<?xml")
    ome_types.validate_xml(xml)
    return ome_types.from_xml(xml)


def test_everything_but_the_storage_is_kept():
    xml, notes = make_ome([frame(ome=FULL)])
    made, source = valid(xml), ome_types.from_xml(FULL)
    assert not notes
    assert made.images[0].name == "cells 0"
    pixels, before = made.images[0].pixels, source.images[0].pixels
    assert [c.name for c in pixels.channels] == ["DAPI", "GFP"]
    assert pixels.channels == before.channels
    assert pixels.planes == before.planes
    assert pixels.physical_size_x == 0.5
    assert made.rois == source.rois
    assert "kept" in xml
    assert pixels.significant_bits is None
    assert pixels.big_endian is None
    (data,) = pixels.tiff_data_blocks
    assert (data.ifd, data.plane_count, data.uuid) == (0, 6, None)
    assert pixels.dimension_order.value == "XYZCT"


def test_what_was_done_is_an_annotation_of_the_image():
    xml, _ = make_ome([frame(ome=FULL)])
    again, _ = make_ome([frame(ome=xml)])
    for text, count in ((xml, 1), (again, 2)):
        made = valid(text)
        assert made.creator == "kbnet 0.9"
        maps = made.structured_annotations.map_annotations
        assert [dict(a.value) for a in maps] == [HISTORY] * count
        assert [r.id for r in made.images[0].annotation_refs] == [a.id for a in maps]


@pytest.mark.parametrize(
    ("dtype", "axes", "shape"),
    [
        *((dtype, "TCZYX", (2, 2, 3, 6, 8)) for dtype in PIXEL_TYPES),
        ("uint16", "YX", (6, 8)),
        ("uint8", "YXS", (6, 8, 3)),
        ("float32", "CYXS", (2, 6, 8, 4)),
    ],
)
def test_new_xml_is_valid_for_every_dtype_and_axes(tmp_path, dtype, axes, shape):
    sizes = {"X": (0.5, "inch"), "Y": (0.5, "unknown"), "Z": (1.0, None), "T": (2.0, "minute")}
    names = ("a", "µ<&\0") if "C" in axes else ()
    xml, _ = make_ome([frame(shape, axes, dtype, sizes=sizes, channels=names, offsets={"X": 2.0, "T": 1.0})])
    pixels = valid(xml).images[0].pixels
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.5, "in")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (2.0, "min")
    assert pixels.physical_size_y is None
    assert pixels.physical_size_z is None
    assert [c.name for c in pixels.channels if c.name] == [n.rstrip("\0") for n in names]
    info = read_ome(xml, 0)
    assert info.sizes == {"X": (0.5, "inch"), "T": (2.0, "minute")}
    assert info.offsets == {"X": 2.0, "T": 1.0}
    array = np.zeros(shape, dtype)
    samples = shape[-1] if "S" in axes else 1
    options = {"photometric": "rgb"} if samples > 1 else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "x.tif", array, description=xml.encode(), metadata=None, **options)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert (tiff.series[0].kind, tiff.series[0].axes, tiff.series[0].shape) == ("ome", axes, shape)


@pytest.mark.parametrize(
    ("written", "found", "symbol"),
    [
        ("microns", "micrometer", "µm"),
        ("μm", "micrometer", "µm"),
        ("inch", "inch", "in"),
        ("Å", "angstrom", "Å"),
        ("furlong", None, None),
    ],
)
def test_units_are_mapped_or_dropped_with_a_word(written, found, symbol):
    source = ome(image(sizes=f'PhysicalSizeX="0.5" PhysicalSizeXUnit="{written}" PhysicalSizeY="1"'))
    info = read_ome(source, 0)
    assert info.sizes == {"Y": (1.0, "micrometer")} | ({"X": (0.5, found)} if found else {})
    xml, notes = make_ome([frame(ome=source, sizes=info.sizes)])
    pixels = valid(xml).images[0].pixels
    assert [c.name for c in pixels.channels] == ["DAPI", "GFP"]
    if found:
        assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.5, symbol)
        assert bool(notes) == (written != symbol)
    else:
        assert pixels.physical_size_x is None
        assert notes == ("PhysicalSizeX dropped, as its unit 'furlong' is unknown",) == info.notes


@pytest.mark.parametrize(("unit", "name"), [("minute", "minute"), ("ms", "millisecond"), (None, "second")])
def test_time_has_units_too(unit, name):
    source = ome(image(sizes='TimeIncrement="3"' + (f' TimeIncrementUnit="{unit}"' if unit else "")))
    assert read_ome(source, 0).sizes == {"T": (3.0, name)}
    xml, _ = make_ome([frame(ome=source)])
    valid(xml)
    assert read_ome(xml, 0).sizes == {"T": (3.0, name)}


@pytest.mark.parametrize("size", ["0", "-1", "nan", "abc", "INF"])
def test_impossible_sizes_are_dropped_with_a_word(size):
    source = ome(image(sizes=f'PhysicalSizeX="{size}" PhysicalSizeY="2"'))
    assert read_ome(source, 0).sizes == {"Y": (2.0, "micrometer")}
    xml, notes = make_ome([frame(ome=source)])
    assert valid(xml).images[0].pixels.physical_size_y == 2
    assert notes == (f"PhysicalSizeX {size!r} dropped",)


def test_several_images_keep_their_places_and_those_left_out_are_forgotten():
    data = "".join(f'<ImageRef ID="Image:{n}"/>' for n in range(3))
    source = ome(f'<Dataset ID="Dataset:0">{data}</Dataset>' + image(0) + image(1, z=5) + image(2))
    frames = [frame(ome=source, ome_image=2), frame((5, 2, 6, 8), "ZCYX", ome=source, ome_image=1), frame()]
    xml, _ = make_ome(frames)
    made = valid(xml)
    assert [i.name for i in made.images] == ["cells 2", "cells 1", None]
    blocks = [i.pixels.tiff_data_blocks[0] for i in made.images]
    assert [(b.ifd, b.plane_count) for b in blocks] == [(0, 6), (6, 10), (16, 6)]
    assert [r.id for r in made.datasets[0].image_refs] == ["Image:1", "Image:2"]
    assert len({i.id for i in made.images}) == 3


def test_an_image_may_become_several():
    xml, _ = make_ome([frame((2, 2, 6, 8), ome=FULL), frame(ome=FULL)])
    made = valid(xml)
    assert [i.name for i in made.images] == ["cells 0", "cells 0"]
    assert [len(i.pixels.planes) for i in made.images] == [4, 6]


@pytest.mark.parametrize(
    "year", ["2016-06", "2015-01", "2013-06", "2012-06", "2011-06", "2010-06", "2009-09", "1999-01"]
)
def test_older_versions_are_brought_up_to_date_or_made_anew(year):
    source = ome(image().replace('EmissionWavelength="461.0" EmissionWavelengthUnit="nm"', ""), year=year)
    info = read_ome(source, 0)
    assert info.channels == ("DAPI", "GFP")
    xml, notes = make_ome([frame(ome=source, channels=info.channels)])
    assert [c.name for c in valid(xml).images[0].pixels.channels] == ["DAPI", "GFP"]
    assert bool(notes) == (year == "1999-01")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "junk",
        "<OME/>",
        FULL[:-10],
        FULL.replace('Type="uint16"', 'Type="uint17"'),
        FULL.replace("<TiffData", '<Nonsense a="1"/><TiffData'),
        ome(image(after='<InstrumentRef ID="Instrument:9"/>')),
        ome('<BinaryOnly MetadataFile="a.ome" UUID="urn:uuid:11111111-1111-1111-1111-111111111111"/>'),
    ],
)
def test_invalid_xml_is_made_anew(source):
    xml, _ = make_ome([frame(ome=source or None, channels=("a", "b"), sizes={"X": (1.0, "micrometer")})])
    pixels = valid(xml).images[0].pixels
    assert len(pixels.channels) == 2
    assert pixels.physical_size_x == 1


@pytest.mark.parametrize("where", ["head", "inside"])
def test_entities_are_refused(where):
    bomb = "".join(f'<!ENTITY e{b} "{f"&e{a};" * 10}">' for a, b in pairwise(range(12)))
    bomb = f'<!DOCTYPE OME [<!ENTITY e0 "ha">{bomb}]>'
    source = FULL.replace("<OME", bomb + "<OME").replace("cells 0", "&e11;")
    if where == "inside":
        source = source.replace("<!DOCTYPE", "<!doctype")
    assert "defines entities" in read_ome(source, 0).notes[0]
    xml, notes = make_ome([frame(ome=source)])
    assert "defines entities" in notes[0]
    assert len(xml) < 5000
    valid(xml)


def test_axes_divided_by_annotations_are_not_divided_again():
    annotation = (
        '<StructuredAnnotations><XMLAnnotation ID="Annotation:3" '
        'Namespace="openmicroscopy.org/omero/dimension/modulo"><Value><Modulo><ModuloAlongZ Type="angle" '
        'Start="0" End="2" Step="1"/></Modulo></Value></XMLAnnotation></StructuredAnnotations>'
    )
    source = ome(image(z=6, after='<AnnotationRef ID="Annotation:3"/>'), annotation)
    same, _ = make_ome([frame((2, 6, 6, 8), ome=source)])
    divided, _ = make_ome([frame((3, 2, 2, 6, 8), "TCZYX", ome=source)])
    assert valid(same).images[0].annotation_refs[0].id == "Annotation:3"
    assert [r.id for r in valid(divided).images[0].annotation_refs] == ["Annotation:kbnet:0"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_colours_of_ome_zarr_are_kept(wrapped):
    omero = {"omero": {"channels": [{"color": "00FF00"}, {"color": "nonsense"}]}}
    xml, _ = make_ome([frame(attributes={"ome": omero} if wrapped else omero)])
    valid(xml)
    assert read_ome(xml, 0).colors[0] == "00FF00"
    assert read_ome(FULL, 0).colors == ("0000FF", "00FF00")


@pytest.mark.parametrize(
    "head", ["", "\ufeff", '<?xml version="1.0" encoding="UTF-16"?>', " \n<?xml version='1.1'?>\n"]
)
def test_the_encoding_that_a_text_names_does_not_matter(head):
    source = head + FULL[FULL.index("<OME") :].replace("cells", "µ") + "\0"
    assert read_ome(source, 0).name == "µ 0"
    xml, notes = make_ome([frame(ome=source)])
    assert valid(xml).images[0].name == "µ 0"
    assert not notes


def test_prefixes_and_comments_are_understood():
    source = re.sub(r"<(/?)(?=[A-Z])", r"<\1ome:", FULL).replace("xmlns=", "xmlns:ome=")
    source = source.replace("<ome:Image", "<!-- note --><ome:Image")
    assert read_ome(source, 0).channels == ("DAPI", "GFP")
    xml, notes = make_ome([frame(ome=source)])
    assert not notes
    assert "kept" in xml
    assert valid(xml).rois


def test_reading_is_tolerant():
    assert read_ome("junk", 0).notes == read_ome("junk", 3).notes
    assert read_ome(FULL, 1).notes == ("OME-XML ignored, as it does not describe the image",)
    info = read_ome(FULL, 0)
    assert info.name == "cells 0"
    assert info.sizes == {
        "X": (0.5, "micrometer"),
        "Y": (0.25, "micrometer"),
        "Z": (2.0, "micrometer"),
        "T": (3.0, "second"),
    }
    assert info.offsets == {"X": 12.5, "T": 0.0}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ome_types", None)
    with pytest.raises(ValueError, match=r"pip install 'kbnet\[arrays\]'"):
        make_ome([frame()])
