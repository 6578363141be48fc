"""Texts of the pocket pair's training: forms of a question, requests without a picture, unknown questions."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlroute.pocket.canvas import LETTERS
from vlroute.pocket.tasks import LANGUAGES, NUMBER_WORDS, SHAPE_NAMES, added

AS_IS = 0.45  # share of questions that are typed exactly as worded
STOPS, WIDE, HALF = ".?!。？！", "，。？！：；＋＝", ",.?!:;+="
CHINESE = re.compile("[一-鿿]")
FIELD = re.compile(r"(\{\w*\})")
WORD = re.compile(r"[A-Za-z]?[a-z]+|[^\x00-\x7f]")
#: What is put before and after a question. English prefixes without a comma are only for requests ("Please add …").
POLITE: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("Please ", ""), ("Now ", ""), ("Hi, ", ""), ("Hello! ", ""), ("Hey, ", ""), ("OK, ", ""), ("", " Thanks."),
           ("", " Thank you!"), ("", " please"), ("Hi, ", " Thanks."), ("Please ", " Thank you.")),
    "zh": (("请", ""), ("请问", ""), ("你好，", ""), ("您好！", ""), ("麻烦", ""), ("", "谢谢。"), ("", "谢谢！"),
           ("你好，", "谢谢。")),
}  # fmt: skip
ENDS = (" {}", "{} ", "{}\n", "\n{}", " {} ", "{}\n\n")


@dataclass(frozen=True, slots=True)
class _Form:
    """How a question is typed. `drawn_lower`: drawn letters such as A are in lower case as well."""

    case: str = ""
    drawn_lower: bool = False
    polite: tuple[str, str] = ("", "")
    stop: bool = True
    wide: bool | None = None
    ends: str = "{}"

    def cased(self, text: str) -> str:
        return text.lower() if self.case == "lower" else text.upper() if self.case == "upper" else text

    def apply(self, text: str, language: str) -> str:
        before, after = self.polite
        if before and not before.endswith("! ") and text[1:2].islower():  # not "I …" or "A B …"
            text = text[0].lower() + text[1:]
        if after == " please":
            text = text.rstrip(STOPS) or text
        elif after and text[-1:] not in STOPS:  # "2 + 3, thanks."
            text, after = text + {"en": ",", "zh": "，"}[language], after.lower()
        text = before + text + after
        if not self.stop:
            text = text.rstrip(STOPS) or text
        if self.wide is not None and CHINESE.search(text):  # a lone "?" stays as it is: its width shows the language
            text = text.translate(str.maketrans(*((HALF, WIDE) if self.wide else (WIDE, HALF))))
        text = "".join(part if FIELD.fullmatch(part) else self.cased(part) for part in FIELD.split(text))
        return self.ends.replace("{}", text)


def _draw_form(rng: random.Random, text: str, language: str, polite: bool) -> _Form:
    if rng.random() < AS_IS:
        return _Form()
    parts = ["case", "case", "stop", "ends"] + ["polite"] * 2 * polite + ["width"] * 2 * (language == "zh")
    changes = set(rng.sample(parts, rng.choice((1, 1, 1, 2, 2, 3))))
    case = rng.choice(("lower", "lower", "upper")) if "case" in changes else ""
    question = text[-1:] in ("?", "？")
    misfits = ("Please ", "Now ", "请", "麻烦") if question else ("请问",)
    fitting = [pair for pair in POLITE[language] if pair[0] not in misfits]
    if text.lower().startswith(("please", "请", "hi", "hello", "你好")):
        fitting = [("", "")]
    return _Form(
        case, case == "lower" and rng.random() < 1 / 3, rng.choice(fitting) if "polite" in changes else ("", ""),
        "stop" not in changes, rng.random() < 0.3 if "width" in changes else None,
        rng.choice(ENDS) if "ends" in changes else "{}",
    )  # fmt: skip


def vary(rng: random.Random, text: str, language: str, polite: bool = True) -> str:
    """`text` as users type it: case, final punctuation, width of Chinese punctuation, polite words, space at the ends.

    Args:
        rng: source of randomness.
        text: the question; fields such as `{start}` stay as they are.
        language: "en" or "zh".
        polite: whether "Please", "Thanks" and the like may be added.

    Returns:
        The text; in about 45 % of the draws unchanged.
    """
    return _draw_form(rng, text, language, polite).apply(text, language)


def fill(rng: random.Random, wording: str, language: str, **words: object) -> str:
    """A form of `wording` (see `vary`) with `words` filled in.

    Words such as "circles" follow the case of the form. Values without lower-case letters ("A", "A B", 12) are drawn:
    they stay as they are, but in a third of the lower-case forms letters are in lower case too.
    """
    form = _draw_form(rng, wording, language, polite=True)
    values = {name: str(value) for name, value in words.items()}
    for name, value in values.items():
        is_word = value.upper() != value
        values[name] = form.cased(value) if is_word else value.lower() if form.drawn_lower else value
    return form.apply(wording, language).format(**values)


#: Fixed answers, by kind of request and language.
REPLIES: dict[str, dict[str, str]] = {
    "greeting": {"en": "Hello! Ask me about a small drawing.", "zh": "你好！可以问我小图的问题。"},
    "ability": {
        "en": "I read text, count shapes, add numbers and follow screens and arrows in small drawings.",
        "zh": "我能看小图：读文字、数图形、做加法，还能跟着屏幕和箭头走。",
    },
    "thanks": {"en": "You are welcome.", "zh": "不客气。"},
}
#: Wordings, separated by "|". Sums: {n} are numbers joined by "plus" (sum) or by "and" (list).
REQUESTS: dict[str, dict[str, str]] = {
    "sum": {
        "en": "What is {n}?|How much is {n}?|{n}=?|{n} = ?|{n}|{n}=|Calculate {n}.|{n} equals?|What does {n} make?|"
        "Compute {n}.|Tell me what {n} is.|What is the result of {n}?",
        "zh": "{n}等于几？|{n}等于多少？|{n}是多少？|{n}=？|{n}=|计算{n}。|算一下{n}。|{n}得多少？|{n}",
    },
    "list": {
        "en": "Add {n}.|What is the sum of {n}?|Sum up {n}.|What do {n} add up to?|What is the total of {n}?|"
        "Add up {n}.|Add the numbers {n}.|Sum of {n}?|Find the sum of {n}.|{n}: what is the total?",
        "zh": "{n}的和是多少？|{n}加起来是多少？|把{n}加起来。|求{n}的和。|{n}相加等于几？|{n}一共是多少？",
    },
    "count": {
        "en": "How many {x}: {items}?|How many {x} in {items}?|How many {x} are in this list: {items}?|"
        "Count the {x}: {items}.|{items}: how many {x}?|{items}. How many {x} are there?|Count the {x} in {items}.",
        "zh": "{items}：有几个{x}？|{items}里有几个{x}？|{items}中有多少个{x}？|"
        "数一数有几个{x}：{items}。|{items}，几个{x}？",
    },
    "greeting": {
        "en": "Hello|Hello!|Hi|Hi!|Hi there|Hey|Hey there!|Hello there.|Good morning|Good morning!|Good afternoon|"
        "Good evening.|Good day|Hello, how are you?|How are you?|Hi, nice to meet you.|Greetings|Hi assistant",
        "zh": "你好|你好！|您好|您好！|嗨|嗨！|早上好|上午好|下午好|晚上好。|你好吗？|你好呀|早|很高兴认识你。|大家好",
    },
    "ability": {
        "en": "What can you do?|Who are you?|Help|Help!|Help me.|What are you?|What do you do?|How can you help me?|"
        "What can I ask?|What can I ask you?|What are you able to do?|How do you work?|Tell me what you can do.|"
        "Hi, who are you?|Hello, what can you do?|Introduce yourself.|Your skills?|What tasks do you know?",
        "zh": "你会什么？|你能做什么？|你是谁？|帮助|帮帮我。|你有什么功能？|我可以问什么？|你会做哪些事？|"
        "介绍一下你自己。|你好，你是谁？|你能帮我做什么？|怎么用你？|你会干什么？",
    },
    "thanks": {
        "en": "Thank you|Thank you!|Thanks|Thanks!|Thanks a lot.|Thank you very much.|Many thanks|Bye|Bye!|Goodbye|"
        "Great, thanks!|OK, thank you.|See you.|That is all, thanks.|Good, bye.",
        "zh": "谢谢|谢谢！|谢谢你|多谢|非常感谢！|再见|再见！|拜拜|好的，谢谢。|太好了，谢谢！|辛苦了|感谢",
    },
}  # fmt: skip
CHINESE_NUMBERS = "零一二三四五六七八九十"


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request without a picture.

    Attributes:
        kind: "sum", "count", "greeting", "ability" or "thanks".
        language: "en" or "zh".
        prompt: the text of the user.
        answer: the exact answer.
        thinking: target of the Thinking model before `</think>`.
    """

    kind: str
    language: str
    prompt: str
    answer: str
    thinking: str


