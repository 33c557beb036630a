"""The language model that proposes: a chat model behind any OpenAI-compatible endpoint."""

from agent.llm.client import ChatModel
from agent.llm.endpoint import Endpoint, EndpointError, Price, Secret, charge
from agent.llm.form import Message
from agent.llm.prices import Quote, quote
from agent.llm.reply import Reply
from agent.llm.transcript import Replay, Transcript

__all__ = [
    "ChatModel",
    "Endpoint",
    "EndpointError",
    "Message",
    "Price",
    "Quote",
    "Replay",
    "Reply",
    "Secret",
    "Transcript",
    "charge",
    "quote",
]
