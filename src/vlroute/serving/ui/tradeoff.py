"""The Trade-off tab: the curve of accuracy against seconds, and the point of a price on it."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.plot import PlotData

from vlroute.decision.target import PRESETS, Target
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.serving.ui.page import Drawing, Page
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import COLORS, FONT, Texts
from vlroute.types import MODES, Preset

#: Steps of the slider: 0, then ten prices per decade.
PRICES = (0.0, *(float(f"{10 ** (step / 10):.2g}") for step in range(-40, 11)))
#: Maximum number of points that are drawn.
DRAWN = 150
GREY, GRID = "#64748b", "rgba(148, 163, 184, 0.25)"


def add_tradeoff(page: Page, tab: gr.Tab) -> None:
    """Add the tab to the current Blocks. The price of the page is set if the visitor checks the box."""
    selector = page.answerer.selector
    if selector.classifier is None or selector.classifier.calibration is None:
        page.add(gr.Markdown, lambda texts: {"value": texts.no_calibration}, elem_classes="lead")
        return
    exact = gr.State(selector.policy.price)
    page.add(gr.Markdown, lambda texts: {"value": texts.tradeoff_start}, elem_classes="lead")
    preset = page.add(
        gr.Radio,
        lambda texts: {
            "label": texts.preset, "info": texts.preset_help,
            "choices": [(texts.presets[name], name) for name in PRESETS],
        },
        value=None, elem_id="preset",
    )  # fmt: skip
    slider = page.add(
        gr.Slider, lambda texts: {"label": texts.price}, minimum=0, maximum=len(PRICES) - 1,
        value=nearest(selector.policy.price), step=1, elem_id="price", elem_classes="position", buttons=[],
    )  # fmt: skip
    page.add(gr.HTML, _ends, padding=False)
    problem = page.problem("tradeoff")
    says = gr.HTML("", elem_id="operating-point", padding=False)
    use = page.add(gr.Checkbox, lambda texts: {"label": texts.use_price}, value=False, elem_id="use-price")
    page.add(gr.HTML, lambda texts: {"value": _legend(texts)}, padding=False)
    plot = gr.Plot(show_label=False, elem_id="curve")

    def drawn(session: Session, price: float) -> Drawing:
        with Caught(session, "tradeoff"):
            curve = selector.curve()
            point = curve.at(price)
            figure = json.dumps(_figure(curve, point, session.texts))
            summary = _summary(curve, point, session.texts)
            return {
                plot: {"value": PlotData(type="plotly", plot=figure)}, says: {"value": summary}, problem: {"value": ""},
            }  # fmt: skip
        return {plot: {"value": None}, says: {"value": ""}, problem: {"value": session.problem("tradeoff")}}

    def updates(session: Session, price: float, used: bool) -> dict[Any, Any]:
        changed = {component: gr.update(**arguments) for component, arguments in drawn(session, price).items()}
        return {**changed, exact: price, page.price: price if used else None}

    def open_tab(session: Session, price: float, used: bool) -> dict[Any, Any]:
        return updates(session, price, used)

    def slide(position: int, session: Session, used: bool) -> dict[Any, Any]:
        return {**updates(session, PRICES[int(position)], used), preset: None}

    def choose(name: Preset | None, session: Session, used: bool) -> dict[Any, Any]:
        if name is None:
            return {slider: gr.skip()}
        price = Target(preset=name).resolve(selector.curve()).price
        return {**updates(session, price, used), slider: nearest(price)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    latest = {**quiet, "trigger_mode": "always_last"}
    outputs = [plot, says, problem, exact, page.price]
    tab.select(open_tab, [page.session, exact, use], outputs, **quiet)
    slider.input(slide, [slider, page.session, use], [*outputs, preset], **latest)
    preset.input(choose, [preset, page.session, use], [*outputs, slider], **latest)
    use.input(lambda price, used: price if used else None, [exact, use], [page.price], **quiet)
    page.redraw([exact, says], [plot, says, problem],
                lambda session, price, says: drawn(session, price) if says else {})  # fmt: skip
    page.redraw([preset], [preset], lambda session, chosen: {preset: {"value": chosen}})


def nearest(price: float) -> int:
    """Index of the nearest price in `PRICES`, by ratio; 0 for prices below half of the smallest one."""
    if price < PRICES[1] / 2:
        return 0
    return 1 + int(np.argmin(np.abs(np.log(np.asarray(PRICES[1:]) / price))))


def better_single(curve: TradeoffCurve) -> int:
    """Index in `MODES` of the mode that alone has the higher accuracy; Instruct if both have the same."""
    return int(np.argmax(curve.single_accuracies))


def _ends(texts: Texts) -> dict[str, Any]:
    ends = "".join(f"<span>{escape(end)}</span>" for end in texts.price_ends)
    return {"value": f'<div class="ends">{ends}</div>'}


def _figure(curve: TradeoffCurve, operating_point: OperatingPoint, texts: Texts) -> dict[str, Any]:
    """The figure for plotly in the browser. It uses the visitor's fonts, so Chinese text is displayed."""
    places = np.unique(np.linspace(0, len(curve.prices) - 1, DRAWN).astype(int))
    seconds, accuracies = curve.seconds[places].tolist(), curve.accuracies[places].tolist()
    low, high = zip(*(curve.operating_point(int(place)).interval for place in places), strict=True)
    hover = "%{y:.1%} · %{x:.2f} s<extra></extra>"
    better = better_single(curve)
    presets = [(name, Target(preset=name).resolve(curve)) for name in PRESETS]
    presets.sort(key=lambda preset: preset[1].mean_seconds)  # so that neighbors have their names on opposite sides
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
            "name": texts.better_single, "mode": "lines", "hoverinfo": "skip",
            "x": [0, max(float(curve.single_seconds.max()), max(seconds))],
            "y": [float(curve.single_accuracies[better])] * 2,
            "line": {"color": GREY, "width": 1.5, "dash": "dash"},
        },
        {
            "name": texts.preset, "mode": "markers+text", "x": [point.mean_seconds for _, point in presets],
            "y": [point.accuracy for _, point in presets], "text": [texts.presets[name] for name, _ in presets],
            "textposition": ["top left", "bottom right"] * (len(presets) // 2),
            "hovertemplate": "%{text}: %{y:.1%} · %{x:.2f} s<extra></extra>",
            "marker": {
                "color": "#fff", "size": 11, "symbol": "diamond", "line": {"color": COLORS["router"], "width": 2},
            },
        },
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
    named = {
        "line": texts.router_line, "band": texts.band, "point": texts.this_price, "preset": texts.preset,
        "dash": texts.better_single,
    }  # fmt: skip
    for mode in MODES:
        named[mode] = texts.always.format(mode=texts.modes[mode])
    items = "".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for kind, name in named.items())
    return f'<div class="legend">{items}</div>'


def _summary(curve: TradeoffCurve, point: OperatingPoint, texts: Texts) -> str:
    """The meaning of the price, the expected figures and those of the better single mode, as HTML."""
    price = texts.price_meaning.format(price=point.price, points=100 * point.price) if point.price else texts.price_zero
    low, high = point.interval
    better = better_single(curve)
    accuracy, seconds = float(curve.single_accuracies[better]), float(curve.single_seconds[better])
    figures = {
        "accuracy": (f"{point.accuracy:.1%}", f" ({low:.1%}–{high:.1%})"),
        "seconds": (texts.seconds.format(point.mean_seconds), ""),
        "share": (f"{point.thinking_share:.0%}", ""),
        "single": (f"{accuracy:.1%} · {texts.seconds.format(seconds)}", f": {texts.modes[MODES[better]]}"),
    }
    tiles = "".join(
        f'<div class="{name}"><b>{escape(value)}</b><small>{escape(texts.figures[name] + more)}</small></div>'
        for name, (value, more) in figures.items()
    )
    says = f'<p class="says">{escape(price)}</p>'
    of = f'<p class="of">{escape(texts.basis.format(n=curve.count))}</p>'
    return f'<div role="status">{says}<div class="figures">{tiles}</div>{of}</div>'
