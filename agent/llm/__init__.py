"""The language model that proposes: a chat model behind any OpenAI-compatible endpoint."""

from agent.llm.client import ChatModel, Message
from agent.llm.endpoint import Endpoint, EndpointError, Price, Secret, charge
from agent.llm.reply import Reply

__all__ = ["ChatModel", "Endpoint", "EndpointError", "Message", "Price", "Reply", "Secret", "charge"]
