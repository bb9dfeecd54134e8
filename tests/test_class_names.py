"""Class names and colours that come with a raster, from every place where people keep them."""

import shutil
import struct
import subprocess
import zipfile
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from cobertes.errors import InputFileError
from cobertes.labels.class_names import read_class_names
from cobertes.labels.legend_tables import clean_name, from_columns, hex_colour, read_code_table
from helpers.rasters import grid_at, write_raster

NAMES = {21: "Arable", 22: "Orchard & vineyard", 33: "Forêt", 44: "City"}
COLOURS = {21: "#693f2a", 22: "#6e422c", 33: "#a56342", 44: "#dc8458"}
CODES = sorted(NAMES)


def write_map(folder, name="map.tif", **options):
    return write_raster(folder / name, np.resize(np.array(CODES, np.uint8), (8, 8)), grid_at(8, 8), **options)


def rgb(code):
    return tuple(int(COLOURS[code][i : i + 2], 16) for i in (1, 3, 5))


def rat_xml(columns, rows):
    fields = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(columns)
    )
    body = "".join(
        f'<Row index="{i}">' + "".join(f"<F>{escape(str(cell))}</F>" for cell in row) + "</Row>"
        for i, row in enumerate(rows)
    )
    return f'<GDALRasterAttributeTable tableType="thematic">{fields}{body}</GDALRasterAttributeTable>'


def write_aux(raster, text):
    raster.with_name(f"{raster.name}.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1">{text}</PAMRasterBand></PAMDataset>', encoding="utf-8"
    )


USAGES = [("Value", 0, 5), ("CLASS_NAME", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)]
ARCGIS = [("OBJECTID", 0, 0), ("Value", 0, 0), ("Count", 1, 1), ("Class_Name", 2, 0), ("Red", 1, 0), ("Green", 1, 0), ("Blue", 1, 0)]  # fmt: skip
ROWS = [(code, NAMES[code], *rgb(code)) for code in CODES]


def write_dbf(path, fields, rows, language=3):
    """dBASE III, as ArcGIS writes it."""
    head = struct.pack("<BBBBIHH17xB2x", 3, 126, 1, 1, len(rows), 33 + 32 * len(fields), 1 + sum(f[2] for f in fields), language)  # fmt: skip
    head += b"".join(
        struct.pack("<11sc4xBB14x", name.encode(), kind.encode(), size, 0) for name, kind, size in fields
    )
    cells = b"".join(
        b" " + b"".join(
            (str(v).rjust(size) if kind == "N" else str(v).ljust(size)).encode("cp1252")
            for v, (_, kind, size) in zip(row, fields, strict=True)
        )
        for row in rows
    )  # fmt: skip
    path.write_bytes(head + b"\r" + cells + b"\x1a")


def expect(found, where, colours=True):
    assert found.names == NAMES
    assert where in found.names_from
    if colours:
        assert {code: found.colours[code] for code in CODES} == COLOURS


# --- in the raster's own file, or GDAL's side file ---------------------------------------------------------


def test_an_attribute_table_in_the_side_file(tmp_path):
    raster = write_map(tmp_path)
    write_aux(raster, rat_xml(USAGES, ROWS))
    expect(read_class_names(raster), "attribute table in map.tif")


def test_an_attribute_table_of_arcgis_has_shares_of_one_for_colours_and_no_usages(tmp_path):
    raster = write_map(tmp_path)
    rows = [
        (i, code, 9, NAMES[code], *(f"{part / 255:.6f}" for part in rgb(code))) for i, code in enumerate(CODES)
    ]
    write_aux(raster, rat_xml(ARCGIS, rows))
    expect(read_class_names(raster), "attribute table in map.tif")


