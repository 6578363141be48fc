"""Pydantic AI's agents over OpenAI's chat completions."""

from cells import KEY, PICTURE, QUESTION, TURNS, URL, refusals, run, same
from pydantic_ai import Agent, BinaryContent, ModelHTTPError
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)


def agent(name, **settings):
    model = OpenAIChatModel(name, provider=provider, settings=OpenAIChatModelSettings(**settings))
    return Agent(model, system_prompt="Be brief.")


def plain():
    return agent("instruct", temperature=0.0, max_tokens=64).run_sync(QUESTION).output


def stream():
    answer = agent("instruct", temperature=0.0).run_stream_sync(QUESTION)
    return same("".join(answer.stream_text(delta=True)), plain())


def picture():
    return agent("auto").run_sync([QUESTION, BinaryContent(PICTURE.read_bytes(), media_type="image/png")]).output


def turns():
    history = []
    for name, question in TURNS:
        history = agent(name).run_sync(question, message_history=history).all_messages()
    return agent("auto").run_sync(QUESTION, message_history=history).output


def reasoning():
    answer = agent("auto", openai_reasoning_effort="low").run_sync(QUESTION)
    off = agent("auto", extra_body={"chat_template_kwargs": {"enable_thinking": False}}).run_sync(QUESTION)
    thoughts = [[part.content for message in one.all_messages() for part in message.parts
                 if isinstance(part, ThinkingPart)] for one in (answer, off)]  # fmt: skip
    assert not thoughts[1]
    return "".join(thoughts[0])


def errors():
    return refusals(lambda name, **body: agent(name, **body).run_sync(QUESTION), ModelHTTPError)


run("pydantic-ai-slim", globals())
