"""The only way out of a container: an HTTP server on a Unix socket, which holds the key, the limits and the budget.

    with Gateway(endpoint, price, Judge(("A", "B"), store), transcript=file).open() as door:
        ...  # run one job that has door.directory mounted; docker/bench/forward.py makes it an http:// address inside
    gateway.report()

A job may ask for POST /v1/chat/completions and GET /v1/models, nothing else. It chooses neither the endpoint nor the
headers, and of models only "strong" or "weak" where it writes data; in the role of the judge it chooses no setting.

    agent/gateway/gateway.py      the two roles, what becomes of a request, and the account of it all
    agent/gateway/judge.py        what counts as a verdict
    agent/gateway/upstream.py     the endpoint behind it: concurrency, rate, patience, money, and when it is given up
    agent/gateway/server.py       HTTP on a Unix socket that only the job's user can open
    agent/gateway/files.py        the stores of verdicts and answers, and the transcript
"""

from agent.gateway.files import AnswerStore
from agent.gateway.gateway import Chat, Gateway, Judge, Judged
from agent.gateway.judge import UNSCORED
from agent.gateway.server import Door
from agent.gateway.upstream import Limits

__all__ = ["UNSCORED", "AnswerStore", "Chat", "Door", "Gateway", "Judge", "Judged", "Limits"]
