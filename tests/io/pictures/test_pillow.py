"""PNG, JPEG, WebP, HEIC, AVIF and JPEG XL keep their depth, colours and metadata when read and written."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from dataclasses import replace
from types import SimpleNamespace

import imagecodecs
import numpy as np
import psutil
import pytest
from PIL import Image, ImageCms, ImageOps

from kbnet_plugin.io.embedded import exif_text, photoshop_resource, read_tag, with_tags
from kbnet_plugin.io.metadata import Metadata, Tag
from kbnet_plugin.io.pictures.pillow import check_picture, read_picture, write_picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
IPTC = b"\x1c\x02\x78\x00\x07Caption"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
XMP += b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
XMP += b"</rdf:RDF></x:xmpmeta>"
UPRIGHT_XMP = XMP.replace(b'"6"', b'"1"')
MAKE, ORIENTATION, SOFTWARE = 0x010F, 0x0112, 0x0131
HISTORY = {"software": "kbnet 0.9", "model": "photo", "strength": 0.5}
MADE = "kbnet 0.9; model photo; strength 0.5"
EXIF = with_tags(None, {MAKE: "Camera", SOFTWARE: "Firmware 1.0"})


def ramp(shape, dtype="u1"):
    size = int(np.prod(shape))
    return np.linspace(0, np.iinfo(dtype).max, size).astype(dtype).reshape(shape)


def same(found, expected):
    return found.dtype == expected.dtype and np.array_equal(found, expected)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(bits, colour, rows, *extra, size=(4, 1), interlaced=0):
    """Make a PNG of unfiltered rows."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*c) for c in chunks)


def chunks_of(content):
    place, found = 8, []
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def read(tmp_path, content, name="x.png", kind="PNG"):
    (tmp_path / name).write_bytes(content)
    return read_picture(tmp_path / name, kind)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rewritten(tmp_path, kind, array, metadata):
    """Write and read a picture; return it, its bytes, and what was lost."""
    path = tmp_path / ("x.png" if kind == "PNG" else "x.jpg")
    lost = write_picture(path, kind, array, metadata)
    return read_picture(path, kind), path.read_bytes(), lost


# Pixels.


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 9, 3)])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_png_is_read_as_it_was_written(tmp_path, shape, dtype):
    found, content, _ = rewritten(tmp_path, "PNG", ramp(shape, dtype), Metadata())
    assert same(found.array, ramp(shape, dtype))
    assert (found.metadata.axes, found.notes) == ("YX" if len(shape) == 2 else "YXS", ())
    if dtype == "u1":
        with Image.open(io.BytesIO(content)) as image:
            assert same(np.array(image), ramp(shape, dtype))


def test_one_channel_and_truth_values_become_gray(tmp_path):
    assert same(rewritten(tmp_path, "PNG", ramp((5, 7, 1)), Metadata())[0].array, ramp((5, 7)))
    mask = ramp((5, 7)) > 99
    assert same(rewritten(tmp_path, "PNG", mask, Metadata())[0].array, mask * np.uint8(255))


