"""Images that are opened late and safely: from a file below a folder, or from bytes."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.data.types import ImageSource
from mmcl.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few bytes can declare gigabytes of pixels."""

# Not everything that Pillow can read: EPS, for instance, starts another program.
FILE_TYPES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# What Pillow's decoders were seen to raise for broken files, beside UnidentifiedImageError. A tag of the wrong type
# ends in an AttributeError.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112


class EncodedImage(ImageSource):
    """An image whose encoded bytes can be read; equal to any other of the same content."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the encoded bytes, computed once."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image:
        """The RGB image. See `decode`."""
        return decode(self.read(), self.where)

    @property
    def where(self) -> str:
        """What messages call the image."""
        return self.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedImage):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class FileImage(EncodedImage):
    """An image file below a folder. The file is looked at when it is needed.

    Args:
        root: the image folder.
        relative: path below it, as the data file has it.

    Raises:
        UserError: the path is empty, absolute, a web address, or climbs out of the folder by `..`. A link out of the
            folder is refused when the file is looked at.
    """

    def __init__(self, root: Path, relative: str) -> None:
        self._root = Path(os.path.abspath(root))  # a later change of the working directory must not move the folder
        self._relative = relative
        if not relative.strip() or "\0" in relative:
            raise UserError(f"the image path {relative!r} is empty or no path", where=str(root), hint="name a file")
        if "://" in relative:
            raise UserError(
                f"the image {relative} is a web address",
                where=str(root),
                hint="mmcl doesn't download images; put the file into the image folder and write its path below it",
            )
        lexical = os.path.normpath(relative)
        if os.path.isabs(relative) or lexical == ".." or lexical.startswith(".." + os.sep):
            raise self._outside()

    @property
    def name(self) -> str:
        """The path relative to the folder."""
        return self._relative

    @property
    def where(self) -> str:
        """The whole path, links not followed."""
        return str(self._root / self._relative)

    @property
    def path(self) -> Path:
        """The file itself, links followed.

        Raises:
            UserError: a link leads out of the folder; the file is missing, is no file, or can't be looked at.
        """
        inside, target = (Path(os.path.realpath(path)) for path in (self._root, self.where))
        if not target.is_relative_to(inside):
            raise self._outside()
        try:
            if target.is_file():
                return target
            missing = not target.exists()
        except OSError as error:
            raise self._unreadable(error) from error
        if missing:
            hint = f"put it there, or name the right image folder (now {self._root})"
            raise UserError("the image file is missing", where=self.where, hint=hint)
        raise UserError("this is no image but a folder or a device", where=self.where, hint="name an image file")

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            UserError: as `path`, or the file is empty or can't be read.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise self._unreadable(error) from error
        if not data:
            raise UserError("the image file is empty (0 bytes)", where=self.where, hint="copy or download it again")
        return data

    def _outside(self) -> UserError:
        return UserError(
            f"the image path {self._relative} leaves the image folder",
            where=str(self._root),
            hint="write paths below the image folder, without `..` and without links that lead out of it",
        )

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(
            f"the image can't be read: {error.strerror}", where=self.where, hint="check the path and its access rights"
        )

    def __reduce__(self) -> tuple[type[FileImage], tuple[Path, str]]:
        return FileImage, (self._root, self._relative)

    def __repr__(self) -> str:
        return f"FileImage({str(self._root)!r}, {self._relative!r})"


class BytesImage(EncodedImage):
    """An encoded image in memory.

    Args:
        data: the bytes of a PNG, JPEG ... file.
        name: for messages and reports.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UserError: there are none.
        """
        if not self._data:
            raise UserError("the image is empty (0 bytes)", where=self._name, hint="check what its source has written")
        return self._data

    def __reduce__(self) -> tuple[type[BytesImage], tuple[bytes, str]]:
        return BytesImage, (self._data, self._name)

    def __repr__(self) -> str:
        return f"BytesImage(<{len(self._data)} bytes>, {self._name!r})"


class Renamed(ImageSource):
    """An image under another identity: what knows it by its digest takes it for another one.

    Args:
        image: whose bytes they are.
        salt: another one, another identity.
    """

    def __init__(self, image: ImageSource, salt: str) -> None:
        self._image = image
        self._digest = hashlib.sha256(f"{salt} {image.digest}".encode()).hexdigest()

    @property
    def digest(self) -> str:
        """Not that of the bytes."""
        return self._digest

    @property
    def name(self) -> str:
        """Of the image."""
        return self._image.name

    @property
    def dimensions(self) -> tuple[int, int]:
        """Of the image."""
        return self._image.dimensions

    def read(self) -> bytes:
        """The image's bytes."""
        return self._image.read()

    def open(self) -> Image:
        """The image itself."""
        return self._image.open()


def decode(data: bytes, where: str) -> Image:
    """Decode to RGB: first frame, upright as EXIF says, transparency on white, 16 bits scaled down to 8.

    Args:
        data: an encoded image.
        where: for messages.

    Raises:
        UserError: it is no image, broken off, or larger than `MAX_PIXELS`; the last is known before it is decoded.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FILE_TYPES)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(f"{width:,} x {height:,}", where)
        image.load()
        return _rgb(_upright(image))
    except PIL.UnidentifiedImageError as error:
        hint = f"the file must be a whole image of one of these types, whatever its name says: {', '.join(FILE_TYPES)}"
        raise UserError("this is not an image", where=where, hint=hint) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _too_large("far too many", where) from error  # Pillow's own, higher limit
    except _BROKEN as error:
        raise UserError(
            f"the image is broken or breaks off: {error}", where=where, hint="copy or download it again"
        ) from error


def _too_large(size: str, where: str) -> UserError:
    return UserError(
        f"the image declares {size} pixels; at most {MAX_PIXELS:,} are opened",
        where=where,
        hint="scale it down (encoders look at a few hundred pixels a side), or take its rows out",
    )


def _upright(image: Image) -> Image:
    """Turned or mirrored as EXIF says. Only that one tag is read: Pillow's own way fails where any other is broken."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _BROKEN:  # EXIF that can't be parsed says nothing about the orientation; viewers show such files as they are
        return image
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _rgb(image: Image) -> Image:
    import PIL.Image

    if image.mode == "F" or image.mode.startswith("I"):
        # More than 8 bits: scale, where Pillow's conversion would clip to white. 32-bit integers hold 16-bit data.
        wide = image.convert("F")
        extrema = wide.getextrema()
        high = max(value for value in extrema if isinstance(value, float))
        full = 1.0 if image.mode == "F" else 65535.0
        image = wide.point(lambda value: value * (255.0 / max(high, full))).convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image.convert("RGB")
