"""PNG at full depth, against pypng and Pillow as second opinions."""

import io
import struct
import zlib

import numpy as np
import png
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as PILImage

from segaware.errors import ImageError
from segaware.image_io import Image, opened, read, write

COLOURS = [(0, 1), (2, 3), (4, 2), (6, 4)]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def assemble(array, colour, depth, *, filters=(0, 1, 2, 3, 4), before=b"", interlace=0):
    """A PNG of ``(H, W, C)`` with the filters in turn, written as the standard words it."""
    lines = array.astype(">u2" if depth == 16 else np.uint8).view(np.uint8).reshape(len(array), -1).astype(int)
    pixel = array.shape[2] * depth // 8
    above, data = np.zeros(lines.shape[1], int), b""
    for y, line in enumerate(lines):
        left = np.concatenate([np.zeros(pixel, int), line])[: len(line)]
        corner = np.concatenate([np.zeros(pixel, int), above])[: len(line)]
        guess = left + above - corner
        a, b, c = (np.abs(guess - value) for value in (left, above, corner))
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        kind = filters[y % len(filters)]
        data += bytes([kind]) + ((line - (0, left, above, (left + above) // 2, paeth)[kind]) % 256).astype(np.uint8).tobytes()
        above = line
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, interlace)
    packed = zlib.compress(data)
    parts = [chunk(b"IDAT", packed[start : start + 100]) for start in range(0, len(packed), 100)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + b"".join(parts) + chunk(b"IEND", b"")


def joined(image):
    return image.pixels if image.alpha is None else np.concatenate([image.pixels, image.alpha[:, :, None]], axis=2)


def random(shape, depth=16, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << depth, shape, dtype=np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), COLOURS)
def test_every_filter_is_undone(tmp_path, colour, channels, depth):
    array = random((23, 17, channels), depth)
    (tmp_path / "a.png").write_bytes(assemble(array, colour, depth))
    assert np.array_equal(joined(read(tmp_path / "a.png")), array)
    with opened(tmp_path / "a.png") as source:  # filters look at the row above, also across bands
        assert np.array_equal(np.concatenate([source.rows(1) for _ in range(23)]), array)


@pytest.mark.parametrize("bitdepth", [8, 16])
@pytest.mark.parametrize(("greyscale", "alpha"), [(True, False), (True, True), (False, False), (False, True)])
@pytest.mark.parametrize("interlace", [False, True])
def test_files_of_pypng(tmp_path, bitdepth, greyscale, alpha, interlace):
    channels = (1 if greyscale else 3) + alpha
    array = random((11, 13, channels), bitdepth)
    with open(tmp_path / "a.png", "wb") as file:
        writer = png.Writer(13, 11, greyscale=greyscale, alpha=alpha, bitdepth=bitdepth, interlace=interlace)
        writer.write(file, array.reshape(11, -1).tolist())
    image = read(tmp_path / "a.png")
    assert image.pixels.dtype == array.dtype and np.array_equal(joined(image), array)


depths = st.sampled_from([np.uint8, np.uint16])
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))


@settings(max_examples=60, deadline=None)
@given(st.data(), depths, shapes, st.booleans())
def test_what_is_written_is_read_by_all(tmp_path_factory, data, dtype, shape, alpha):
    pixels = data.draw(arrays.arrays(dtype, shape))
    image = Image(pixels, data.draw(arrays.arrays(dtype, shape[:2])) if alpha else None)
    file = write(tmp_path_factory.mktemp("png") / "a.png", image)
    back = read(file)
    assert back.pixels.dtype == dtype and np.array_equal(joined(back), joined(image)) and back.mode == image.mode
    rows = png.Reader(filename=str(file)).read()[2]
    assert np.array_equal(np.array([list(row) for row in rows]).reshape(joined(image).shape), joined(image))
    if dtype == np.uint8:
        with PILImage.open(file) as picture:
            assert picture.mode == image.mode
            assert np.array_equal(np.array(picture).reshape(joined(image).shape), joined(image))


def test_smooth_pictures_become_small(tmp_path):
    """The filters do something: unfiltered these rows hardly compress."""
    rows, columns = np.mgrid[0:256, 0:256]
    pixels = ((rows * 181 + columns * 97) % 65536).astype(np.uint16)[:, :, None]
    plain = len(zlib.compress(pixels.astype(">u2").tobytes(), 4))
    assert write(tmp_path / "a.png", Image(pixels)).stat().st_size < plain / 10


