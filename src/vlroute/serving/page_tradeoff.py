"""The Trade-off tab: accuracy against seconds, and where a price stands on that curve."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from gradio.components.plot import PlotData

from vlroute.decision.frontier import Frontier, Outlook
from vlroute.errors import ArtefactError
from vlroute.judge import Judge
from vlroute.modes import MODES
from vlroute.serving.page_style import COLOURS, FONT
from vlroute.serving.page_turn import Noticed
from vlroute.serving.page_words import Words

if TYPE_CHECKING:
    from vlroute.serving.page import Answerer

#: What the slider steps through: 0, then ten prices a decade.
PRICES = (0.0, *(float(f"{10 ** (step / 10):.2g}") for step in range(-40, 11)))
#: Points drawn of the curve at most; intervals are worked out for these only.
DRAWN = 150
GREY, GRID = "#64748b", "rgba(148, 163, 184, 0.25)"


def add_tradeoff(answerer: Answerer, words: Words, price: gr.State, tab: gr.Tab) -> None:
    """Lays out `tab` in the Blocks at hand. `price` becomes the slider's for this session where the visitor says so."""
    if answerer.judge.classifier is None or answerer.judge.classifier.calibration is None:
        gr.Markdown(words.no_calibration, elem_classes="lead")
        return
    gr.Markdown(words.tradeoff_start, elem_classes="lead")
    slider = gr.Slider(
        0, len(PRICES) - 1, value=nearest(answerer.judge.policy.price), step=1, label=words.price,
        elem_id="price", elem_classes="position", buttons=[],
    )  # fmt: skip
    ends = "".join(f"<span>{escape(end)}</span>" for end in words.price_ends)
    gr.HTML(f'<div class="ends">{ends}</div>', padding=False)
    says = gr.HTML("", elem_id="outlook", padding=False)
    use = gr.Checkbox(False, label=words.use_price, elem_id="use-price")
    gr.HTML(_legend(words), padding=False)
    plot = gr.Plot(show_label=False, elem_id="curve")

    def draw(position: int) -> tuple[PlotData | None, str]:
        with Noticed(words):
            frontier, count = _frontier(answerer.judge)
            outlook = frontier.at(PRICES[int(position)])
            figure = json.dumps(_figure(frontier, outlook, words))
            return PlotData(type="plotly", plot=figure), _said(outlook, count, words)
        return None, ""

    def set_price(position: int, used: bool) -> float | None:
        return PRICES[int(position)] if used else None

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    latest = {**quiet, "trigger_mode": "always_last"}
    tab.select(draw, [slider], [plot, says], **quiet)
    slider.input(draw, [slider], [plot, says], **latest)
    slider.input(set_price, [slider, use], [price], **latest)
    use.input(set_price, [slider, use], [price], **quiet)


def nearest(price: float) -> int:
    """The place in `PRICES` that is nearest to `price` in proportion; 0 for what is below all of them."""
    if price < PRICES[1] / 2:
        return 0
    return 1 + int(np.argmin(np.abs(np.log(np.asarray(PRICES[1:]) / price))))


def _frontier(judge: Judge) -> tuple[Frontier, int]:
    """At this machine's pace as of now, and of how many records. ArtefactError if there are none."""
    classifier, policy = judge.classifier, judge.policy
    if classifier is None or classifier.calibration is None:
        raise ArtefactError("the router artefact in use holds no calibration set; retrain it with training/retrain.py")
    records = classifier.calibration
    return Frontier(records, judge.pace, policy.min_known, policy.unsure_mode), len(records.known)


def _figure(frontier: Frontier, outlook: Outlook, words: Words) -> dict[str, Any]:
    """For plotly, which the browser brings: with the visitor's own fonts, so Chinese is there too."""
    places = np.unique(np.linspace(0, len(frontier.prices) - 1, DRAWN).astype(int))
    seconds, accuracies = frontier.seconds[places].tolist(), frontier.accuracies[places].tolist()
    low, high = zip(*(frontier.outlook(int(place)).interval for place in places), strict=True)
    hover = "%{y:.1%} · %{x:.2f} s<extra></extra>"
    traces: list[dict[str, Any]] = [
        {
            "name": words.band, "x": [*seconds, *reversed(seconds)], "y": [*high, *reversed(low)], "fill": "toself",
            "fillcolor": "rgba(37, 99, 235, 0.16)", "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip",
        },
        {
            "name": words.router_line, "x": seconds, "y": accuracies, "mode": "lines", "hovertemplate": hover,
            "line": {"color": COLOURS["router"], "width": 2.5},
        },
        *(
            {
                "name": words.always.format(mode=words.modes[mode]), "x": [float(frontier.single_seconds[column])],
                "y": [float(frontier.single_accuracies[column])], "mode": "markers", "hovertemplate": hover,
                "marker": {"color": COLOURS[mode], "size": 13, "symbol": symbol},
            }
            for column, (mode, symbol) in enumerate(zip(MODES, ("square", "triangle-up"), strict=True))
        ),
        {
            "name": words.marked, "x": [outlook.mean_seconds], "y": [outlook.accuracy], "mode": "markers",
            "hovertemplate": hover,
            "marker": {"color": "#f59e0b", "size": 17, "symbol": "circle", "line": {"color": "#fff", "width": 2.5}},
        },
    ]  # fmt: skip
    small = {"size": 13}
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GREY, "automargin": True, "fixedrange": True}
    layout = {
        "autosize": True, "height": 440, "margin": {"l": 8, "r": 16, "t": 12, "b": 8}, "dragmode": False,
        "font": {"family": FONT, "size": 13, "color": GREY},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
        "xaxis": {**axis, "title": {"text": words.mean_seconds, "standoff": 8, "font": small}, "rangemode": "tozero"},
        "yaxis": {**axis, "title": {"text": words.accuracy, "standoff": 8, "font": small}, "tickformat": ".0%"},
        "showlegend": False,
    }  # fmt: skip
    return {"data": traces, "layout": layout, "config": {"displayModeBar": False}}


def _legend(words: Words) -> str:
    """Beside the plot and not in it: it wraps where the screen is narrow."""
    named = {"line": words.router_line, "band": words.band, "point": words.marked}
    for mode in MODES:
        named[mode] = words.always.format(mode=words.modes[mode])
    items = "".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for kind, name in named.items())
    return f'<div class="legend">{items}</div>'


def _said(outlook: Outlook, count: int, words: Words) -> str:
    """What the price means, and its outlook in figures, as HTML."""
    price = words.price_says.format(price=outlook.price, points=100 * outlook.price) if outlook.price else ""
    low, high = outlook.interval
    figures = {
        "accuracy": (f"{outlook.accuracy:.1%}", f" ({low:.1%}–{high:.1%})"),
        "seconds": (words.seconds.format(outlook.mean_seconds), ""),
        "share": (f"{outlook.thinking_share:.0%}", ""),
    }
    tiles = "".join(
        f'<div class="{name}"><b>{escape(value)}</b><small>{escape(words.figures[name] + more)}</small></div>'
        for name, (value, more) in figures.items()
    )
    says = f'<p class="says">{escape(price or words.price_zero)}</p>'
    of = f'<p class="of">{escape(words.of_records.format(n=count))}</p>'
    return f'{says}<div class="figures">{tiles}</div>{of}'
