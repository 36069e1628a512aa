"""Every private name of the QUIC libraries that the engines use; an upgrade that changes one fails here and not in the field."""

import importlib.metadata
import inspect
import sys

import pytest

from protocol.errors import LocalProtocolError
from protocol.quic import choose_engine


class TestAioquic:
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    def connection(self):
        return self.QuicConnection(configuration=self.QuicConfiguration(is_client=True))

    def test_version(self):
        assert importlib.metadata.version("aioquic") == choose_engine("aioquic").version

    @pytest.mark.parametrize(
        "name",
        [
            "_local_max_streams_bidi", "_local_max_streams_uni", "_local_max_data", "_handshake_confirmed", "_state",
            "_close_event", "_loss", "_remote_max_datagram_frame_size", "_max_datagram_size",
            "_datagrams_pending", "_remote_max_streams_bidi",
            "_local_next_stream_id_bidi", "_streams", "_is_client", "_packet_number", "_crypto_streams", "_configuration",
            "host_cid",
            # those of the conformance suite
            "_remote_max_streams_uni", "_remote_max_stream_data_uni", "_remote_max_data", "_cryptos", "_version",
            "_retry_source_connection_id",
        ],
    )  # fmt: skip
    def test_connection_has(self, name):
        assert name in vars(self.connection())

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("_initialize", ["self", "peer_cid"]),
            ("_handle_ack_frame", ["self", "context", "frame_type", "buf"]),
            ("datagrams_to_send", ["self", "now"]),
            ("_handle_path_challenge_frame", ["self", "context", "frame_type", "buf"]),
            ("_handle_crypto_frame", ["self", "context", "frame_type", "buf"]),
            ("_handle_stream_frame", ["self", "context", "frame_type", "buf"]),
            ("_write_connection_limits", ["self", "builder", "space"]),
            ("_write_stream_limits", ["self", "builder", "space", "stream"]),
            ("_write_handshake_done_frame", ["self", "builder"]),
            ("_idle_timeout", ["self"]),
        ],
    )
    def test_connection_overrides(self, name, parameters):
        assert list(inspect.signature(getattr(self.QuicConnection, name)).parameters) == parameters

    def test_the_library_calls_what_is_overridden(self):
        source = inspect.getsource(sys.modules["aioquic.quic.connection"])
        for name in (
            "_initialize(",
            "_idle_timeout(",
            "_write_handshake_done_frame(",
            "_write_connection_limits(",
            "_write_stream_limits(",
            "_handle_stream_frame, EPOCHS",
        ):
            assert f"self.{name}" in source

    def test_retry_and_acknowledgements(self):
        from aioquic.buffer import Buffer
        from aioquic.quic import packet

        named = ["version", "source_cid", "destination_cid", "original_destination_cid", "retry_token", "unused"]
        assert list(inspect.signature(packet.encode_quic_retry).parameters) == named
        acknowledged, _ = packet.pull_ack_frame(Buffer(data=bytes([9, 0, 1, 2, 0, 0])))
        assert list(acknowledged) == [range(5, 6), range(7, 10)]

    def test_limits(self):
        limit = self.connection()._local_max_data
        assert {"value", "sent", "used"} <= set(vars(limit))

    def test_stream(self):
        from aioquic.quic.stream import QuicStream

        stream = QuicStream(stream_id=0)
        assert {"_buffer_start", "_buffer_stop", "_buffer_fin", "_reset_error_code"} <= set(vars(stream.sender))
        assert {"highest_offset", "is_finished", "_ranges"} <= set(vars(stream.receiver))
        assert {"max_stream_data_local", "max_stream_data_local_sent"} <= set(vars(stream))
        assert stream.receiver.starting_offset() == 0

    def test_recovery(self):
        from aioquic.quic.recovery import QuicPacketSpace

        assert {"_rtt_smoothed", "_rtt_initialized", "spaces"} <= set(vars(self.connection()._loss))
        assert QuicPacketSpace().sent_packets == {}

    def test_tls(self):
        from aioquic import tls

        context = tls.Context(is_client=False, alpn_protocols=["libp2p"])
        assert context._request_client_certificate is False
        assert context._certificate_request is None
        hello = ["input_buf", "initial_buf", "handshake_buf"]
        assert list(inspect.signature(context._server_handle_hello).parameters) == hello
        assert list(inspect.signature(context._set_peer_certificate).parameters) == ["certificate"]
        assert list(inspect.signature(context._server_expect_finished).parameters) == []
        source = inspect.getsource(tls.Context._server_handle_certificate)
        assert "self._set_peer_certificate(certificate)" in source
        assert "self._server_expect_finished()" in source
        assert "self._set_peer_certificate(certificate)" in inspect.getsource(tls.Context._client_handle_certificate)

    def test_the_idle_timeout_says_so(self):
        assert '"Idle timeout"' in inspect.getsource(self.QuicConnection.handle_timer)


