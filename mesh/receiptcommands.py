"""The commands for receipts: `isochrone receipt show` asks the node that runs here, `isochrone receipt verify` needs no node."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from mesh.nodefile import ClientError
from mesh.receipts import FILE_FORMAT, receipt_json
from mesh.tables import facts_table
from mesh.where import Where
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_text
from protocol.inference import Feature, JsonDelta, Output, Tensor, TensorsReady, TextDelta
from protocol.receipts import AnswerChain, Receipt, hash_request, open_receipt

FILE_BYTES_MAX = 64 << 20
"""Bytes of a file that is read: a receipt with the largest answer that a node keeps, in base64, many times over."""

EXIT_WRONG = 1
"""Exit code: the receipt, or what it is said to be for, is not what was signed."""

receipt_app = App(
    name="receipt", help="What the peer that answered has signed of its answer: show it, keep it, check it offline."
)


@receipt_app.command
def show(
    request_id: Annotated[str, Parameter(help="The x-request-id of an answer; `ask` and `embed` print it.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Write the receipt's file here, for `receipt verify`.")] = None,
    content: Annotated[bool, Parameter(negative="", help="With the request and the answer, which the file then proves.")] = False,
    where: Where | None = None,
) -> int:
    """Show the receipt of an answer that this node's clients had.

    The node keeps the receipts of its last thousand answers, and what the last of them were for as long as there is room.

    For example:

        isochrone receipt show 4f1c…
        isochrone receipt show 4f1c… --content --out answer.json
    """
    where = where or Where()
    if not request_id.replace("-", "").isalnum():
        raise ClientError(f"{request_id!r} is no request id; take it from the x-request-id header of an answer")
    with where.client() as client:
        answer = client.get(f"/mesh/receipt/{request_id}" + ("?content=1" if content else ""))
    if content and "answer" not in answer:
        raise ClientError("the node no longer has the content of this request, or it was too large; ask without --content")
    if out is not None:
        try:
            out.write_text(json.dumps(answer, indent=1) + "\n")
        except OSError as error:
            raise ClientError(f"cannot write {out} ({error.strerror}); choose another file with --out") from error
    facts = {"checked": answer.get("checked"), **answer.get("receipt", {})}
    return where.show(answer, lambda: facts_table(f"Receipt of {request_id}", facts))


@receipt_app.command
def verify(
    file: Annotated[Path, Parameter(help="What `receipt show --out` has written.")],
    /,
    *,
    request: Annotated[Path | None, Parameter(help="File with the request, where the receipt's own has none.")] = None,
    answer: Annotated[Path | None, Parameter(help="File with the answer, where the receipt's own has none.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False,
) -> int:
    """Check a receipt without any node: its signature, its words, and the request and the answer where they are given.

    A file of `receipt show --content` is request, answer and receipt in one; --request and --answer read them from another such
    file. It says what is proven and what is not. Exit code 1 means that something is not what was signed.

    For example:

        isochrone receipt verify answer.json
        isochrone receipt verify receipt.json --request answer.json --answer answer.json
    """
    whole = read_file(file)
    asked = whole.get("request") if request is None else read_file(request).get("request")
    told = whole.get("answer") if answer is None else read_file(answer).get("answer")
    for given, found, what in ((request, asked, "request"), (answer, told, "answer")):
        if given is not None and found is None:
            raise ClientError(f'{given} has no "{what}": give a file of `isochrone receipt show --content`')
    finding = examine(whole, asked, told)
    if as_json:
        print(json.dumps(finding.as_json()))
    else:
        console = Console()
        if finding.receipt is not None:
            console.print(facts_table(f"Receipt in {file}", receipt_json(finding.receipt)))
        for title, lines in (("Wrong", finding.wrong), ("Proven", finding.proven), ("Not proven", finding.unproven)):
            for line in lines:
                console.print(f"{title}: {line}", markup=False, highlight=False)
    return EXIT_WRONG if finding.wrong else os.EX_OK


@dataclass(slots=True)
class Finding:
    """What came of a check."""

    receipt: Receipt | None = None
    wrong: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        words = None if self.receipt is None else receipt_json(self.receipt)
        return {
            "good": not self.wrong,
            "wrong": self.wrong,
            "proven": self.proven,
            "not_proven": self.unproven,
            "receipt": words,
        }


def examine(whole: Mapping[str, Any], asked: object, told: object) -> Finding:
    """Check a receipt's file against itself, and against a request and an answer where there are such.

    Raises:
        ClientError: the file is none of a receipt.
    """
    finding = Finding()
    if whole.get("format") != FILE_FORMAT or not isinstance(whole.get("signed"), str):
        raise ClientError(
            'the file is no receipt; it would have "format" and "signed", as `isochrone receipt show --out` writes them'
        )
    try:
        receipt = finding.receipt = open_receipt(_bytes64(whole["signed"]))
    except (RemoteProtocolError, ValueError) as error:
        finding.wrong.append(f"the signature or what it is of: {error}")
        return finding
    if whole.get("receipt", receipt_json(receipt)) != receipt_json(receipt):
        finding.wrong.append("what the file says in words is not what was signed; the table shows what was")
    executor, requester = peer_id_text(receipt.executor), peer_id_text(receipt.requester)
    finding.proven.append(
        f"{executor} has signed that it answered the request {receipt.request_id.hex()} of {requester} with {receipt.model!r}"
    )
    _examine_request(finding, receipt, asked)
    _examine_answer(finding, receipt, told)
    finding.unproven.append("that the model ran which is named: the peer says so, and a peer that cheats can sign that too")
    if not receipt.model_digest:
        finding.unproven.append("with which weights: the engine does not tell")
    finding.unproven.append("token counts and times: they are the peer's own word")
    return finding


def _examine_request(finding: Finding, receipt: Receipt, asked: object) -> None:
    if asked is None:
        finding.unproven.append("what was asked: give the request, and its hash is compared")
        return
    try:
        hashed = _hash_of_request(asked)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        finding.wrong.append("the request in the file cannot be read")
        return
    if hashed == receipt.request_hash:
        finding.proven.append("this request is what was asked: its hash is the signed one")
    else:
        finding.wrong.append(f"the request: its hash is {hashed.hex()}, signed was {receipt.request_hash.hex()}")


def _examine_answer(finding: Finding, receipt: Receipt, told: object) -> None:
    if told is None:
        finding.unproven.append("what was answered: give the answer, and its chain of hashes is compared")
        return
    chain = AnswerChain()
    try:
        for output in map(_output, _list(told)):
            chain.add(output)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        finding.wrong.append("the answer in the file cannot be read")
        return
    if (chain.link, chain.outputs) == (receipt.answer_hash, receipt.outputs):
        finding.proven.append("this answer is what was answered, whole and in this order: its chain of hashes is the signed one")
    else:
        finding.wrong.append(
            f"the answer: {chain.outputs} outputs lead to {chain.link.hex()}, signed were {receipt.outputs} and "
            f"{receipt.answer_hash.hex()}"
        )


def read_file(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ClientError: there is none in it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ClientError(f"cannot read {path} ({error.strerror})") from error
    if len(content) > FILE_BYTES_MAX:
        raise ClientError(f"{path} is larger than {FILE_BYTES_MAX} bytes and so no receipt")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{path} is no JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ClientError(f"{path} holds no JSON object; give a file of `isochrone receipt show --out`")
    return value


def _hash_of_request(asked: Any) -> bytes:
    tensors = [_tensor(item) for item in _list(asked["tensors"])]
    return hash_request(Feature(asked["feature"]), str(asked["model"]), _bytes64(asked["body"]), tensors)


def _output(item: Any) -> Output:
    if "text" in item:
        return TextDelta(str(item["text"]), int(item["index"]))
    if "json" in item:
        return JsonDelta(_bytes64(item["json"]))
    return TensorsReady(tuple(_tensor(tensor) for tensor in _list(item["tensors"])))


def _tensor(item: Any) -> Tensor:
    shape = tuple(int(size) for size in _list(item["shape"]))
    data = _bytes64(item["data"])
    if prod(shape) > len(data):
        raise ValueError("a tensor with less data than its shape says")
    return Tensor(str(item["name"]), str(item["dtype"]), shape, memoryview(data))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no array")
    return value


def _bytes64(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error
