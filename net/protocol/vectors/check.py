#!/usr/bin/env python3
"""Checks the golden frames against the written specification alone.

Reads the tables of docs/formats/protocol.md, and from them decodes every frame in this directory to its description and
encodes every description to its frame, byte for byte. Nothing here knows a field or a number that is not in the page; it
is also an example of a reader and writer in another language. Standard library only.

    python3 net/protocol/vectors/check.py [directory]    # with a directory: also writes the frames there, as binary files
"""

import json
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "formats" / "protocol.md"
DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


class Wrong(Exception):
    """What does not agree with the page."""


def tables(page):
    """Yields every table as (line of the heading above it, rows)."""
    heading, rows = None, []
    for line in page.splitlines() + [""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if len(rows) > 2:
            yield heading, rows[2:]
        rows = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


class Specification:
    """The page's tables, as dictionaries."""

    def __init__(self, page):
        self.records, self.codes, self.operations, self.limits = {}, {}, {}, {}
        self.header = None
        for heading, rows in tables(page):
            record = re.fullmatch(r"`(\w+)`: (\d+) bytes, alignment (\d+)", heading or "")
            if record:
                fields = [(int(row[0]), int(row[1]), row[2], row[3]) for row in rows]
                self.records[record[1]] = (int(record[2]), int(record[3]), fields)
            elif heading == "Frame header: 32 bytes":
                self.header = {row[2]: (int(row[0]), int(row[1])) for row in rows}
            elif heading == "Codes":
                self.codes = {int(row[0]): row[1] for row in rows}
            elif heading == "Operations":
                self.operations = {int(row[0]): row[1:] for row in rows}
            elif heading == "Limits":
                self.limits = {row[0]: int(row[1]) for row in rows}

    def size_and_alignment(self, name):
        numbers = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
        if name in numbers:
            return numbers[name], numbers[name]
        if name == "id":
            return 16, 8
        if name == "span" or name.startswith("vec of "):
            return 8, 4
        array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if array:
            size, alignment = self.size_and_alignment(array[1])
            return size * int(array[2]), alignment
        return self.records[name][:2]

    # Reading.

    def read(self, name, body, at):
        """The value of type `name` at an offset of a body."""
        if name.startswith("vec of "):
            return self.read_vector(name[len("vec of "):], body, at)
        if name == "id":
            high, low = struct.unpack_from("<QQ", body, at)
            return text_of_id(high << 64 | low)
        if name == "span":
            return "%d+%d" % struct.unpack_from("<II", body, at)
        array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if array:
            size, _ = self.size_and_alignment(array[1])
            return [self.read(array[1], body, at + size * n) for n in range(int(array[2]))]
        if name in self.records:
            return {field: self.read(kind, body, at + offset) for offset, _, field, kind in self.records[name][2]}
        size, _ = self.size_and_alignment(name)
        return int.from_bytes(body[at:at + size], "little")

    def read_vector(self, element, body, at):
        offset, count = struct.unpack_from("<iI", body, at)
        size, alignment = self.size_and_alignment(element)
        start = at + offset
        if start < 0 or start + count * size > len(body) or start % alignment:
            raise Wrong(f"a vector of {count} {element} at {start} does not fit its body")
        if element == "u8":
            return describe_bytes(body[start:start + count])
        return [self.read(element, body, start + size * n) for n in range(count)]

    def read_root(self, name, body):
        root = len(body) - self.records[name][0]
        if root < 0 or root % self.records[name][1]:
            raise Wrong(f"a body of {len(body)} bytes does not end with a {name}")
        return self.read(name, body, root)

    # Writing.

    def write(self, name, value, vectors, at):
        """The bytes of a value that will stand at offset `at`; `vectors` gives each vector's position, by the path of its field."""
        return self.write_at(name, value, vectors, at, ())

    def write_at(self, name, value, vectors, at, path):
        if name == "id":
            number = number_of_id(value)
            return struct.pack("<QQ", number >> 64, number & (1 << 64) - 1)
        if name == "span":
            return struct.pack("<II", *map(int, value.split("+")))
        array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if array:
            return b"".join(self.write(array[1], item, None, 0) for item in value)
        if name in self.records:
            size, _, fields = self.records[name]
            out = bytearray(size)
            for offset, length, field, kind in fields:
                if kind.startswith("vec of "):
                    position, count = vectors[*path, field]
                    written = struct.pack("<iI", position - (at + offset), count)
                else:
                    written = self.write_at(kind, value[field], vectors, at + offset, (*path, field))
                if len(written) != length:
                    raise Wrong(f"{name}.{field} has {length} bytes in the page, its type has {len(written)}")
                out[offset:offset + length] = written
            return bytes(out)
        size, _ = self.size_and_alignment(name)
        return value.to_bytes(size, "little")

    def write_root(self, name, value):
        out, vectors = bytearray(), {}
        self.write_vectors(name, value, out, vectors, ())
        pad(out, self.records[name][1])
        out += self.write(name, value, vectors, len(out))
        return bytes(out)

    def write_vectors(self, name, value, out, vectors, path):
        """Appends what the vectors of a record hold, those of records in it where their fields stand."""
        for _, _, field, kind in self.records[name][2]:
            at = (*path, field)
            if kind in self.records:
                self.write_vectors(kind, value[field], out, vectors, at)
            if not kind.startswith("vec of "):
                continue
            element = kind[len("vec of "):]
            pad(out, self.size_and_alignment(element)[1])
            if element == "u8":
                content = bytes_described(value[field])
                vectors[at] = (len(out), len(content))
                out += content
            else:
                vectors[at] = (len(out), len(value[field]))
                for item in value[field]:
                    out += self.write(element, item, None, 0)

    # Frames.

    def read_frame(self, frame):
        """Header fields, and the body."""
        header = {field: frame[at:at + size] for field, (at, size) in self.header.items()}
        number = {field: int.from_bytes(value, "little") for field, value in header.items()}
        if header["magic"] != b"TMK1" or number["reserved"] != 0:
            raise Wrong("the header does not begin with TMK1 and end with zeros")
        length = number["length"]
        if length > self.limits["body_bytes"] or len(frame) != 32 + (length + 15) // 16 * 16 or any(frame[32 + length:]):
            raise Wrong("the frame's length or padding is wrong")
        at, size = self.header["checksum"]
        covered = frame[:at] + bytes(size) + frame[at + size:32 + length]
        if crc32c(covered) != number["checksum"]:
            raise Wrong("the checksum is wrong")
        operation = self.operations[number["operation"]]
        fields = {
            "version": number["version"],
            "flags": number["flags"],
            "operation": operation[0],
            "correlation": number["correlation"],
            "partition": None if number["partition"] == 0xFFFF else number["partition"],
            "code": self.codes[number["code"]],
        }
        return fields, frame[32:32 + length]

    def write_frame(self, fields, body):
        operation = next(number for number, row in self.operations.items() if row[0] == fields["operation"])
        values = {
            "magic": int.from_bytes(b"TMK1", "little"),
            "version": fields["version"],
            "flags": fields["flags"],
            "operation": operation,
            "length": len(body),
            "checksum": 0,
            "correlation": fields["correlation"],
            "partition": 0xFFFF if fields["partition"] is None else fields["partition"],
            "code": next(number for number, name in self.codes.items() if name == fields["code"]),
            "reserved": 0,
        }
        frame = bytearray(32)
        for field, (at, size) in self.header.items():
            frame[at:at + size] = values[field].to_bytes(size, "little")
        frame += body
        at, size = self.header["checksum"]
        frame[at:at + size] = crc32c(bytes(frame)).to_bytes(size, "little")
        pad(frame, 16)
        return bytes(frame)

    def bodies(self, fields):
        """Names of the bodies that a frame with this header may have."""
        row = next(row for row in self.operations.values() if row[0] == fields["operation"])
        if not fields["flags"] & 1:
            return [row[2]]
        return row[3].split(", ") if fields["code"] == "ok" else ["Refusal"]


def pad(out, alignment):
    out += bytes(-len(out) % alignment)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def text_of_id(number):
    return "".join(DIGITS[number >> 5 * (25 - place) & 31] for place in range(26))


def number_of_id(text):
    number = 0
    for character in text:
        number = number << 5 | DIGITS.index(character)
    return number


def describe_bytes(content):
    if all(0x20 <= byte < 0x7F for byte in content):
        return "text:" + content.decode("ascii")
    return "hex:" + content.hex()


def bytes_described(text):
    form, content = text.split(":", 1)
    return bytes.fromhex(content) if form == "hex" else content.encode("ascii")


def check(specification, vector):
    frame = bytes.fromhex("".join(vector["frame"]))
    fields, body = specification.read_frame(frame)
    if fields != vector["header"]:
        raise Wrong(f"the header reads as {fields}")
    (name, content), = vector["body"].items()
    if name not in specification.bodies(fields):
        raise Wrong(f"the page knows no {name} for this header")
    read = specification.read_root(name, body)
    if read != content:
        raise Wrong(f"the body reads as {read}")
    if specification.write_frame(fields, specification.write_root(name, content)) != frame:
        raise Wrong("the description is written as other bytes")
    return frame


def main():
    if crc32c(b"123456789") != 0xE3069283:
        sys.exit("the CRC-32C here is wrong")
    specification = Specification(PAGE.read_text(encoding="utf-8"))
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    files = sorted(HERE.glob("*.json"))
    failed = 0
    for path in files:
        vector = json.loads(path.read_text(encoding="utf-8"))
        try:
            frame = check(specification, vector)
        except (Wrong, KeyError, struct.error) as error:
            failed += 1
            print(f"{path.name}: {error}", file=sys.stderr)
            continue
        if directory:
            (directory / path.stem).write_bytes(frame)
    print(f"{len(files) - failed} of {len(files)} golden frames agree with the specification")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
