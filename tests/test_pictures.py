"""A picture file is read as an ordinary viewer shows it, on white; what is none raises OSError and nothing else."""
import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gradcheck.pictures import MANY, few_colours, square

SIZE = 16


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cut_out(mode):
    "A red or dark disc's square in the middle of a transparent ground whose hidden colour is black."
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (8, 8, 24, 24))
    return image.convert(mode)


def palette():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(1, (8, 8, 24, 24))
    return image


@pytest.mark.parametrize("data", [
    saved(cut_out("RGBA")),
    saved(cut_out("LA")),
    saved(cut_out("RGBA"), "WEBP", lossless=True),
    saved(cut_out("RGBA"), "TIFF"),
    saved(palette(), transparency=0),
    saved(palette(), "GIF", transparency=0),
    saved(Image.fromarray(np.pad(np.full((16, 16), 60, np.uint8), 8)), transparency=0),
    saved(cut_out("RGBA").convert("RGB"), transparency=(0, 0, 0))])
def test_a_transparent_ground_is_white(data):
    picture = square(data, 32)
    assert (picture[0] == 255).all() and picture[16, 16].max() <= 205 and picture[16, 16, 1] < 100


def test_half_transparent_is_half_white():
    assert abs(int(square(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 4)[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_levels(kind):
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    picture = square(saved(ramp, kind), 64)
    assert len(np.unique(picture)) == 256 and picture.min() == 0 and picture.max() == 255


@pytest.mark.parametrize(
    "values", [np.float32([0, 1]), np.float32([0, 255]), np.int32([0, 65535]), np.float32([np.nan, 1])]
)
def test_numbers_of_other_kinds(values):
    picture = square(saved(Image.fromarray(np.repeat(values, 8).reshape(2, 8).repeat(4, 0)), "TIFF"), 8)
    assert picture[0, 0, 0] == 0 and picture[-1, -1, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_upright(orientation):
    from PIL import ImageOps
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2, 2, 3), np.uint8)).resize((32, 32), 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, exif=exif)
    assert (square(data, 32) == np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))).all()


def test_cmyk_and_one_bit():
    picture = square(saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"), 8)
    assert picture[4, 4, 0] > 200 and picture[4, 4, 1:].max() < 60
    assert (square(saved(Image.new("1", (20, 20), 1)), 8) == 255).all()


def test_a_huge_page_of_bits():
    page = Image.new("1", (15_000, 15_000), 1)
    page.paste(0, (0, 0, 7_500, 15_000))
    picture = square(saved(page), SIZE)
    assert (picture[:, 1] == 0).all() and (picture[:, -2] == 255).all()


@pytest.mark.parametrize("dark, bright", [(np.int32(200), np.int32(60_000)), (np.float32(0.9), np.float32(250))])
def test_a_huge_picture_of_many_levels_is_as_bright_in_every_strip(dark, bright):
    page = np.full((4_100, 4_100), dark)
    page[2_050:] = bright
    picture = square(saved(Image.fromarray(page), "TIFF"), SIZE)
    assert (picture[1] < 2).all() and (picture[-2] > 230).all()


def test_a_picture_that_is_too_large_is_refused_before_it_is_unpacked():
    head = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", (60_000).to_bytes(4, "big") * 2 + b"\x08\x06\x00\x00\x00")
        + chunk(b"IDAT", b"")
    )
    with pytest.raises(OSError, match="too large"): square(head, SIZE)


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_huge_text_is_passed_over(compressed):
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 80_000_000, zip=compressed)
    assert (square(saved(Image.new("RGB", (20, 20), (9, 8, 7)), pnginfo=text), 8) == (9, 8, 7)).all()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
KINDS = {kind: saved(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_short_raises_oserror(kind):
    for part in (0, 1, 8, 30, len(KINDS[kind]) // 2):
        with pytest.raises(OSError): square(KINDS[kind][:part], SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_picture_is_read_or_raises_oserror(kind):
    random = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(KINDS[kind])
        for at in random.integers(0, min(len(data), random.choice([60, 600, len(data)])), 3):
            data[at] ^= 1 << random.integers(8)
        try: assert square(bytes(data), SIZE).shape == (SIZE, SIZE, 3)
        except OSError: pass


def test_a_second_idat_that_is_broken_raises_oserror():
    data = KINDS["PNG"]
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    for broken in (data[:second] + b"ID\0T" + data[second + 4:], data[:second + 50] + b"\0" * 40 + data[second + 90:]):
        with pytest.raises(OSError): square(broken, SIZE)


def on_ground(seed=0):
    "Noise of very many colours, a strip that is nearly white, and white: an array (400, 400, 3)."
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (400, 400, 3))
    pixels[20:60] = np.clip(rng.normal(249, 3, (40, 400, 3)), 0, 255)
    pixels[:, 300:] = 255
    return pixels


def in_few(pixels, colours):
    few = few_colours(Image.fromarray(pixels.astype(np.uint8)), colours)
    return np.asarray(Image.open(io.BytesIO(few)).convert("RGB"))


@pytest.mark.parametrize("size", [400, 60])
def test_a_white_ground_stays_white_in_few_colours(size):
    pixels = on_ground()[:size, 300 - size // 2:]
    assert (in_few(pixels, 32)[:, -100:] == 255).all()


def test_each_pixel_of_noise_has_the_nearest_of_the_few_colours():
    pixels = on_ground()
    assert Image.fromarray(pixels.astype(np.uint8)).getcolors(MANY) is None
    got = in_few(pixels, 256).astype(int)
    palette = np.unique(got.reshape(-1, 3), axis=0)
    assert len(palette) <= 256
    nearest = ((pixels[:20].reshape(-1, 1, 3) - palette) ** 2).sum(-1).min(1)
    assert (((got[:20] - pixels[:20]) ** 2).sum(-1).ravel() == nearest).all()
