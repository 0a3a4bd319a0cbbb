"""A Hugging Face checkpoint as a folder, and the preprocessing that lies beside its weights."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig

from mmcl.errors import UserError

from .preprocess import Fit, Preprocess

WHERE = "model.encoder.model"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_UNCROPPED = 384  # from this size on, the processor of ConvNeXt does not crop
_NO_PICKLE = "pickled weights (.bin, .pt) are not read; take a checkpoint with safetensors"


def checkpoint_folder(model: str, root: Path, *, weights: bool) -> tuple[Path, str]:
    """Where a checkpoint lies: a folder, else the hub's cache, filled from the hub.

    Of the hub, only JSON and safetensors files are fetched: no code, no pickle.

    Args:
        model: a folder or an id on the hub.
        root: a relative folder starts here.
        weights: whether the weights are needed too.

    Returns:
        The folder and the name to tell it by: the folder's own, or the id.

    Raises:
        UserError: no such folder, no network, gated, not a checkpoint, no safetensors.
    """
    path = root / Path(model).expanduser()
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise UserError(f"{path} has no {_CONFIG}", where=WHERE, hint="give a folder that `save_pretrained` wrote")
        if weights and not any((path / name).is_file() for name in (WEIGHTS, INDEX)):
            raise UserError(f"{path} has no {WEIGHTS}", where=WHERE, hint=_NO_PICKLE)
        return path, path.resolve().name
    if model.startswith(("./", "../", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise UserError(f"{path} does not exist", where=WHERE, hint="a relative path starts at the recipe's folder")
    return _download(model, weights=weights), model


def _download(model: str, *, weights: bool) -> Path:
    try:
        folder = Path(hf_hub_download(model, _CONFIG)).parent
        commit = folder.name  # all files are of this one

        def exists(name: str) -> bool:
            try:
                hf_hub_download(model, name, revision=commit)
            except LocalEntryNotFoundError:
                if try_to_load_from_cache(model, name, revision=commit) is None:  # not known to be missing on the hub
                    raise
                return False
            except EntryNotFoundError:
                return False
            return True

        for name in _PROCESSORS:
            exists(name)
        if weights and not exists(WEIGHTS):
            if not exists(INDEX):
                raise UserError(f"`{model}` has no {WEIGHTS}", where=WHERE, hint=_NO_PICKLE)
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            for shard in sorted(set(shards)):
                hf_hub_download(model, shard, revision=commit)
    except GatedRepoError as error:
        raise UserError(
            f"`{model}` is gated",
            where=WHERE,
            hint=f"ask for access at https://huggingface.co/{model}, then log in with `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"`{model}` is neither a folder nor on the hub",
            where=WHERE,
            hint="a relative folder starts at the recipe's folder; a private id needs `hf auth login`",
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"`{model}` is no folder, and the hub cannot be reached for what its cache lacks",
            where=WHERE,
            hint="a relative folder starts at the recipe's folder; an id on the hub needs the network once",
        ) from error
    except EntryNotFoundError as error:
        raise UserError(
            f"`{model}` lacks a file: {first_line(error)}", where=WHERE, hint="it must be a checkpoint of transformers"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"cannot fetch `{model}`: {first_line(error)}", where=WHERE, hint="try again, or give a folder"
        ) from error
    return folder


def preprocessing(
    folder: Path | None, config: PreTrainedConfig, *, image_size: int | None, fit: Fit, name: str, warn: bool
) -> Preprocess:
    """What the checkpoint's own image processor does to an image, as far as it makes it a square.

    Args:
        folder: of the checkpoint; None without one.
        config: of the vision model; it gives the size where there is no processor.
        image_size: instead of the checkpoint's.
        fit: how an image that is no square becomes one.
        name: of the checkpoint, for messages.
        warn: say so if the checkpoint has no image processor; the mean and standard deviation are then 0.5.

    Raises:
        UserError: the processor cannot be read, or nothing tells the size.
    """
    processor: Any = None
    library: Any = AutoImageProcessor  # without annotations
    if folder is not None and _has_processor(folder):
        try:
            processor = library.from_pretrained(folder, config=config, trust_remote_code=False)
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise UserError(
                f"cannot read the image processor of `{name}`: {first_line(error)}",
                where=WHERE,
                hint="mend its preprocessor_config.json, or delete that file",
            ) from error
    side, crop = _side(processor)
    size = image_size or side or config_side(config)
    if size is None:
        raise UserError(
            f"`{name}` does not tell which size of (square) image it takes",
            where="model.encoder.image_size",
            hint="set image_size",
        )
    if processor is None:
        if warn:
            warnings.warn(
                f"`{name}` has no preprocessor_config.json: images are made {size} pixels wide and high, with mean and "
                "standard deviation 0.5; if its weights want others, put that file beside them",
                stacklevel=2,
            )
        return Preprocess(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit=fit)
    mean, std = _statistics(processor)
    return Preprocess(size=size, mean=mean, std=std, interpolation=_interpolation(processor), fit=fit, crop=crop)


def config_side(config: PreTrainedConfig) -> int | None:
    """Height = width that the weights are made for, in pixels, if the config tells."""
    patches, patch = getattr(config, "num_patches", None), getattr(config, "patch_size", None)
    size = getattr(config, "image_size", None)
    if size is None and isinstance(patches, int) and isinstance(patch, int):
        size = math.isqrt(patches) * patch  # NaFlex: any grid of at most so many patches
    return square(size)


def square(size: Any) -> int | None:
    """An int, or a pair of equal ones, as an int; None for anything else."""
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    return size if isinstance(size, int) else None


def first_line(error: BaseException) -> str:
    """Of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _has_processor(folder: Path) -> bool:
    joint, own = (folder / name for name in _PROCESSORS)
    if own.is_file():
        return True
    return joint.is_file() and "image_processor" in json.loads(joint.read_text(encoding="utf-8"))


def _side(processor: Any) -> tuple[int | None, float]:
    """Height = width of what the processor gives, if it is always a square; the share of the image that it crops to."""
    patches = getattr(processor, "max_num_patches", None)
    if patches is not None:  # NaFlex
        return math.isqrt(patches) * processor.patch_size, 1.0
    whole = _edge(getattr(processor, "size", None))
    if getattr(processor, "do_center_crop", False):
        cut = _edge(getattr(processor, "crop_size", None)) or whole
        return cut, min(1.0, cut / whole) if cut and whole else 1.0
    share = getattr(processor, "crop_pct", None)
    return whole, share if share and whole and whole < _UNCROPPED else 1.0


def _edge(size: Any) -> int | None:
    if size is None or isinstance(size, int):
        return size
    return size.get("shortest_edge") or square((size.get("height"), size.get("width")))


def _statistics(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation for pixels in [0, 1], whatever range the processor scales them to."""
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = _three(processor.image_mean), _three(processor.image_std)
    if math.isclose(scale, 1):
        return mean, std
    return _three([value / scale for value in mean]), _three([value / scale for value in std])


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = [values] * 3 if isinstance(values, (int, float)) else values
    return float(red), float(green), float(blue)


def _interpolation(processor: Any) -> str:
    """The name that Pillow has for it; the processor may have Pillow's number, or torchvision's enumeration."""
    value = getattr(processor.resample, "value", processor.resample)
    if value is None:
        return "bilinear"  # what the library takes
    return Image.Resampling(value).name.lower() if isinstance(value, int) else str(value)