@pytest.mark.parametrize(("order", "magic"), [("<", 42), (">", 42), ("<", 43), (">", 43)])
def test_an_attribute_table_inside_the_tiff_is_found_whatever_the_gdal(tmp_path, order, magic):
    """From 3.12 on GDAL writes it there; earlier versions don't see it."""
    raster = tmp_path / "map.tif"
    item = f'<Item name="DEFAULT_RASTER_ATTRIBUTE_TABLE" sample="0" role="rat">{rat_xml(USAGES, ROWS)}</Item>'
    write_tiff(raster, f"<GDALMetadata>{item}</GDALMetadata>".encode() + b"\0", order, big=magic == 43)
    with rasterio.open(raster) as file:
        assert file.read(1).tolist() == [[21, 22], [33, 44]]
    expect(read_class_names(raster), "attribute table in map.tif")


def write_tiff(path, metadata, order, *, big):
    """A TIFF of 2 x 2 bytes with the tag GDAL_METADATA, in either byte order, of both sizes."""
    number, count, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1), (278, 4, 2), (279, 4, 4)]  # fmt: skip
    size = struct.calcsize(f"{order}{entry}{number}")
    data = len(head) + struct.calcsize(f"{order}{count}") + (len(tags) + 1) * size + struct.calcsize(number)
    directory = struct.pack(f"{order}{count}", len(tags) + 1)
    for tag, kind, value in tags:
        stored = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", data if tag == 273 else value)
        directory += struct.pack(f"{order}{entry}", tag, kind, 1) + stored.ljust(struct.calcsize(number), b"\0")
    directory += struct.pack(f"{order}{entry}{number}", 42112, 2, len(metadata), data + 4)
    path.write_bytes(head + directory + struct.pack(f"{order}{number}", 0) + bytes(CODES) + metadata)


def test_an_erdas_table_without_codes_counts_its_rows(tmp_path):
    raster = write_map(tmp_path)
    rows = [(0, NAMES.get(code, ""), *(rgb(code) if code in NAMES else (0, 0, 0))) for code in range(45)]
    columns = [("Histogram", 1, 1), ("Land Cover", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)]
    write_aux(raster, rat_xml(columns, rows))
    rasterio.shutil.copy(raster, tmp_path / "map.img", driver="HFA")
    expect(read_class_names(raster, codes=CODES), "attribute table in map.tif")
    expect(read_class_names(tmp_path / "map.img", codes=CODES), "attribute table in map.img")


def test_category_names_and_a_palette(tmp_path):
    raster = write_map(tmp_path)
    with rasterio.open(raster, "r+") as file:
        file.write_colormap(1, {code: (*rgb(code), 255) for code in CODES})
    write_aux(
        raster,
        "<CategoryNames>"
        + "".join(f"<Category>{escape(NAMES.get(code, ''))}</Category>" for code in range(45))
        + "</CategoryNames>",
    )
    found = read_class_names(raster, codes=CODES)
    expect(found, "category names in map.tif")
    assert found.colours_from == "palette in map.tif"


def test_a_histogram_table_without_names_gives_way_to_what_has_some(tmp_path):
    raster = write_map(tmp_path)
    histogram = rat_xml([("Value", 0, 5), ("Count", 0, 1)], [(code, 16) for code in CODES])
    names = "".join(f"<Category>{escape(NAMES.get(code, ''))}</Category>" for code in range(45))
    write_aux(raster, f"<CategoryNames>{names}</CategoryNames>{histogram}")
    expect(read_class_names(raster), "category names in map.tif", colours=False)


def test_a_palette_alone_gives_colours_and_no_names(tmp_path):
    raster = write_map(tmp_path)
    with rasterio.open(raster, "r+") as file:
        file.write_colormap(
            1, {21: (1, 2, 3, 255), 22: (0, 0, 0, 255), 33: (4, 5, 6, 255), 44: (255, 255, 255, 255)}
        )
    found = read_class_names(raster, codes=CODES)
    assert (found.names, found.names_from) == ({}, "")
    assert found.colours == {21: "#010203", 22: "#000000", 33: "#040506", 44: "#ffffff"}
    assert found.colours_from == "palette in map.tif"


