"""The Trade-off tab: the curve of accuracy against seconds, and the point of a price on it."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.plot import PlotData

from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.serving.ui.components import COLORS, FONT, Answerer, ErrorNotice, Texts
from vlroute.types import MODES

#: Steps of the slider: 0, then ten prices per decade.
PRICES = (0.0, *(float(f"{10 ** (step / 10):.2g}") for step in range(-40, 11)))
#: Maximum number of points that are drawn.
DRAWN = 150
GREY, GRID = "#64748b", "rgba(148, 163, 184, 0.25)"


def add_tradeoff(answerer: Answerer, texts: Texts, price: gr.State, tab: gr.Tab) -> None:
    """Add the tab to the current Blocks. `price` gets the value of the slider if the visitor checks the box."""
    if answerer.selector.classifier is None or answerer.selector.classifier.calibration is None:
        gr.Markdown(texts.no_calibration, elem_classes="lead")
        return
    gr.Markdown(texts.tradeoff_start, elem_classes="lead")
    slider = gr.Slider(
        0, len(PRICES) - 1, value=nearest(answerer.selector.policy.price), step=1, label=texts.price,
        elem_id="price", elem_classes="position", buttons=[],
    )  # fmt: skip
    ends = "".join(f"<span>{escape(end)}</span>" for end in texts.price_ends)
    gr.HTML(f'<div class="ends">{ends}</div>', padding=False)
    says = gr.HTML("", elem_id="operating-point", padding=False)
    use = gr.Checkbox(False, label=texts.use_price, elem_id="use-price")
    gr.HTML(_legend(texts), padding=False)
    plot = gr.Plot(show_label=False, elem_id="curve")

    def draw(position: int) -> tuple[PlotData | None, str]:
        with ErrorNotice(texts):
            curve = answerer.selector.curve()
            operating_point = curve.at(PRICES[int(position)])
            figure = json.dumps(_figure(curve, operating_point, texts))
            return PlotData(type="plotly", plot=figure), _summary(operating_point, curve.count, texts)
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
    """Index of the nearest price in `PRICES`, by ratio; 0 for prices below half of the smallest one."""
    if price < PRICES[1] / 2:
        return 0
    return 1 + int(np.argmin(np.abs(np.log(np.asarray(PRICES[1:]) / price))))


def _figure(curve: TradeoffCurve, operating_point: OperatingPoint, texts: Texts) -> dict[str, Any]:
    """The figure for plotly in the browser. It uses the visitor's fonts, so Chinese text is displayed."""
    places = np.unique(np.linspace(0, len(curve.prices) - 1, DRAWN).astype(int))
    seconds, accuracies = curve.seconds[places].tolist(), curve.accuracies[places].tolist()
    low, high = zip(*(curve.operating_point(int(place)).interval for place in places), strict=True)
    hover = "%{y:.1%} · %{x:.2f} s<extra></extra>"
    traces: list[dict[str, Any]] = [
        {
            "name": texts.band, "x": [*seconds, *reversed(seconds)], "y": [*high, *reversed(low)], "fill": "toself",
            "fillcolor": "rgba(37, 99, 235, 0.16)", "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip",
        },
        {
            "name": texts.router_line, "x": seconds, "y": accuracies, "mode": "lines", "hovertemplate": hover,
            "line": {"color": COLORS["router"], "width": 2.5},
        },
        *(
            {
                "name": texts.always.format(mode=texts.modes[mode]), "x": [float(curve.single_seconds[column])],
                "y": [float(curve.single_accuracies[column])], "mode": "markers", "hovertemplate": hover,
                "marker": {"color": COLORS[mode], "size": 13, "symbol": symbol},
            }
            for column, (mode, symbol) in enumerate(zip(MODES, ("square", "triangle-up"), strict=True))
        ),
        {
            "name": texts.this_price, "x": [operating_point.mean_seconds], "y": [operating_point.accuracy],
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
        "xaxis": {**axis, "title": {"text": texts.mean_seconds, "standoff": 8, "font": small}, "rangemode": "tozero"},
        "yaxis": {**axis, "title": {"text": texts.accuracy, "standoff": 8, "font": small}, "tickformat": ".0%"},
        "showlegend": False,
    }  # fmt: skip
    return {"data": traces, "layout": layout, "config": {"displayModeBar": False}}


def _legend(texts: Texts) -> str:
    """The legend as HTML outside the plot, because it wraps on narrow screens."""
    named = {"line": texts.router_line, "band": texts.band, "point": texts.this_price}
    for mode in MODES:
        named[mode] = texts.always.format(mode=texts.modes[mode])
    items = "".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for kind, name in named.items())
    return f'<div class="legend">{items}</div>'


def _summary(operating_point: OperatingPoint, count: int, texts: Texts) -> str:
    """The meaning of the price and the expected figures, as HTML."""
    price = (
        texts.price_meaning.format(price=operating_point.price, points=100 * operating_point.price)
        if operating_point.price
        else ""
    )
    low, high = operating_point.interval
    figures = {
        "accuracy": (f"{operating_point.accuracy:.1%}", f" ({low:.1%}–{high:.1%})"),
        "seconds": (texts.seconds.format(operating_point.mean_seconds), ""),
        "share": (f"{operating_point.thinking_share:.0%}", ""),
    }
    tiles = "".join(
        f'<div class="{name}"><b>{escape(value)}</b><small>{escape(texts.figures[name] + more)}</small></div>'
        for name, (value, more) in figures.items()
    )
    says = f'<p class="says">{escape(price or texts.price_zero)}</p>'
    of = f'<p class="of">{escape(texts.basis.format(n=count))}</p>'
    return f'{says}<div class="figures">{tiles}</div>{of}'
