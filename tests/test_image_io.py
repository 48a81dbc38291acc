import errno
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageCms

from segaware import image_io
from segaware.errors import ImageError
from segaware.image_io import Image, from_pil, read, to_pil, write

LOSSLESS = [".png", ".bmp", ".tif", ".tiff", ".webp", ".PNG"]


def pixels(channels=3, height=9, width=13, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png16(colour: int, channels: int) -> bytes:
    header = struct.pack(">IIBBBBB", 3, 2, 16, colour, 0, 0, 0)
    rows = (b"\0" + bytes(range(3 * channels * 2))) * 2
    return png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


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


def test_broken_exif_does_not_stop_a_picture(tmp_path):
    PILImage.fromarray(pixels()).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff garbage")
    assert read(tmp_path / "a.jpg").pixels.shape == (9, 13, 3)


def test_pillow_pictures():
    picture = PILImage.fromarray(pixels(4))
    image = from_pil(picture)
    assert image.mode == "RGBA" and np.array_equal(np.array(to_pil(image)), np.array(picture))


# what is refused


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png(tmp_path, colour, channels):
    (tmp_path / "a.png").write_bytes(png16(colour, channels))
    with PILImage.open(tmp_path / "a.png") as opened:
        opened.load()  # Pillow sees nothing wrong with it
    with pytest.raises(ImageError, match=r"a\.png: 16 bits per channel.* convert to 8 bits"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["gray", "colour", "float"])
def test_deep_tiff(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")
    array = {
        "gray": np.zeros((4, 5), np.uint16), "colour": np.zeros((4, 5, 3), np.uint16),
        "float": np.zeros((4, 5, 3), np.float32),
    }[kind]  # fmt: skip
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack" if kind == "gray" else "rgb")
    with pytest.raises(ImageError, match=r"a\.tif: .*convert to 8 bits"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "repair"), [("1", "convert it to gray"), ("CMYK", "convert to RGB"), ("LAB", "convert to RGB")]
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


@pytest.mark.parametrize("bad", [pixels().astype(np.float32), pixels(4), pixels()[:, :, 0]])
def test_only_8_bit_pixels_are_written(tmp_path, bad):
    with pytest.raises(ImageError, match="uint8"):
        write(tmp_path / "a.png", Image(bad))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_survives_a_failure_in_mid_write(tmp_path, monkeypatch, error):
    file = write(tmp_path / "a.png", Image(pixels()))
    before = file.read_bytes()

    def save(self, target, **options):
        target.write(b"half a picture")
        raise error

    monkeypatch.setattr(PILImage.Image, "save", save)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ImageError) as caught:
        write(file, Image(pixels(seed=1)))
    if caught.type is ImageError:
        assert "No space left on device" in str(caught.value) and "free space" in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_pure_noise_can_be_written(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert read(write(tmp_path / f"a.{ending}", Image(noise))).width == 300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_full_disk_is_named_whatever_the_format(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(image_io, "open", lambda path, mode: open("/dev/full", "wb"), raising=False)
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