def _wording(rng: random.Random, kind: str, language: str) -> str:
    return rng.choice(REQUESTS[kind][language].split("|"))


def _series(parts: Sequence[str], comma: str, last: str) -> str:
    return last.join([comma.join(parts[:-1]), parts[-1]])


def _sum(rng: random.Random, language: str) -> tuple[str, str, str]:
    words, size = rng.random() < 0.3, rng.choice((2, 2, 2, 3))
    top = 10 if words else rng.choice((9, 9, 9, 99)) if size == 2 else 30
    numbers = [rng.randint(0, top) for _ in range(size)]
    names = NUMBER_WORDS if language == "en" else CHINESE_NUMBERS
    written = [names[number] if words and rng.random() < 0.9 else str(number) for number in numbers]
    if rng.random() < 0.5:
        wording = _wording(rng, "sum", language)
        plus = rng.choice(("+", " + ", *({"en": (" plus ",) * 2, "zh": ("加", " 加 ")}[language])))
        text = plus.join(written)
    else:
        wording = _wording(rng, "list", language)
        commas = (", ", rng.choice((" and ", ", ")) if size > 2 else " and ") if language == "en" else ("、", "和")
        text = _series(written, *commas)
    # the answer is in digits even if the question has number words, as in all other tasks
    return fill(rng, wording, language, n=text), str(sum(numbers)), added(numbers)


