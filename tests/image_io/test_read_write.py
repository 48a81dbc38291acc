import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageCms

from segaware import image_io
from segaware.errors import ImageError
from segaware.image_io import Head, Image, Target, atomic, from_pil, opened, read, target, to_pil, write
from segaware.image_io.picture import _undated

LOSSLESS = [".png", ".bmp", ".tif", ".tiff", ".webp", ".PNG"]


def pixels(channels=3, height=9, width=13, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# what came goes back


@pytest.mark.parametrize("ending", LOSSLESS)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, ending, channels, alpha):
    if alpha and ending == ".bmp":
        pytest.skip("refused, see below")
    image = Image(pixels(channels), pixels(1, seed=1)[:, :, 0] if alpha else None)
    back = read(write(tmp_path / f"a{ending}", image))
    expected = image.pixels
    if ending == ".webp" and channels == 1:
        expected = np.repeat(expected, 3, axis=2)  # WebP knows no gray
    assert np.array_equal(back.pixels, expected)
    assert (back.alpha is None) == (not alpha) and (not alpha or np.array_equal(back.alpha, image.alpha))
    assert back.format == image_io.EXTENSIONS[ending.lower()]
    assert back.mode == ("L" if expected.shape[2] == 1 else "RGB") + ("A" if alpha else "")


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_kind_and_nearly_the_pixels(tmp_path, channels):
    smooth = np.linspace(0, 255, 16 * 16).reshape(16, 16, 1).repeat(channels, axis=2).astype(np.uint8)
    back = read(write(tmp_path / "a.jpg", Image(smooth)))
    assert back.pixels.shape == smooth.shape
    assert np.abs(back.pixels.astype(int) - smooth).max() <= 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_thin_images(tmp_path, shape, ending):
    image = Image(np.full((*shape, 3), 128, np.uint8))
    assert read(write(tmp_path / f"a{ending}", image)).pixels.shape == (*shape, 3)


def test_palette_becomes_colour_and_says_so(tmp_path):
    colours = PILImage.fromarray(pixels()).quantize(16)
    colours.save(tmp_path / "p.png")
    image = read(tmp_path / "p.png")
    assert image.mode == "RGB" and image.notices == ("palette converted to RGB",)
    assert np.array_equal(image.pixels, np.array(colours.convert("RGB")))
    colours.save(tmp_path / "t.png", transparency=3)
    image = read(tmp_path / "t.png")
    assert image.mode == "RGBA" and "RGBA" in image.notices[0]
    assert np.array_equal(image.alpha == 0, np.array(colours) == 3)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_becomes_alpha(tmp_path, mode, key):
    picture = PILImage.new(mode, (4, 3), key)
    picture.putpixel((0, 0), 9 if mode == "L" else (9, 9, 9))
    picture.save(tmp_path / "k.png", transparency=key)
    image = read(tmp_path / "k.png")
    assert image.mode == mode + "A" and image.alpha[0, 0] == 255 and (image.alpha == 0).sum() == 11
    assert "transparent colour" in image.notices[0]


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, ending, orientation):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = 255  # the top left corner as stored
    exif = PILImage.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    options = {"lossless": True} if ending == ".webp" else {}
    PILImage.fromarray(stored).save(tmp_path / f"a{ending}", exif=exif, **options)
    image = read(tmp_path / f"a{ending}")
    shown = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2), 8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]  # fmt: skip
    assert image.pixels.shape == shown.shape and np.abs(image.pixels.astype(int) - shown).max() < 20
    # a second reader, which turns by EXIF, sees the same: nothing is left to turn
    again = PILImage.open(write(tmp_path / f"b{ending}", image))
    assert again.getexif().get(0x0112, 1) == 1 and again.getexif()[0x010F] == "Camera"
    assert np.abs(read(tmp_path / f"b{ending}").pixels.astype(int) - shown).max() < 20


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_profile_and_exif_stay(tmp_path, ending):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = PILImage.Exif()
    exif[0x010F] = "Camera"
    exif[0x8769] = {0x829A: 0.01, 0xA434: "Lens"}  # ExposureTime, LensModel
    exif[0x8825] = {1: "N"}
    PILImage.fromarray(pixels()).save(tmp_path / f"a{ending}", exif=exif.tobytes(), icc_profile=profile)
    image = read(tmp_path / f"a{ending}")
    assert image.icc_profile == profile
    with PILImage.open(write(tmp_path / f"b{ending}", image.with_pixels(255 - image.pixels))) as back:
        assert back.info["icc_profile"] == profile
        assert back.getexif()[0x010F] == "Camera"
        assert back.getexif().get_ifd(0x8769)[0xA434] == "Lens"
        assert back.getexif().get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize(("ending", "within"), [(".jpg", 0), (".png", 0.013), (".tif", 0), (".bmp", 0.013)])