def test_black_of_several_codes_is_a_palette_that_nobody_filled(tmp_path):
    raster = write_map(tmp_path)
    with rasterio.open(raster, "r+") as file:
        file.write_colormap(1, {21: (1, 2, 3, 255)})
    assert read_class_names(raster, codes=CODES).colours == {21: "#010203"}


def test_our_own_maps_tell_their_names_when_their_side_file_is_lost(tmp_path):
    raster = write_map(tmp_path)
    with rasterio.open(raster, "r+") as file:
        file.update_tags(**{f"class_{code}": name for code, name in NAMES.items()}, classes="4")
    expect(read_class_names(raster), "tags in map.tif", colours=False)


def test_a_raster_that_says_nothing_has_no_names(tmp_path):
    found = read_class_names(write_map(tmp_path), codes=CODES)
    assert not found
    assert (found.names, found.colours, found.names_from, found.colours_from) == ({}, {}, "", "")


# --- files beside it ---------------------------------------------------------------------------------------


def test_the_attribute_table_of_arcgis_in_dbase(tmp_path):
    raster = write_map(tmp_path)
    fields = [("Value", "N", 10), ("Count", "N", 10), ("CLASS_NAME", "C", 20), ("Red", "N", 5), ("Green", "N", 5), ("Blue", "N", 5)]  # fmt: skip
    rows = [(code, 16, NAMES[code], *rgb(code)) for code in CODES]
    write_dbf(tmp_path / "map.tif.vat.dbf", fields, rows)
    expect(read_class_names(raster), "map.tif")  # by GDAL itself from 3.12 on


def test_a_style_of_qgis(tmp_path):
    raster = write_map(tmp_path)
    entries = "".join(
        f'<paletteEntry value="{code}" label="{code} - {escape(NAMES[code])}" color="{COLOURS[code]}" alpha="255"/>'
        for code in CODES
    )
    style = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    style += f'<qgis><pipe><rasterrenderer type="paletted"><colorPalette>{entries}</colorPalette></rasterrenderer></pipe></qgis>'
    (tmp_path / "map.qml").write_text(style, encoding="utf-8")
    expect(read_class_names(raster), "map.qml")


def test_styles_of_exact_ramps_in_qgis_old_and_new(tmp_path):
    new = "".join(
        f'<item value="{code}" label="{escape(NAMES[code])}" color="{COLOURS[code]}"/>' for code in CODES
    )
    (tmp_path / "new.qml").write_text(f"<qgis><colorrampshader>{new}</colorrampshader></qgis>", encoding="utf-8")
    old = "".join(
        '<colorRampEntry red="{}" green="{}" blue="{}" value="{}.000000" label="{}"/>'.format(*rgb(code), code, escape(NAMES[code]))
        for code in CODES
    )  # fmt: skip
    (tmp_path / "old.qml").write_text(f"<qgis><customColorRamp>{old}</customColorRamp></qgis>", encoding="utf-8")
    for name in ("new.qml", "old.qml"):
        found = read_code_table(tmp_path / name)
        assert (found.names, found.colours) == (NAMES, COLOURS)


def test_sld(tmp_path):
    entries = "".join(
        f'<sld:ColorMapEntry quantity="{code}" label="{escape(NAMES[code])}" color="{COLOURS[code].upper()}"/>'
        for code in CODES
    )
    (tmp_path / "map.sld").write_text(
        f'<sld:StyledLayerDescriptor xmlns:sld="http://www.opengis.net/sld"><sld:ColorMap type="values">{entries}</sld:ColorMap></sld:StyledLayerDescriptor>',
        encoding="utf-8",
    )
    expect(read_class_names(write_map(tmp_path)), "map.sld")


