"""A table as a spreadsheet: the few files of Office Open XML that one sheet needs.

An .xlsx is a zip of XML: which files there are and of what kind ([Content_Types].xml), which of
them is the workbook (_rels/.rels), its sheets (xl/workbook.xml and its .rels), and the cells
(ECMA-376).
"""
import io
import re
import zipfile
from xml.sax.saxutils import escape

XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
OFFICE = "http://schemas.openxmlformats.org"
SHEETS = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def pointing_to(target, kind):
    """A .rels file: what belongs to a file, by its id."""
    return (f'<Relationships xmlns="{OFFICE}/package/2006/relationships">'
            f'<Relationship Id="rId1" Type="{OFFICE}/officeDocument/2006/relationships/{kind}" '
            f'Target="{target}"/></Relationships>')


FILES = {
    "[Content_Types].xml": f'<Types xmlns="{OFFICE}/package/2006/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{SHEETS}.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    f'ContentType="{SHEETS}.worksheet+xml"/></Types>',
    "_rels/.rels": pointing_to("xl/workbook.xml", "officeDocument"),
    "xl/workbook.xml": f'<workbook xmlns="{OFFICE}/spreadsheetml/2006/main" '
    f'xmlns:r="{OFFICE}/officeDocument/2006/relationships">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": pointing_to("worksheets/sheet1.xml", "worksheet"),
}


def xlsx(rows):
    """[[cell, ...], ...] of texts, numbers and None -> the bytes of a workbook with one sheet."""
    lines = []
    for number, row in enumerate(rows, 1):
        cells = "".join(cell(f"{column_name(at)}{number}", value) for at, value in enumerate(row))
        lines.append(f'<row r="{number}">{cells}</row>')
    sheet = (f'<worksheet xmlns="{OFFICE}/spreadsheetml/2006/main">'
             f'<sheetData>{"".join(lines)}</sheetData></worksheet>')
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (FILES | {"xl/worksheets/sheet1.xml": sheet}).items():
            file.writestr(name, XML + text)
    return data.getvalue()


def cell(place, value):
    """<c r="A1">, with its text in place: formulas cannot be smuggled in as "=1+1"."""
    if value is None or value == "":
        return ""
    if isinstance(value, (int, float)):
        return f'<c r="{place}"><v>{value}</v></c>'
    text = escape(without_controls(value))
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def without_controls(text):
    """XML has no place for control characters, but for tab and new line, nor for surrogates."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def column_name(at):
    """0 -> A, 25 -> Z, 26 -> AA."""
    name = ""
    at += 1
    while at:
        at, rest = divmod(at - 1, 26)
        name = chr(ord("A") + rest) + name
    return name