def draw_list(rng: random.Random, language: str) -> tuple[str, dict[str, int]]:
    """Draw a request to count one kind of item in a list.

    Args:
        rng: source of randomness.
        language: "en" or "zh".

    Returns:
        The text of the user, and how often each kind of item occurs; first the kind that is asked for.
    """
    if shapes := rng.random() < 0.5:
        kinds = [name.removesuffix("s") for name in SHAPE_NAMES[language].values()]
    else:
        kinds = rng.sample(LETTERS, rng.randint(2, 4))
    items = [rng.choice(kinds) for _ in range(rng.randint(2, 6))]
    asked = rng.choice(items if rng.random() < 0.85 else kinds)
    comma = ("、" if language == "zh" else ", ") if shapes or rng.random() < 0.4 else " "
    name = f"{asked}s" if shapes and language == "en" else asked
    prompt = fill(rng, _wording(rng, "count", language), language, x=name, items=comma.join(items))
    return prompt, {kind: items.count(kind) for kind in (asked, *kinds)}


def _count(rng: random.Random, language: str) -> tuple[str, str, str]:
    prompt, counts = draw_list(rng, language)
    asked, found = next(iter(counts.items()))
    return prompt, str(found), f"{asked}={found}"


def draw_text(rng: random.Random, language: str | None = None, kind: str | None = None) -> TextRequest:
    """Draw a request without a picture.

    Args:
        rng: source of randomness.
        language: "en" or "zh"; by default drawn.
        kind: kind of request; by default sums and counting are drawn more often than requests with a fixed reply.

    Returns:
        The request with its exact answer.
    """
    language = language or rng.choice(LANGUAGES)
    kind = kind or rng.choices(("sum", "count", *REPLIES), (40, 45, 6, 5, 4))[0]
    if kind in REPLIES:
        prompt = vary(rng, _wording(rng, kind, language), language, polite=False)
        return TextRequest(kind, language, prompt, REPLIES[kind][language], kind)
    return TextRequest(kind, language, *(_sum if kind == "sum" else _count)(rng, language))


