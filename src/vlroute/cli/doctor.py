"""One thing that `vlroute doctor` looked at."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vlroute.cli.options import AsJson, ModelOption, RouterFolder, StoreAt
from vlroute.engine.local.checkpoint_files import CheckpointFiles, check_distinct, check_sizes
from vlroute.engine.remote.client import RemoteEngine
from vlroute.engine.remote.endpoint import read_endpoints
from vlroute.errors import CheckpointError, VLRouteError
from vlroute.hub import Source, identify, pair_name, resolve_pair
from vlroute.types import MODES, Mode, ModelIdentity

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["fine", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `state`: a "problem" prevents answering, a "note" does not; `advice` says what to do."""

    section: str
    what: str
    found: str
    state: State = "fine"
    advice: str = ""


DOWN = "start its server, or mend address and key in the file; until then the other mode answers"
UNLISTED = "use a name that its /v1/models lists"


def endpoints(file: Path) -> Iterator[Finding]:
    """One finding each. Errors as of `read_endpoints`."""
    engine = RemoteEngine.over(*read_endpoints(file))
    for mode, health in engine.health().items():
        if not health.reachable:
            yield Finding("model", mode, health.message, "problem", DOWN)
        elif not health.listed:
            yield Finding("model", mode, health.message, "problem", UNLISTED)
        else:
            yield Finding("model", mode, f"{engine.endpoints[mode].name} answers")
    engine.close()


MiB, GiB = 2**20, 2**30
LITTLE_DISK = 10 * GiB  # the 2B pair takes about 9
#: What each extra of the package is for.
EXTRAS = {
    "serve": "the OpenAI-compatible server", "ui": "the web page", "store": "keeping answers and feedback",
    "remote": "a pair behind endpoints", "cluster": "several replicas of the pair, on Ray",
    "train": "retraining the router, curves", "collect": "asking both modes for labels", "video": "video files",
    "encoders": "sentence-transformers as text encoder", "ocr": "reading text for captions",
    "quantize": "4- and 8-bit weights", "notebooks": "the notebooks of examples/",
}  # fmt: skip
#: What to do where a section cannot be examined at all.
ADVICE = {
    "packages": "install anew: pip install --force-reinstall vlroute",
    "extras": "install anew: pip install --force-reinstall vlroute",
    "devices": "install torch anew: pip install --force-reinstall torch torchvision",
    "model": "pass --model with a hub name or a folder; a damaged checkpoint: fetch or copy it again",
    "router": "pass --router with a folder that vlroute train wrote; a damaged one: train it anew",
    "store": "pass --store with a file that vlroute wrote, or one that is not there yet",
    "caches": "set HF_HOME to a folder that can be read and written",
}


def examine(model: str | None = None, router: Source | None = None, store: str | None = None) -> Iterator[Finding]:
    """All findings, by section; arguments as of `Router.from_pretrained`. Whatever fails becomes a finding."""
    return _Examination(model, router, store).findings()


