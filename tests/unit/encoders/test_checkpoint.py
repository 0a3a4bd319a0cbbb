import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmcl.encoders.transformers import Transformers
from mmcl.errors import UserError

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 48,
}
PLAIN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture
def folders(tmp_path):
    """A folder with two small models and their image processors."""
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(**PLAIN).save_pretrained(tmp_path / "vit")
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL)).save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor(**CROPPED).save_pretrained(tmp_path / "clip")
    return tmp_path


def noise(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def rewrite(folder, **changes):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pixels_are_those_of_the_library(folders):
    """Resized too: Pillow does it in both."""
    processor = transformers.AutoImageProcessor.from_pretrained(folders / "vit", backend="pil")
    transform = Transformers(model="vit", root=folders).transform()
    expected = processor(images=noise(57), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(transform(noise(57)), expected, atol=1e-6, rtol=1e-6)


def test_the_processor_s_crop_is_for_fit_crop(folders):
    processor = transformers.AutoImageProcessor.from_pretrained(folders / "clip", backend="pil")
    transform = Transformers(model="clip", fit="crop", root=folders).transform()
    assert (transform.size, transform.crop, transform.interpolation) == (32, 0.8, "bicubic")
    expected = processor(images=noise(40), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(transform(noise(40)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"do_normalize": False}, {"resample": 2}, {"resample": 3}],
)
def test_whatever_range_the_processor_makes(folders, changes):
    rewrite(folders / "vit", **changes)
    processor = transformers.AutoImageProcessor.from_pretrained(folders / "vit", backend="pil")
    transform = Transformers(model="vit", root=folders).transform()
    expected = processor(images=noise(40), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(transform(noise(40)), expected, atol=2e-4, rtol=1e-6)


def test_the_joint_file_of_a_processor(folders):
    path = folders / "vit" / "preprocessor_config.json"
    (path.parent / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert Transformers(model="vit", root=folders).transform().mean == (0.4, 0.5, 0.6)


def test_without_a_processor_the_config_tells_the_size(folders):
    (folders / "vit" / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="no preprocessor_config.json: images are made 48 pixels"):
        assert Transformers(model=str(folders / "vit")).info.image_size == 48


# ------------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """A hub on this machine: `some/vit` is there, `some/gated` is gated, nothing else is. Counts requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            parts = self.path.strip("/").split("/")
            path = folders / parts[1] / parts[-1]
            if parts[:2] == ["some", "gated"]:
                return self.reply(403, {"X-Error-Code": "GatedRepo"})
            if parts[:2] != ["some", "vit"]:
                return self.reply(404, {"X-Error-Code": "RepoNotFound"})
            if not path.is_file():
                return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})
            size = str(path.stat().st_size)
            self.reply(200, {"X-Repo-Commit": "a" * 40, "ETag": f'"{parts[-1]}"', "Content-Length": size})
            return path

        def do_GET(self):
            path = self.do_HEAD()
            if path:
                self.wfile.write(path.read_bytes())

        def reply(self, status, headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    server.server_close()


def test_from_the_hub_then_from_its_cache(hub, folders, monkeypatch):
    encoder = Transformers(model="some/vit")
    assert encoder.info.source == "transformers:some/vit"
    assert {path.rpartition("/")[2] for path in hub if "/resolve/" in path} == {
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "model.safetensors",
    }
    del hub[:]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = Transformers(model="some/vit")
    assert not hub
    assert again.info == encoder.info
    assert torch.equal(again.network.layernorm.weight, encoder.network.layernorm.weight)
    assert again.transform() == Transformers(model="vit", root=folders).transform()


def test_gated_or_unknown_on_the_hub(hub):
    with pytest.raises(UserError, match=r"`some/gated` is gated(.|\n)*huggingface\.co/some/gated"):
        Transformers(model="some/gated")
    with pytest.raises(UserError, match="`some/other` is neither a folder nor on the hub"):
        Transformers(model="some/other")


def test_the_hub_without_network(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="`some/vit` is no folder, and the hub cannot be reached"):
        Transformers(model="some/vit")
    assert not hub
