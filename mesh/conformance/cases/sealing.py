"""Chapter 10: receipts, as a requester sees them; what is sealed takes more peers than the suite is.

Spec: docs/spec/10-sealing.md.
"""

from mesh.conformance.inference import answer, begin, request, text_model
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import NotApplicable, Unmet, case, expect
from protocol.errors import RemoteProtocolError
from protocol.inference import Finished, JsonDelta, TensorsReady, TextDelta
from protocol.receipts import AnswerChain, check_receipt, open_receipt
from protocol.wire.inference import decode_request


@case("ISO-SEAL-020")
async def an_answer_ends_with_a_receipt_where_one_is_wanted(peer: ScriptedPeer) -> None:
    """A chat with the wish for a receipt ends with one over the question and the answer; one without the wish has none."""
    model = text_model(peer)
    for wanted in (True, False):
        message = request(model, receipt=wanted)
        replies = await answer(await begin(await peer.dial(), message), "the answer to a request for a receipt")
        end = replies[-1]
        if not isinstance(end, Finished):
            raise NotApplicable(f"the model does not answer: {end}")
        expect(bool(end.receipt) is wanted, f"a receipt: {wanted}", end.receipt)
        if not wanted:
            continue
        chain = AnswerChain()
        for reply in replies:
            if isinstance(reply, TextDelta | JsonDelta | TensorsReady):
                chain.add(reply)
        try:
            check_receipt(
                open_receipt(end.receipt), decode_request(message), chain, (peer.identity.peer_id, peer.subject.peer_id), None
            )
        except RemoteProtocolError as fault:
            raise Unmet("a receipt over what was asked and answered", fault) from fault
