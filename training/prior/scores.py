"""What is published about the 2B pair, benchmark by benchmark, and how much each mode is assumed to write."""

from __future__ import annotations

from dataclasses import dataclass

from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL
from vlroute.types import Mode

REPORT = "Qwen3-VL technical report, Qwen3-VL-2B Instruct and Thinking"
HANDS_ON = "an earlier hands-on comparison of the two modes"


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds an answer took in the hands-on comparison, for one kind of work: the only lengths we have.

    AN ASSUMPTION, not a measurement of tokens: how much each mode writes is not published. `tokens` is what would take
    these seconds at the pace the library assumes where nothing was timed, so that a decision of the prior weighs the
    seconds that were seen. Real Thinking answers may be far longer.
    """

    instruct: float
    thinking: float

    def tokens(self, mode: Mode) -> int:
        seconds: float = getattr(self, mode)
        return round((seconds - ASSUMED_PREFILL) / ASSUMED_PER_TOKEN)


LOOK = Effort(0.78, 1.12)  # OCR: one look, or several of the same kind
FIGURES = Effort(0.91, 2.04)  # geometry and algebra
TAPS = Effort(0.85, 1.87)  # GUI path
FRAMES = Effort(1.23, 2.41)  # video key frames
STEPS = Effort(1.05, 2.33)  # multi-hop: several looks that build on each other


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Share answered correctly by each mode, 0 to 1. `options`: how many a multiple-choice question offers."""

    name: str
    family: str
    instruct: float
    thinking: float
    effort: Effort
    options: int = 4
    source: str = REPORT


BENCHMARKS = (
    Benchmark("MMMU", "college", 0.534, 0.614, STEPS),
    Benchmark("MMMU-Pro", "college", 0.365, 0.425, STEPS, options=10),
    Benchmark("MathVista", "math", 0.613, 0.736, FIGURES),
    Benchmark("MathVision", "math", 0.316, 0.459, FIGURES, options=5),
    Benchmark("MathVerse", "math", 0.521, 0.669, FIGURES),
    Benchmark("LogicVista", "logic", 0.358, 0.500, STEPS),
    Benchmark("ChartQA", "chart", 0.791, 0.866, STEPS),
    Benchmark("CharXiv-RQ", "chart", 0.268, 0.371, STEPS),
    Benchmark("InfoVQA", "infographic", 0.724, 0.771, STEPS),
    Benchmark("DocVQA", "document", 0.933, 0.929, LOOK),
    Benchmark("OCRBench", "ocr", 0.858, 0.792, LOOK),  # published out of 1000
    Benchmark("CountBench", "count", 0.884, 0.841, LOOK),
    Benchmark("VLMsAreBlind", "blind", 0.560, 0.500, LOOK),
    Benchmark("MuirBench", "multi_image", 0.474, 0.681, STEPS),
    Benchmark("ERQA", "robotics", 0.283, 0.418, STEPS),
    Benchmark("RealWorldQA", "scene", 0.639, 0.695, STEPS),
    Benchmark("VSI-Bench", "video_space", 0.539, 0.480, FRAMES),
    Benchmark("Video-MME", "video", 0.619, 0.621, FRAMES),
    Benchmark("MVBench", "video", 0.617, 0.645, FRAMES),
    Benchmark("MMBench", "general", 0.784, 0.799, LOOK),
    Benchmark("MMStar", "general", 0.583, 0.681, STEPS),
    Benchmark("SimpleVQA", "fact", 0.407, 0.436, STEPS),  # first recognise, then recall
    # two kinds of request that no published benchmark of the pair stands for
    Benchmark("GUI path", "gui", 0.750, 0.900, TAPS, source=HANDS_ON),
    Benchmark("Multi-hop", "hop", 0.620, 0.784, STEPS, source=HANDS_ON),
)
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
