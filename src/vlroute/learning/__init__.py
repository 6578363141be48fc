"""Offline work on a router: collect records, train, evaluate, draw figures.

The public names of this package are loaded when they are first used. Most of them need `pip install 'vlroute[train]'`,
and `collect_records` needs `pip install 'vlroute[collect]'` for data sets of the hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlroute.lazy import lazy_names

if TYPE_CHECKING:
    from vlroute.learned import LearningEvent as LearningEvent
    from vlroute.learning.assessment import Assessment as Assessment
    from vlroute.learning.assessment import evaluate_router as evaluate_router
    from vlroute.learning.choose import choose_requests as choose_requests
    from vlroute.learning.collect import Collected as Collected
    from vlroute.learning.collect import collect_records as collect_records
    from vlroute.learning.continual import ContinualLearner as ContinualLearner
    from vlroute.learning.continual import roll_back as roll_back
    from vlroute.learning.dataset import Example as Example
    from vlroute.learning.dataset import Source as Source
    from vlroute.learning.estimator import ComplexityEstimator as ComplexityEstimator
    from vlroute.learning.evaluate import Evaluation as Evaluation
    from vlroute.learning.evaluate import Mark as Mark
    from vlroute.learning.evaluate import TradeOff as TradeOff
    from vlroute.learning.evaluate import operating_marks as operating_marks
    from vlroute.learning.evaluate import seconds_of as seconds_of
    from vlroute.learning.evaluate import trade_offs as trade_offs
    from vlroute.learning.grading import Agreement as Agreement
    from vlroute.learning.grading import Grader as Grader
    from vlroute.learning.grading import Number as Number
    from vlroute.learning.grading import choice as choice
    from vlroute.learning.grading import exact as exact
    from vlroute.learning.grading import load_grader as load_grader
    from vlroute.learning.grading import regex as regex
    from vlroute.learning.metrics import Reliability as Reliability
    from vlroute.learning.metrics import aiq as aiq
    from vlroute.learning.metrics import apgr as apgr
    from vlroute.learning.metrics import area_over_random as area_over_random
    from vlroute.learning.metrics import brier as brier
    from vlroute.learning.metrics import cpt as cpt
    from vlroute.learning.metrics import ece as ece
    from vlroute.learning.metrics import ece_if_calibrated as ece_if_calibrated
    from vlroute.learning.metrics import gain_auc as gain_auc
    from vlroute.learning.metrics import headroom_captured as headroom_captured
    from vlroute.learning.metrics import nauc as nauc
    from vlroute.learning.metrics import pgr as pgr
    from vlroute.learning.metrics import qnc as qnc
    from vlroute.learning.metrics import reliability as reliability
    from vlroute.learning.plots import learning_curve_figure as learning_curve_figure
    from vlroute.learning.plots import reliability_figure as reliability_figure
    from vlroute.learning.plots import topic_figure as topic_figure
    from vlroute.learning.plots import trade_off_figure as trade_off_figure
    from vlroute.learning.probe import learn_probe as learn_probe
    from vlroute.learning.sample_size import LearningPoint as LearningPoint
    from vlroute.learning.sample_size import Needed as Needed
    from vlroute.learning.sample_size import learning_curve as learning_curve
    from vlroute.learning.sample_size import records_for_area as records_for_area
    from vlroute.learning.sample_size import records_for_width as records_for_width
    from vlroute.learning.shadow import ShadowReport as ShadowReport
    from vlroute.learning.shadow import evaluate_shadow as evaluate_shadow
    from vlroute.learning.train import train_router as train_router
    from vlroute.learning.trial import Trial as Trial
    from vlroute.learning.trial import draw_evenly as draw_evenly
    from vlroute.learning.trial import is_right as is_right
    from vlroute.learning.trial import run_trials as run_trials
    from vlroute.pocket.tasks import Task as Task
    from vlroute.pocket.tasks import draw_task as draw_task

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "vlroute.learned": ["LearningEvent"],
        "vlroute.learning.assessment": ["Assessment", "evaluate_router"],
        "vlroute.learning.choose": ["choose_requests"],
        "vlroute.learning.collect": ["Collected", "collect_records"],
        "vlroute.learning.continual": ["ContinualLearner", "roll_back"],
        "vlroute.learning.dataset": ["Example", "Source"],
        "vlroute.learning.estimator": ["ComplexityEstimator"],
        "vlroute.learning.evaluate": [
            "Evaluation", "Mark", "TradeOff", "operating_marks", "seconds_of", "trade_offs",
        ],
        "vlroute.learning.grading": ["Agreement", "Grader", "Number", "choice", "exact", "load_grader", "regex"],
        "vlroute.learning.metrics": [
            "Reliability", "aiq", "apgr", "area_over_random", "brier", "cpt", "ece", "ece_if_calibrated", "gain_auc",
            "headroom_captured", "nauc", "pgr", "qnc", "reliability",
        ],
        "vlroute.learning.plots": [
            "learning_curve_figure", "reliability_figure", "topic_figure", "trade_off_figure",
        ],
        "vlroute.learning.probe": ["learn_probe"],
        "vlroute.learning.sample_size": [
            "LearningPoint", "Needed", "learning_curve", "records_for_area", "records_for_width",
        ],
        "vlroute.learning.shadow": ["ShadowReport", "evaluate_shadow"],
        "vlroute.learning.train": ["train_router"],
        "vlroute.learning.trial": ["Trial", "draw_evenly", "is_right", "run_trials"],
        "vlroute.pocket.tasks": ["Task", "draw_task"],
    },
)  # fmt: skip
