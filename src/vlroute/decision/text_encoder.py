"""Text encoders: the shipped static embedding, which is read without torch, or any sentence-transformers model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from vlroute.errors import ArtifactError
from vlroute.files import shipped
from vlroute.model_loading import MODEL_LOADING

Floats = NDArray[np.float32]
#: The name of the shipped encoder, `models/encoder`.
STATIC = "static"
#: Encoders of the hub that an artifact may name. Any other one is loaded only if the caller trusts it.
KNOWN = (
    "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "intfloat/multilingual-e5-small", "intfloat/multilingual-e5-base", "BAAI/bge-m3", "BAAI/bge-small-zh-v1.5",
)  # fmt: skip
#: A static embedding ignores the rest of a longer text: it hardly changes the mean, but takes seconds and gigabytes.
MOST_CHARACTERS = 200_000
#: The largest absolute value of a static embedding. The lengths of sums of its vectors are then finite.
LARGEST = 1e9
#: Before this version, sentence-transformers runs code of local folders and calls functions that settings name.
SAFE_VERSION = "6.2"
_NOT_CONTENT = {"README.md", ".gitattributes"}


class TextEncoder(Protocol):
    """Interface of text encoders."""

    @property
    def name(self) -> str:
        """The name that `load_text_encoder` accepts."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content of the encoder, 64 hexadecimal characters."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit of the hub from which the encoder comes; None for a folder."""
        ...

    @property
    def width(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, texts: Sequence[str], /) -> Floats:
        """Return float32 `[n, width]` with rows of length 1; zeros for an empty text or one without known tokens."""
        ...


def load_text_encoder(name: str, revision: str | None = None) -> TextEncoder:
    """Load a text encoder, once per process. Thread-safe. No code of a folder or of the hub is run.

    Args:
        name: "static" for the shipped encoder, a folder, or a hub id. Folders of static embeddings are read without
            torch; everything else is loaded by sentence-transformers.
        revision: Commit of the hub; None: the latest one. It has no effect on folders.

    Returns:
        The text encoder.

    Raises:
        ArtifactError: It cannot be loaded. The message contains a remedy.
    """
    folder = shipped("encoder") if name == STATIC else Path(name)
    if not folder.is_dir():
        return _load_sentence_transformer(name, revision=revision)
    folder = folder.resolve()
    # an artifact may name any folder of this machine, whose files must not all be read
    if not any((folder / one).exists() for one in ("modules.json", "config.json")):
        raise ArtifactError(f"the text encoder in {folder} cannot be loaded: it has no modules.json or config.json")
    # pipes and devices may have no end
    try:
        strange = next((one for one in folder.rglob("*") if one.exists() and not (one.is_file() or one.is_dir())), None)
    except OSError as error:
        raise ArtifactError(f"the text encoder in {folder} cannot be read ({error})") from error
    if strange is not None:
        raise ArtifactError(f"the text encoder in {folder} contains {strange.name!r}, which is not a regular file")
    table = _static_table(folder)
    return _load_static(name, folder, table) if table else _load_sentence_transformer(name, folder)


def _static_table(folder: Path) -> Path | None:
    """Folder of the files of a static embedding; None for anything else, for example if layers follow the embedding."""
    try:
        first, *rest = json.loads((folder / "modules.json").read_bytes())
        if str(first["type"]).endswith("StaticEmbedding") and all(str(m["type"]).endswith("Normalize") for m in rest):
            return folder / str(first.get("path", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _valid(text: str) -> str:
    """Replace lone surrogates, which JSON may contain, by "?": tokenizers refuse them."""
    return text.encode("utf-8", "replace").decode()


class _Static:
    """The mean of the vectors of the tokens of a text, scaled to length 1.

    The vectors equal those of sentence-transformers and model2vec for this folder, without their overhead per call,
    which is long for one short text.
    """

    def __init__(self, name: str, folder: Path, where: Path) -> None:
        tensors = load_file(where / "model.safetensors")
        table = tensors.get("embedding.weight", tensors.get("embeddings"))
        if table is None:
            raise ValueError(f"model.safetensors holds {sorted(tensors)}, expected 'embedding.weight' or 'embeddings'")
        if "mapping" in tensors:  # quantized vocabularies of model2vec: several tokens share a vector
            table = table[tensors["mapping"]]
        if "weights" in tensors:
            table = table * tensors["weights"][:, None]
        self._tokenizer = Tokenizer.from_file(str(where / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = table.astype(np.float32)
        if not (self._table.min() >= -LARGEST and self._table.max() <= LARGEST):  # NaN, too
            raise ValueError(f"the table contains a number that is not finite or beyond ±{LARGEST:g}")
        known = 1 + max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
        if known > len(self._table):
            raise ValueError(f"the table has {len(self._table)} vectors for {known} tokens")
        self.name, self.fingerprint, self.width = name, _fingerprint(folder), int(table.shape[1])
        self.revision = None
        self.encode(["\uffff"])  # a tokenizer without a token for unknown characters fails here

    def encode(self, texts: Sequence[str], /) -> Floats:
        vectors = np.zeros((len(texts), self.width), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            if ids := self._tokenizer.encode(_valid(text[:MOST_CHARACTERS]), add_special_tokens=False).ids:
                total = self._table.take(ids, axis=0).sum(axis=0)
                vector[:] = total / max(float(np.sqrt(total @ total)), 1e-9)
        return vectors


class _SentenceTransformer:
    def __init__(self, name: str, folder: Path | None, revision: str | None) -> None:
        from sentence_transformers import SentenceTransformer, __version__

        if Version(__version__) < Version(SAFE_VERSION):
            raise ValueError(f"sentence-transformers {__version__} may run code of it: install version {SAFE_VERSION}")
        with MODEL_LOADING:
            model = SentenceTransformer(str(folder or name), revision=revision, trust_remote_code=False)
        self._model: Any = model.float()  # in half precision 0 / 0 is not detected
        self.revision = revision or (None if folder else _commit(model))
        self.name, self.width = name, int(self._model.encode(["one"], show_progress_bar=False).shape[1])
        self.fingerprint = _fingerprint(folder) if folder else _state_fingerprint(self._model)

    def encode(self, texts: Sequence[str], /) -> Floats:
        vectors = np.zeros((len(texts), self.width), np.float32)
        if filled := [i for i, text in enumerate(texts) if text.strip()]:
            vectors[filled] = self._model.encode(
                [_valid(texts[i]) for i in filled], normalize_embeddings=True, show_progress_bar=False
            )
        return vectors


@lru_cache(maxsize=4)
def _load_static(name: str, folder: Path, table: Path) -> TextEncoder:
    try:
        return _Static(name, folder, table)
    except Exception as error:
        raise ArtifactError(f"the text encoder in {folder} cannot be read ({error}); copy the folder again") from error


@lru_cache(maxsize=4)
def _load_sentence_transformer(name: str, folder: Path | None = None, revision: str | None = None) -> TextEncoder:
    try:
        return _SentenceTransformer(name, folder, revision)
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"{name!r} is not the folder of a static embedding, and {error.name} is not installed: for a "
            "sentence-transformers model run pip install 'vlroute[encoders]'; the shipped encoder has the name 'static'"
        ) from error
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"the text encoder {name!r} cannot be loaded ({why}): give a folder or a hub id of a "
            "sentence-transformers model, or 'static'"
        ) from error


def _commit(model: Any) -> str | None:
    """The commit of the hub from which a sentence-transformers model was loaded, if it is known."""
    found = getattr(getattr(getattr(model[0], "auto_model", None), "config", None), "_commit_hash", None)
    return found if isinstance(found, str) else None


def _fingerprint(folder: Path) -> str:
    """SHA-256 over names and content of the files that determine the vectors."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_CONTENT and ".cache" not in path.parts:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _state_fingerprint(model: Any) -> str:
    """SHA-256 over the loaded weights, for a model of the hub."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
