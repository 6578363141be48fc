"""`vlroute doctor`: what is installed, missing or broken, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vlroute.cli.options import AsJson, ModelOption, RouterOption, StoreAt
from vlroute.errors import CheckpointError, HubUnavailableError, VLRouteError
from vlroute.types import MODES, Mode, ModelIdentity

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from vlroute.engine.local.checkpoint_files import CheckpointFiles

State = Literal["fine", "note", "problem"]
MARKS: dict[State, str] = {"fine": "[green]✓[/]", "note": "[yellow]•[/]", "problem": "[red]✗[/]"}
MiB, GiB = 2**20, 2**30
#: Permission bits of all but the owner.
OTHERS = stat.S_IRWXG | stat.S_IRWXO
LITTLE_DISK = 10 * GiB  # the 2B pair takes about 9 GiB
#: What each extra of the package is for.
EXTRAS = {
    "serve": "the OpenAI-compatible server", "ui": "the web page", "store": "storing answers and feedback",
    "remote": "models behind endpoints", "cluster": "several replicas on Ray", "train": "training, figures",
    "collect": "collecting records", "video": "video files", "encoders": "sentence-transformers as text encoder",
    "otel": "traces of the server", "structured": "answers in a given form, such as JSON", "ocr": "OCR captions",
    "quantize": "4- and 8-bit weights", "notebooks": "the notebooks of examples/",
}  # fmt: skip
#: What to do if a section cannot be examined at all.
ADVICE = {
    "packages": "reinstall: pip install --force-reinstall vlroute",
    "extras": "reinstall: pip install --force-reinstall vlroute",
    "devices": "reinstall torch: pip install --force-reinstall torch torchvision",
    "model": "pass --model with a hub name or a folder; if a checkpoint is damaged, download or copy it again",
    "router": "pass --router with a folder that vlroute train wrote; if it is damaged, train or download it again",
    "data": "pass --data with files and folders that can be read",
    "store": "pass --store with a file that vlroute wrote, or a new one",
    "caches": "set HF_HOME to a folder that can be read and written",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        section: Group of checks.
        what: What was checked.
        found: Its state in words.
        state: "problem" prevents answering, "note" does not.
        advice: What to do.
    """

    section: str
    what: str
    found: str
    state: State = "fine"
    advice: str = ""