@pytest.mark.parametrize(
    ("name", "line", "head"),
    [
        ("map.clr", "{0} {1} {2} {3} {4}", ""),
        ("map.txt", "{0},{1},{2},{3},255,{4}", "# QGIS Generated Color Map Export File\nINTERPOLATION:EXACT\n"),
        ("map.txt", "{0} {1} {2} {3} 255", "# GDAL\n\n"),
    ],
)
def test_colour_maps(tmp_path, name, line, head):
    raster = write_map(tmp_path)
    rows = [line.format(code, *rgb(code), NAMES[code]) for code in CODES]
    (tmp_path / name).write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    found = read_class_names(raster)
    assert found.names == ({} if "{4}" not in line else NAMES)
    assert (found.colours, found.colours_from) == (COLOURS, name)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("value;name;red;green;blue\n" + "\n".join(f"{c};{NAMES[c]};{';'.join(map(str, rgb(c)))}" for c in CODES), "utf-8-sig"),
        ("Grid_Code,LABEL3,RGB\n" + "\n".join(f"{c},{NAMES[c]},{'-'.join(f'{v:03}' for v in rgb(c))}" for c in CODES), "cp1252"),
        ("libellé\tcode\tcolor\n" + "\n".join(f"{NAMES[c]}\t{c}\t{COLOURS[c]}" for c in CODES), "utf-8"),
    ],
)  # fmt: skip
def test_csv_as_people_have_it(tmp_path, text, encoding):
    (tmp_path / "map.csv").write_text(text + "\n\n", encoding=encoding)
    expect(read_class_names(write_map(tmp_path)), "map.csv")


def test_excel(tmp_path):
    cells = [("Value", "Class name", "Colour"), *((code, NAMES[code], COLOURS[code]) for code in CODES)]
    write_xlsx(tmp_path / "map.xlsx", cells)
    expect(read_class_names(write_map(tmp_path)), "map.xlsx")


def write_xlsx(path, cells):
    """The least that a sheet of Excel needs."""

    def cell(i, j, value):
        place = f'r="{"ABC"[j]}{i + 1}"'
        return f"<c {place}><v>{value}</v></c>" if isinstance(value, int) else f'<c {place} t="inlineStr"><is><t>{escape(value)}</t></is></c>'  # fmt: skip

    rows = "".join(f'<row r="{i + 1}">' + "".join(cell(i, j, v) for j, v in enumerate(row)) + "</row>" for i, row in enumerate(cells))  # fmt: skip
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/><Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{kinds}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{kinds}"><sheets><sheet name="legend" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{kinds}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, text in parts.items():
            file.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def test_a_table_that_is_named_goes_before_all_others(tmp_path):
    raster = write_map(tmp_path)
    write_aux(raster, rat_xml(USAGES, ROWS))
    (tmp_path / "mine.csv").write_text("code,name\n21,Wheat\n22,Apples\n", encoding="utf-8")
    found = read_class_names(raster, table=tmp_path / "mine.csv")
    assert (found.names, found.names_from) == ({21: "Wheat", 22: "Apples"}, "table mine.csv")


def test_the_source_that_knows_the_codes_that_occur_is_taken(tmp_path):
    raster = write_map(tmp_path)
    write_aux(raster, rat_xml(USAGES, [(1, "One", 1, 1, 1), (21, "Only", 2, 2, 2)]))
    (tmp_path / "map.csv").write_text(
        "value,name\n" + "\n".join(f"{c},{n}" for c, n in NAMES.items()), encoding="utf-8"
    )
    expect(read_class_names(raster, codes=CODES), "map.csv", colours=False)


def test_files_beside_a_raster_that_are_no_legends_are_passed_over(tmp_path):
    raster = write_map(tmp_path)
    (tmp_path / "map.csv").write_text("date,place\n2020-01-01,here\n", encoding="utf-8")
    (tmp_path / "map.txt").write_text("Read me first.\n", encoding="utf-8")
    (tmp_path / "map.qml").write_text("<qgis>", encoding="utf-8")
    (tmp_path / "map.dbf").write_bytes(b"no table")
    assert not read_class_names(raster, codes=CODES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, r"no file at .*no\.csv"),
        ("a.doc", "text", r"a\.doc is no table of classes: its suffix must be \.clr, \.csv"),
        ("a.csv", "", r"a\.csv names no classes: it needs a column of codes"),
        ("a.csv", "x,y\n1,2\n", r"a\.csv names no classes: it needs a column of codes .* names .* or colours"),
        ("a.csv", "value,count\n1,2\n", r"a\.csv names no classes"),
        ("a.clr", "1 2 3\n", r"can't read .*a\.clr .*: '1 2 3' is not a code, red, green and blue"),
        ("a.qml", "<qgis>", r"can't read .*a\.qml as a table of classes: no element found"),
        ("a.xlsx", "text", r"can't read .*a\.xlsx as a table of classes: .*Save it as CSV"),
    ],
)
def test_a_named_table_that_can_t_be_read_is_told(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputFileError, match=message):
        read_code_table(tmp_path / name)


