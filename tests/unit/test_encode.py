"""Encoders from model directories: the vectors are those that the directory's own configuration means."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.embed import Embed
from operators.encode import ClipEncoder, TextEncoder, open_encoder
from operators.errors import HilbertflowError
from operators.pictures import MAX_PIXELS, check, decode
from tests.model_fixtures import bert, clip, pooling, roberta
from tests.pictures import bomb, png

torch = pytest.importorskip("torch", reason="makes and runs models")
transformers = pytest.importorskip("transformers", reason="makes and runs models")

TEXTS = [
    "a red shirt",
    "the leather boot and the coat with the dress, far beyond the twelve tokens that it may have",
    "a",
]
F64 = np.float64


def hidden(folder: Path, text: str, limit: int) -> Any:
    """Token vectors (tokens, width) float64 of one text alone, straight from transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        return model(**tokens).last_hidden_state[0].numpy().astype(F64)


POOL: dict[str, Callable[[Any], Any]] = {
    "mean_tokens": lambda h: h.mean(0),
    "cls_token": lambda h: h[0],
    "max_tokens": lambda h: h.max(0),
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / np.sqrt(len(h)),
    "weightedmean_tokens": lambda h: np.average(h, axis=0, weights=np.arange(1, len(h) + 1)),
    "lasttoken": lambda h: h[-1],
    "cls_token+mean_tokens": lambda h: np.concatenate([h[0], h.mean(0)]),
}


@pytest.mark.parametrize("make", [bert, roberta])
def test_pooling_is_what_the_directory_says(tmp_path: Path, make: Callable[..., Path]) -> None:
    width = 32 if make is bert else 48
    folder = make(tmp_path / "model", {"Pooling": pooling("mean_tokens", width), "Normalize": {}})
    states = [hidden(folder, text, 12) for text in TEXTS]
    assert len(states[1]) == 12
    for mode, pool in POOL.items():
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling(mode, width)))
        encoder = open_encoder(str(folder))
        expected = np.stack([pool(state) for state in states])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = encoder.encode(TEXTS)
        assert found.shape == (3, encoder.dim) == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=mode)
        np.testing.assert_allclose(encoder.encode(TEXTS, batch=1), found, atol=2e-6)  # padding leaves no trace
    (folder / "1_Pooling/config.json").write_text(json.dumps({"embedding_dimension": width, "pooling_mode": "max"}))
    np.testing.assert_allclose(
        open_encoder(str(folder)).encode(TEXTS[:1]) * np.linalg.norm(states[0].max(0)), [states[0].max(0)], atol=1e-5
    )


def test_dense_layers_and_no_normalisation(tmp_path: Path) -> None:
    dense = {
        "in_features": 32,
        "out_features": 10,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    folder = bert(tmp_path / "model", {"Pooling": pooling("mean_tokens", 32), "Dense": dense})
    encoder = open_encoder(str(folder))
    assert encoder.dim == 10 and not encoder.modules.normalize
    from safetensors.numpy import load_file

    weights = load_file(folder / "2_Dense/model.safetensors")
    mean = hidden(folder, TEXTS[0], 12).mean(0)
    expected = np.tanh(weights["linear.weight"] @ mean + weights["linear.bias"])
    np.testing.assert_allclose(encoder.encode(TEXTS[:1])[0], expected, atol=2e-6)


def test_a_plain_directory_is_averaged_within_its_positions(tmp_path: Path) -> None:
    for make, limit in ((bert, 40), (roberta, 64)):
        folder = make(tmp_path / make.__name__)
        encoder = open_encoder(str(folder))
        assert type(encoder) is TextEncoder and encoder.max_tokens == limit
        long = " ".join(TEXTS * 9)
        mean = hidden(folder, long, limit).mean(0)
        np.testing.assert_allclose(encoder.encode([long])[0], mean / np.linalg.norm(mean), atol=2e-6)
        assert open_encoder(str(folder), max_tokens=5).max_tokens == 5
        with pytest.raises(HilbertflowError, match="takes no pictures; name a CLIP"):
            encoder.encode_pictures([png()])


def test_a_prompt_and_lower_case(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model", {"Pooling": pooling("mean_tokens", 32)})
    plain = open_encoder(str(folder)).encode(["the red shirt"])
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "the "}, "default_prompt_name": "query"})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    np.testing.assert_array_equal(open_encoder(str(folder)).encode(["RED shirt"]), plain)


