"""Text to a dense vector: the shipped static table, read without torch, or any sentence-transformers model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from vlroute.errors import ArtifactError
from vlroute.files import shipped

Floats = NDArray[np.float32]
#: The name of the shipped encoder, `models/encoder`.
STATIC = "static"
_NOT_CONTENT = {"README.md", ".gitattributes"}


class TextEncoder(Protocol):
    """`name`: what `load_text_encoder` takes. `fingerprint`: SHA-256 of the encoder's content, 64 hex characters.
    `width`: of a vector."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def width(self) -> int: ...

    def encode(self, texts: Sequence[str], /) -> Floats:
        """float32 `[n, width]`, rows of length 1; zeros for an empty text or one of which nothing is known."""
        ...


def load_text_encoder(name: str) -> TextEncoder:
    """ "static", a folder, or a hub id. Loaded once in a process; thread-safe.

    A static embedding is read here; anything else by sentence-transformers, which brings torch. ArtifactError if it
    cannot be had, with what to do.
    """
    folder = shipped("encoder") if name == STATIC else Path(name)
    if not folder.is_dir():
        return _load_sentence_transformer(name)
    folder = folder.resolve()
    table = _static_table(folder)
    return _load_static(name, folder, table) if table else _load_sentence_transformer(name, folder)


def _static_table(folder: Path) -> Path | None:
    """Where the files of a static embedding lie. None if `folder` is anything else: layers after it would change it."""
    try:
        first, *rest = json.loads((folder / "modules.json").read_bytes())
        if str(first["type"]).endswith("StaticEmbedding") and all(str(m["type"]).endswith("Normalize") for m in rest):
            return folder / str(first.get("path", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return None


def _sayable(text: str) -> str:
    """Half a surrogate pair, as JSON may bring it, becomes "?": tokenizers refuse it."""
    return text.encode("utf-8", "replace").decode()


class _Static:
    """A table of vectors, one a token: the mean of a text's tokens, scaled to length 1.

    The same vectors as sentence-transformers and model2vec give from this folder (a test compares), without their
    work a call that one short text does not need.
    """

    def __init__(self, name: str, folder: Path, where: Path) -> None:
        tensors = load_file(where / "model.safetensors")
        table = tensors.get("embedding.weight", tensors.get("embeddings"))
        if table is None:
            raise ValueError(f"model.safetensors holds {sorted(tensors)}, expected 'embedding.weight' or 'embeddings'")
        if "mapping" in tensors:  # model2vec's quantised vocabularies: tokens that share a vector
            table = table[tensors["mapping"]]
        if "weights" in tensors:
            table = table * tensors["weights"][:, None]
        self._tokenizer = Tokenizer.from_file(str(where / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = table.astype(np.float32)
        self.name, self.fingerprint, self.width = name, _fingerprint(folder), int(table.shape[1])

    def encode(self, texts: Sequence[str], /) -> Floats:
        vectors = np.zeros((len(texts), self.width), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            if ids := self._tokenizer.encode(_sayable(text), add_special_tokens=False).ids:
                total = self._table.take(ids, axis=0).sum(axis=0)
                vector[:] = total / max(float(np.sqrt(total @ total)), 1e-9)
        return vectors


class _SentenceTransformer:
    def __init__(self, name: str, folder: Path | None) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder or name)).float()  # in half precision 0 / 0 is not caught
        self.name, self.width = name, int(self._model.encode(["one"], show_progress_bar=False).shape[1])
        self.fingerprint = _fingerprint(folder) if folder else _state_fingerprint(self._model)

    def encode(self, texts: Sequence[str], /) -> Floats:
        vectors = np.zeros((len(texts), self.width), np.float32)
        if said := [i for i, text in enumerate(texts) if text.strip()]:
            vectors[said] = self._model.encode(
                [_sayable(texts[i]) for i in said], normalize_embeddings=True, show_progress_bar=False
            )
        return vectors


@lru_cache(maxsize=4)
def _load_static(name: str, folder: Path, table: Path) -> TextEncoder:
    try:
        return _Static(name, folder, table)
    except Exception as error:
        raise ArtifactError(f"the text encoder in {folder} cannot be read ({error}); copy the folder again") from error


@lru_cache(maxsize=4)
def _load_sentence_transformer(name: str, folder: Path | None = None) -> TextEncoder:
    try:
        return _SentenceTransformer(name, folder)
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"{name!r} is no folder of a static encoder, and {error.name} is not installed: for a "
            "sentence-transformers model pip install 'vlroute[encoders]'; for the shipped encoder the name is 'static'"
        ) from error
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"the text encoder {name!r} cannot be loaded ({why}): give a folder or a hub id of a "
            "sentence-transformers model, or 'static'"
        ) from error


def _fingerprint(folder: Path) -> str:
    """Over names and content of the files that make the vectors."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_CONTENT and ".cache" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _state_fingerprint(model: Any) -> str:
    """Over the weights as loaded, for a model that came from a hub."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