def test_a_missing_raster_is_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no file at .*none\.tif"):
        read_class_names(tmp_path / "none.tif")


# --- columns and words -------------------------------------------------------------------------------------


def test_of_several_columns_of_codes_the_one_that_the_raster_has_is_taken():
    header = ["GRID_CODE", "CLC_CODE", "LABEL1", "LABEL3", "RGB"]
    rows = [("1", "111", "Artificial", "Continuous urban fabric", "230-000-077"), ("2", "112", "Artificial", "Discontinuous urban fabric", "255-000-000")]  # fmt: skip
    names = ["Continuous urban fabric", "Discontinuous urban fabric"]
    for codes in ((), (1, 2)):
        assert from_columns(header, rows, codes).names == dict(zip((1, 2), names, strict=True))
    found = from_columns(header, rows, [112, 48])
    assert found.names == dict(zip((111, 112), names, strict=True))
    assert found.colours == {111: "#e6004d", 112: "#ff0000"}


def test_rows_without_a_code_and_cells_without_a_value_are_left_out():
    rows = [(None, "sum", None), (float("nan"), "x", 1), (3.0, None, "#FFF"), ("4", " two  words ", "00FF00"), (5, "5", "")]  # fmt: skip
    found = from_columns(["Class ID", "Nom", "Hex"], rows)
    assert found.names == {4: "two words"}
    assert found.colours == {4: "#00ff00"}


@pytest.mark.parametrize(
    ("code", "text", "name"),
    [
        (21, "21 - Arable", "Arable"),
        (21, "21. Arable", "Arable"),
        (21, "(21) Arable", "Arable"),
        (21, "21: Arable", "Arable"),
        (1, "1.1. Forest formation", "1.1. Forest formation"),
        (2, "2 lanes or more", "2 lanes or more"),
        (21, "21", ""),
        (7, "  Wet \n woods ", "Wet woods"),
    ],
)
def test_a_code_before_a_name_is_no_part_of_it(code, text, name):
    assert clean_name(code, text) == name


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("#A1B2C3", "#a1b2c3"),
        ("a1b2c3", "#a1b2c3"),
        ("#a1b2c3ff", "#a1b2c3"),
        ("230-000-077", "#e6004d"),
        ("230, 0, 77", "#e6004d"),
        ("rgb(230 0 77)", "#e6004d"),
        ("rgba(230,0,77,255)", "#e6004d"),
        ("300,0,0", None),
        ("red", None),
        ("", None),
        ("12-13", None),
    ],
)
def test_colours_in_the_ways_people_write_them(text, colour):
    assert hex_colour(text) == colour


@pytest.mark.skipif(not shutil.which("gdal_translate"), reason="no GDAL programs on this machine")
def test_names_survive_what_gdal_makes_of_them(tmp_path):
    """Written by GDAL itself: a VRT with names and palette, brought into a GeoTIFF and a file of Erdas."""
    raster = write_map(tmp_path)
    write_aux(raster, rat_xml(USAGES, ROWS))
    for name, driver in (("copy.tif", "GTiff"), ("copy.img", "HFA")):
        subprocess.run(["gdal_translate", "-q", "-of", driver, raster, tmp_path / name], check=True)
        expect(read_class_names(tmp_path / name, codes=CODES), f"attribute table in {name}")
