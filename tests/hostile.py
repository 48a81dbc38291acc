"""Spoil files on purpose, from a seed: what a damaged disk or a malicious uploader might hand over."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

#: Numbers that sizes, offsets and counts do not expect.
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 60000, 13000)
#: What may stand where a config has something else.
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 4, 10**9, 2**63, 10**30, 0.5, -1e308, 1e999, float("nan"), "", "3", "x" * 100_000, "../../../etc/passwd",
    "/dev/zero", "imagenet", "hf-hub:owner/name", "timm:hf-hub:owner/name", "smp:tu-hf-hub:a/b", "SDABN", "FPNSegmenter",
    "resnet18", "\0", "\ud800", [], {}, [1] * 1000, [10**9], {"architecture": "DnCNN", "arguments": {"depth": 10**8}},
    {"architecture": "os:system", "arguments": {"command": "true"}}, {"__class__": "x"},
)  # fmt: skip


def spoil(content: bytes, rng: random.Random) -> bytes:
    """Bytes turned, overwritten, cut, doubled, moved."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        # headers are where it hurts
        at = rng.randrange(min(len(data), rng.choice((32, 256, len(data)))))
        what = rng.randrange(7)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at] = rng.randrange(256)
        elif what == 2:
            word = struct.pack(rng.choice(("<I", ">I")), rng.choice(_WORDS))[: rng.choice((2, 4))]
            data[at : at + len(word)] = word
        elif what == 3:
            del data[rng.randrange(len(data)) :]
        elif what == 4:
            end = min(len(data), at + rng.randrange(1, 200))
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif what == 5:
            del data[at : at + rng.randrange(1, 100)]
        else:
            data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def spoil_png(content: bytes, rng: random.Random) -> bytes:
    """Chunks changed, left out, doubled and put elsewhere, with check sums that are right again."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice((1, 2, 3))):
        index = rng.randrange(len(chunks))
        kind, inner = chunks[index]
        what = rng.randrange(5)
        if what <= 1:
            chunks[index] = (kind, spoil(inner, rng))
        elif what == 2 and len(chunks) > 1:
            del chunks[index]
        elif what == 3:
            chunks.insert(rng.randrange(len(chunks)), chunks[index])
        else:
            chunks[index] = (rng.choice((b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"acTL", b"IDAT", b"pHYs")), inner)
    parts = (struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner)) for kind, inner in chunks)
    return content[:8] + b"".join(parts)


def spoil_config(content: bytes, rng: random.Random, names: list[str]) -> bytes:
    """JSON that is still JSON (nearly), with values that nobody expects; ``names`` are architectures."""
    config = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)):
                    walk(node[key])

        walk(config)
        if not places:
            break
        node, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0 and isinstance(node, dict):
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[rng.choice(("weights", "depth", "width", "extra", "backbone", "blocks", "channels"))] = copy.deepcopy(rng.choice(_VALUES))
        elif what == 2:
            config["architecture"] = rng.choice([*names, "SegAwareWrapper", "os.system", "../x"])
        else:
            node[key] = copy.deepcopy(rng.choice(_VALUES))
    text = json.dumps(config)
    if rng.random() < 0.05:
        text = '{"a":' * rng.choice((10, 100_000)) + text
    return text.encode("utf-8", "surrogatepass")


def spoil_weights(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else than is true."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice((1, 2, 4))):
        keys = [key for key in header if isinstance(header[key], dict)]
        if not keys:
            break
        entry = header[rng.choice(keys)]
        what = rng.randrange(7)
        if what == 0:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "I32", "X", 3, None))
        elif what == 1:
            entry["shape"] = rng.choice(([], [0], [1 << 60, 1 << 60], [-1], [10**30], "x", [1.5], [3] * 40))
        elif what == 2:
            entry["data_offsets"] = [rng.choice((0, 4, -1, len(data), 1 << 62, "x")) for _ in range(rng.choice((1, 2, 3)))]
        elif what == 3:
            header[rng.choice(("../../x", "\0", "a" * 100_000, "body.0.weight", ""))] = dict(entry)
        elif what == 4:
            del header[rng.choice(keys)]
        elif what == 5:
            header["__metadata__"] = rng.choice((None, {"a": 1}, {"format": "pickle"}, [], {"x": "y" * 10_000}))
        else:
            data = data[: rng.randrange(len(data) + 1)] + bytes(rng.choice((0, 1, 1000)))
    text = json.dumps(header).encode()
    said = rng.choice((len(text),) * 6 + (0, 1 << 40, len(text) - 1, len(text) + 5, (1 << 64) - 1))
    return struct.pack("<Q", said) + text + data