@pytest.mark.parametrize("shape", [(16, 48), (16, 48, 3)])
def test_jpeg_is_read_nearly_as_it_was_written(tmp_path, shape):
    found, content, _ = rewritten(tmp_path, "JPEG", ramp(shape), Metadata())
    np.testing.assert_allclose(found.array.astype(int), ramp(shape), atol=6)
    with Image.open(io.BytesIO(content)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * (3 if len(shape) == 3 else 1)  # 4:4:4


@pytest.mark.parametrize(
    ("bits", "row", "values"),
    [(1, b"\x50", [0, 255, 0, 255]), (2, b"\x1b", [0, 85, 170, 255]), (4, b"\x01\x2f", [0, 17, 34, 255])],
)
def test_few_bits_fill_the_range(tmp_path, bits, row, values):
    significant = (b"sBIT", bytes([bits]))
    found = read(tmp_path, png(bits, 0, [row], significant))
    assert found.array.tolist() == [values]
    assert found.metadata.png == ()  # sBIT would be wrong
    transparent = read(tmp_path, png(bits, 0, [row], (b"tRNS", b"\0\1")))
    assert transparent.array[0, :, 1].tolist() == [0 if v == values[1] else 255 for v in values]


def test_palettes_become_colour_with_their_opacity(tmp_path):
    palette = (b"PLTE", bytes(range(12)))
    found = read(tmp_path, png(2, 3, [b"\x1b"], palette))
    assert same(found.array, np.arange(12, dtype="u1").reshape(1, 4, 3))
    assert found.notes == ("palette converted to RGB",)
    found = read(tmp_path, png(2, 3, [b"\x1b"], palette, (b"tRNS", b"\x07")))
    assert found.array[0, :, 3].tolist() == [7, 255, 255, 255]


def test_a_transparent_16_bit_colour_keeps_its_depth(tmp_path):
    found = read(tmp_path, png(16, 0, [b"\1\2\3\4"], (b"tRNS", b"\1\2"), size=(2, 1)))
    assert same(found.array, np.array([[[0x0102, 0], [0x0304, 65535]]], "u2"))


PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("bits", "colour", "samples"), [(16, 2, 3), (8, 6, 4), (16, 4, 2), (16, 0, 1), (1, 0, 1)]
)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (19, 10)])
def test_interlaced_pngs_keep_their_depth_and_print_nothing(tmp_path, capfd, bits, colour, samples, size):
    width, height = size
    array = ramp((height, width, samples), "u2" if bits == 16 else "u1")
    if bits == 1:
        array = (array > 99).astype("u1")
    rows = []
    for x, y, dx, dy in PASSES:
        for row in array[y::dy, x::dx]:
            packed = np.packbits(row) if bits == 1 else row.astype(f">u{bits // 8}")
            rows += [packed.tobytes()] if row.size else []
    found = read(tmp_path, png(bits, colour, rows, size=size, interlaced=1)).array
    expected = array * np.uint8(255) if bits == 1 else array
    assert same(found, expected[..., 0] if samples == 1 else expected)
    assert capfd.readouterr() == ("", "")


def test_premultiplied_colours_are_divided_as_png_wants_them(tmp_path):
    array = np.array([[[64, 32, 0, 128], [9, 9, 9, 0]]], "u1")
    found, _, _ = rewritten(tmp_path, "PNG", array, Metadata(alpha=1))
    assert found.array.tolist() == [[[128, 64, 0, 128], [0, 0, 0, 0]]]
    assert found.metadata.alpha == 2


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_becomes_rgb_whichever_way_it_is_stored(tmp_path, adobe):
    ink = np.zeros((16, 16, 4), "u1")
    ink[:, :8, 1:3] = 255  # red beside paper
    stored = Image.frombytes("CMYK", (16, 16), (ink if adobe else 255 - ink).tobytes())
    content = saved(stored, "JPEG", quality=100)
    if not adobe:
        start = content.index(b"\xff\xee")
        content = content[:start] + content[start + 16 :]
    found = read(tmp_path, content, "x.jpg", "JPEG")
    np.testing.assert_allclose(found.array[8, [2, 13]].astype(int), [[255, 0, 0], [255, 255, 255]], atol=3)
    assert found.notes == ("CMYK converted to RGB without a profile",)