@dataclass(frozen=True, slots=True)
class Questions:
    """Unknown questions in one language: pairs of templates and topics, and parts of meaningless words."""

    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    syllables: tuple[str, ...]


def read_questions(split: str) -> dict[str, Questions]:
    """The sections of `questions.txt` for "train" or "test", by language."""
    sections = Path(__file__).with_name("questions.txt").read_text("utf-8").split(f"\n[{split} ")[1:]
    questions = {}
    for section in sections:
        _, *lines, syllables = section.partition("\n[")[0].strip().split("\n")
        parts = [tuple(line.split("|")) for line in lines]
        groups = tuple(zip(parts[::2], parts[1::2], strict=True))
        questions[section[:2]] = Questions(groups, tuple(syllables.split() if " " in syllables else syllables))
    return questions


TRAIN_QUESTIONS = read_questions("train")
TEST_QUESTIONS = read_questions("test")


def draw_unknown_question(
    rng: random.Random, language: str | None = None, questions: dict[str, Questions] = TRAIN_QUESTIONS
) -> str:
    """A question that the pocket pair cannot answer, whatever the picture shows.

    Questions in other languages than English and Chinese, and texts without a word, count as English; the latter as
    Chinese if their punctuation is full-width.

    Args:
        rng: source of randomness.
        language: "en" or "zh"; by default drawn.
        questions: `TRAIN_QUESTIONS` or `TEST_QUESTIONS`. They share no template, topic or syllable.

    Returns:
        The question in one of the forms of `vary`.
    """
    language = language or rng.choice(LANGUAGES)
    groups, space = questions[language].groups, " " if language == "en" else ""

    def question() -> str:
        templates, topics = rng.choice(groups)
        return rng.choice(templates).format(rng.choice(topics), m=rng.randint(2, 99), n=rng.randint(2, 99))

    form = rng.random()
    if form < 0.8:
        text = question()
    elif form < 0.87:  # long and rambling
        text = space.join(question() for _ in range(rng.randint(3, 7)))
    elif form < 0.94:  # words without a sentence
        text = space.join(rng.choice(rng.choice(groups)[1]) for _ in range(rng.randint(2, 6)))
    else:  # no words at all
        lengths = [rng.randint(1, 3) for _ in range(rng.randint(1, 4))]
        text = space.join("".join(rng.choices(questions[language].syllables, k=length)) for length in lengths)
    # "ok, thanks." and "Hi, ?" would be other requests
    return vary(rng, text, language, polite=len(text) > (12 if language == "en" else 5))


