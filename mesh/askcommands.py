"""The commands that ask the node here and show its answer: status, peers, models, explain, ask and embed."""

import base64
import json
import os
import struct
import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from mesh import advice
from mesh.gatewayclient import GatewayClient
from mesh.nodefile import ClientError
from mesh.plain import printable
from mesh.tables import CANDIDATE_COLUMNS, MODEL_COLUMNS, PEER_COLUMNS, facts_table, rows_of, rows_table
from mesh.where import Where

TEXT_TOKENS_DEFAULT = 128
"""Tokens `ask` asks for unless told otherwise: an answer that fits a screen."""


def status(*, where: Where | None = None) -> int:
    """Show how the node here is doing.

    For example:

        isochrone status --json
    """
    where = where or Where()
    with where.client() as client:
        answer = client.get("/mesh/status")
    return where.show(answer, lambda: facts_table("This node", answer))


def peers(*, where: Where | None = None) -> int:
    """Show the peers this node knows, with their distances.

    For example:

        isochrone peers
    """
    where = where or Where()
    with where.client() as client:
        answer = client.get("/mesh/peers")
        status = client.get("/mesh/status")
    rows = rows_of(answer, "peers")
    said = advice.of_peers(rows, status, where.state_dir)
    return where.show(answer, lambda: rows_table("Peers", rows, PEER_COLUMNS) if rows else None, said)


def models(*, where: Where | None = None) -> int:
    """Show the models that can be asked for, here and at the peers.

    For example:

        isochrone models
    """
    where = where or Where()
    with where.client() as client:
        answer = client.get("/mesh/models")
    rows = rows_of(answer, "models")
    said = [] if rows else advice.no_models(where.state_dir)
    return where.show(answer, lambda: rows_table("Models", rows, MODEL_COLUMNS) if rows else None, said)


def explain(
    request_id: Annotated[str, Parameter(help="The x-request-id of an answer; `ask` and `embed` print it.")],
    /,
    *,
    where: Where | None = None,
) -> int:
    """Show why a request was answered where it was: every candidate with its score, and how many were measured for it first.

    For example:

        isochrone explain 4f1c…
    """
    where = where or Where()
    if not request_id.replace("-", "").isalnum():
        raise ClientError(f"{request_id!r} is no request id; take it from the x-request-id header of an answer")
    with where.client() as client:
        answer = client.get(f"/mesh/explain/{request_id}")

    def _view() -> Any:
        facts = {key: value for key, value in answer.items() if key != "candidates"}
        Console().print(facts_table(f"Request {request_id}", facts))
        return rows_table("Candidates", rows_of(answer, "candidates"), CANDIDATE_COLUMNS)

    return where.show(answer, _view)


def ask(
    prompt: Annotated[str, Parameter(help='What to ask; "-" reads it from standard input.')],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Model id; the first that can chat if absent.")] = None,
    max_tokens: Annotated[int, Parameter(help="Longest answer in tokens.")] = TEXT_TOKENS_DEFAULT,
    where: Where | None = None,
) -> int:
    """Ask a model and print its text as it comes.

    For example:

        isochrone ask "Once upon a time"
        git diff | isochrone ask - --model my-llm --max-tokens 500
    """
    where = where or Where()
    text = sys.stdin.read() if prompt == "-" else prompt
    with where.client() as client:
        name, feature = choose_model(client, model, ("chat", "completions"))
        body: dict[str, object] = {"model": name, "stream": True, "max_tokens": max_tokens}
        chat = feature == "chat"
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        pieces = []
        for event in client.events("/v1/chat/completions" if chat else "/v1/completions", body):
            for choice in event.get("choices", [])[:1]:
                piece = choice.get("delta", {}).get("content") if chat else choice.get("text")
                pieces.append(piece or "")
                if not where.as_json:
                    print(printable(pieces[-1], keep="\n\t"), end="", flush=True)
        answer = {"model": name, "text": "".join(pieces), **client.route.as_json()}
    if where.as_json:
        print(json.dumps(answer))
    else:
        print()
        print_route(client)
    return os.EX_OK


def embed(
    text: Annotated[str, Parameter(help='What to embed; "-" reads it from standard input.')],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Model id; the first that can embed if absent.")] = None,
    where: Where | None = None,
) -> int:
    """Turn a text into an embedding vector.

    For example:

        isochrone embed "a cat on a mat" --json
    """
    where = where or Where()
    text = sys.stdin.read() if text == "-" else text
    with where.client() as client:
        name, _ = choose_model(client, model, ("embeddings",))
        answer = client.post("/v1/embeddings", {"model": name, "input": text, "encoding_format": "base64"})
    try:
        raw = base64.b64decode(answer["data"][0]["embedding"], validate=True)
        vector = [value for (value,) in struct.iter_unpack("<f", raw)]
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise ClientError("the answer is no embedding") from error
    if where.as_json:
        print(json.dumps({"model": name, "embedding": vector, **client.route.as_json()}))
    else:
        shown = ", ".join(f"{value:.4f}" for value in vector[:8])
        print(f"{len(vector)} dimensions: [{shown}{', …' if len(vector) > 8 else ''}]")
        print_route(client)
    return os.EX_OK


def choose_model(client: GatewayClient, wanted: str | None, features: tuple[str, ...]) -> tuple[str, str]:
    """Return a model and the first of `features` it can be asked for.

    A wanted model that nobody offers is returned all the same: refusing it is the gateway's part.

    Raises:
        ClientError: if no model has any of the features.
    """
    offers = [
        (str(row.get("id") or row.get("model") or ""), row.get("features") or ())
        for row in rows_of(client.get("/mesh/models"), "models")
    ]
    for feature in features:
        for name, has in offers:
            if name and feature in has and wanted in (None, name):
                return name, feature
    if wanted is not None:
        return wanted, features[0]
    raise ClientError(f"no model of the mesh offers {' or '.join(features)} now; `isochrone models` shows what there is")


def print_route(client: GatewayClient) -> None:
    """Print who answered, on stderr, so that stdout holds the answer alone."""
    route = client.route
    Console(stderr=True).print(
        printable(f"answered by {route.node or 'an unnamed node'}  {route.route}  why: isochrone explain {route.request_id}"),
        style="dim", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