def test_metadata_stays(tmp_path):
    gamma, primaries = struct.pack(">I", 100000), bytes(range(32))
    exif = PILImage.Exif()
    exif[0x010F], exif[0x8769] = "Camera", {0xA434: "Lens"}
    before = chunk(b"gAMA", gamma) + chunk(b"cHRM", primaries) + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile"))
    before += chunk(b"pHYs", struct.pack(">IIB", 2835, 11811, 1)) + chunk(b"eXIf", exif.tobytes()[6:])
    (tmp_path / "a.png").write_bytes(assemble(random((3, 4, 3)), 2, 16, before=before))
    first = read(tmp_path / "a.png")
    again = read(write(tmp_path / "b.png", first))
    for image in (first, again):
        assert image.icc_profile == b"profile" and image.colour_chunks == ((b"gAMA", gamma), (b"cHRM", primaries))
        assert image.resolution == (2835 * 0.0254, 11811 * 0.0254)
        found = PILImage.Exif()
        found.load(image.exif)
        assert found[0x010F] == "Camera" and found.get_ifd(0x8769)[0xA434] == "Lens"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_at_16_bits(tmp_path, orientation):
    """Turned as Pillow turns the 8-bit picture."""
    array = random((3, 5, 4), 8).astype(np.uint16) * 257
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(assemble(array, 6, 16, before=chunk(b"eXIf", exif.tobytes()[6:])))
    PILImage.fromarray((array // 257).astype(np.uint8)).save(tmp_path / "b.png", exif=exif)
    image, expected = read(tmp_path / "a.png"), read(tmp_path / "b.png")
    assert np.array_equal(joined(image), joined(expected).astype(np.uint16) * 257) and image.exif is None
    assert np.array_equal(joined(read(write(tmp_path / "c.png", image))), joined(image))


def test_exif_as_imagemagick_wrote_it(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112], exif[0x010F] = 8, "Camera"
    text = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode()
    for kind, content in ((b"zTXt", b"\0" + zlib.compress(text)), (b"tEXt", text)):
        before = chunk(kind, b"Raw profile type exif\0" + content)
        (tmp_path / "a.png").write_bytes(assemble(random((3, 5, 1)), 0, 16, before=before))
        image = read(tmp_path / "a.png")
        assert (image.height, image.width) == (5, 3) and b"Camera" in image.exif


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_a_transparent_colour(tmp_path, colour, channels, depth):
    array = np.full((2, 3, channels), (1 << depth) - 2, np.uint16)
    array[0, 0, -1] = 5
    key = chunk(b"tRNS", struct.pack(">H", (1 << depth) - 2) * channels)
    (tmp_path / "a.png").write_bytes(assemble(array, colour, depth, before=key))
    image = read(tmp_path / "a.png")
    assert np.array_equal(image.pixels, array) and image.notices
    assert image.alpha[0, 0] == (1 << depth) - 1 and (image.alpha == 0).sum() == 5


def test_low_depths_and_palettes_go_to_pillow(tmp_path):
    for bitdepth in (2, 4):
        with open(tmp_path / "a.png", "wb") as file:
            png.Writer(4, 2, greyscale=True, bitdepth=bitdepth).write(file, [[0, 1, 2, 3]] * 2)
        top = (1 << bitdepth) - 1
        assert read(tmp_path / "a.png").pixels[0, :, 0].tolist() == [value * 255 // top for value in range(4)]


GOOD = assemble(random((40, 30, 3)), 2, 16)


def zeros(size):
    return chunk(b"IDAT", zlib.compress(bytes(size)))


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD[: len(GOOD) // 2], "truncated or damaged"),
        (GOOD[:40], "no pixels|ends"),
        (GOOD[:300] + b"\0\0\0" + GOOD[303:], "damaged"),
        (GOOD.replace(b"IHDR", b"IHDX", 1), "no pixels"),
        (GOOD[:16] + b"\0\0\0\0" + GOOD[20:], "header is damaged"),
        (GOOD[:8] + HEADER + zeros(10) + chunk(b"IEND", b""), "too few pixels"),
        (GOOD[:8] + HEADER + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND", b""), "truncated or damaged"),
        (GOOD[:8] + HEADER + chunk(b"IDAT", zlib.compress(b"\7" * 100)) + chunk(b"IEND", b""), "cannot decode"),
        (GOOD[:8] + HEADER.replace(b"\x10\x02", b"\x05\x02"), "header"),
        (GOOD[:33] + b"\xff\xff\xff\xff" + GOOD[37:], "impossible length"),
        (GOOD[:33] + chunk(b"acTL", struct.pack(">II", 3, 0)) + GOOD[33:], "3 frames or pages"),
        (GOOD[:33] + chunk(b"tRNS", b"\0") + GOOD[33:], "wrong length"),
    ],
)  # fmt: skip
def test_damage(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png: .*({words})"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"eXIf", b"pHYs"])
def test_damage_beside_the_pixels_does_not_stop_a_picture(tmp_path, kind):
    for content in (b"", b"x\0\0garbage", b"Raw profile type exif\0\0garbage", b"\xff" * 30):
        (tmp_path / "a.png").write_bytes(GOOD[:33] + chunk(kind, content) + GOOD[33:])
        image = read(tmp_path / "a.png")
        assert image.width == 30 and image.icc_profile is None and image.exif is None


def test_a_profile_that_unpacks_without_end_is_left_out(tmp_path):
    packed = io.BytesIO()
    packer = zlib.compressobj(9)
    for _ in range(40):
        packed.write(packer.compress(bytes(1 << 20)))
    packed.write(packer.flush())
    (tmp_path / "a.png").write_bytes(GOOD[:33] + chunk(b"iCCP", b"x\0\0" + packed.getvalue()) + GOOD[33:])
    assert read(tmp_path / "a.png").icc_profile is None
