"""Turn texts into vectors with a sentence-transformers model directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError


class TextEncoder:
    """A transformer with the pooling that its directory names; nothing is fetched and nothing is unpickled.

    Parameters
    ----------
    directory: holds ``config.json``, ``model.safetensors``, a tokenizer and, if it is a sentence-transformers model,
        ``modules.json`` and ``1_Pooling/config.json``. Without them the token vectors are averaged and normalised.
    max_tokens: longer texts are cut; 0 takes the model's own limit.
    threads: of Torch; 0 leaves Torch's default.

    It runs on a GPU where this process sees one.

    Raises
    ------
    HilbertflowError: the directory holds no usable model, or Torch or transformers is not installed.
    """

    def __init__(self, directory: str, max_tokens: int = 0, threads: int = 0) -> None:
        self.directory, self.threads = Path(directory), threads
        if not (self.directory / "config.json").is_file():
            raise HilbertflowError(
                "no config.json here", where=directory, remedy="name a sentence-transformers model directory"
            )
        limit = self._json("sentence_bert_config.json").get("max_seq_length", 512)
        self.max_tokens = min(max_tokens, limit) if max_tokens else limit
        pooling = self._json("1_Pooling/config.json")
        self.pool = "cls" if pooling.get("pooling_mode_cls_token") else "mean"
        modules = (self.directory / "modules.json").is_file()
        self.normalize = not modules or (self.directory / "2_Normalize").exists() or "Normalize" in self._text()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._json("config.json")["hidden_size"])

    def encode(self, texts: Sequence[str], batch: int = 32) -> npt.NDArray[np.float32]:
        """``(len(texts), dim)`` float32, in the order of ``texts``; texts of like length are batched together."""
        import torch

        tokenizer, model = self._model
        out = np.empty((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            tokens = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=self.max_tokens,
                return_tensors="pt",
            ).to(model.device)  # fmt: skip
            with torch.inference_mode():
                hidden = model(**tokens).last_hidden_state.float()
            if self.pool == "cls":
                pooled = hidden[:, 0]
            else:
                mask = tokens["attention_mask"].unsqueeze(-1).float()
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            if self.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            out[chosen] = pooled.cpu().numpy()
        return out

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
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
            tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
            model = AutoModel.from_pretrained(self.directory, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise HilbertflowError(
                f"the model does not load ({type(error).__name__})", where=str(self.directory),
                remedy="the directory must hold model.safetensors and a tokenizer",
            ) from error  # fmt: skip
        # Ray hides the GPUs from a worker that asked for none.
        return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        loaded = json.loads(path.read_text()) if path.is_file() else {}
        return loaded if isinstance(loaded, dict) else {}

    def _text(self) -> str:
        path = self.directory / "modules.json"
        return path.read_text() if path.is_file() else ""
