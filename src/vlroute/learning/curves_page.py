"""Curves as files for people: PNG figures, and one HTML page that holds them with their numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from vlroute.files import replace_file
from vlroute.learning.curves import TradeOff
from vlroute.learning.curves_tables import tables
from vlroute.learning.intervals import Sampling
from vlroute.learning.labels import Language, say
from vlroute.learning.metrics import Values
from vlroute.learning.plots import Against, family_figure, reliability_figure, trade_off_figure, usable_language

DPI = 150
PAGE = "curves.html"

_CAPTIONS: dict[Against, str] = {
    "share": "Accuracy against the share of requests sent to Thinking.",
    "mean_seconds": "Accuracy against the mean time per answer.",
    "p95_seconds": "Accuracy against the 95th percentile of the time per answer.",
}
_READING = (
    "Every prediction is by a model that had not seen the record. Bands and brackets are 95 % intervals. They cover "
    "the sampling of the records and, approximately, the randomness of fitting; not another kind of request."
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "figure{margin:1.5em 0}img{max-width:100%;height:auto}figcaption,caption{color:#555;text-align:left}"
    "table{border-collapse:collapse;margin:1.5em 0}caption{padding-bottom:.4em}"
    "th,td{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
)


def write_page(
    out: Path,
    found: Sequence[TradeOff],
    probabilities: Values,
    right: Values,
    *,
    language: Language = "en",
    measured: bool = True,
    sampling: Sampling | None = None,
) -> list[Path]:
    """Write PNG figures and `curves.html` into the folder `out`, made if missing; the paths written, the page last.

    `found`: from `trade_offs`. `probabilities`, `right`: `[2, n]`, Instruct and Thinking. `measured`: whether the
    seconds were. `sampling`: as in `trade_off`. The page needs no other file and no network. Each file appears whole or
    not at all. Where no font has Chinese characters, "zh" gives a Chinese page with English figures. OSError if the
    disk refuses.
    """
    everything, families = found[0], found[1:]
    drawable = usable_language(language)
    figures: dict[str, tuple[Figure, str]] = {}
    family_figures: dict[str, tuple[Figure, str]] = {}
    for against, caption in _CAPTIONS.items():
        name = against.replace("_", "-")
        if against == "share" or everything.timed:
            one = trade_off_figure(everything, against, language=drawable, measured=measured)
            figures[f"accuracy-{name}.png"] = one, caption
        shown = [family for family in families if against == "share" or family.timed]
        if shown:
            several = family_figure(shown, against, language=drawable, measured=measured)
            family_figures[f"families-{name}.png"] = several, caption
    diagrams = {
        "reliability.png": (
            reliability_figure(probabilities, right, language=drawable),
            "Reliability: on the dotted line, probabilities say how often the answer is right.",
        )
    }
    out.mkdir(parents=True, exist_ok=True)
    written, parts = [], []
    for heading, group in (("Trade-off curves", figures), ("Each family", family_figures), ("Calibration", diagrams)):
        parts += [f"<h2>{escape(say(heading, language))}</h2>"] if group else []
        for file, (figure, caption) in group.items():
            png = _png(figure)
            replace_file(out / file, png)
            written.append(out / file)
            parts.append(_embedded(png, say(caption, language)))
    parts.append(f"<h2>{escape(say('Numbers', language))}</h2>")
    parts += tables(found, probabilities, right, language=language, sampling=sampling)
    replace_file(out / PAGE, _page(parts, language, measured).encode())
    return [*written, out / PAGE]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # equal figures make equal files
    return buffer.getvalue()


def _page(parts: Iterable[str], language: Language, measured: bool) -> str:
    title = escape(say("Trade-off curves", language))
    seconds = (
        "Seconds are measured." if measured else "Seconds are assumed: the records hold none for one mode or both."
    )
    reading = escape(f"{say(_READING, language)} {say(seconds, language)}")
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>vlroute: {title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n<p>{reading}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _embedded(png: bytes, caption: str) -> str:
    source = base64.b64encode(png).decode()
    caption = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
