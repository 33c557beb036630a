"""The language model that proposes: a chat model behind any OpenAI-compatible endpoint."""

from agent.llm.client import ChatModel
from agent.llm.endpoint import ContextOverflow, Endpoint, EndpointError, Price, Secret, charge
from agent.llm.form import Message
from agent.llm.prices import Quote, quote
from agent.llm.reply import Reply, ToolCall, asked_tools
from agent.llm.transcript import Replay, Transcript

__all__ = [
    "ChatModel",
    "ContextOverflow",
    "Endpoint",
    "EndpointError",
    "Message",
    "Price",
    "Quote",
    "Replay",
    "Reply",
    "Secret",
    "ToolCall",
    "Transcript",
    "asked_tools",
    "charge",
    "quote",
]
