"""Images: what is opened, how it is decoded, and what is refused with which message."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from mmcl.data.images import MAX_PIXELS, BytesImage, FileImage
from mmcl.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(side: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (side, side), hashlib.shake_128(b"noise").digest(3 * side * side))


def declared(width: int, height: int) -> bytes:
    """A PNG file of some 70 bytes that declares this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "red.png").write_bytes(encoded(Image.new("RGB", (4, 4), RED)))
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (4, 4), BLUE)))
    return tmp_path / "images"


def problem(act: Callable[[], object]) -> tuple[str, str, str]:
    """Where, what and how to mend it, of the one problem."""
    with pytest.raises(UserError) as caught:
        act()
    (found,) = caught.value.problems
    assert found.where and found.message and found.hint
    return found.where, found.message, found.hint


# ------------------------------------------------------------------------------------------------------------- identity


def test_a_file_is_known_by_its_content(folder: Path) -> None:
    image = FileImage(folder, "sub/red.png")
    data = (folder / "sub/red.png").read_bytes()
    assert image.read() == data
    assert image.digest == hashlib.sha256(data).hexdigest()
    assert image.name == "sub/red.png"
    assert image == BytesImage(data, "another name") and len({image, BytesImage(data, "x")}) == 1
    assert image != BytesImage(data + b"x", "sub/red.png") and image != "sub/red.png"


def test_the_digest_is_computed_once(folder: Path) -> None:
    image = FileImage(folder, "sub/red.png")
    before = image.digest
    os.remove(folder / "sub/red.png")
    assert image.digest == before


def test_nothing_is_read_before_it_is_needed(folder: Path) -> None:
    image = FileImage(folder, "later.png")
    (folder / "later.png").write_bytes(encoded(Image.new("RGB", (2, 2), BLUE)))
    assert image.open().getpixel((0, 0)) == BLUE


def test_images_can_be_pickled(folder: Path) -> None:
    for image in (FileImage(folder, "sub/red.png"), BytesImage(encoded(noise()), "noise")):
        again = pickle.loads(pickle.dumps(image))
        assert (again, again.name, again.digest) == (image, image.name, image.digest)


def test_a_relative_folder_stays_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    image = FileImage(Path("images"), "sub/red.png")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(image)).open().size == (4, 4)


# --------------------------------------------------------------------------------------------------- leaving the folder


@pytest.mark.parametrize("path", ["../secret.png", "../../etc/passwd", "sub/../../secret.png", "/etc/passwd", ".."])
def test_a_path_may_not_leave_the_folder(folder: Path, path: str) -> None:
    where, message, hint = problem(lambda: FileImage(folder, path))
    assert where == str(folder) and path in message and "leaves the image folder" in message
    assert "below the image folder" in hint


