import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import utils as hub
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from mmcl import fetch
from mmcl.errors import UserError
from mmcl.model import language
from mmcl.model.gguf import load_gguf
from mmcl.model.language import load_language
from mmcl.model.quiet import quiet
from mmcl.model.tiny import FAMILIES, tiny_model, tiny_tokenizer
from mmcl.recipe.spec import LanguageSpec

TEXTS = ["", " lead  and trail \n\t", "Ünïcödé 你好 🙂", "a\x00b\r\n", "yes", "<|user|>hi<|eos|>"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The recipe's folder, which holds the model folder `small`."""
    folder = tmp_path_factory.mktemp("recipe")
    tiny_model("llama", seed=2).save_pretrained(folder / "small")
    tiny_tokenizer().save_pretrained(folder / "small")
    return folder


# --------------------------------------------------------------------------------------------------------- tiny models


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_tiny_family_runs_and_is_deterministic(family):
    state = torch.random.get_rng_state()
    model, tokenizer = load_language(LanguageSpec(f"tiny:{family}"), folder=Path(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.model_type == family
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 300_000
    again, _ = load_language(LanguageSpec(f"tiny:{family}"), folder=Path(), seed=1)
    other, _ = load_language(LanguageSpec(f"tiny:{family}"), folder=Path(), seed=2)
    embeddings = [m.get_input_embeddings().weight for m in (model, again, other)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
    ids = torch.tensor([tokenizer("hello")["input_ids"]])
    logits = model(ids).logits
    assert logits.shape == (1, 5, len(tokenizer))
    assert logits.isfinite().all()
    assert torch.equal(model.train()(ids).logits, logits), "no dropout"


def test_there_are_enough_families():
    assert len(FAMILIES) >= 10


@pytest.mark.parametrize("text", TEXTS)
def test_the_tiny_tokenizer_gives_any_text_back(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_the_tiny_tokenizer_has_one_token_per_byte_and_adds_none():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 262
    assert len(tokenizer("你 a")["input_ids"]) == 5
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_the_tiny_chat_template():
    tokenizer = tiny_tokenizer()
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert opened == "<|system|>s<|user|>q<|assistant|>"
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "a"}], tokenize=False)
    assert answered == opened + "a<|eos|>"
    ids = tokenizer(answered)["input_ids"]
    assert len(ids) == 7 and ids[-1] == tokenizer.eos_token_id


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_beside_the_recipe(saved):
    model, tokenizer = load_language(LanguageSpec("small"), folder=saved, seed=0)
    expected = tiny_model("llama", seed=2)
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert tokenizer.decode(tokenizer("é ?")["input_ids"]) == "é ?"


def test_bf16_weights_but_exact_rotations(saved):
    for weights in ("small", "tiny:llama"):
        model, _ = load_language(LanguageSpec(weights, dtype="bf16"), folder=saved, seed=0)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_a_missing_padding_token_is_replaced(saved, tmp_path):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    tokenizer.pad_token = None
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    model, tokenizer = load_language(LanguageSpec("m"), folder=tmp_path, seed=0)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id


def test_missing_tensors_are_an_error(tmp_path):
    """A model without head: transformers would draw one and only warn."""
    config = AutoConfig.for_model("llama", **FAMILIES["llama"], vocab_size=262, tie_word_embeddings=False)
    AutoModel.from_config(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"lacks 1 of the model.s tensors, such as lm_head\.weight"):
        load_language(LanguageSpec("m"), folder=tmp_path, seed=0)


def test_a_tokenizer_too_large_is_an_error(tmp_path):
    config = AutoConfig.for_model("llama", **FAMILIES["llama"], vocab_size=100)
    language.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="262 tokens, the model only 100 embeddings"):
        load_language(LanguageSpec("m"), folder=tmp_path, seed=0)


def test_code_in_a_checkpoint_is_refused(saved, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (tmp_path / "m" / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="cannot load `m`"):
        load_language(LanguageSpec("m"), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("tiny:lama", "did you mean `tiny:llama`"),
        ("./smal", "does not exist(.|\n)*did you mean `small`"),
        ("~/none-such", "does not exist"),
        ("none such", "does not exist"),
        ("none.gguf", "does not exist"),
        ("SmolLM2-135M-Instruct", "did you mean `smollm2-135m-instruct`"),
        ("empty", "no config.json"),
        ("one-file", "did you mean `one-file/a.gguf`"),
        ("one-file/a.gguf", "cannot load .*a.gguf"),
        ("vision", "cannot load `vision`"),
        ("torn", "cannot load `torn`"),
    ],
)
def test_mistakes(saved, weights, message):
    (saved / "empty").mkdir(exist_ok=True)
    (saved / "one-file").mkdir(exist_ok=True)
    (saved / "one-file" / "a.gguf").write_bytes(b"no such thing")
    AutoConfig.for_model("vit").save_pretrained(saved / "vision")
    (saved / "torn").mkdir(exist_ok=True)
    for file in (saved / "small").iterdir():
        (saved / "torn" / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match=message) as caught:
        load_language(LanguageSpec(weights), folder=saved, seed=0)
    assert caught.value.problems[0].where == "model.language.weights"


def test_a_path_from_the_working_directory_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(saved)
    with pytest.raises(UserError, match="not from the recipe's folder"):
        load_language(LanguageSpec("small"), folder=tmp_path, seed=0)


def test_an_unknown_id_without_network(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nMore.")

    monkeypatch.setattr(language.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"couldn't connect to 'https://huggingface.co' to load the files\n .*tiny:"):
        load_language(LanguageSpec("nobody/nothing"), folder=tmp_path, seed=0)


def test_a_fetched_name(saved, monkeypatch):
    name = next(iter(fetch.MODELS))
    monkeypatch.setattr(language, "fetch", lambda asked: saved / "small" if asked == name else None)
    assert load_language(LanguageSpec(name), folder=Path(), seed=0)[0].config.hidden_size == 64

    def offline(asked):
        raise UserError("no index", hint="check the network")

    monkeypatch.setattr(language, "fetch", offline)
    with pytest.raises(UserError, match=f"no index\n.*check the network .*mmcl fetch {name}") as caught:
        load_language(LanguageSpec(name), folder=Path(), seed=0)
    assert caught.value.problems[0].where == "model.language.weights"


# --------------------------------------------------------------------------------------------------------------- quiet


def test_loading_is_quiet_and_leaves_the_settings(saved, capfd):
    load_language(LanguageSpec("small"), folder=saved, seed=0)
    load_language(LanguageSpec("tiny:opt"), folder=saved, seed=0)
    out = capfd.readouterr()
    assert out.out + out.err == ""
    assert transformers_logging.is_progress_bar_enabled()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_quiet_puts_everything_back(bars, hub_bars):
    before = transformers_logging.get_verbosity(), logging.getLogger().handlers[:]
    try:
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
        with pytest.raises(RuntimeError), quiet():
            assert not transformers_logging.is_progress_bar_enabled()
            assert hub.are_progress_bars_disabled() is not hub_bars
            assert transformers_logging.get_verbosity() == logging.ERROR
            raise RuntimeError
        assert transformers_logging.is_progress_bar_enabled() is bars
        assert hub.are_progress_bars_disabled() is not hub_bars
        assert before == (transformers_logging.get_verbosity(), logging.getLogger().handlers[:])
    finally:
        transformers_logging.enable_progress_bar()
        hub.enable_progress_bars()


# ---------------------------------------------------------------------------------------------------------------- gguf


def write_gguf(path: Path, pre: str) -> dict[str, np.ndarray]:
    """A llama of one layer, in the layout of llama.cpp, with the vocabulary of the tiny tokenizer plus two merges."""
    known = sorted(tiny_tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    vocabulary = [*(token for token, _ in known), "ĠĠ", "aa", "<|endoftext|>"]  # the last: transformers insists on it
    width, inner = 32, 64
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(vocabulary), width),
        "output_norm": (width,),
        **{f"blk.0.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.{name}": (inner, width) for name in ("ffn_gate", "ffn_up")},
        "blk.0.ffn_down": (width, inner),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] * 6 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 6))
    writer.add_token_merges(["Ġ Ġ", "a a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        quantised = gguf.quantize(tensor, gguf.GGMLQuantizationType.Q8_0) if tensor.ndim == 2 else tensor
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.ndim == 2 else None
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_an_ordinary_model(tmp_path):
    tensors = write_gguf(tmp_path / "a.gguf", "smollm")
    model, tokenizer = load_language(LanguageSpec("a.gguf"), folder=tmp_path, seed=0)
    assert not hasattr(model.config, "quantization_config")
    assert getattr(model, "hf_quantizer", None) is None
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    embeddings = model.get_input_embeddings().weight
    np.testing.assert_allclose(embeddings.detach().numpy(), tensors["token_embd"], atol=0.03)
    model(torch.tensor([[7, 8, 9]])).logits.sum().backward()
    assert embeddings.grad is not None
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = load_language(LanguageSpec("again"), folder=tmp_path, seed=0)
    assert torch.equal(again.get_input_embeddings().weight, embeddings)


def test_smollm_cuts_digits_off_before_spaces(tmp_path):
    """`  4` is two spaces and a digit; the rule of GPT-2 alone would make it one space, then a space with the digit."""
    write_gguf(tmp_path / "a.gguf", "smollm")
    write_gguf(tmp_path / "b.gguf", "gpt-2")
    tokens = [
        tokenizer.convert_ids_to_tokens(tokenizer("a  4")["input_ids"])
        for _, tokenizer in (load_gguf(tmp_path / name, torch.float32) for name in ("a.gguf", "b.gguf"))
    ]
    assert tokens == [["a", "ĠĠ", "4"], ["a", "Ġ", "Ġ", "4"]]


# ------------------------------------------------------------------------------------------------------- real weights


@pytest.mark.weights
def test_the_fetched_model_knows_the_capital_of_france():
    name = "smollm2-135m-instruct"
    if fetch.find(name) is None:
        pytest.skip(f"run `mmcl fetch {name}` first")
    model, tokenizer = load_language(LanguageSpec(name), folder=Path(), seed=0)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == 2
    for text in ("Hello  world\n\t x=1  é 你好 🙂", "  42, 7", "it's <|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "  4" not in tokenizer.convert_ids_to_tokens(tokenizer("a  4")["input_ids"])
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n")
