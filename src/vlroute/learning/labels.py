"""The words of figures and of the page with curves, in English and in Chinese."""

from __future__ import annotations

from typing import Literal

from vlroute.learning.curves import ALL, UNNAMED, TradeOff

Language = Literal["en", "zh"]

_CHINESE = {
    ALL: "全部记录",
    UNNAMED: "未命名",
    "accuracy": "准确率",
    "requests sent to Thinking": "交给 Thinking 的请求占比",
    "mean time per answer (s)": "平均每次回答耗时（秒）",
    "95th percentile of the time per answer (s)": "回答耗时的第 95 百分位（秒）",
    " at an assumed pace": "，按假定速度",
    "router, 95 % interval": "路由器，95% 区间",
    "longest prompts first": "最长提示优先",
    "random": "随机",
    "always Instruct": "始终 Instruct",
    "always Thinking": "始终 Thinking",
    "oracle": "先知（上限）",
    "{} records": "{} 条记录",
    "{}, {} with known seconds": "{}，其中 {} 条有耗时",
    "predicted probability of a right answer": "预测的答对概率",
    "share of right answers": "实际答对的比例",
    "records": "记录数",
    "calibrated": "完全校准",
    "observed in bins of 0.1": "实际（每 0.1 一组）",
    "Trade-off curves": "权衡曲线",
    "Each family": "按类别",
    "Calibration": "校准",
    "Numbers": "数据",
    "way": "方式",
    "to Thinking": "交给 Thinking",
    "95 % interval": "95% 区间",
    "mean (s)": "平均（秒）",
    "95th percentile (s)": "第 95 百分位（秒）",
    "router": "路由器",
    "figure": "指标",
    "undefined": "无定义",
    "family": "类别",
    "area over random": "高出随机的面积",
    "predicted": "预测",
    "observed": "实际",
    "mode": "模式",
    "The single modes and the oracle, which knows the answers and is out of reach.": (
        "两个单一模式，以及先知：它知道答案，无法达到。"
    ),
    "The router's curve: requests with the highest gain go to Thinking first.": (
        "路由器的曲线：增益最高的请求先交给 Thinking。"
    ),
    "Whole curves. Area over random in points, 0 is chance; APGR: mean share of the gap between the modes that is "
    "recovered, chance 0.5; CPT: least share to Thinking that recovers so much; AIQ, nAUC: mean accuracy over all "
    "budgets of seconds; QNC: seconds as accurate as Thinking, in parts of Thinking's.": (
        "整条曲线。高出随机的面积以百分点计，0 即随机；APGR：两模式差距平均追回的比例，随机为 0.5；"
        "CPT：追回该比例所需的最少 Thinking 占比；AIQ、nAUC：在所有耗时预算上的平均准确率；"
        "QNC：达到 Thinking 准确率所需耗时与 Thinking 耗时之比。"
    ),
    "Each family of at least 20 records, the largest first.": "每个不少于 20 条记录的类别，从大到小。",
    "How far probabilities and outcomes differ; 0 is perfect. Chance level of the ECE: 95 % of samples of this "
    "size stay below it if the probabilities are right.": (
        "概率与结果的差距；0 为完美。ECE 的偶然水平：若概率正确，95% 的同规模样本低于此值。"
    ),
    "chance level": "偶然水平",
    "What the reliability diagrams show, bin by bin.": "可靠性图各组的数值。",
    "Accuracy against the share of requests sent to Thinking.": "准确率与交给 Thinking 的请求占比。",
    "Accuracy against the mean time per answer.": "准确率与平均回答耗时。",
    "Accuracy against the 95th percentile of the time per answer.": "准确率与回答耗时的第 95 百分位。",
    "Reliability: on the dotted line, probabilities say how often the answer is right.": (
        "可靠性：落在虚线上，概率就等于答对的频率。"
    ),
    "Every prediction is by a model that had not seen the record. Bands and brackets are 95 % intervals. They cover "
    "the sampling of the records and, approximately, the randomness of fitting; not another kind of request.": (
        "每个预测都来自没见过该记录的模型。色带与括号为 95% 区间：反映记录抽样的偶然，"
        "并近似反映训练的随机性，不涵盖其他种类的请求。"
    ),
    "Seconds are measured.": "耗时为实测。",
    "Seconds are assumed: the records hold none for one mode or both.": "耗时为假定：至少一个模式没有耗时记录。",
}


def say(english: str, language: Language) -> str:
    """`english` in the language asked for; as it is where no translation is known."""
    return english if language == "en" else _CHINESE.get(english, english)


def name_of(found: TradeOff, language: Language) -> str:
    """The family's own name, untranslated, or the words for all records and for a family without a name."""
    return say(found.name, language) if found.name in (ALL, UNNAMED) else found.name
