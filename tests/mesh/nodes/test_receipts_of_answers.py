"""Receipts between whole nodes: signed where the answer is made, checked where it arrives, and verified without any node."""

import json
from pathlib import Path

import pytest
import trio
from mesh_nodes import MODEL, TEXT, MeshNode, PlannedEngine, Start, introduced, request, text_of

from mesh.cli import run
from mesh.inference import request_over
from mesh.receipts import CONTENTS_BYTES_MAX, RECEIPTS_MAX, Examination, ReceiptBook
from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.inference import Finished, TextDelta
from protocol.receipts import open_receipt
from protocol.wire.inference import PROTOCOL_ID

OTHER = Identity.from_seed(bytes([55]) * 32)


async def asked(start: Start) -> tuple[MeshNode, MeshNode, object]:
    """A node without engines, the one that answered it, and the response."""
    answering = await start(PlannedEngine())
    asking = await start(join=(answering,))
    await introduced(asking, answering)
    return asking, answering, await asking.chat()


def written(node: MeshNode, response, path: Path, *, content: bool = True) -> Path:
    """The receipt's file, as `receipt show --out` writes it."""
    told = node.service.dispatcher.receipt(response.headers["x-request-id"], content=content)
    assert told is not None
    path.write_text(json.dumps(told))
    return path