@dataclass(slots=True)
class _Examination:
    model: str | None
    router: Source | None
    store: str | None
    #: Fingerprints of the towers that are here, by mode: read once, as they may be large.
    towers: dict[Mode, str] = field(default_factory=dict)
    #: Identity of the model: its name, and its fingerprint once both checkpoints were read.
    identity: ModelIdentity | None = None

    def findings(self) -> Iterator[Finding]:
        looks: dict[str, Callable[[], Iterator[Finding]]] = {
            "packages": packages, "extras": extras, "devices": devices, "model": self._model, "router": self._router,
            "store": self._store, "caches": caches,
        }  # fmt: skip
        for section, look in looks.items():
            try:
                yield from look()
            except Exception as error:  # a broken installation fails anywhere, and is what this is for
                yield Finding(section, "could not be examined", _why(error), "problem", ADVICE[section])

    def _model(self) -> Iterator[Finding]:
        if str(self.model).endswith(".json"):
            yield from endpoints(Path(str(self.model)))
            return
        from vlroute.engine.local.checkpoint import load_processor, tower_fingerprint
        from vlroute.engine.local.checkpoint_files import check_kinds

        instruct, thinking, self.router = resolve_pair(self.model, None, None, self.router)
        sources: dict[Mode, Source] = {"instruct": instruct, "thinking": thinking}
        found: dict[Mode, CheckpointFiles] = {}
        self.identity = ModelIdentity(pair_name(instruct, thinking))
        for mode, source in sources.items():
            try:
                if (folder := local(source)) is None:
                    yield absent(mode, source)
                    continue
                files = CheckpointFiles.read(mode, source, folder)
                self.towers[mode] = tower_fingerprint(folder)
                found[mode] = files
                weights = sum(place.size for place in files.tensors.values())
                yield Finding("model", mode, f"{source}, {weights / MiB:,.0f} MiB of weights")
            except (VLRouteError, OSError, ValueError) as error:
                yield Finding("model", mode, _why(error), "problem", ADVICE["model"])
        if len(found) < len(MODES):
            return
        try:
            check_sizes(found["instruct"], found["thinking"])
            check_kinds(found, {mode: load_processor(files) for mode, files in found.items()})
            check_distinct(found["instruct"], found["thinking"])
        except VLRouteError as error:
            yield Finding("model", "kinds", _why(error), "problem", "pass --model with a hub name or a folder")
            return
        yield Finding("model", "kinds", "an Instruct and a Thinking checkpoint of one size")
        if self.towers["instruct"] == self.towers["thinking"]:
            saved = tower_bytes(found["thinking"].folder) / MiB
            yield Finding("model", "towers", f"equal: kept once, {saved:,.1f} MiB saved, features shared")
        else:
            yield Finding("model", "towers", "different: each is kept, features are not shared between the modes")
        self.identity = identify(found["instruct"].folder, found["thinking"].folder)

    def _router(self) -> Iterator[Finding]:
        from vlroute.decision.classifier import ComplexityClassifier
        from vlroute.decision.vision_probe import probe_of

        if self.router is None:
            advice = "pass --router, or train one: vlroute collect, then vlroute train"
            yield Finding("router", "artifact", "none for this model: Instruct answers everything", "note", advice)
            return
        classifier = ComplexityClassifier.load(self.router)
        records = classifier.card.get("provenance", {}).get("records")
        made = f"trained on {records} records" if records else "it does not say of what it was made"
        yield Finding("router", "artifact", f"{self.router} loads; {made}")
        train = "train one for this model: vlroute collect, then vlroute train"
        if classifier.model is None:
            yield Finding("router", "trained for", "the artifact does not record its pair", "note", train)
        elif self.identity is not None and classifier.model.differs(self.identity):
            found = f"another model: {classifier.model}; this one is {self.identity}"
            yield Finding("router", "trained for", found, "note", train)
        else:
            yield Finding("router", "trained for", str(classifier.model))
        if classifier.calibration is None:
            advice = "retrain it with vlroute train; a price works without"
            yield Finding("router", "calibration set", "none: no presets, targets or trade-off", "note", advice)
        else:
            yield Finding("router", "calibration set", f"{len(classifier.calibration.coverage)} records")
        probe = probe_of(self.router)
        train = "train one: vlroute probe"
        if probe is None:
            yield Finding("router", "vision probe", "none: the Instruct model captions pictures", "note", train)
        elif self.towers.get("instruct", probe.tower) != probe.tower:
            yield Finding("router", "vision probe", "knows another tower: Instruct captions", "note", train)
        else:
            unsure = "" if "instruct" in self.towers else "; whether for this tower is not known yet"
            yield Finding("router", "vision probe", f"{len(probe.texts)} words and phrases{unsure}")

    def _store(self) -> Iterator[Finding]:
        if self.store is None:
            return
        try:
            from vlroute.store import Store, holds_store
        except ImportError as error:
            yield Finding("store", "store", _why(error), "problem", "pip install 'vlroute[store]'")
            return
        if "://" not in self.store and not holds_store(Path(self.store).expanduser()):
            yield Finding("store", "store", "not there yet", "note", "it is made at the first answer")
            return
        with Store(self.store) as opened:
            answers, judged = opened.count()
        yield Finding("store", "store", f"{answers} answers, {judged} of them judged")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, VLRouteError) else f"{type(error).__name__}: {error}"


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """What the package asks for, alone or with an extra; the build has put in what extras take from others."""
    from packaging.requirements import Requirement

    for line in metadata.requires("vlroute") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if not extra and (marker is None or marker.evaluate({"extra": ""})):
            yield requirement
        if extra and marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield requirement