def test_resolution_stays_and_turns_with_the_picture(tmp_path, ending, within):
    image = Image(pixels(), resolution=(300, 72))
    assert read(write(tmp_path / f"a{ending}", image)).resolution == pytest.approx((300, 72), abs=within)
    first = read(tmp_path / f"a{ending}")
    assert read(write(tmp_path / f"b{ending}", first)).resolution == first.resolution
    with PILImage.open(tmp_path / f"b{ending}") as picture:
        assert tuple(map(float, picture.info["dpi"])) == pytest.approx((300, 72), abs=within)
        exif = PILImage.Exif()
        exif[0x0112] = 6
        if ending != ".bmp":
            picture.save(tmp_path / f"c{ending}", exif=exif, dpi=(300, 72))
            assert read(tmp_path / f"c{ending}").resolution == pytest.approx((72, 300), abs=within)


def test_cmyk_becomes_rgb_and_says_how(tmp_path):
    PILImage.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    image = read(tmp_path / "a.tif")
    assert image.mode == "RGB" and (image.pixels[0, 0] == [255, 0, 0]).all()
    assert image.notices == ("CMYK converted to RGB without a colour profile, so colours are approximate",)
    PILImage.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=b"no profile at all")
    assert read(tmp_path / "a.jpg").icc_profile is None and "approximate" in read(tmp_path / "a.jpg").notices[0]


def test_broken_exif_does_not_stop_a_picture(tmp_path):
    PILImage.fromarray(pixels()).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff garbage")
    assert read(tmp_path / "a.jpg").pixels.shape == (9, 13, 3)


def test_pillow_pictures():
    picture = PILImage.fromarray(pixels(4))
    image = from_pil(picture)
    assert image.mode == "RGBA" and np.array_equal(np.array(to_pil(image)), np.array(picture))


# what is refused