def test_a_profile_that_is_not_of_cmyk_is_dropped_with_cmyk(tmp_path):
    content = saved(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=PROFILE)
    assert read(tmp_path, content, "x.jpg", "JPEG").metadata.icc is None


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)])
def test_12_bit_jpeg_fills_16_bits(tmp_path, shape):
    array = ramp(shape, "u2") >> 4
    content = imagecodecs.jpeg8_encode(array, level=98, bitspersample=12)
    found = read(tmp_path, content, "x.jpg", "JPEG").array
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found.astype(float), array * (65535 / 4095), atol=1200)
    with pytest.raises(ValueError, match=r"x\.jpg: damaged or incomplete JPEG"):
        read(tmp_path, content[:-2], "x.jpg", "JPEG")


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)])
def test_lossless_jpeg_is_exact(tmp_path, shape, dtype):
    colours = {"colorspace": "RGB", "outcolorspace": "RGB"} if len(shape) == 3 else {}
    bits = 8 * np.dtype(dtype).itemsize
    content = imagecodecs.jpeg8_encode(ramp(shape, dtype), lossless=True, bitspersample=bits, **colours)
    assert same(read(tmp_path, content, "x.jpg", "JPEG").array, ramp(shape, dtype))


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
@pytest.mark.parametrize("kind", ["HEIC", "AVIF", "JPEG XL"])
def test_10_and_12_bits_fill_16(tmp_path, kind, shape, bits):
    array = ramp(shape, "u2") >> (16 - bits)
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        mode = "I;16" if len(shape) == 2 else "RGB;16"
        file = heif.from_bytes(mode, shape[1::-1], (array << (16 - bits)).tobytes())
        buffer = io.BytesIO()
        heif.options.SAVE_HDR_TO_12_BIT = bits == 12
        file.save(buffer, quality=-1, chroma=444, matrix_coefficients=0)
        content = buffer.getvalue()
    elif kind == "AVIF":
        content = imagecodecs.avif_encode(array, level=100, bitspersample=bits)
    else:
        content = imagecodecs.jpegxl_encode(array, lossless=True, bitspersample=bits)
    found = read(tmp_path, content, "x." + kind.lower(), kind).array
    largest = (1 << bits) - 1
    assert same(found, ((array.astype(np.uint32) * 65535 + largest // 2) // largest).astype("u2"))


@pytest.mark.parametrize("array", [ramp((8, 9, 4)), ramp((8, 9)), ramp((8, 9, 2)), ramp((8, 9, 3), "u2")])
def test_jpeg_xl_is_read_as_it_is(tmp_path, array):
    assert same(
        read(tmp_path, imagecodecs.jpegxl_encode(array, lossless=True), "x.jxl", "JPEG XL").array, array
    )
    real = (array / 1000).astype("f4")
    found = read(tmp_path, imagecodecs.jpegxl_encode(real, lossless=True), "x.jxl", "JPEG XL").array
    assert same(found, real)


# Small files made with libjxl 0.11: 8 x 8 pixels without loss.
DISPLAY_P3 = "ff0a4140402617020804010050004b188b1500d4172fc6a03bc01ebc1715009c1b7f"
PQ_10_BITS = "ff0a410414904787381c0000000002080401003c004b188b158095ea7f803d5ff5541300"
CUSTOM = (
    "ff0a4140408200881388840045b3e0aa05f82401a64eb2622a080804010050004b188b1500d4172fc6a03bc01ebc1715009c1b7f"
)
PREMULTIPLIED = "ff0a41c000088a0b010810100054004b188b1500d4176330ee0eb0e7e5b30800f60a0000"
NEEDS_PROFILE = "ff0a41400ab70c0312e601d09ab0007c1be77563d053d221eb4ea8fcd552a2e42da385887d772976"


@pytest.mark.parametrize(
    ("content", "pixel", "expected"),
    [
        (DISPLAY_P3, [255, 128, 0], ((b"cICP", bytes([12, 13, 0, 1])),)),
        (PQ_10_BITS, [1025, 512, 0], ((b"cICP", bytes([9, 16, 0, 1])),)),
        (
            CUSTOM,
            [255, 128, 0],
            (
                (b"gAMA", struct.pack(">I", 55556)),
                (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
            ),
        ),
        (PREMULTIPLIED, [64, 32, 0, 128], ()),
    ],
)
def test_jpeg_xl_says_what_its_colours_are(tmp_path, content, pixel, expected):
    found = read(tmp_path, bytes.fromhex(content), "x.jxl", "JPEG XL")
    assert found.array[0, 0].tolist() == pixel
    assert found.metadata.png == expected
    assert found.metadata.alpha == (1 if content == PREMULTIPLIED else 2)


def test_jpeg_xl_whose_profile_is_needed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jxl: its colours need its ICC profile.*djxl"):
        read(tmp_path, bytes.fromhex(NEEDS_PROFILE), "x.jxl", "JPEG XL")


def test_boxes_of_jpeg_xl_are_read(tmp_path):
    def box(name, content):
        return struct.pack(">I", len(content) + 8) + name + content

    codestream = imagecodecs.jpegxl_encode(ramp((8, 16, 3)), lossless=True, usecontainer=False)
    sideways = with_tags(EXIF, {ORIENTATION: 6})
    content = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"jxlc", codestream)
    content += box(b"Exif", bytes(4) + sideways) + box(b"brob", b"xml " + imagecodecs.brotli_encode(XMP))
    found = read(tmp_path, content, "x.jxl", "JPEG XL")
    assert found.array.shape == (8, 16, 3)  # only the codestream's orientation counts
    assert (read_tag(found.metadata.exif, ORIENTATION), found.metadata.xmp) == (1, UPRIGHT_XMP)


def test_colours_of_heic_without_profile_are_kept(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    file = heif.from_bytes("RGB", (64, 64), ramp((64, 64, 3)).tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, color_primaries=9, transfer_characteristics=16, exif=EXIF, xmp=XMP)
    found = read(tmp_path, buffer.getvalue(), "x.heic", "HEIC").metadata
    assert found.png == ((b"cICP", bytes([9, 16, 0, 1])),)
    assert (exif_text(found.exif, MAKE), found.xmp) == ("Camera", UPRIGHT_XMP)


def test_colours_and_orientation_of_avif_are_kept(tmp_path):
    content = saved(Image.fromarray(ramp((8, 16, 3))), "AVIF", exif=with_tags(EXIF, {ORIENTATION: 6}))
    found = read(tmp_path, content, "x.avif", "AVIF")
    assert found.array.shape == (16, 8, 3)
    assert exif_text(found.metadata.exif, MAKE) == "Camera"
    content = imagecodecs.avif_encode(ramp((8, 8, 3)), primaries=12, transfer=13, matrix=1)
    assert read(tmp_path, content, "x.avif", "HEIC").metadata.png == ((b"cICP", bytes([12, 13, 0, 1])),)


# Metadata.

FULL = Metadata(
    icc=PROFILE,
    exif=EXIF,
    xmp=UPRIGHT_XMP,
    iptc=IPTC,
    resolution=(300.0, 150.0),
    resolution_unit="inch",
    description="Müller, 5 µm, 猫",
)


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "u1"), ("PNG", "u2"), ("JPEG", "u1")])
def test_all_metadata_are_carried_over(tmp_path, kind, dtype):
    found, content, lost = rewritten(tmp_path, kind, ramp((8, 9, 3), dtype), FULL)
    assert lost == ()
    assert found.metadata.dpi == pytest.approx((300, 150), rel=1e-4)
    for name in ("icc", "exif", "xmp", "iptc", "description"):
        assert getattr(found.metadata, name) == getattr(FULL, name), name
    again, _, _ = rewritten(tmp_path, kind, ramp((8, 9, 3), dtype), found.metadata)
    assert again.metadata == found.metadata
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif()[MAKE] == "Camera"
        assert image.info["dpi"] == pytest.approx((300, 150), rel=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_chunks_and_texts_of_png_are_carried_over(tmp_path, dtype):
    kept = (
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", bytes(32)),
        (b"sBIT", b"\5\6\7"),
        (b"sCAL", b"\x010.5\x000.5"),
    )
    rows = [bytes(3 * np.dtype(dtype).itemsize)]
    texts = [
        (b"tEXt", b"Author\0M\xfcller"),
        (b"zTXt", b"Source\0\0" + zlib.compress(b"microscope")),
        (b"iTXt", "Title\0\0\0de\0Titel\0猫".encode()),
        (b"tEXt", b"Comment\0one"),
        (b"tEXt", b"Comment\0two"),
    ]
    damaged = (b"gAMA", b"\0")
    found = read(tmp_path, png(8 * np.dtype(dtype).itemsize, 2, rows, *kept, damaged, *texts, size=(1, 1)))
    text = {"Author": "Müller", "Source": "microscope", "Title": "猫", "Comment": "one\ntwo"}
    assert (found.metadata.png, found.metadata.text) == (kept, text)
    assert found.metadata.description == "one\ntwo"
    assert found.notes == ("damaged gAMA dropped",)
    again, content, _ = rewritten(tmp_path, "PNG", found.array, found.metadata)
    assert again.metadata == found.metadata
    assert [name for name, _ in chunks_of(content)][-2:] == [b"IDAT", b"IEND"]
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # checks every chunk's sum
    with Image.open(io.BytesIO(content)) as image:
        assert image.text["Title"] == "猫"


def test_a_ratio_of_sides_does_not_become_inches(tmp_path):
    found = read(tmp_path, png(8, 0, [bytes(4)], (b"pHYs", struct.pack(">IIB", 3, 2, 0))))
    assert (found.metadata.resolution, found.metadata.resolution_unit, found.metadata.dpi) == (
        (3, 2),
        None,
        None,
    )
    for kind in ("PNG", "JPEG"):
        again, _, _ = rewritten(tmp_path, kind, ramp((8, 8)), found.metadata)
        assert (again.metadata.resolution, again.metadata.resolution_unit) == ((3, 2), None)
    plain = saved(Image.new("L", (8, 8)), "JPEG")
    assert read(tmp_path, plain, "x.jpg", "JPEG").metadata.resolution is None


@pytest.mark.parametrize(
    ("resolution", "unit"),
    [
        ((300.0, 300.0), "inch"),
        ((118.0, 59.0), "centimeter"),
        ((153846.15, 153846.15), "centimeter"),
        ((72.5, 72.5), "inch"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_resolution_is_stored(tmp_path, kind, resolution, unit):
    given = Metadata(resolution=resolution, resolution_unit=unit)
    found, _, _ = rewritten(tmp_path, kind, ramp((8, 8)), given)
    assert found.metadata.dpi == pytest.approx(given.dpi, rel=1e-3)


def test_exif_tells_the_resolution_of_a_jpeg_without_any(tmp_path):
    tags = {0x011A: 720, 0x011B: 720}
    exif = Image.Exif()
    exif.update({tag: float(value) for tag, value in tags.items()})
    content = saved(Image.new("L", (8, 8)), "JPEG", exif=exif)
    assert read(tmp_path, content, "x.jpg", "JPEG").metadata.dpi is None  # no unit is named
    exif[0x0128] = 3
    content = saved(Image.new("L", (8, 8)), "JPEG", exif=exif)
    assert read(tmp_path, content, "x.jpg", "JPEG").metadata.dpi == pytest.approx((720 * 2.54, 720 * 2.54))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_history_is_recorded_before_what_made_the_input(tmp_path, kind):
    found, content, _ = rewritten(tmp_path, kind, ramp((8, 8)), Metadata(exif=EXIF, history=HISTORY))
    said = f"{MADE}; input by Firmware 1.0"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.info["Software"] if kind == "PNG" else image.getexif()[SOFTWARE]) == said
        assert image.getexif()[MAKE] == "Camera"
    again, _, _ = rewritten(tmp_path, kind, ramp((8, 8)), replace(found.metadata, history=HISTORY))
    last = again.metadata.text.get("Software") or exif_text(again.metadata.exif, SOFTWARE)
    assert last == f"{MADE}; input by {said}"


def test_texts_of_other_formats_go_into_the_exif_of_jpeg(tmp_path):
    text = {
        "Author": "Müller",
        "Copyright": "(c)",
        "Creation Time": "2020:01:02 03:04:05",
        "Warning": "none",
    }
    given = Metadata(text=text, png=((b"gAMA", bytes(4)),), tags={33550: Tag(12, 1, 1.0)})
    found, content, lost = rewritten(tmp_path, "JPEG", ramp((8, 8)), given)
    with Image.open(io.BytesIO(content)) as image:
        exif = image.getexif()
    assert (exif[0x8298], exif[0x0132]) == ("(c)", "2020:01:02 03:04:05")
    assert exif_text(found.metadata.exif, 0x013B) == "Müller"
    assert lost == ("PNG chunk gAMA dropped", "TIFF tag 33550 dropped", "text 'Warning' dropped")


def test_long_metadata_of_jpeg_are_split(tmp_path):
    body = b"".join(b"<dc:x%d>%s</dc:x%d>" % (n, b"x" * 50, n) for n in range(2000))
    begin, end = UPRIGHT_XMP.split(b"</rdf:RDF>")
    declared = b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">' + body + b"</rdf:Description>"
    given = Metadata(
        xmp=begin + declared + b"</rdf:RDF>" + end,
        icc=PROFILE * 200,
        iptc=IPTC * 9000,
        description="d" * 70000,
    )
    found, content, lost = rewritten(tmp_path, "JPEG", ramp((8, 8)), given)
    assert lost == ()
    assert (found.metadata.xmp, found.metadata.icc, found.metadata.iptc) == (given.xmp, given.icc, given.iptc)
    assert found.metadata.description.replace("\n", "") == given.description
    with Image.open(io.BytesIO(content)) as image:
        assert image.info["icc_profile"] == given.icc
    # Other programs store most of a packet in its first part.
    pointer = content[content.index(b"HasExtendedXMP") :][16:48]
    main = begin + b'<rdf:Description xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="'
    main += pointer + b'"/></rdf:RDF>' + end
    start = content.index(b"\xff\xe1")
    (length,) = struct.unpack_from(">H", content, start + 2)
    prefix = b"http://ns.adobe.com/xap/1.0/\0"
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(prefix + main)) + prefix + main
    joined = read(
        tmp_path, content[:start] + segment + content[start + 2 + length :], "x.jpg", "JPEG"
    ).metadata.xmp
    assert body in joined
    assert b"tiff:Orientation" in joined
    assert b"HasExtended" not in joined


def test_exif_that_does_not_fit_is_named(tmp_path):
    given = Metadata(exif=with_tags(None, {MAKE: "x" * 70000}), history=HISTORY)
    found, _, lost = rewritten(tmp_path, "JPEG", ramp((8, 8)), given)
    assert lost == ("EXIF, which is too long dropped",)
    assert exif_text(found.metadata.exif, SOFTWARE).startswith(MADE)


def test_the_rest_of_an_exif_block_stays_where_makers_expect_it():
    note = bytes(range(200))
    place = 8 + 2 + 2 * 12 + 4
    block = b"MM\0*\0\0\0\x08\0\2" + struct.pack(">HHII", MAKE, 2, 4, 0x41424300)
    block += struct.pack(">HHII", 0x927C, 7, len(note), place) + bytes(4) + note
    changed = with_tags(block, {SOFTWARE: "kbnet", ORIENTATION: 1})
    assert changed[place : place + len(note)] == note
    assert changed[8:place] == block[8:place]
    exif = Image.Exif()
    exif.load(changed)
    assert (exif[MAKE], exif[0x927C], exif[SOFTWARE]) == ("ABC", note, "kbnet")


def test_a_thumbnail_of_the_input_is_dropped(tmp_path):
    thumbnail = saved(Image.new("RGB", (8, 8)), "JPEG")
    first = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", MAKE, 2, 4, b"ABC\0") + struct.pack("<I", 26)
    entries = struct.pack("<HHII", 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail))
    block = first + b"\2\0" + entries + bytes(4) + thumbnail
    content = saved(Image.new("L", (8, 8)), "JPEG", exif=b"Exif\0\0" + block)
    found = read(tmp_path, content, "x.jpg", "JPEG").metadata.exif
    assert thumbnail not in found
    assert exif_text(found, MAKE) == "ABC"


def test_old_and_damaged_forms_of_metadata_are_understood(tmp_path):
    def raw_profile(kind, content):
        return b"zTXt", b"Raw profile type " + kind + b"\0\0" + zlib.compress(
            b"\n" + kind + b"\n" + f"{len(content):8d}\n".encode() + content.hex().encode() + b"\n"
        )

    sideways = b"Exif\0\0" + with_tags(EXIF, {ORIENTATION: 8})
    profiles = raw_profile(b"exif", sideways), raw_profile(b"iptc", photoshop_resource(0x0404, IPTC))
    found = read(tmp_path, png(8, 0, [bytes(4)], *profiles, raw_profile(b"xmp", XMP)))
    assert found.array.shape == (4, 1)
    assert (found.metadata.iptc, found.metadata.xmp, found.metadata.text) == (IPTC, UPRIGHT_XMP, {})
    damaged = read(tmp_path, png(8, 0, [bytes(4)], (b"eXIf", b"II*\0\xff"), (b"iCCP", b"x\0\0zzz")))
    assert (damaged.metadata.exif, damaged.metadata.icc) == (None, None)
    assert damaged.notes == ("damaged iCCP dropped", "damaged EXIF dropped")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_orientation_is_applied_and_removed(tmp_path, kind, orientation):
    array = np.kron(ramp((2, 3)), np.ones((16, 16), np.uint8))
    image = Image.fromarray(array).convert("RGB")
    exif = with_tags(EXIF, {ORIENTATION: orientation})
    options = {
        "PNG": {"dpi": (300, 150)},
        "JPEG": {"dpi": (300, 150), "quality": 100, "xmp": XMP},
        "WebP": {"lossless": True, "xmp": XMP},
    }[kind]
    exif = b"Exif\0\0" + with_tags(EXIF, {ORIENTATION: orientation})
    content = saved(image, kind, exif=exif, **options)
    found = read(tmp_path, content, f"x.{kind.lower()}", kind)
    image.getexif()[ORIENTATION] = orientation
    np.testing.assert_allclose(found.array.astype(int), ImageOps.exif_transpose(image), atol=2)
    assert read_tag(found.metadata.exif, ORIENTATION) == 1
    if kind != "PNG":
        assert found.metadata.xmp == (XMP if orientation == 1 else UPRIGHT_XMP)
    if kind != "WebP":
        assert found.metadata.dpi == pytest.approx((150, 300) if orientation > 4 else (300, 150), rel=1e-3)
    _, content, _ = rewritten(tmp_path, "PNG", found.array, found.metadata)
    with Image.open(io.BytesIO(content)) as image:
        assert image.getexif()[ORIENTATION] == 1
        assert image.getexif()[MAKE] == "Camera"


def test_webp_keeps_metadata_and_opacity(tmp_path):
    image = Image.fromarray(ramp((8, 9, 4)))
    content = saved(image, "WebP", lossless=True, exact=True, icc_profile=PROFILE, exif=EXIF, xmp=UPRIGHT_XMP)
    found = read(tmp_path, content, "x.webp", "WebP")
    assert same(found.array, ramp((8, 9, 4)))
    assert (found.metadata.icc, found.metadata.exif, found.metadata.xmp) == (PROFILE, EXIF, UPRIGHT_XMP)


# Several pictures in a file.


def frames(count):
    return [Image.fromarray(np.full((16, 16, 3), 90 * n, np.uint8)) for n in range(count)]


def test_an_animation_of_one_visible_picture_is_that_picture(tmp_path):
    hidden, seen = frames(2)
    content = saved(hidden, "PNG", save_all=True, append_images=[seen], default_image=True)
    found = read(tmp_path, content)
    assert same(found.array, np.asarray(seen))
    assert found.notes == ("default picture of an animation dropped, as its only frame replaces it",)
    control = (
        (b"acTL", struct.pack(">II", 1, 0)),
        (b"fcTL", struct.pack(">5IHHBB", 0, 4, 1, 0, 0, 1, 1, 0, 0)),
    )
    still = read(tmp_path, png(8, 0, [b"\1\2\3\4"], *control))
    assert (still.array.tolist(), still.notes) == ([[1, 2, 3, 4]], ())


@pytest.mark.parametrize("kind", ["PNG", "WebP", "AVIF", "JPEG XL"])
def test_animations_are_refused_with_the_fix(tmp_path, kind):
    first, *others = frames(3)
    if kind == "JPEG XL":
        content = imagecodecs.jpegxl_encode(np.stack([first, *others]), lossless=True)
    else:
        content = saved(first, kind, save_all=True, append_images=others)
    with pytest.raises(ValueError, match=r"x\.bin: an animation of 3 frames; save them as single pictures"):
        read(tmp_path, content, "x.bin", kind)


def test_several_pictures_in_heic_are_refused(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    file = heif.from_bytes("RGB", (64, 64), ramp((64, 64, 3)).tobytes())
    file.add_from_pillow(Image.new("RGB", (64, 64)))
    buffer = io.BytesIO()
    file.save(buffer)
    with pytest.raises(ValueError, match=r"x\.heic: contains 2 pictures; save them"):
        read(tmp_path, buffer.getvalue(), "x.heic", "HEIC")


def test_the_main_picture_of_a_camera_is_taken(tmp_path):
    first, second = frames(2)
    found = read(tmp_path, saved(first, "MPO", save_all=True, append_images=[second]), "x.jpg", "JPEG")
    np.testing.assert_allclose(found.array, np.asarray(first), atol=1)
    assert found.notes == ("1 further picture in the file dropped",)


# What cannot be read or written.

FILES = {
    "PNG": saved(Image.fromarray(ramp((64, 96, 3))), "PNG"),
    "JPEG": saved(Image.fromarray(ramp((64, 96, 3))), "JPEG"),
    "WebP": saved(Image.fromarray(ramp((64, 96, 3))), "WebP"),
    "AVIF": saved(Image.fromarray(ramp((64, 96, 3))), "AVIF"),
    "JPEG XL": imagecodecs.jpegxl_encode(ramp((64, 96, 3)), lossless=True),
}


@pytest.mark.parametrize("kept", [0, 3, 30, 0.5, 0.95])
@pytest.mark.parametrize("kind", [*FILES, "PNG 16", "HEIC"])
def test_a_truncated_picture_is_named_in_one_line(tmp_path, kind, kept):
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        buffer = io.BytesIO()
        heif.from_bytes("RGB", (96, 64), ramp((64, 96, 3)).tobytes()).save(buffer)
        content = buffer.getvalue()
    else:
        content = imagecodecs.png_encode(ramp((64, 96, 3), "u2")) if kind == "PNG 16" else FILES[kind]
    kind = kind.removesuffix(" 16")
    content = content[: kept if isinstance(kept, int) else int(kept * len(content))]
    with pytest.raises(
        ValueError, match=rf"x\.bin: (damaged or incomplete|damaged, or not a) {kind}"
    ) as caught:
        read(tmp_path, content, "x.bin", kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [20, 60, -20])
def test_a_changed_png_is_named(tmp_path, place):
    content = bytearray(FILES["PNG"])
    content[place] ^= 1
    with pytest.raises(ValueError, match=r"x\.png: damaged or incomplete PNG \(\w+ is incomplete or changed"):
        read(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (FILES["JPEG"], "a JPEG by its content but a PNG by its name; rename it to end in .jpg"),
        (FILES["WebP"], "a WebP by its content but a PNG by its name; rename it to end in .webp"),
        (FILES["AVIF"], "a HEIC by its content but a PNG by its name; rename it to end in .avif"),
        (FILES["JPEG XL"], "a JPEG XL by its content but a PNG by its name; rename it to end in .jxl"),
        (b"II*\0" + bytes(9), "a TIFF by its content but a PNG by its name; rename it to end in .tif"),
        (
            b"\0\0\0\x18ftypcrx " + bytes(9),
            "a raw photograph by its content but a PNG by its name; rename it to end in .cr3",
        ),
        (
            saved(Image.new("L", (8, 8)), "GIF"),
            "a GIF by its content but a PNG by its name; save it as PNG, JPEG or TIFF",
        ),
        (
            saved(Image.new("L", (8, 8)), "BMP"),
            "a BMP by its content but a PNG by its name; save it as PNG, JPEG or TIFF",
        ),
        (b"<!DOCTYPE html><p>", "a web page by its content"),
        (b"no picture", "damaged, or not a PNG; export it again"),
        (b"", "damaged, or not a PNG; export it again"),
    ],
)
def test_what_is_not_a_picture_of_its_name_is_named(tmp_path, content, said):
    with pytest.raises(ValueError, match=r"x\.png: " + said):
        read(tmp_path, content)


def test_heic_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    content = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
    with pytest.raises(ValueError, match=r"x\.heic: reading HEIC files needs pillow_heif.*kbnet\[photos\]"):
        read(tmp_path, content, "x.heic", "HEIC")
    assert read(tmp_path, FILES["AVIF"], "x.avif", "AVIF").array.shape == (64, 96, 3)  # needs none


@pytest.mark.parametrize("kind", FILES)
def test_only_memory_limits_the_size(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read(tmp_path, FILES[kind], "x.bin", kind).array.shape == (64, 96, 3)
    if kind in ("AVIF", "WebP"):  # their formats or decoders have limits of their own
        return
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 96 * 3))
    with pytest.raises(ValueError, match=r"x\.bin: 96 x 64 pixels need .* GB of memory"):
        read(tmp_path, FILES[kind], "x.bin", kind)


def test_a_bomb_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png: damaged or incomplete PNG \(no pixels\)"):
        read(tmp_path, png(8, 0, [bytes(99)], size=(0, 9), interlaced=1))
    header = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 16, 6, 0, 0, 0)
    with pytest.raises(ValueError, match=r"x\.png: 1073741824 x 1073741824 pixels need \d+ GB"):
        read(tmp_path, SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "named"),
    [
        ("JPEG", "u2", (4, 4), "JPEG cannot store uint16; write .png or .tif"),
        ("PNG", "f4", (4, 4), "PNG cannot store float32; write .tif"),
        ("PNG", "i8", (4, 4), "PNG cannot store int64; write .tif"),
        ("JPEG", "u1", (4, 4, 4), "JPEG has no opacity; write .png or .tif"),
        ("JPEG", "u1", (65501, 4), "JPEG stores at most 65500 pixels on a side"),
        ("PNG", "u1", (4, 4, 5), "a PNG is"),
        ("PNG", "u1", (0, 4), "a PNG is"),
        ("PNG", "u1", (4,), "a PNG is"),
    ],
)
def test_what_a_format_cannot_store_is_named_before_any_work(tmp_path, kind, dtype, shape, named):
    with pytest.raises(ValueError, match=rf"x: {named}"):
        check_picture(kind, np.dtype(dtype), shape, tmp_path / "x")
    check_picture(kind, np.dtype(bool), (4, 4), tmp_path / "x")