class TestQh3:
    @pytest.fixture(autouse=True)
    def engine(self):
        try:
            return choose_engine("qh3")
        except LocalProtocolError as fault:
            pytest.skip(f"qh3 cannot be used here: {fault}")

    def test_version(self, engine):
        assert importlib.metadata.version("qh3") == engine.version

    def test_connection(self):
        from qh3.quic.configuration import QuicConfiguration
        from qh3.quic.connection import QuicConnection

        connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
        names = {
            "_core", "_tls", "_events", "_handshake_complete", "_handshake_confirmed", "_created_local_stream_ids",
            "_remote_addr", "_version", "_is_client", "_retry_source_connection_id", "_original_destination_connection_id",
            "_configuration",
            "_applied_transport_parameters", "_pre_handshake_state_replayed", "_remote_max_datagram_frame_size", "host_cid",
        }  # fmt: skip
        assert names <= set(vars(connection))
        signatures = {
            "_create_core": ["self", "remote_addr", "initial_dcid", "now"],
            "_create_tls": ["self", "remote_source_cid"],
            "_receive_retry": ["self", "data", "address", "now"],
            "_receive_version_negotiation": ["self", "data", "address", "now"],
            "_learn_remote_source_cid": ["self", "data"],
            "_drain_tls": ["self"],
            "_set_version": ["self", "version"],
            "_open_stream": ["self", "is_unidirectional"],
        }
        for name, parameters in signatures.items():
            assert list(inspect.signature(getattr(QuicConnection, name)).parameters) == parameters
        assert "self._create_tls(" in inspect.getsource(QuicConnection.connect)
        assert "self._create_core(" in inspect.getsource(QuicConnection.connect)

    def test_core(self):
        from qh3._hazmat import QuicConnectionCore

        names = (
            "receive_datagram receive_many_datagrams next_event poll_transmit get_timer handle_timer send_stream reset_stream "
            "stop_sending send_datagram send_ping close handshake_confirmed state version received_authenticated_packet "
            "smoothed_rtt get_send_buffer_size stream_limits can_send_stream active_path open_stream "
            "outstanding_application_packets"
        )
        for name in names.split():
            assert hasattr(QuicConnectionCore, name), name

    def test_a_packet_stands_with_its_number_among_the_outstanding_ones(self):
        from quic_pair import Pair

        pair = Pair("qq")
        pair.connect()
        core = pair.dialler.endpoint._connections[pair.dialler.established].engine._quic.core
        core.send_ping(7)
        assert core.poll_transmit(pair.now) is not None
        number = core.outstanding_application_packets[-1][0]
        core.send_ping(8)
        core.poll_transmit(pair.now)
        assert core.outstanding_application_packets[-1][0] == number + 1

    def test_tls(self):
        tls = sys.modules["qh3.tls"]
        code = tls.Context._server_handle_hello.__code__
        assert {"push_encrypted_extensions", "_alps_negotiated", "_expected_verify_data"} <= set(code.co_names)
        assert tls.Context._server_handle_hello.__closure__ is None
        assert list(inspect.signature(tls.Context._process_certificate).parameters) == ["self", "certificate"]
        assert "_alps_negotiated" in inspect.getsource(tls.Context._server_handle_finished)
        assert "self._process_certificate(" in inspect.getsource(tls.Context._client_handle_certificate)
        assert "self._process_certificate(" in inspect.getsource(tls.Context._client_handle_compressed_certificate)
        context = tls.Context(is_client=False, alpn_protocols=["libp2p"])
        assert "_receive_buffer" in vars(context)
        assert not hasattr(type(context), "__slots__")

    def test_bridge(self):
        from qh3.quic.tls_bridge import QuicTlsBridge

        assert {"version_change_handler", "local_initial_source_connection_id"} <= set(
            inspect.signature(QuicTlsBridge).parameters
        )
        assert "self.serialize_transport_parameters()" in inspect.getsource(QuicTlsBridge.__init__)
        named = ["self", "data", "from_session_ticket"]
        assert list(inspect.signature(QuicTlsBridge.parse_transport_parameters).parameters) == named
        assert "self.parse_transport_parameters(" in inspect.getsource(QuicTlsBridge)

    def test_what_is_sent_at_once_and_what_waits(self):
        from quic_pair import Pair

        pair = Pair("qq")
        pair.connect()
        core = pair.dialler.endpoint._connections[pair.dialler.established].engine._quic.core
        assert 1350 <= core.active_path[5] <= 1472  # the largest UDP payload
        core.send_stream(core.open_stream(False), bytes(1000), False)
        assert core.get_send_buffer_size() == 1000
        assert core.poll_transmit(pair.now) is not None
        assert core.get_send_buffer_size() == 0
