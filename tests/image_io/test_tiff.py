"""TIFF at full depth, against tifffile as a second opinion."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as PILImage

from segaware.errors import ImageError
from segaware.image_io import Image, opened, read, write

tifffile = pytest.importorskip("tifffile")
DEPTHS = [np.uint16, np.float16, np.float32, np.float64]


def picture(dtype, channels, alpha=False, shape=(40, 35), seed=0):
    values = np.random.default_rng(seed).random((*shape, channels + alpha))
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    values = (values * top).astype(dtype)
    return Image(values[:, :, :channels], values[:, :, -1] if alpha else None)


def joined(image):
    return image.pixels if image.alpha is None else np.concatenate([image.pixels, image.alpha[:, :, None]], axis=2)


def save(path, image, **options):
    array = joined(image)
    kind = "minisblack" if image.pixels.shape[2] == 1 else "rgb"
    array = array[:, :, 0] if array.shape[2] == 1 else array
    if image.alpha is not None:
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(path, array, **{"photometric": kind, "metadata": None, "planarconfig": "contig", **options})
    return path


def check(file, image):
    back = read(file)
    assert back.mode == image.mode and back.pixels.dtype == image.pixels.dtype and back.format == "TIFF"
    assert np.array_equal(joined(back), joined(image))
    with opened(file) as source:
        parts = [source.rows(7) for _ in range(-(-image.height // 7))]
    assert np.array_equal(np.concatenate(parts), joined(image))


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, dtype, channels, alpha):
    image = picture(dtype, channels, alpha)
    check(write(tmp_path / "a.tif", image), image)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert np.array_equal(file.asarray().reshape(joined(image).shape), joined(image))
        assert file.pages[0].is_contiguous and len(file.pages[0].extrasamples) == alpha


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([np.uint8, *DEPTHS]), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
def test_any_values(tmp_path_factory, data, dtype, height, width, channels):
    """NaN, infinity and the smallest numbers included: reading and writing changes no bit."""
    pixels = data.draw(arrays.arrays(dtype, (height, width, channels)))
    back = read(write(tmp_path_factory.mktemp("tiff") / "a.tif", Image(pixels)))
    assert back.pixels.dtype == dtype and back.pixels.tobytes() == pixels.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"rowsperstrip": 9},
        {"compression": "zlib", "rowsperstrip": 7},
        {"compression": "zlib", "byteorder": ">", "rowsperstrip": 40},
        {"tile": (16, 32)},
        {"tile": (32, 16), "compression": "zlib"},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_layouts(tmp_path, dtype, options):
    image = picture(dtype, 3)
    if options.get("planarconfig") == "separate":
        array = image.pixels.transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate", metadata=None)
    else:
        save(tmp_path / "a.tif", image, **options)
    check(tmp_path / "a.tif", image)


def test_white_is_zero(tmp_path):
    image = picture(np.uint16, 1)
    tifffile.imwrite(tmp_path / "a.tif", 65535 - image.pixels[:, :, 0], photometric="miniswhite")
    back = read(tmp_path / "a.tif")
    assert np.array_equal(back.pixels, image.pixels) and "white-is-zero" in back.notices[0]


def test_metadata_stays(tmp_path):
    exif = PILImage.Exif()
    exif[0x010F], exif[0x8769] = "Camera", {0x829A: 0.01, 0xA434: "Lens"}
    exif[0x8825] = {1: "N"}
    image = Image(picture(np.uint16, 3).pixels, None, exif.tobytes(), b"a profile", resolution=(300.0, 150.0))
    back = read(write(tmp_path / "b.tif", read(write(tmp_path / "a.tif", image))))
    assert back.icc_profile == b"a profile" and back.resolution == (300, 150)
    found = PILImage.Exif()
    found.load(back.exif)
    assert found[0x010F] == "Camera" and found.get_ifd(0x8769)[0xA434] == "Lens" and found.get_ifd(0x8825)[1] == "N"
    save(tmp_path / "c.tif", image, resolution=(118, 59), resolutionunit="CENTIMETER")
    assert read(tmp_path / "c.tif").resolution == pytest.approx((118 * 2.54, 59 * 2.54))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    image = picture(np.uint16, 3, shape=(3, 5))
    image = Image(image.pixels // 257 * 257)
    save(tmp_path / "a.tif", image, extratags=[(274, "H", 1, orientation, True)])
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    PILImage.fromarray((image.pixels // 257).astype(np.uint8)).save(tmp_path / "b.png", exif=exif)
    back = read(tmp_path / "a.tif")
    assert np.array_equal(back.pixels, read(tmp_path / "b.png").pixels.astype(np.uint16) * 257)
    assert np.array_equal(read(write(tmp_path / "c.tif", back)).pixels, back.pixels)


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (np.zeros((3, 8, 9), np.uint16), {"photometric": "minisblack"}, "3 frames or pages"),
        (np.zeros((8, 9), np.uint32), {}, "16-bit integers or floats"),
        (np.zeros((8, 9), np.int16), {}, "16-bit integers or floats"),
        (np.zeros((8, 9, 4), np.uint16), {"photometric": "separated"}, "colour kind SEPARATED"),
        (np.zeros((8, 9, 5), np.uint16), {"photometric": "rgb"}, "2 extra channels"),
        (np.zeros((8, 9, 4), np.uint16), {"photometric": "rgb", "extrasamples": ["assocalpha"]}, "multiplied in"),
        (np.zeros((8, 9), np.float32), {"photometric": "miniswhite"}, "white as zero"),
        (np.zeros((64, 64), np.uint16), {"compression": "lzma"}, "compression LZMA is not supported"),
    ],
)
def test_other_kinds(tmp_path, array, options, words):
    tifffile.imwrite(tmp_path / "a.tif", array, metadata=None, **options)
    with pytest.raises(ImageError, match=rf"a\.tif: .*{words}"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("count", [2, 4, 5])
def test_a_channel_of_no_stated_kind_is_not_lost(tmp_path, count):
    """Near infrared beside red, green and blue: Pillow would drop it of 8 bits, and nothing told that it stays as it is of 16."""
    kind, colours = ("minisblack", 1) if count == 2 else ("rgb", 3)
    array = np.random.default_rng(count).integers(0, 255, (8, 9, count), np.uint8)
    options = {"photometric": kind, "extrasamples": [0] * (count - colours), "metadata": None, "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ImageError, match=r"a\.tif: a channel beside the colours .* would be lost; save the colours alone"):
        read(tmp_path / "a.tif")
    if count - colours == 1:
        tifffile.imwrite(tmp_path / "b.tif", array.astype(np.uint16), **options)
        image = read(tmp_path / "b.tif")
        assert np.array_equal(joined(image), array) and "kept as alpha and not denoised" in image.notices[0]
        options["extrasamples"] = ["unassalpha"]
        tifffile.imwrite(tmp_path / "c.tif", array, **options)
        assert np.array_equal(joined(read(tmp_path / "c.tif")), array)


def test_twelve_bits_are_no_sixteen(tmp_path):
    """With imagecodecs they would unpack to values up to 4095, taken for nearly black."""
    file = save(tmp_path / "a.tif", Image(np.zeros((8, 8, 1), np.uint16)))
    with tifffile.TiffFile(file, mode="r+") as opened_file:
        opened_file.pages[0].tags[258].overwrite(12)
    with pytest.raises(ImageError, match=r"a\.tif: 12-bit uint16 pixels are not supported; convert to 16-bit"):
        read(file)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 8}, {"tile": (16, 16)}], ids=str)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_truncated(tmp_path, options, part):
    file = save(tmp_path / "a.tif", picture(np.uint16, 3), **options)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    with pytest.raises(ImageError, match=r"a\.tif: "):
        read(file)


def test_a_strip_that_unpacks_without_end(tmp_path):
    file = save(tmp_path / "a.tif", Image(np.zeros((4000, 4000, 1), np.uint16)), compression="zlib", rowsperstrip=4000)
    with tifffile.TiffFile(file, mode="r+") as opened_file:
        opened_file.pages[0].tags[257].overwrite(4)  # rows, and those of the strip
        opened_file.pages[0].tags[278].overwrite(4)
    with pytest.raises(ImageError, match="unpacks to more than its place"):
        read(file)


def test_without_tifffile(tmp_path, monkeypatch):
    write(tmp_path / "a.tif", picture(np.uint16, 3))
    write(tmp_path / "b.tif", Image(np.zeros((4, 5, 3), np.uint8)))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"16 bits per channel in TIFF need tifffile; install it: pip install 'segaware\[tiff\]'"):
        read(tmp_path / "a.tif")
    assert read(tmp_path / "b.tif").width == 5


def test_other_formats_refuse_the_depth(tmp_path):
    for ending in ("jpg", "bmp", "webp"):
        with pytest.raises(ImageError, match="cannot hold 16 bits per channel; write PNG or TIFF"):
            write(tmp_path / f"a.{ending}", picture(np.uint16, 3))
    for ending in ("png", "jpg"):
        with pytest.raises(ImageError, match="cannot hold floating-point pixels; write TIFF"):
            write(tmp_path / f"a.{ending}", picture(np.float32, 3))
    assert not list(tmp_path.iterdir())