def _version(requirement: Requirement) -> tuple[str | None, bool]:
    """The version that is installed, and whether it is one that is asked for."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None, False
    return version, requirement.specifier.contains(version, prereleases=True)


def packages() -> Iterator[Finding]:
    """Python and what every use of the package needs, each against what is asked for."""
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata("vlroute")
    yield Finding("packages", "vlroute", about["Version"])
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    asked = about["Requires-Python"]
    if SpecifierSet(asked).contains(platform.python_version(), prereleases=True):
        yield Finding("packages", "Python", python)
    else:
        yield Finding("packages", "Python", f"{python}, asked for {asked}", "problem", f"use a Python {asked}")
    for requirement in _requirements():
        version, fits = _version(requirement)
        if fits:
            yield Finding("packages", requirement.name, version or "")
        else:
            found = f"{version or 'missing'}, asked for {requirement.specifier}"
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("packages", requirement.name, found, "problem", advice)


def extras() -> Iterator[Finding]:
    """Which extras are whole, what each is for, and the line that brings it."""
    known = metadata.metadata("vlroute").get_all("Provides-Extra") or ()
    for extra, purpose in EXTRAS.items():
        lacking = [one.name for one in _requirements(extra) if not _version(one)[1]]
        if extra not in known:
            found, advice = "the installed vlroute is older than its files", "install it again, as it was installed"
            yield Finding("extras", extra, f"not known: {found} ({purpose})", "note", advice)
        elif lacking:
            found, advice = f"lacks {', '.join(lacking)} ({purpose})", f"pip install 'vlroute[{extra}]'"
            yield Finding("extras", extra, found, "note", advice)
        else:
            yield Finding("extras", extra, f"there ({purpose})")


def devices() -> Iterator[Finding]:
    """The CPU and each CUDA device, with their memory."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GiB if hasattr(os, "sysconf") else 0
    held = f", {memory:.0f} GiB of memory" if memory else ""
    yield Finding("devices", "CPU", f"{os.cpu_count()} cores{held}, {torch.get_num_threads()} threads for torch")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found = f"{torch.cuda.get_device_name(index)}, {free / GiB:.1f} of {total / GiB:.1f} GiB free"
        yield Finding("devices", f"cuda:{index}", found)
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        advice = "for a GPU of NVIDIA: install a torch that is built with CUDA (pytorch.org says how)"
        yield Finding("devices", "CUDA", "not in this torch: the CPU answers", "note", advice)
    else:
        advice = "the real pair is slow on a CPU: a GPU with 12 GiB holds it; if there is one, look at its driver"
        yield Finding("devices", "CUDA", "no GPU, or no driver for it: the CPU answers", "note", advice)


def local(source: Source) -> Path | None:
    """Its folder on this machine, None where it would have to be fetched. CheckpointError for a folder without one."""
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
        raise CheckpointError(f"{str(source)!r} is neither a folder here nor the name of a checkpoint") from error


def absent(mode: Mode, source: Source) -> Finding:
    """A checkpoint that is not on this machine: it can be downloaded, or not."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        advice = "unset HF_HUB_OFFLINE, or copy the checkpoint into the hub cache"
        return Finding("model", mode, f"{source}: not on this machine, and HF_HUB_OFFLINE is set", "problem", advice)
    advice = "it will be downloaded from the hub at the first answer"
    return Finding("model", mode, f"{source}: not on this machine", "note", advice)


def tower_bytes(folder: Path) -> int:
    """Bytes of the tower's weights, as the files hold them."""
    from vlroute.engine.local.checkpoint import tower_tensors

    return sum(tensor.numel() * tensor.element_size() for _, tensor in tower_tensors(folder))


def caches() -> Iterator[Finding]:
    """The hub cache: its size, whether it can be written, and how much disk is left beside it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    size = sum(file.stat().st_size for file in folder.glob("*/blobs/*") if file.is_file())
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{folder}: {size / GiB:.1f} GiB, {free / GiB:.0f} GiB of disk free"
    if not os.access(nearest, os.W_OK):
        yield Finding("caches", "hub", f"{found}, cannot be written", "note", ADVICE["caches"])
    elif free < LITTLE_DISK:
        advice = "the 2B pair takes 9 GiB: free some, or set HF_HOME to another disk"
        yield Finding("caches", "hub", found, "note", advice)
    else:
        yield Finding("caches", "hub", found)


MARKS = {"fine": "[green]✓[/]", "note": "[yellow]•[/]", "problem": "[red]✗[/]"}


def doctor(
    model: ModelOption = None, router: RouterFolder = None, store: StoreAt = None, as_json: AsJson = False
) -> None:
    """Say what is here and what is wrong with it.

    Packages and extras, devices, the pair and its towers, the router, the store, caches. Loads and fetches nothing.
    Ends with 1 if something prevents answering.

    vlroute doctor

    vlroute doctor --model Qwen/Qwen3-VL-2B --store answers.db
    """
    with Progress(SpinnerColumn(), TextColumn("looking…"), console=Console(stderr=True), transient=True) as progress:
        progress.add_task("")
        findings = list(examine(model, router, store))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _print(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for finding in findings:
        head = f"[bold]{finding.section}[/]" if finding.section != section else ""
        section = finding.section
        table.add_row(head, MARKS[finding.state], finding.what, _said(finding.found, finding.advice))
    console.print(table)


def _said(found: str, advice: str) -> Text:
    said = Text(found)
    if advice:
        said.append(f"\n→ {advice}", style="dim")
    return said