def test_clip_embeds_texts_and_pictures_in_one_space(tmp_path: Path) -> None:
    folder = clip(tmp_path / "model")
    encoder = open_encoder(str(folder))
    assert type(encoder) is ClipEncoder and encoder.dim == 24 and encoder.max_tokens == 40
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    texts, pictures = encoder.encode(TEXTS), [png(seed=i, size=(40 + i, 70 - i)) for i in range(5)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = encoder.encode_pictures(pictures, batch=2)
    assert texts.shape == (3, 24) and vectors.shape == (5, 24)
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    pixels = kind.from_pretrained(folder)([decode(data) for data in pictures], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (5, 3, 32, 32)
    for row, text in enumerate(TEXTS):
        tokens = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
        with torch.inference_mode():
            out = model(**tokens, pixel_values=pixels)
        np.testing.assert_allclose(texts[row], out.text_embeds[0].numpy(), atol=2e-6)
        np.testing.assert_allclose(vectors, out.image_embeds.numpy(), atol=2e-6)
    (folder / "preprocessor_config.json").unlink()  # then as the model's own picture size
    np.testing.assert_allclose(open_encoder(str(folder)).encode_pictures(pictures), vectors, atol=2e-6)
    within = tmp_path / "st" / "0_CLIPModel"
    within.parent.mkdir()
    folder.rename(within)
    np.testing.assert_array_equal(open_encoder(str(within.parent)).encode(TEXTS), texts)


def test_embed_takes_either_column(tmp_path: Path) -> None:
    operator = Embed(model=str(clip(tmp_path / "model")), max_tokens=0)
    base = {"id": ["x", "y"], "path": ["a", "b"]}
    by_text = operator.apply(pa.table(base | {"text": TEXTS[:2]}))
    by_image = operator.apply(pa.table(base | {"image": [png(), png(seed=1)]}))
    assert by_text.column_names == by_image.column_names == ["id", "path", "vector"]
    assert by_image.schema.field("vector").type == pa.list_(pa.float32(), 24)
    with pytest.raises(HilbertflowError, match=r"^y: byte \d+: is no picture"):
        operator.apply(pa.table(base | {"image": [png(), b"no picture"]}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json here"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda f: (f / "modules.json").write_text('[{"type": "x.LSTM", "path": ""}]'), "module LSTM is not known"),
        (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": "median"}'), "pooling 'median'"),
    ],
)  # fmt: skip
def test_bad_directories_are_told_at_once(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    folder = bert(tmp_path / "model", {"Pooling": pooling("mean_tokens", 32)})
    spoil(folder)
    with pytest.raises(HilbertflowError, match=says):
        open_encoder(str(folder))


def test_a_model_without_weights_does_not_load(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HilbertflowError, match=r"the model does not load"):
        open_encoder(str(folder)).encode(["a"])


def test_pictures_are_judged_before_they_are_decoded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((20_000, 20_000), (1 << 20, 1 << 12), (MAX_PIXELS + 1, 1)):
            for look in (check, decode):
                with pytest.raises(HilbertflowError, match=r"^b: byte \d+: has .* pixels; 100,000,000 are the most"):
                    look(bomb(width, height), "b")
    for data in (b"", b"GIF89a", png()[:60], bomb(10, 10)):
        with pytest.raises(HilbertflowError, match=r"^b: byte \d+: is no picture that can be read"):
            decode(data, "b")
    clear = decode(png(mode="RGBA", colour=(255, 0, 0, 0)))
    assert clear.mode == "RGB" and clear.getpixel((0, 0)) == (255, 255, 255)
