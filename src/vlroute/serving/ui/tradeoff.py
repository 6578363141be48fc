"""The Trade-off tab: accuracy against seconds, and where a price stands on that curve."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.plot import PlotData

from vlroute.decision.selector import ModeSelector
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.errors import ArtifactError
from vlroute.serving.ui.components import Answerer, Noticed
from vlroute.serving.ui.style import COLOURS, FONT
from vlroute.serving.ui.texts import Words
from vlroute.types import MODES

#: What the slider steps through: 0, then ten prices a decade.
PRICES = (0.0, *(float(f"{10 ** (step / 10):.2g}") for step in range(-40, 11)))
#: Points drawn of the curve at most; intervals are worked out for these only.
DRAWN = 150
GREY, GRID = "#64748b", "rgba(148, 163, 184, 0.25)"


def add_tradeoff(answerer: Answerer, words: Words, price: gr.State, tab: gr.Tab) -> None:
    """Lays out `tab` in the Blocks at hand. `price` becomes the slider's for this session where the visitor says so."""
    if answerer.selector.classifier is None or answerer.selector.classifier.calibration is None:
        gr.Markdown(words.no_calibration, elem_classes="lead")
        return
    gr.Markdown(words.tradeoff_start, elem_classes="lead")
    slider = gr.Slider(
        0, len(PRICES) - 1, value=nearest(answerer.selector.policy.price), step=1, label=words.price,
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
            curve, count = _tradeoff_curve(answerer.selector)
            operating_point = curve.at(PRICES[int(position)])
            figure = json.dumps(_figure(curve, operating_point, words))
            return PlotData(type="plotly", plot=figure), _said(operating_point, count, words)
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


def _tradeoff_curve(selector: ModeSelector) -> tuple[TradeoffCurve, int]:
    """At this machine's pace as of now, and of how many records. ArtifactError if there are none."""
    classifier, policy = selector.classifier, selector.policy
    if classifier is None or classifier.calibration is None:
        raise ArtifactError("the router artifact in use holds no calibration set; retrain it with training/retrain.py")
    records = classifier.calibration
    return TradeoffCurve(records, selector.latency, policy.min_coverage, policy.fallback_mode), len(records.coverage)


def _figure(curve: TradeoffCurve, operating_point: OperatingPoint, words: Words) -> dict[str, Any]:
    """For plotly, which the browser brings: with the visitor's own fonts, so Chinese is there too."""
    places = np.unique(np.linspace(0, len(curve.prices) - 1, DRAWN).astype(int))
    seconds, accuracies = curve.seconds[places].tolist(), curve.accuracies[places].tolist()
    low, high = zip(*(curve.operating_point(int(place)).interval for place in places), strict=True)
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
                "name": words.always.format(mode=words.modes[mode]), "x": [float(curve.single_seconds[column])],
                "y": [float(curve.single_accuracies[column])], "mode": "markers", "hovertemplate": hover,
                "marker": {"color": COLOURS[mode], "size": 13, "symbol": symbol},
            }
            for column, (mode, symbol) in enumerate(zip(MODES, ("square", "triangle-up"), strict=True))
        ),
        {
            "name": words.marked, "x": [operating_point.mean_seconds], "y": [operating_point.accuracy],
            "mode": "markers",
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


def _said(operating_point: OperatingPoint, count: int, words: Words) -> str:
    """What the price means, and its outlook in figures, as HTML."""
    price = (
        words.price_says.format(price=operating_point.price, points=100 * operating_point.price)
        if operating_point.price
        else ""
    )
    low, high = operating_point.interval
    figures = {
        "accuracy": (f"{operating_point.accuracy:.1%}", f" ({low:.1%}–{high:.1%})"),
        "seconds": (words.seconds.format(operating_point.mean_seconds), ""),
        "share": (f"{operating_point.thinking_share:.0%}", ""),
    }
    tiles = "".join(
        f'<div class="{name}"><b>{escape(value)}</b><small>{escape(words.figures[name] + more)}</small></div>'
        for name, (value, more) in figures.items()
    )
    says = f'<p class="says">{escape(price or words.price_zero)}</p>'
    of = f'<p class="of">{escape(words.of_records.format(n=count))}</p>'
    return f'{says}<div class="figures">{tiles}</div>{of}'