@pytest.mark.parametrize(
    ("mode", "repair"), [("1", "convert it to gray"), ("LAB", "convert to RGB")]
)
def test_other_kinds(tmp_path, mode, repair):
    PILImage.new(mode, (4, 3)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=rf"a\.tif: .*{repair}"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
def test_several_frames(tmp_path, ending):
    frames = [PILImage.fromarray(pixels(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"a{ending}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"3 frames or pages; split"):
        read(tmp_path / f"a{ending}")


def test_a_phone_s_multi_picture_file_gives_the_main_picture(tmp_path):
    main, other = np.full((16, 16, 3), 200, np.uint8), np.zeros((16, 16, 3), np.uint8)
    PILImage.fromarray(main).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[PILImage.fromarray(other)])
    image = read(tmp_path / "a.jpg")
    assert image.format == "JPEG" and abs(int(image.pixels.mean()) - 200) < 3


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("part", [0.03, 0.5, 0.9])
def test_truncated(tmp_path, ending, part):
    file = write(tmp_path / f"a{ending}", Image(pixels(height=64, width=64)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageError, match=rf"a\{ending}"):
        read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"hello, I am no image", "not an image"), (b"GIF89a" + bytes(40), "not one of BMP, JPEG")],
)
def test_no_image(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read(tmp_path / "a.png")


def test_missing_and_folder(tmp_path):
    with pytest.raises(ImageError, match="check the name"):
        read(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a file"):
        read(tmp_path)


def test_bomb(tmp_path, monkeypatch):
    write(tmp_path / "a.png", Image(pixels(height=20, width=20)))
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 300)  # 400 pixels: over the warning, under the limit
    assert read(tmp_path / "a.png").width == 20
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="more than 200 pixels.*MAX_IMAGE_PIXELS"):
        read(tmp_path / "a.png")


# writing


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_unknown_ending(tmp_path, name):
    with pytest.raises(ImageError, match=r"use one of \.bmp"):
        write(tmp_path / name, Image(pixels()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".jpg", ".bmp"])
def test_alpha_is_not_dropped(tmp_path, ending):
    with pytest.raises(ImageError, match="cannot hold the alpha channel; write PNG"):
        write(tmp_path / f"a{ending}", Image(pixels(), pixels(1)[:, :, 0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [pixels().astype(np.int64), pixels().astype(bool), pixels(4), pixels()[:, :, 0]])
def test_only_pictures_are_written(tmp_path, bad):
    with pytest.raises(ImageError, match="pixels must be uint8, uint16 or floating"):
        write(tmp_path / "a.png", Image(bad))
    with pytest.raises(ImageError, match="alpha must be uint8"):
        write(tmp_path / "a.png", Image(pixels(), bad.astype(np.int8)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_survives_a_failure_in_mid_write(tmp_path, monkeypatch, error, ending):
    file = write(tmp_path / f"a{ending}", Image(pixels()))
    before = file.read_bytes()

    def finish(self):
        self._file.write(b"half a picture")
        raise error

    for writer in (target.PngWriter, target.TiffWriter, target._PillowWriter):
        monkeypatch.setattr(writer, "finish", finish)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ImageError) as caught:
        write(file, Image(pixels(seed=1)))
    if caught.type is ImageError:
        assert "No space left on device" in str(caught.value) and "free space" in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_pure_noise_can_be_written(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert read(write(tmp_path / f"a.{ending}", Image(noise))).width == 300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_full_disk_is_named_whatever_the_format(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(atomic, "open", lambda path, mode: open("/dev/full", "wb"), raising=False)
    with pytest.raises(ImageError, match="No space left on device"):
        write(tmp_path / f"a.{ending}", Image(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match="cannot be written"):
        write(tmp_path / "none" / "a.png", Image(pixels()))


def test_a_side_too_long_for_the_format(tmp_path):
    with pytest.raises(ImageError, match="cannot be written as WEBP|cannot be written"):
        write(tmp_path / "a.webp", Image(np.zeros((1, 17000, 3), np.uint8)))
    assert not list(tmp_path.iterdir())


def test_a_link_keeps_pointing(tmp_path):
    real = write(tmp_path / "real.png", Image(pixels()))
    link = tmp_path / "link.png"
    try:
        link.symlink_to(real)
    except OSError:
        pytest.skip("no links here")
    write(link, Image(pixels(seed=1)))
    assert link.is_symlink() and np.array_equal(read(real).pixels, pixels(seed=1))


# row by row


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".webp", ".bmp"])
def test_rows_are_the_picture(tmp_path, ending):
    file = write(tmp_path / f"a{ending}", Image(pixels(height=50)))
    with opened(file) as source:
        parts = [source.rows(count) for count in (1, 0, 20, 3, 100, 5)]
    assert [len(part) for part in parts] == [1, 0, 20, 3, 26, 0]
    assert np.array_equal(np.concatenate(parts), read(file).pixels)
    with opened(file) as source, Target(tmp_path / f"b{ending}", source.head) as copy:
        for _ in range(8):
            copy.write(source.rows(7))
    if ending != ".jpg":
        assert np.array_equal(read(tmp_path / f"b{ending}").pixels, read(file).pixels)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_a_target_is_whole_or_not_there(tmp_path, ending):
    with pytest.raises(ZeroDivisionError), Target(tmp_path / f"a{ending}", Head(4, 5, 3)) as half:
        half.write(np.zeros((2, 5, 3), np.uint8))
        1 / 0  # noqa: B018
    with pytest.raises(AssertionError, match="2 rows of 4"), Target(tmp_path / f"a{ending}", Head(4, 5, 3)) as half:
        half.write(np.zeros((2, 5, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_sixteen_bits_are_refused_where_eight_are_needed(tmp_path):
    write(tmp_path / "a.png", Image(pixels().astype(np.uint16)))
    with pytest.raises(ImageError, match=r"a\.png: 16 bits per channel, but here 8-bit"):
        read(tmp_path / "a.png", deep=False)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path, name):
    """A file of a few hundred bytes that claims 100 megapixels."""
    file = write(tmp_path / name, Image(np.zeros((16, 16, 3), np.uint8)))
    content = bytearray(file.read_bytes())
    if name == "a.png":
        content[16:24] = struct.pack(">II", 10000, 10000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif name == "a.jpg":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", 10000, 10000)
    else:
        content[18:26] = struct.pack("<ii", 10000, 10000)
    file.write_bytes(content)
    with pytest.raises(ImageError, match="claims 10000 x 10000 pixels"):
        opened(file)


def test_a_profile_made_here_has_no_date():
    """Or the same image would be another file at each run."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    later = made[:24] + bytes(12) + made[36:]
    assert _undated(made) == _undated(later) and len(_undated(made)) == len(made)
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(_undated(made))))
