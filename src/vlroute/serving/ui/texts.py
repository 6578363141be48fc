"""What the web page says, in English and in Chinese."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlroute.types import Mode


@dataclass(frozen=True, slots=True)
class Words:
    """All wording of the page in one language; `{…}` are filled in with `str.format`."""

    language: str
    """As of BCP 47."""
    other: str
    """Name of the other language, in that language."""
    other_link: str
    """Where its page is, as seen from this one."""
    tagline: str
    modes: dict[Mode, str]
    auto: str

    chat: str
    compare: str
    batch: str
    tradeoff: str

    mode: str
    colon: str
    ask: str
    ask_compare: str
    new_chat: str
    chat_start: str
    conversation: str
    stop: str
    reasoning: str
    thinks: str
    tokens: str
    no_text: dict[str, str]
    cut: str
    stopped: str
    no_store: str
    thanks: str

    seconds: str
    gain: str
    gain_help: str
    known: str
    read: str
    kept: str
    kept_help: str
    why: dict[str, str]

    compare_start: str
    compare_empty: str
    chosen: str

    batch_start: str
    drop: str
    files: str
    run: str
    download: str
    columns: dict[str, str]
    running: str
    done: str
    halted: str

    tradeoff_start: str
    no_calibration: str
    price: str
    price_ends: tuple[str, str]
    price_says: str
    price_zero: str
    use_price: str
    accuracy: str
    mean_seconds: str
    figures: dict[str, str]
    of_records: str
    marked: str
    always: str
    router_line: str
    band: str

    notice: str
    failed: str
    errors: dict[str, str] = field(default_factory=dict)
    """What to say before the library's own English words, by the name of the error's class."""


EN = Words(
    language="en",
    other="中文",
    other_link="zh?lang=zh",
    tagline="Answers at once, or thinks first where that is worth the wait.",
    modes={"instruct": "Instruct", "thinking": "Thinking"},
    auto="Auto",
    chat="Chat",
    compare="Compare",
    batch="Batch",
    tradeoff="Trade-off",
    mode="Mode",
    colon=": ",
    ask="Ask about a picture or video…",
    ask_compare="One question, both modes…",
    new_chat="New chat",
    chat_start="### Send a picture and ask\n\nEach question is decided anew: **Instruct** answers at once, "
    "**Thinking** reasons first. The line below each answer says which it was, and why.",
    conversation="Conversation",
    stop="Stop",
    reasoning="Reasoning",
    thinks="Thinking…",
    tokens="{} tokens",
    no_text={
        "stop": "(empty answer)",
        "length": "No answer: the reasoning had no end.", "cancelled": "Stopped before an answer.",
        "content_filter": "No answer: the model server withheld it.",
    },
    cut="cut off: out of tokens",
    stopped="stopped; left out of the conversation",
    no_store="Thumbs are off: this server keeps no store of answers (start it with one to collect feedback).",
    thanks="Thank you: noted.",
    seconds="{:.2f} s",
    gain="gain {:+.2f}",
    gain_help="What thinking is expected to add to the chance of a right answer: from {:.0%} to {:.0%}.",
    known="picture known",
    read="picture read in {:.2f} s",
    kept="{} of {} tokens kept",
    kept_help="Tokens of the prompt that were read in an earlier turn and not again.",
    why={
        "forced": "This mode was asked for.",
        "fallback": "The other mode was chosen, but its server cannot answer now.",
        "no_artifact": "There is no router artifact for this pair, so nothing was predicted.",
        "unsure": "Too far from the training data to judge.",
        "no_gain": "Thinking would not help.",
        "free": "Thinking helps and takes no longer.",
        "over": "The gain is over the price of {extra:.2f} s more ({threshold:.2f}).",
        "under": "The gain is not over the price of {extra:.2f} s more ({threshold:.2f}).",
    },
    compare_start="Ask both modes the same question. They answer one after the other; the second finds the picture "
    "already known, so compare the seconds with that in mind.",
    compare_empty="The answer will be here.",
    chosen="Auto would have chosen **{mode}**: gain {gain:+.2f}. {why}",
    batch_start="A table (CSV or JSONL) with the columns `prompt` and `image`, and a zip of the pictures it names; or "
    "one zip that holds both. Rows are answered one after the other.",
    drop="Drop the table and the zip here, or click to choose",
    files="Table and pictures",
    run="Answer all rows",
    download="Download results (CSV)",
    columns={
        "prompt": "prompt", "image": "image", "mode": "mode", "answer": "answer", "gain": "gain",
        "seconds": "seconds", "error": "error",
    },
    running="{done} of {total} rows · errors: {errors}",
    done="Done: {total} rows, errors: {errors}, {seconds:.1f} s.",
    halted="Stopped after {done} of {total} rows, errors: {errors}.",
    tradeoff_start="What a price for waiting buys. A higher price lets fewer questions think.",
    no_calibration="There is nothing to show: this router has no artifact with a calibration set. Retrain it with "
    "training/retrain.py, or start with a router artifact that holds one.",
    price="Price of one second",
    price_ends=("0: think wherever it helps", "high: answer at once"),
    price_says="Price {price:.3g}: wait one second more only for {points:.3g} points of accuracy.",
    price_zero="Price 0: think wherever it helps at all, however long it takes.",
    use_price="Use this price for my questions in Chat, Compare and Batch",
    accuracy="Accuracy",
    mean_seconds="Mean seconds per answer",
    figures={"accuracy": "accuracy", "seconds": "mean seconds", "share": "think first"},
    of_records="Figures of the {n} calibration records of this router artifact at this machine's pace, with 95 % "
    "intervals for chance in those records only; your own questions may differ.",
    marked="This price",
    always="Always {mode}",
    router_line="Router",
    band="95 % interval",
    notice="Please note",
    failed="Something went wrong on the server; the log there says what.",
)  # fmt: skip

ZH = Words(
    language="zh",
    other="English",
    other_link="./?lang=en",
    tagline="能直接答就直接答，值得等的时候先想一想。",
    modes={"instruct": "直答", "thinking": "思考"},
    auto="自动",
    chat="对话",
    compare="对比",
    batch="批量",
    tradeoff="权衡",
    mode="模式",
    colon="：",
    ask="就图片或视频提问……",
    ask_compare="一个问题，两种模式……",
    new_chat="新对话",
    chat_start="### 发一张图片，提一个问题\n\n每个问题都重新决定：**直答**（Instruct）立即回答，"
    "**思考**（Thinking）先推理再回答。每个回答下方会说明用了哪种模式、为什么。",
    conversation="对话",
    stop="停止",
    reasoning="推理过程",
    thinks="思考中……",
    tokens="{} 词元",
    no_text={
        "stop": "（空回答）",
        "length": "没有答案：推理没有结束。", "cancelled": "在给出答案前已停止。",
        "content_filter": "没有答案：模型服务器拒绝给出。",
    },
    cut="未写完：词元已用完",
    stopped="已停止；不计入对话",
    no_store="无法评价：此服务器不保存回答（启动时指定存储后可收集反馈）。",
    thanks="谢谢，已记录。",
    seconds="{:.2f} 秒",
    gain="增益 {:+.2f}",
    gain_help="思考预计使答对概率从 {:.0%} 变为 {:.0%}。",
    known="图片已缓存",
    read="读图 {:.2f} 秒",
    kept="沿用 {}/{} 词元",
    kept_help="提示中此前轮次已读过、这次不必重读的词元数。",
    why={
        "forced": "此模式由用户指定。",
        "fallback": "原本选择了另一种模式，但其服务器现在无法作答。",
        "no_artifact": "这对模型没有路由器文件，因此没有预测。",
        "unsure": "与训练数据相差太远，无法判断。",
        "no_gain": "思考没有帮助。",
        "free": "思考有帮助，而且不会更慢。",
        "over": "增益高于多等 {extra:.2f} 秒的代价（{threshold:.2f}）。",
        "under": "增益不高于多等 {extra:.2f} 秒的代价（{threshold:.2f}）。",
    },
    compare_start="向两种模式提同一个问题。两者依次作答；后答的一方图片已在缓存中，比较秒数时请留意。",
    compare_empty="回答会显示在这里。",
    chosen="自动模式会选择**{mode}**：增益 {gain:+.2f}。{why}",
    batch_start="上传一个含 `prompt` 与 `image` 两列的表格（CSV 或 JSONL），以及表中图片的 zip 压缩包；"
    "也可以只上传一个同时包含两者的 zip。各行依次作答。",
    drop="把表格和 zip 拖到这里，或点击选择",
    files="表格与图片",
    run="回答所有行",
    download="下载结果（CSV）",
    columns={
        "prompt": "问题", "image": "图片", "mode": "模式", "answer": "回答", "gain": "增益",
        "seconds": "秒数", "error": "错误",
    },
    running="已完成 {done}/{total} 行 · {errors} 个错误",
    done="完成：共 {total} 行，{errors} 个错误，用时 {seconds:.1f} 秒。",
    halted="已停止：完成 {done}/{total} 行，{errors} 个错误。",
    tradeoff_start="为等待定一个价格，看它换来什么。价格越高，思考的问题越少。",
    no_calibration="没有可显示的内容：此路由器没有带校准集的路由器文件。请用 training/retrain.py 重新训练，"
    "或改用带校准集的路由器文件启动。",
    price="一秒的价格",
    price_ends=("0：有帮助就思考", "高：立即回答"),
    price_says="价格 {price:.3g}：准确率至少提高 {points:.3g} 个百分点，才值得多等一秒。",
    price_zero="价格 0：只要有帮助就思考，不计时间。",
    use_price="在对话、对比和批量中使用此价格",
    accuracy="准确率",
    mean_seconds="平均每个回答的秒数",
    figures={"accuracy": "准确率", "seconds": "平均秒数", "share": "先思考"},
    of_records="以上数字来自此路由器文件的 {n} 条校准记录，按本机速度计算；95 % 区间只反映这些记录的偶然误差，"
    "实际问题可能不同。",
    marked="此价格",
    always="总是{mode}",
    router_line="路由器",
    band="95 % 区间",
    notice="请注意",
    failed="服务器出错，详情见服务器日志。",
    errors={
        "UnreadableMediaError": "图片或视频无法读取。",
        "LimitError": "超出限制。",
        "MessageError": "消息无法使用。",
        "InputError": "请求无法使用。",
        "CheckpointError": "模型无法加载。",
        "StoreError": "反馈无法保存。",
        "UnknownAnswerError": "找不到这个回答。",
        "VLRouteError": "未能完成。",
        "APIError": "服务器暂时无法回答。",
    },
)  # fmt: skip
