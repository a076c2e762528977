"""Units of any spelling have one name, and the symbol that OME-XML allows."""

from __future__ import annotations

import pytest
from ome_types.model import UnitsLength, UnitsTime
from ome_zarr.axes import KNOWN_SPATIAL_UNITS, KNOWN_TEMPORAL_UNITS

from kbnet_plugin.io.units import convert, is_length, is_time, to_name, to_symbol


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        (
            "micrometer",
            "um µm μm \\u00B5m \\u03bcm micron Microns micrometer micrometre µmeter umeters",
        ),
        ("inch", 'in inch inches Inches "'),
        ("second", "s sec second seconds Sec secs"),
        ("millisecond", "ms msec millisecond milliseconds"),
        ("microsecond", "us µs usec µsec"),
        ("minute", "min minute minutes mins"),
        ("hour", "h hr hours"),
        ("day", "d day days"),
        ("nanometer", "nm nanometer nanometres"),
        ("millimeter", "mm Millimeters"),
        ("megameter", "Mm megameter"),
        ("centimeter", "cm centimetre"),
        ("angstrom", "Å Å A angstrom Angstroms Ångström"),
        ("foot", "ft foot feet"),
    ],
)
def test_every_spelling_has_one_name(name, spellings):
    assert {to_name(spelling) for spelling in spellings.split()} == {name}


@pytest.mark.parametrize("unit", ["pixel", "pixels", "unknown", "", " ", "reference frame", "gray", "ss"])
def test_what_is_no_unit_has_no_name(unit):
    assert to_name(unit) is None


def test_names_are_those_of_ome_zarr_and_symbols_those_of_ome_xml():
    lengths, times = set(KNOWN_SPATIAL_UNITS), set(KNOWN_TEMPORAL_UNITS)
    assert all(to_name(name) == name for name in lengths | times)
    assert all(is_length(name) and not is_time(name) for name in lengths)
    assert all(is_time(name) and not is_length(name) for name in times)
    assert {to_symbol(name) for name in lengths} <= {unit.value for unit in UnitsLength}
    assert {to_symbol(name) for name in times} <= {unit.value for unit in UnitsTime}
    assert all(to_name(to_symbol(name)) == name for name in lengths | times)
    assert to_symbol("pixel") is None


def test_values_are_converted():
    assert convert(2, "millimeter", "micrometer") == pytest.approx(2000)
    assert convert(1, "inch", "centimeter") == pytest.approx(2.54)
    assert convert(90, "second", "minute") == pytest.approx(1.5)
    assert convert(0.1, "micrometer", "micrometer") == 0.1
