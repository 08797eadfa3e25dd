"""Turn texts and pictures into vectors with a model directory: sentence-transformers, or CLIP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from operators.pictures import decode
from operators.sentence_modules import Modules, load_dense, pooled, read_modules

F32 = npt.NDArray[np.float32]
_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions begin behind the padding's number


def open_encoder(directory: str, max_tokens: int = 0, threads: int = 0) -> TextEncoder:
    """The encoder that a model directory holds: a `ClipEncoder` for CLIP, else a `TextEncoder`."""
    clip = _clip_folder(Path(directory))
    return TextEncoder(directory, max_tokens, threads) if clip is None else ClipEncoder(str(clip), max_tokens, threads)


class TextEncoder:
    """A transformer with the pooling that its directory names; nothing is fetched and nothing is unpickled.

    Parameters
    ----------
    directory: holds ``config.json``, ``model.safetensors``, a tokenizer and, if it is a sentence-transformers model,
        ``modules.json`` and what that names. Without it the token vectors are averaged and normalised.
    max_tokens: longer texts are cut; 0 takes the model's own limit.
    threads: of Torch; 0 leaves Torch's default.

    It runs on a GPU where this process sees one.

    Raises
    ------
    HilbertflowError: the directory holds no usable model, or Torch or transformers is not installed.
    """

    takes_pictures = False

    def __init__(self, directory: str, max_tokens: int = 0, threads: int = 0) -> None:
        self.directory, self.threads = Path(directory), threads
        self.modules = self._read()
        if not (self.modules.transformer / "config.json").is_file():
            raise HilbertflowError(
                "no config.json here", where=directory, remedy="name a sentence-transformers or CLIP model directory"
            )
        limit = self.modules.max_tokens or self._positions()
        self.max_tokens = min(max_tokens, limit) if max_tokens else limit

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformer's ``config.json``."""
        return _json(self.modules.transformer / "config.json")

    @property
    def dim(self) -> int:
        """Length of a vector."""
        modules = self.modules
        return modules.dense[-1].out if modules.dense else len(modules.pooling) * int(self.config["hidden_size"])

    def encode(self, texts: Sequence[str], batch: int = 32) -> F32:
        """``(len(texts), dim)`` float32, in the order of ``texts``; texts of like length are batched together."""
        import torch

        tokenizer, model, _ = self._model
        texts = [self.modules.prompt + (text.lower() if self.modules.lower else text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            tokens = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=self.max_tokens,
                return_tensors="pt",
            ).to(model.device)  # fmt: skip
            with torch.inference_mode():
                out[chosen] = self._vectors(tokens).float().cpu().numpy()
        return out

    def encode_pictures(self, pictures: Sequence[bytes], batch: int = 32, where: Sequence[str] = ()) -> F32:
        """``(len(pictures), dim)`` float32 of JPEG and PNG files; ``where`` names them in errors."""
        raise HilbertflowError(
            "this model takes no pictures", where=str(self.directory), remedy="name a CLIP model directory"
        )

    def _read(self) -> Modules:
        return read_modules(self.directory)

    def _positions(self) -> int:
        """Tokens that the transformer has positions for."""
        count = int(self.config.get("max_position_embeddings", 512))
        offset = int(self.config.get("pad_token_id", 1)) + 1 if self.config.get("model_type") in _OFFSET else 0
        told = _json(self.modules.transformer / "tokenizer_config.json").get("model_max_length") or 512
        return int(max(1, min(512, count - offset, told)))

    def _vectors(self, tokens: Any) -> Any:
        """Vectors (n, dim) of a batch of tokens."""
        import torch

        _, model, dense = self._model
        vectors = pooled(model(**tokens).last_hidden_state.float(), tokens["attention_mask"], self.modules.pooling)
        for layer in dense:
            vectors = layer(vectors)
        return torch.nn.functional.normalize(vectors, dim=1) if self.modules.normalize else vectors

    def _load(self) -> tuple[Any, Any, list[Any]]:
        from transformers import AutoModel, AutoTokenizer

        folder = self.modules.transformer
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return tokenizer, model, [load_dense(layer) for layer in self.modules.dense]

    @cached_property
    def _model(self) -> tuple[Any, Any, list[Any]]:
        """Tokenizer, model, and what else there is, on the device."""
        try:
            import torch
            from transformers.utils import logging
        except ImportError as error:
            raise HilbertflowError(
                f"{error.name} is not installed", where=str(self.directory),
                remedy="pip install 'hilbertflow[encoders]'",
            ) from error  # fmt: skip
        logging.disable_progress_bar()  # 103 small tensors need none, and a command's output is its own
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            tokenizer, model, more = self._load()
        except (OSError, ValueError) as error:
            if isinstance(error, HilbertflowError):
                raise
            raise HilbertflowError(
                f"the model does not load ({type(error).__name__})", where=str(self.directory),
                remedy="the directory must hold model.safetensors and a tokenizer",
            ) from error  # fmt: skip
        # Ray hides the GPUs from a worker that asked for none.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return tokenizer, model.eval().to(device), [m.to(device) if hasattr(m, "to") else m for m in more]


class ClipEncoder(TextEncoder):
    """A CLIP model: texts and pictures as vectors of one space, of unit length.

    Radford et al., "Learning transferable visual models from natural language supervision", 2021. The directory holds
    ``config.json``, ``model.safetensors``, a tokenizer and ``preprocessor_config.json``, as transformers writes them;
    that of sentence-transformers (``0_CLIPModel`` within it) will do too.
    """

    takes_pictures = True

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.config.get("projection_dim", 512))

    def encode_pictures(self, pictures: Sequence[bytes], batch: int = 32, where: Sequence[str] = ()) -> F32:
        """``(len(pictures), dim)`` float32 of JPEG and PNG files; ``where`` names them in errors.

        One picture is unpacked at a time.
        """
        names = where or [f"picture {i}" for i in range(len(pictures))]
        out = np.empty((len(pictures), self.dim), np.float32)
        for part in _parts(len(pictures), batch):
            out[part] = self.encode_pixels([self.pixels(*one) for one in zip(pictures[part], names[part], strict=True)])
        return out

    def pixels(self, data: bytes, where: str = "picture") -> F32:
        """What the model sees of a JPEG or PNG file, (3, side, side) float32.

        Scaled, cropped and normalised as ``preprocessor_config.json`` says.
        """
        (processor,) = self._model[2]
        seen: F32 = processor(images=[decode(data, where)], return_tensors="np")["pixel_values"][0]
        return seen

    def encode_pixels(self, pixels: Sequence[F32], batch: int = 32) -> F32:
        """``(len(pixels), dim)`` float32 of what `pixels` gave."""
        import torch

        model = self._model[1]
        out = np.empty((len(pixels), self.dim), np.float32)
        for part in _parts(len(pixels), batch):
            stacked = torch.from_numpy(np.stack(pixels[part])).to(model.device)
            with torch.inference_mode():
                out[part] = _unit(model.get_image_features(pixel_values=stacked)).float().cpu().numpy()
        return out

    def _read(self) -> Modules:
        return Modules(self.directory)

    def _positions(self) -> int:
        return int((self.config.get("text_config") or {}).get("max_position_embeddings", 77))

    def _vectors(self, tokens: Any) -> Any:
        known = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        return _unit(self._model[1].get_text_features(**known))

    def _load(self) -> tuple[Any, Any, list[Any]]:
        import transformers

        # The one that needs torchvision is not worth a dependency: both give the same pixels.
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        side = (self.config.get("vision_config") or {}).get("image_size", 224)
        found = (self.directory / "preprocessor_config.json").is_file()
        made = (
            processor.from_pretrained(self.directory, local_files_only=True)
            if found
            else processor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        model = transformers.CLIPModel.from_pretrained(self.directory, local_files_only=True, use_safetensors=True)
        return tokenizer, model, [made]


def _unit(features: Any) -> Any:
    """At unit length; newer transformers wrap the features in an output."""
    import torch

    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=1)


def _parts(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(count, start + batch))


def _clip_folder(directory: Path) -> Path | None:
    """The folder of a CLIP model in a directory, if it holds one."""
    for folder in (directory, directory / "0_CLIPModel"):
        if _json(folder / "config.json").get("model_type") == "clip":
            return folder
    return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text())
    except ValueError as error:
        raise HilbertflowError("is not JSON", where=str(path), remedy="copy the model again") from error
    return loaded if isinstance(loaded, dict) else {}