def verified(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = run(["receipt", "verify", str(path), "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


async def test_the_answer_of_a_peer_ends_with_a_receipt_that_proves_it(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking, answering, response = await asked(start)
    assert text_of(response) == TEXT
    path = written(asking, response, tmp_path / "receipt.json")
    code, finding = verified(path, capsys)
    assert code == 0
    assert finding["wrong"] == []
    receipt = finding["receipt"]
    assert (receipt["requester"], receipt["executor"]) == (asking.name, answering.name)
    assert (receipt["model"], receipt["prompt_tokens"], receipt["completion_tokens"]) == (MODEL, 7, 3)
    assert receipt["request_id"] == response.headers["x-request-id"]
    assert len(finding["proven"]) == 3
    assert any("which weights" in line for line in finding["not_proven"])
    assert asking.faults() == {}


async def test_the_gateway_and_the_command_show_it(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking, _, response = await asked(start)
    where = ["--gateway", asking.ready.gateway]
    out = tmp_path / "out.json"

    def show(*arguments: str) -> int:
        return run(["receipt", "show", *arguments, *where])

    request_id = response.headers["x-request-id"]
    assert await trio.to_thread.run_sync(lambda: show(request_id, "--content", "--out", str(out))) == 0
    assert "good" in capsys.readouterr().out
    assert run(["receipt", "verify", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Proven" in shown
    assert "Not proven" in shown
    assert await trio.to_thread.run_sync(lambda: show("0123")) == 1
    assert "There is no receipt" in capsys.readouterr().err


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_whatever_is_changed_in_the_file_is_wrong(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking, _, response = await asked(start)
    path = written(asking, response, tmp_path / "receipt.json")
    good = json.loads(path.read_text())

    def code_of(**changes: object) -> int:
        path.write_text(json.dumps(good | changes))
        return verified(path, capsys)[0]

    assert code_of() == 0
    words = good["receipt"] | {"completion_tokens": 4}
    answer = good["answer"]
    asked_other = good["request"] | {"model": "n"}
    signed = good["signed"]
    at = len(signed) // 2
    flipped = signed[:at] + ("A" if signed[at] != "A" else "B") + signed[at + 1 :]
    for changes in (
        {"receipt": words},
        {"signed": flipped},
        {"signed": "no base64"},
        {"request": asked_other},
        {"answer": answer[:-1]},
        {"answer": [answer[1], answer[0], *answer[2:]]},
        {"answer": [answer[0] | {"text": "Space "}, *answer[1:]]},
        {"answer": "Time is distance."},
    ):
        assert code_of(**changes) == 1, changes
    assert code_of() == 0


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_content_may_come_from_another_file(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking, _, response = await asked(start)
    bare = written(asking, response, tmp_path / "bare.json", content=False)
    full = written(asking, response, tmp_path / "full.json")
    code, finding = verified(bare, capsys)
    assert code == 0
    assert len(finding["proven"]) == 1
    code, finding = verified(bare, capsys, "--request", str(full), "--answer", str(full))
    assert code == 0
    assert len(finding["proven"]) == 3
    assert run(["receipt", "verify", str(bare), "--answer", str(bare)]) == 1
    assert 'has no "answer"' in capsys.readouterr().err
    (tmp_path / "none.json").write_text('{"format": "something"}')
    assert run(["receipt", "verify", str(tmp_path / "none.json")]) == 1
    assert "is no receipt" in capsys.readouterr().err


async def test_a_wrong_receipt_is_the_peers_fault_and_is_told(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = await start(PlannedEngine())
    asking = await start(join=(answering,))
    await introduced(asking, answering)
    answering.service.dispatcher._identity = OTHER  # it signs as somebody else
    response = await asking.chat()
    assert text_of(response) == TEXT
    assert asking.faults() == {"bad_signature": 1}
    (candidate,) = [c for c in asking.route(response).candidates if c.peer_id == answering.peer_id]
    assert candidate.outcome == "answered, and its receipt is wrong: the receipt is for another executing peer"
    told = asking.service.dispatcher.receipt(response.headers["x-request-id"], content=False)
    assert told is not None
    assert told["checked"] == "the receipt is for another executing peer"


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_who_signs_wrong_receipts_again_and_again_is_turned_away(start: Start) -> None:
    answering = await start(PlannedEngine())
    asking = await start(join=(answering,))
    await introduced(asking, answering)
    answering.service.dispatcher._identity = OTHER
    conduct, now = asking.service.transport.endpoint.conduct, asking.service.transport.now
    for _ in range(3):
        assert text_of(await asking.chat()) == TEXT
    assert not conduct.is_banned(answering.peer_id, now())
    assert text_of(await asking.chat()) == TEXT
    assert conduct.is_banned(answering.peer_id, now())
    assert answering.peer_id not in asking.service.transport.connections


async def test_an_answer_of_this_node_itself_has_a_receipt_too(start: Start) -> None:
    node = await start(PlannedEngine())
    response = await node.chat()
    told = node.service.dispatcher.receipt(response.headers["x-request-id"], content=False)
    assert told is not None
    assert told["checked"] == "good"
    assert told["receipt"]["requester"] == told["receipt"]["executor"] == node.name


async def test_who_does_not_ask_for_a_receipt_gets_none(start: Start) -> None:
    answering = await start(PlannedEngine())
    asking = await start(join=(answering,))
    await introduced(asking, answering)
    for wanted in (False, True):
        async with asking.service.dispatcher.submit(request(receipt=wanted)) as answer:
            replies = [reply async for reply in answer]
        end = replies[-1]
        assert isinstance(end, Finished)
        assert bool(end.receipt) is wanted
    assert open_receipt(end.receipt).outputs == 3


async def test_a_receipt_is_passed_on_as_it_is(start: Start) -> None:
    answering = await start(PlannedEngine())
    passing = await start(join=(answering,))
    await introduced(passing, answering)
    async with start.stranger(88) as transport:
        connection = await transport.dial(passing.address)
        asked_for = request(hops_left=1, receipt=True)
        async with request_over(await connection.open_stream(PROTOCOL_ID), asked_for) as replies:
            end = [reply async for reply in replies][-1]
    assert isinstance(end, Finished)
    receipt = open_receipt(end.receipt)
    assert (receipt.executor, receipt.requester) == (answering.peer_id, passing.peer_id)
    assert receipt.request_id == asked_for.request_id


def test_receipts_and_what_they_are_for_are_kept_within_bounds() -> None:
    book = ReceiptBook()
    text = TextDelta("x" * 900_000)

    def keep(number: int) -> str:
        examination = Examination(request(request_id=number.to_bytes(16, "big")), (PeerId(b"me"),), None)
        examination.add(text)
        book.keep(b"signed", "", examination)
        return number.to_bytes(16, "big").hex()

    names = [keep(number) for number in range(40)]
    kept = [name for name in names if "answer" in (book.show(name, content=True) or {})]
    assert kept == names[-len(kept) :]
    assert 30 < len(kept) <= CONTENTS_BYTES_MAX // 900_000
    assert all(book.show(name, content=False) is not None for name in names)
    for number in range(40, RECEIPTS_MAX + 10):
        keep(number)
    assert book.show(names[0], content=False) is None
    assert book.show(names[-1], content=False) is not None
    assert book._held_bytes <= CONTENTS_BYTES_MAX


def test_what_is_too_large_is_hashed_and_not_kept() -> None:
    examination = Examination(request(), (PeerId(b"me"),), None)
    for _ in range(3):
        examination.add(TextDelta("x" * 600_000))
    assert examination.outputs is None
    assert examination._chain.outputs == 3
    assert examination.held_bytes == 0
    assert examination.judge(b"").code is ErrorCode.MALFORMED