#: System prompts; none changes what the right answer is.
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful and friendly assistant.", "Be brief.", "Answer in one word.",
    "Only give the answer.", "Do not explain.", "You look at pictures and answer questions.", "Keep answers short.",
    "You are an AI that reads small drawings.", "Answer the question of the user.", "Look carefully, then answer.",
    "If you do not know, say so.", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "你是一个有用的助手。", "你是友好的人工智能助手。", "请简短回答。", "只给出答案，不要解释。", "请仔细看图再回答。",
    "回答用户的问题。", "不知道就说不知道。",
)  # fmt: skip
_ROLES = {
    "en": (
        "a {} assistant",
        "an expert in {}",
        "a bot for {}",
        "the {} of our company",
        "a teacher of {}",
        "a tool that helps with {}",
    ),
    "zh": ("{}助手", "{}专家", "{}老师", "我们公司的{}客服", "帮助用户处理{}的工具"),
}
_FIELDS = {
    "en": (
        "patient",
        "math",
        "travel",
        "cooking",
        "polite",
        "science",
        "support",
        "quiet",
        "modern",
        "banking",
        "music",
        "art",
    ),
    "zh": ("数学", "旅行", "做饭", "耐心的", "礼貌的", "科学", "银行", "音乐", "绘画", "客服", "历史", "体育"),
}
_STYLES = {
    "en": ("Write {}.", "Use {} language.", "Stay {}.", "Reply in a {} way.", "Be {} and {}.", "Never be {}."),
    "zh": ("回答要{}。", "语言要{}。", "请保持{}。", "说话{}、{}。"),
}
_MANNERS = {
    "en": (
        "short",
        "plain",
        "kind",
        "formal",
        "clear",
        "friendly",
        "exact",
        "calm",
        "simple",
        "honest",
        "funny",
        "strict",
    ),
    "zh": ("简短", "清楚", "友好", "正式", "准确", "简单", "诚实", "冷静", "严格", "温和"),
}
_FACTS = {
    "en": (
        "Today is {}-{:02}-{:02}.",
        "It is {}, month {}, day {}.",
        "Version {}.{}.{}.",
        "The user's number is {}{}{}.",
        "Session {} of {}, room {}.",
    ),
    "zh": ("今天是{}年{}月{}日。", "会话编号{}-{}-{}。", "版本{}.{}.{}。"),
}


def draw_system_prompt(rng: random.Random) -> str:
    """Draw a system prompt that does not change the right answer: one of `SYSTEM_PROMPTS`, or random sentences."""
    if rng.random() < 0.3:
        return rng.choice(SYSTEM_PROMPTS)
    language = rng.choice(LANGUAGES)

    def sentence() -> str:
        form = rng.random()
        if form < 0.35:
            role = rng.choice(_ROLES[language]).format(rng.choice(_FIELDS[language]))
            return f"You are {role}." if language == "en" else f"你是{role}。"
        if form < 0.65:
            template = rng.choice(_STYLES[language])
            return template.format(*rng.sample(_MANNERS[language], template.count("{}")))
        if form < 0.8:
            return rng.choice(_FACTS[language]).format(rng.randint(2019, 2031), rng.randint(1, 12), rng.randint(1, 28))
        templates, topics = rng.choice(TRAIN_QUESTIONS[language].groups)
        return rng.choice(templates).format(rng.choice(topics), m=rng.randint(2, 99), n=rng.randint(2, 99))

    text = (" " if language == "en" else "").join(sentence() for _ in range(rng.choice((1, 1, 2, 2, 3, 5))))
    return rng.choice((text, text, text.lower(), text.rstrip(STOPS)))


#: System prompts for tests only.
UNSEEN_SYSTEM_PROMPTS = (
    "You are a careful visual assistant. Reply concisely.", "You work for a school and help children.", "Be precise!",
    "Current date: 2026-03-14. The user's name is Anna.", "Respond without extra commentary.", "act as an expert",
    "你是一位细心的老师。", "回复尽量简洁、准确。", "当前用户来自手机应用。", "你擅长识别图像。",
)  # fmt: skip


def _words() -> tuple[str, ...]:
    texts = [
        text for texts in (*REPLIES.values(), *REQUESTS.values(), *SHAPE_NAMES.values()) for text in texts.values()
    ]
    texts += [name.removesuffix("s") for name in SHAPE_NAMES["en"].values()] + [CHINESE_NUMBERS, WIDE]
    texts += [*NUMBER_WORDS, *SYSTEM_PROMPTS, *(part for pairs in POLITE.values() for pair in pairs for part in pair)]
    templates = [template for templates, _ in TRAIN_QUESTIONS["en"].groups for template in templates]
    used = Counter(word for template in templates for word in set(WORD.findall(FIELD.sub("", template))))
    words = set(WORD.findall(FIELD.sub("", " ".join(texts)))) | {word for word, count in used.items() if count >= 3}
    return tuple(sorted(words | {word.lower() for word in words}))


#: Words of the fixed texts and frequent words of unknown questions, also in lower case, and Chinese characters. The
#: tokenizer should know them; it spells other words in characters.
WORDS = _words()
