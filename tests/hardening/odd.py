"""The same picture in other forms, as cameras, scanners and drawing programs write it; and some that are none."""
import io
import struct
import zlib

import numpy as np
from damage import Case, replace
from PIL import Image, PngImagePlugin


def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, bits=8, parts=1, extra=()):
    "A PNG by hand: RGB or grey (H, W[, 3]), 8 or 16 bits, its data in `parts` chunks, with `extra` chunks before."
    levels = pixels.astype(">u2") * 257 if bits == 16 else pixels
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    data = zlib.compress(rows)
    size = -(-len(data) // parts)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    body = [chunk(b"IDAT", data[k:k + size]) for k in range(0, len(data), size)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + b"".join(body) + chunk(b"IEND", b"")


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_text():
    "What a text chunk unpacks to is 100 MB."
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8), 9))


def bits(size):
    "A page of bits, black and white: small as a file, huge where each bit becomes a byte or three."
    return saved(Image.new("1", (size, size), 1))


def same(pixels):
    "The same RGB picture, in every other form."
    image, words = Image.fromarray(pixels), PngImagePlugin.PngInfo()
    words.add_text("Comment", "x" * 3_000_000, zip=True)
    transparent = image.convert("RGBA")
    few = image.quantize(32, dither=Image.Dither.NONE)
    yield "16 bits", png(pixels, 16)
    yield "two chunks of data", png(pixels, parts=2)
    yield "many chunks of data", png(pixels, parts=40)
    yield "a palette", saved(few)
    yield "opaque alpha", saved(transparent)
    yield "white made transparent", saved(on_clear(pixels))
    yield "a palette with transparency", saved(few, transparency=few.getpixel((0, 0)))
    yield "a long text", saved(image, pnginfo=words)
    yield "a huge text chunk", png(pixels, extra=[huge_text()])
    yield "an unknown chunk", png(pixels, extra=[chunk(b"teSt", bytes(999))])
    yield "TIFF inside", saved(image, "TIFF")
    yield "TIFF with LZW", saved(image, "TIFF", compression="tiff_lzw")
    yield "BMP inside", saved(image, "BMP")
    yield "WebP inside", saved(image, "WEBP", lossless=True)
    yield "GIF inside", saved(few, "GIF")
    yield "turned, and said so", saved(image.transpose(Image.Transpose.ROTATE_90), exif=turned(6))
    yield "damaged EXIF", saved(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    yield "colour profile that is none", saved(image, icc_profile=b"no profile")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def on_clear(pixels):
    "White pixels transparent, with black beneath."
    white = (pixels == 255).all(2, keepdims=True)
    return Image.fromarray(np.dstack([np.where(white, 0, pixels), np.where(white, 0, 255).astype(np.uint8)]))


def none(pixels):
    "What is no picture, or one that cannot be."
    whole = png(pixels, parts=2)
    second = whole.rindex(b"IDAT")
    yield "second chunk broken", whole[:second + 8] + bytes(40) + whole[second + 48:]
    yield "second chunk's length broken", whole[:second - 4] + b"\x7f\xff\xff\xff" + whole[second:]
    yield "text", b"This is not a picture.\n"
    yield "HTML of a login page", b"<!DOCTYPE html><html><body>Sign in</body></html>"
    yield "a file of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n"
    yield "no pixels", png(pixels[:0])


def legal(pixels):
    "Another picture, which may be read or refused; but not in gigabytes, nor by a traceback."
    yield "one pixel", png(pixels[:1, :1])
    yield "one row", png(pixels[:1])
    yield "15,000 x 15,000 bits", bits(15_000)
    yield "60,000 x 60,000 bits", bits(60_000)
    yield "animated", saved(Image.fromarray(pixels), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40))])
    yield "CMYK", saved(Image.fromarray(pixels).convert("CMYK"), "TIFF")
    yield "floats", saved(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF")
    yield "32 bits", saved(Image.fromarray(pixels[..., 0].astype(np.int32)), "TIFF")
    yield "half transparent", saved(Image.fromarray(np.dstack([pixels, np.full((*pixels.shape[:2], 1), 99, np.uint8)])))


def forms(file, pixels, grey=False):
    "Cases of one picture file of the world in all its forms."
    groups = ((same, False), (none, False), (legal, True)) if not grey else ((same_grey, False),)
    for make, allowed in groups:
        for name, data in make(pixels):
            def spoil(stage, data=data): replace(stage / file, data)
            yield Case(f"{file}: {name}", spoil, allowed, (file.rpartition("/")[2],))


def same_grey(pixels):
    "A grey picture (H, W) in its forms."
    yield "16 bits", png(pixels, 16)
    yield "as RGB", png(np.dstack([pixels] * 3))
    yield "grey and alpha", saved(Image.fromarray(pixels).convert("LA"))
    yield "16 bits in TIFF", saved(Image.fromarray(pixels.astype(np.uint16) * 257), "TIFF")