def doctor(
    model: ModelOption = None,
    router: RouterOption = None,
    store: StoreAt = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Chat, file of records, cache or folder of them: can other users read it? May be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what is installed, missing or broken, and what to do about it.

    Checks packages and extras, devices, the model and its towers, the router, the store, files with data of users, and
    caches. Loads no model and downloads nothing. The exit code is 1 if something prevents answering.

    vlroute doctor

    vlroute doctor --model Qwen/Qwen3-VL-2B --store answers.db --data chats --data records.jsonl
    """
    with Progress(SpinnerColumn(), TextColumn("checking…"), console=Console(stderr=True), transient=True) as progress:
        progress.add_task("")
        findings = list(examine(model, router, store, data or ()))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _print(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for finding in findings:
        head = f"[bold]{finding.section}[/]" if finding.section != section else ""
        section = finding.section
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="dim")
        table.add_row(head, MARKS[finding.state], finding.what, text)
    Console(highlight=False).print(table)


def examine(
    model: str | None = None,
    router: str | Path | None = None,
    store: str | None = None,
    data: Sequence[str | Path] = (),
) -> Iterator[Finding]:
    """Run all checks.

    Args:
        model: As `name` of `Router.from_pretrained`.
        router: As of `Router.from_pretrained`.
        store: As of `Router.from_pretrained`.
        data: Files and folders with data of users.

    Yields:
        Findings by section. A check that fails with an error yields a problem.
    """
    examined = _Model(model, router)
    for section, findings in {
        "packages": packages(), "extras": extras(), "devices": devices(), "model": examined.checkpoints(),
        "router": examined.artifact(), "store": stored(store), "data": private(data), "caches": caches(),
    }.items():  # fmt: skip
        try:
            yield from findings
        except Exception as error:  # a broken installation can fail anywhere
            yield Finding(section, "could not be examined", _message(error), "problem", ADVICE[section])


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, VLRouteError) else f"{type(error).__name__}: {error}"


def packages() -> Iterator[Finding]:
    """Python and the required packages, with their versions."""
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata("vlroute")
    yield Finding("packages", "vlroute", about["Version"])
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    needed = about["Requires-Python"]
    if SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        yield Finding("packages", "Python", python)
    else:
        yield Finding("packages", "Python", f"{python}, needed {needed}", "problem", f"use Python {needed}")
    for requirement in _requirements():
        version, fits = _version(requirement)
        if fits:
            yield Finding("packages", requirement.name, version or "")
        else:
            found = f"{version or 'missing'}, needed {requirement.specifier}"
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("packages", requirement.name, found, "problem", advice)


def extras() -> Iterator[Finding]:
    """Which extras are complete, and how to install the others."""
    known = metadata.metadata("vlroute").get_all("Provides-Extra") or ()
    for extra, purpose in EXTRAS.items():
        missing = [one.name for one in _requirements(extra) if not _version(one)[1]]
        if extra not in known:
            found = f"unknown: the metadata of vlroute is older than its files ({purpose})"
            yield Finding("extras", extra, found, "note", "install vlroute again")
        elif missing:
            found = f"missing: {', '.join(missing)} ({purpose})"
            yield Finding("extras", extra, found, "note", f"pip install 'vlroute[{extra}]'")
        else:
            yield Finding("extras", extra, f"installed ({purpose})")


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """Requirements of the package, or the additional ones of an extra."""
    from packaging.requirements import Requirement

    for line in metadata.requires("vlroute") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        added = not always and marker is not None and marker.evaluate({"extra": extra})
        if added if extra else always:
            yield requirement


def _version(requirement: Requirement) -> tuple[str | None, bool]:
    """The installed version, and whether it fits the requirement."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None, False
    return version, requirement.specifier.contains(version, prereleases=True)


def devices() -> Iterator[Finding]:
    """The CPU and each CUDA device, with their memory."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GiB if hasattr(os, "sysconf") else 0
    size = f", {memory:.0f} GiB of memory" if memory else ""
    yield Finding("devices", "CPU", f"{os.cpu_count()} cores{size}, {torch.get_num_threads()} threads for torch")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found = f"{torch.cuda.get_device_name(index)}, {free / GiB:.1f} of {total / GiB:.1f} GiB free"
        yield Finding("devices", f"cuda:{index}", found)
    from vlroute.engine.local.attention import kernel
    from vlroute.engine.local.checkpoint import default_device, default_dtype

    device = default_device()
    yield Finding("devices", "attention", kernel(torch.device(device), default_dtype(device)))
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        advice = "for an NVIDIA GPU, install a torch that is built with CUDA, see pytorch.org"
        yield Finding("devices", "CUDA", "not part of this torch: the CPU is used", "note", advice)
    else:
        advice = "the 2B pair is slow on a CPU and needs a GPU with 12 GiB; if there is one, check its driver"
        yield Finding("devices", "CUDA", "no GPU, or no driver for it: the CPU is used", "note", advice)


@dataclass(slots=True)
class _Model:
    """The model of the command line and its router artifact.

    Attributes:
        name: As `name` of `Router.from_pretrained`.
        router: As of `Router.from_pretrained`; `checkpoints` sets the default.
        towers: Fingerprints of the towers on this machine.
        identity: Name of the model, or of the models of both endpoints, and its fingerprint if both checkpoints are on
            this machine.
    """

    name: str | None
    router: str | Path | None
    towers: dict[Mode, str] = field(default_factory=dict)
    identity: ModelIdentity | None = None

    def checkpoints(self) -> Iterator[Finding]:
        """Both checkpoints and whether they fit together; or both endpoints."""
        if str(self.name).endswith(".json"):
            yield from self._endpoints(Path(str(self.name)))
            return
        from vlroute.engine.local.checkpoint import load_processor, tower_fingerprint, tower_tensors
        from vlroute.engine.local.checkpoint_files import (
            CheckpointFiles,
            check_distinct,
            check_kinds,
            check_sizes,
            is_hybrid,
        )
        from vlroute.engine.local.quantized import check_quantization
        from vlroute.hub import identify, pair_name, resolve_pair

        instruct, thinking, self.router = resolve_pair(self.name, None, None, self.router)
        sources: dict[Mode, str | Path] = {"instruct": instruct, "thinking": thinking}
        found: dict[Mode, CheckpointFiles] = {}
        self.identity = ModelIdentity(pair_name(instruct, thinking))
        if instruct == thinking and is_hybrid(instruct):
            yield from self._hybrid(instruct)
            return
        for mode, source in sources.items():
            try:
                if (folder := _local(source)) is None:
                    yield _absent(mode, source)
                    continue
                files = CheckpointFiles.read(mode, source, folder)
                check_quantization(files.name, files.config)
                self.towers[mode] = tower_fingerprint(folder)
                found[mode] = files
                weights = sum(place.size for place in files.tensors.values())
                yield Finding("model", mode, f"{source}, {weights / MiB:,.0f} MiB of weights")
            except (VLRouteError, OSError, ValueError) as error:
                yield Finding("model", mode, _message(error), "problem", ADVICE["model"])
        if len(found) < len(MODES):
            return
        try:
            check_sizes(found["instruct"], found["thinking"])
            check_kinds(found, {mode: load_processor(files) for mode, files in found.items()})
            check_distinct(found["instruct"], found["thinking"])
        except VLRouteError as error:
            yield Finding("model", "kinds", _message(error), "problem", "pass --model with a hub name or a folder")
            return
        yield Finding("model", "kinds", "an Instruct and a Thinking checkpoint of the same size")
        if self.towers["instruct"] == self.towers["thinking"]:
            tensors = [tensor for _, tensor in tower_tensors(found["thinking"].folder)]
            saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MiB
            yield Finding("model", "towers", f"equal: loaded once, which saves {saved:,.1f} MiB; features are shared")
        else:
            yield Finding("model", "towers", "different: both are loaded, features are not shared between the modes")
        self.identity = identify(found["instruct"].folder, found["thinking"].folder)

    def _hybrid(self, source: str | Path) -> Iterator[Finding]:
        """One checkpoint that answers in both modes."""
        from vlroute.engine.local.checkpoint import load_processor, tower_fingerprint
        from vlroute.engine.local.checkpoint_files import CheckpointFiles, check_switch
        from vlroute.engine.local.quantized import check_quantization
        from vlroute.hub import identify

        try:
            if (folder := _local(source)) is None:
                yield _absent("both modes", source)
                return
            files = CheckpointFiles.read(None, source, folder)
            check_quantization(files.name, files.config)
            check_switch(files, load_processor(files))
            tower = tower_fingerprint(folder)
        except (VLRouteError, OSError, ValueError) as error:
            yield Finding("model", "both modes", _message(error), "problem", ADVICE["model"])
            return
        weights = sum(place.size for place in files.tensors.values())
        yield Finding("model", "both modes", f"{source}, {weights / MiB:,.0f} MiB of weights, {files.family.title}")
        self.towers, self.identity = dict.fromkeys(MODES, tower), identify(folder, folder)

    def _endpoints(self, file: Path) -> Iterator[Finding]:
        """Whether both endpoints of a file answer and serve their models."""
        from vlroute.engine.remote.client import RemoteEngine
        from vlroute.engine.remote.endpoint import read_endpoints
        from vlroute.hub import common_name

        engine = RemoteEngine.over(*read_endpoints(file))
        self.identity = ModelIdentity(common_name(*(engine.endpoints[mode].model for mode in MODES)))
        for mode, health in engine.health().items():
            if not health.reachable:
                advice = "start its server, or correct address and key in the file; until then the other mode answers"
                yield Finding("model", mode, health.message, "problem", advice)
            elif not health.listed:
                yield Finding("model", mode, health.message, "problem", "use a name that its /v1/models lists")
            else:
                yield Finding("model", mode, f"{engine.endpoints[mode].name} answers")
        engine.close()

    def artifact(self) -> Iterator[Finding]:
        """The router artifact, and whether it was trained for this model."""
        from vlroute.decision.captions import probe_of
        from vlroute.decision.classifier import ComplexityClassifier
        from vlroute.model_card import vocabulary_of
        from vlroute.sharing import router_folder

        train = "train one for this model: vlroute collect, then vlroute train"
        if self.router is None:
            found = "none for this model: Instruct answers every request"
            yield Finding("router", "artifact", found, "note", f"pass --router, or {train}")
            return
        try:
            folder = router_folder(self.router, local_only=True)
        except HubUnavailableError:
            advice = "it will be downloaded from the hub when a router is created"
            yield Finding("router", "artifact", f"{self.router}: not on this machine", "note", advice)
            return
        classifier = ComplexityClassifier.load(folder)
        records = classifier.card.get("provenance", {}).get("records")
        origin = f"trained on {records} records" if records else "its origin is not recorded"
        yield Finding("router", "artifact", f"{self.router}: {origin}")
        if classifier.model is None:
            yield Finding("router", "trained for", "the artifact does not record its model", "note", train)
        elif self.identity is not None and classifier.model.differs(self.identity):
            found = f"another model: {classifier.model}; this one is {self.identity}"
            yield Finding("router", "trained for", found, "note", train)
        elif self.identity is None or str(classifier.model) == str(self.identity):
            yield Finding("router", "trained for", str(classifier.model))
        else:
            yield Finding("router", "trained for", f"{classifier.model}; this model is {self.identity}")
        if classifier.calibration is None:
            advice = "retrain it with vlroute train; a price works without a calibration set"
            yield Finding("router", "calibration set", "none: no presets, targets or trade-off", "note", advice)
        else:
            yield Finding("router", "calibration set", f"{len(classifier.calibration.coverage)} records")
        probe = probe_of(folder)
        if probe is None:
            found = "none: the Instruct model captions pictures"
            yield Finding("router", "vision probe", found, "note", "train one: vlroute probe")
        elif self.towers.get("instruct", probe.tower) != probe.tower:
            found = "trained on another tower: the Instruct model captions pictures"
            yield Finding("router", "vision probe", found, "note", "train one: vlroute probe")
        else:
            unknown = "" if "instruct" in self.towers else "; whether it fits this tower is not known yet"
            yield Finding("router", "vision probe", f"{len(probe.texts)} words and phrases{unknown}")
        words = vocabulary_of(classifier, probe)
        rare = f". Some of the rarest words: {', '.join(words.rare)}" if words.rare else ""
        yield Finding("router", "words of requests", f"{words.counts}{rare}")


def _local(source: str | Path) -> Path | None:
    """Folder of a checkpoint on this machine; None if it has to be downloaded. Raises CheckpointError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from vlroute.engine.local.checkpoint import CHECKPOINT_FILES, checkpoint_folder

    if Path(source).expanduser().is_dir():
        return checkpoint_folder(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=CHECKPOINT_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(f"{str(source)!r} is neither a folder nor the name of a checkpoint") from error


def _absent(mode: str, source: str | Path) -> Finding:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        advice = "unset HF_HUB_OFFLINE, or copy the checkpoint into the hub cache"
        return Finding("model", mode, f"{source}: not on this machine, and HF_HUB_OFFLINE is set", "problem", advice)
    advice = "it will be downloaded from the hub at the first answer"
    return Finding("model", mode, f"{source}: not on this machine", "note", advice)


def stored(store: str | None) -> Iterator[Finding]:
    """The store, if one was passed, and the router that was learned from it. It is not created."""
    if store is None:
        return
    from vlroute.decision.classifier import ComplexityClassifier

    try:
        from vlroute.learned import LearningHistory
        from vlroute.store import Store, holds_store
    except ImportError as error:
        yield Finding("store", "store", _message(error), "problem", "pip install 'vlroute[store]'")
        return
    if "://" not in store and not holds_store(Path(store).expanduser()):
        yield Finding("store", "store", "does not exist yet", "note", "it will be created at the first answer")
        return
    with Store(store) as opened:
        answers, rated = opened.count()
        yield Finding("store", "store", f"{answers} answers, {rated} of them with feedback")
        learned = LearningHistory(opened).latest()
    if learned is not None:
        try:
            learned.check_artifact()
            ComplexityClassifier.load(learned.artifact)
            yield Finding("store", "learned router", f"in use: {learned.artifact} ({learned.fingerprint})")
        except VLRouteError as error:
            yield Finding("store", "learned router", _message(error), "note")
    if "://" not in store:
        yield from private([Path(store).expanduser()], "store")


def private(paths: Sequence[str | Path], section: str = "data") -> Iterator[Finding]:
    """Whether other users of this machine can read files; the files that a folder contains count too."""
    if os.name != "posix":
        return
    for path in map(Path, paths):
        if not path.exists():
            yield Finding(section, str(path), "does not exist", "note", "check the path")
            continue
        if path.is_dir() and not path.stat().st_mode & OTHERS:
            yield Finding(section, str(path), "can be opened by its owner only")
            continue
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        open_ = sum(bool(one.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)) for one in files)
        if open_:
            found = f"{open_} of {len(files)} files can be read by other users of this machine"
            advice = f"chmod -R go= {shlex.quote(str(path))}"
            yield Finding(section, str(path), found, "note", advice)
        else:
            yield Finding(section, str(path), "can be read by its owner only")


def caches() -> Iterator[Finding]:
    """The hub cache: its size, whether it can be written, and the free disk space."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    size = sum(file.stat().st_size for file in folder.glob("*/blobs/*") if file.is_file())
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{folder}: {size / GiB:.1f} GiB, {free / GiB:.0f} GiB of disk free"
    if not os.access(nearest, os.W_OK):
        yield Finding("caches", "hub", f"{found}, cannot be written", "note", ADVICE["caches"])
    elif free < LITTLE_DISK:
        advice = "the 2B pair takes 9 GiB: free some disk space, or set HF_HOME to another disk"
        yield Finding("caches", "hub", found, "note", advice)
    else:
        yield Finding("caches", "hub", found)
