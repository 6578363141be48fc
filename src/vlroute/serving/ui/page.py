"""The page while it is built: who answers, and the texts of each component in each language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import gradio as gr

from vlroute.decision.selector import ModeSelector
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import FrameSampling
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.serving.settings import ServerSettings
from vlroute.serving.ui.examples import Example
from vlroute.serving.ui.session import Session
from vlroute.serving.ui.texts import TEXTS, Texts
from vlroute.types import Decision, Events

if TYPE_CHECKING:
    from vlroute.store import Store

Words = Callable[[Texts], dict[str, Any]]
"""Returns the arguments of a component that depend on the language."""
Drawing = dict[Any, dict[str, Any]]
"""Changed arguments by component."""


class Answerer(Protocol):
    """What answers for the page: a `Router`, or a `Service` in front of one. Errors are `VLRouteError`."""

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        ...

    def sampling(self) -> FrameSampling:
        """Frame sampling of videos."""
        ...

    @property
    def selector(self) -> ModeSelector:
        """Decides the mode."""
        ...

    @property
    def store(self) -> Store | None:
        """The store of answers; None if answers are not stored."""
        ...

    def stream_turn(self, prepare: Callable[[], Conversation], options: RequestOptions) -> Events:
        """The events of the answer to the conversation that `prepare` makes, as soon as there is room for its media.

        Closing the iterator cancels the generation.
        """
        ...

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """The decision for `conversation`, without an answer."""
        ...

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None, key: str = "") -> None:
        """Store whether an answer was right."""
        ...


class Page:
    """The page in one initial language. A visitor can change it without losing anything.

    Args:
        answerer: Who answers.
        settings: Limits of the requests.
        examples: Questions for the empty conversation, by language.
        language: The language at first.

    Attributes:
        session: The `Session` of each visitor.
        price: The price of each visitor, or None for that of the policy.
    """

    def __init__(
        self, answerer: Answerer, settings: ServerSettings, examples: Mapping[str, Sequence[Example]], language: str
    ) -> None:
        self.answerer, self.settings, self.examples, self.language = answerer, settings, examples, language
        self.session, self.price = gr.State(Session(language)), gr.State(None)
        self._words: list[tuple[Any, Words]] = []
        self._drawings: list[tuple[list[Any], list[Any], Callable[..., Drawing]]] = []

    @property
    def predicted(self) -> bool:
        """Whether a router artifact predicts the gain."""
        return self.answerer.selector.classifier is not None

    def add(self, kind: Callable[..., Any], words: Words, **options: Any) -> Any:
        """Add a component with texts to the current Blocks.

        Args:
            kind: Its class.
            words: Its arguments that depend on the language.
            **options: Its other arguments.

        Returns:
            The component.
        """
        component = kind(**words(TEXTS[self.language]), **options)
        self._words.append((component, words))
        return component

    def problem(self, name: str) -> gr.HTML:
        """Add the place where `Caught(session, name)` shows its error."""
        place = gr.HTML("", elem_id=f"{name}-problem", elem_classes="problem-place", padding=False)
        self.redraw([], [place], lambda session: {place: {"value": session.problem(name)}})
        return place

    def redraw(self, inputs: Sequence[Any], outputs: Sequence[Any], draw: Callable[..., Drawing]) -> None:
        """Draw what depends on the state of a visitor again when the language is changed.

        Args:
            inputs: Components with the state.
            outputs: The components that may change.
            draw: Called with the session and the values of `inputs`; returns changed arguments by component.
        """
        self._drawings.append((list(inputs), list(outputs), draw))

    def change_language_on(self, button: gr.Button) -> None:
        """Let a button change the language. Call it after all components were added."""
        inputs = [one for components, _, _ in self._drawings for one in components]
        outputs = [component for component, _ in self._words] + [one for _, drawn, _ in self._drawings for one in drawn]

        def change(session: Session, *values: Any) -> dict[Any, Any]:
            session.language = next(language for language in TEXTS if language != session.language)
            changed: Drawing = {component: words(session.texts) for component, words in self._words}
            given = iter(values)
            for components, _, draw in self._drawings:
                for component, arguments in draw(session, *(next(given) for _ in components)).items():
                    changed[component] = changed.get(component, {}) | arguments
            return {component: gr.update(**arguments) for component, arguments in changed.items()}

        button.click(
            change, [self.session, *inputs], list(dict.fromkeys(outputs)), queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