def test_a_link_may_not_leave_the_folder(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    for name in ("link.png", "up/secret.png"):
        where, message, hint = problem(FileImage(folder, name).read)
        assert where == str(folder) and name in message and "leaves the image folder" in message and "links" in hint


def test_links_inside_the_folder_and_to_it_are_followed(folder: Path) -> None:
    (folder / "inside.png").symlink_to("sub/red.png")
    (folder.parent / "linked").symlink_to(folder)
    assert FileImage(folder.parent / "linked", "inside.png").open().getpixel((0, 0)) == RED
    assert FileImage(folder, "sub/../sub/red.png").open().size == (4, 4)


@pytest.mark.parametrize(
    "path, what", [("", "empty"), ("  ", "empty"), ("a\0b", "no path"), ("https://a.b/c.png", "web")]
)
def test_what_is_no_path(folder: Path, path: str, what: str) -> None:
    where, message, _ = problem(lambda: FileImage(folder, path))
    assert where == str(folder) and what in message


# ----------------------------------------------------------------------------------------------------- unreadable files


def test_a_missing_file(folder: Path) -> None:
    where, message, hint = problem(FileImage(folder, "no.png").open)
    assert where == str(folder / "no.png") and "missing" in message and str(folder) in hint


def test_a_link_to_nowhere_or_to_itself_is_missing(folder: Path) -> None:
    (folder / "dead.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    for name in ("dead.png", "loop.png"):
        where, _, _ = problem(FileImage(folder, name).open)
        assert where == str(folder / name)


def test_a_folder_and_a_pipe_are_no_images(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")  # opening it would wait for ever
    for name in ("sub", "pipe.png"):
        where, message, _ = problem(FileImage(folder, name).open)
        assert where == str(folder / name) and "folder or a device" in message


def test_a_name_that_is_too_long(folder: Path) -> None:
    image = FileImage(folder, "x" * 5000)
    for act in (image.open, lambda: image.path):
        where, message, _ = problem(act)
        assert "xxx" in where and "can't be read" in message


BROKEN = {
    "empty.png": (b"", "0 bytes", "again"),
    "text.png": (b"hello, I am no image", "not an image", "PNG"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", "PNG"),
    "half.png": (encoded(noise())[:3000], "breaks off", "again"),
    "half.jpg": (encoded(noise(), "JPEG")[:1500], "breaks off", "again"),
    "half.webp": (encoded(noise(), "WEBP")[:1500], "image", "again"),
    "bomb.png": (declared(30_000, 30_000), "pixels", "scale it down"),
    "large.png": (declared(9_000, 8_000), "9,000 x 8,000 pixels", "scale it down"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(folder: Path, name: str) -> None:
    data, what, mend = BROKEN[name]
    (folder / name).write_bytes(data)
    where, message, hint = problem(FileImage(folder, name).open)
    assert where == str(folder / name) and what in message and mend in hint
    where, message, _ = problem(BytesImage(data, name).open)
    assert where == name and what in message


@pytest.mark.filterwarnings("error")
def test_pillow_s_own_limits_become_our_message() -> None:
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS
    for side in (11_000, 30_000):  # Pillow warns of the first and refuses the second
        assert f"at most {MAX_PIXELS:,}" in problem(BytesImage(declared(side, side), "bomb.png").open)[1]


def test_an_image_at_the_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcl.data.images.MAX_PIXELS", 16)
    assert BytesImage(encoded(Image.new("RGB", (4, 4))), "fits").open().size == (4, 4)
    assert "4 x 5" in problem(BytesImage(encoded(Image.new("RGB", (4, 5))), "too large").open)[1]


# ------------------------------------------------------------------------------------------------------------- decoding


def opened(data: bytes) -> Image.Image:
    image = BytesImage(data, "x").open()
    assert image.mode == "RGB"
    return image


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert opened(data).getpixel((1, 1)) == RED


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright(form: str, orientation: int) -> None:
    lying = noise(8).crop((0, 0, 8, 5))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(lying, form, exif=exif)
    image = opened(data)
    assert image.size == ((8, 5) if orientation < 5 else (5, 8))
    assert image.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()
    # Where the first row and column of the stored image are to be seen, as the EXIF standard has it.
    corner = [(0, 0), (0, 0), (-1, 0), (-1, -1), (0, -1), (0, 0), (-1, 0), (-1, -1), (0, -1)][orientation]
    assert image.getpixel(tuple(at % side for at, side in zip(corner, image.size, strict=True))) == lying.getpixel(
        (0, 0)
    )


def test_another_broken_tag_does_not_hide_the_orientation() -> None:
    tags = struct.pack(">H2HI2H2HIf", 2, 0x0112, 3, 1, 6, 0, 0x0132, 11, 1, 1.5)  # a date that is a number
    data = encoded(Image.new("RGB", (6, 4), RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + tags + b"\0" * 4)
    with pytest.raises(AttributeError):  # why Pillow's own way is not taken
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert opened(data).size == (4, 6)


@pytest.mark.parametrize("exif", [b"no TIFF header", b"MM\0*\0\0"])
def test_exif_that_cannot_be_parsed_is_left_alone(exif: bytes) -> None:
    assert opened(encoded(Image.new("RGB", (6, 4), RED), exif=b"Exif\0\0" + exif)).size == (6, 4)


def test_transparent_pixels_are_white() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (*RED, 255))
    palette = half.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    gray = Image.new("LA", (1, 1), (0, 0))
    for form in ("PNG", "WEBP"):
        image = opened(encoded(half, form, **({"lossless": True} if form == "WEBP" else {})))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]
    index = palette.getpixel((0, 0))
    assert opened(encoded(palette, "PNG", transparency=index)).getpixel((0, 0)) == (255, 255, 255)
    assert opened(encoded(gray)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    deep = Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 32768, 65535))
    image = opened(encoded(deep, form))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, pytest.approx(128, abs=1), 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "F", "I"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert opened(encoded(Image.new("RGB", (3, 2), RED).convert(mode), "PNG" if mode in "1LP" else "TIFF")).size == (
        3,
        2,
    )


def test_cmyk_keeps_its_colours() -> None:
    red, green, blue = opened(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert red > 230 and green < 25 and blue < 25
