"""The commands of owners: what they write, and what they say when they cannot."""

import json
import os
import re

import pytest

from mesh import cli
from mesh.admission import files
from mesh.admission.commands import seconds_of
from mesh.nodefile import ClientError
from protocol.admission import open_token, parse_token
from protocol.identity import Identity, peer_id_text

ADDRESS = "/ip4/192.0.2.7/udp/4001/quic-v1"
PEER = peer_id_text(Identity.from_seed(bytes([66]) * 32).peer_id)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("ISOCHRONE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run one command line; its exit code, and what it printed on both streams."""

    def run(*tokens):
        code = cli.run(list(tokens))
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def shown(run, *where):
    code, out, _ = run("network", "show", "--json", *where)
    assert code == 0
    return json.loads(out)


def test_a_network_is_made_and_shown(run, tmp_path) -> None:
    code, out, _ = run("network", "create", "--name", "acme", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["network"].startswith("net-")
    assert (tmp_path / ".local/share/isochrone/network/root.pem").stat().st_mode & 0o777 == 0o600
    facts = shown(run)
    assert (facts["network"], facts["name"], facts["standing"]) == (made["network"], "acme", "member")
    assert facts["is_issuer"]
    assert facts["days_left"] == pytest.approx(30, abs=0.2)
    assert facts["delegated"] == ["admit", "revoke", "federate"]
    assert facts["descriptor"] == made["descriptor"]
    code, out, _ = run("network", "show")
    assert code == 0
    assert made["network"] in out
    assert "issuers" in out
    assert "this node" in out
    assert "No node is revoked." in out
    assert f"isochrone network federate {made['descriptor']}\n" in out  # to be copied, so in one line


def test_a_second_network_in_one_directory_is_refused(run) -> None:
    run("network", "create")
    code, _, err = run("network", "create")
    assert code == cli.EXIT_START
    assert "--network-dir" in err


def test_the_key_may_lie_elsewhere_and_is_never_written_over(run, tmp_path) -> None:
    key = tmp_path / "stick.pem"
    assert run("network", "create", "--key", str(key))[0] == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / ".local/share/isochrone/network/root.pem").exists()
    code, _, err = run(
        "network", "create", "--key", str(key), "--network-dir", str(tmp_path / "n"), "--state-dir", str(tmp_path / "s")
    )
    assert code == cli.EXIT_START
    assert "never written over" in err


def test_an_invitation_says_what_was_asked_for(run) -> None:
    run("network", "create")
    code, out, err = run("invite", "--uses", "8", "--expires", "2d", "--owner", "lab2", "--roles", "gpu", "--address", ADDRESS)
    assert code == 0
    assert "for 8 machines" in err
    match = re.fullmatch(r"isochrone join (isoinvite1[a-z2-7]+)\n", out)
    assert match is not None
    token = open_token(parse_token(match[1]))
    assert (token.uses, token.owner, token.roles) == (8, "lab2", ("gpu",))
    assert token.expires_s - token.issued_s == 2 * 86_400
    assert [str(address) for address in token.addresses] == [ADDRESS]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (("invite",), "or say with --address"),
        (("invite", "--address", ADDRESS, "--expires", "soon"), "no duration"),
        (("invite", "--address", ADDRESS, "--expires", "100d"), "cannot be made"),
        (("invite", "--address", ADDRESS, "--uses", "0"), "cannot be made"),
        (("invite", "--address", "here"), "write an address such as"),
        (("join", "isoinvite1xyz"), "copy it again"),
        (("join", "hello"), "copy it again"),
        (("network", "revoke", "nobody"), "peer id"),
        (("network", "federate", "rubbish"), "copy it again"),
        (("network", "accept", "rubbish"), "copy it again"),
        (("network", "leave"), "none to leave"),
        (("network", "delegate", PEER, "--key", "/nonexistent"), "no key at /nonexistent"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(run, tokens, said) -> None:
    run("network", "create")
    code, out, err = run(*tokens)
    assert code in (cli.EXIT_FAILED, cli.EXIT_START)
    assert said in err
    assert out == ""
    assert err.count("\n") == 1


def test_a_revocation_is_numbered_and_kept_and_the_next_adds_to_it(run, tmp_path) -> None:
    run("network", "create")
    assert run("network", "revoke", PEER, "--reason", "sold")[0] == 0
    other = peer_id_text(Identity.from_seed(bytes([67]) * 32).peer_id)
    assert run("network", "revoke", other)[0] == 0
    facts = shown(run)
    assert {(row["peer_id"], row["reason"]) for row in facts["revoked"]} == {(PEER, "sold"), (other, "")}
    assert {row["by"] for row in facts["revoked"]} == {"the network's key"}
    assert len(list((tmp_path / ".local/state/isochrone/notices").iterdir())) == 1


def test_an_issuer_revokes_without_the_networks_key(run, tmp_path) -> None:
    key = tmp_path / "stick.pem"
    run("network", "create", "--key", str(key))
    run("network", "revoke", PEER)
    (row,) = shown(run)["revoked"]
    assert row["by"].startswith("12D3KooW")
    run("network", "revoke", PEER, "--key", str(key))
    assert {row["by"] for row in shown(run)["revoked"]} == {row["by"], "the network's key"}


def test_networks_are_let_in_and_let_go(run, tmp_path) -> None:
    run("network", "create")
    elsewhere = ("--network-dir", str(tmp_path / "n"), "--state-dir", str(tmp_path / "s"))
    _, out, _ = run("network", "create", "--name", "them", "--json", *elsewhere)
    theirs = json.loads(out)
    assert run("network", "federate", theirs["descriptor"], "--nodes", "3", "--requests", "2", "--for", "10d")[0] == 0
    (row,) = shown(run)["federated"]
    assert (row["network"], row["name"], row["nodes_max"], row["requests_max"]) == (theirs["network"], "them", 3, 2)
    assert row["days_left"] == pytest.approx(10, abs=0.2)
    assert run("network", "federate", theirs["descriptor"], "--end")[0] == 0
    assert shown(run)["federated"] == []
    code, _, err = run("network", "federate", shown(run)["descriptor"])
    assert code == cli.EXIT_FAILED
    assert "own network" in err


def test_another_node_is_made_an_issuer(run, tmp_path) -> None:
    run("network", "create")
    state = ("--state-dir", str(tmp_path / "other"))
    run("network", "create", "--network-dir", str(tmp_path / "scratch"), *state)
    (tmp_path / "other" / files.MEMBERSHIP_FILE).unlink()
    _, out, _ = run("network", "show", "--json", *state)
    identity = files.read_network(tmp_path / ".local/share/isochrone/network")
    assert json.loads(out)["network"] == identity.network_id  # the user's own, not yet started
    from mesh.admission.commands import node_identity

    peer_id = peer_id_text(node_identity(tmp_path / "other").peer_id)
    code, out, _ = run("network", "delegate", peer_id, "--owner", "lab2")
    assert code == 0
    code, _, err = run("network", "accept", out.strip())
    assert code == cli.EXIT_FAILED
    assert "not for this node" in err
    code, _, err = run("network", "accept", out.strip()[:-1] + ("a" if out.strip()[-1] != "a" else "b"), *state)
    assert code == cli.EXIT_FAILED
    assert "a character is missing, wrong or too many" in err
    assert run("network", "accept", out.strip(), *state)[0] == 0
    facts = shown(run, *state)
    assert (facts["standing"], facts["owner"], facts["is_issuer"]) == ("member", "lab2", True)
    assert run("invite", "--owner", "lab2", "--address", ADDRESS, *state)[0] == 0
    code, _, err = run("invite", "--owner", "lab3", "--address", ADDRESS, *state)
    assert code == cli.EXIT_FAILED
    assert "names other owners" in err
    assert run("network", "leave", *state)[0] == 0


@pytest.mark.parametrize("command", ["create", "show", "revoke", "federate", "delegate", "accept", "leave"])
def test_each_command_explains_itself(run, command) -> None:
    code, out, _ = run("network", command, "--help")
    assert code == 0
    assert "--json" in out
    assert f"isochrone network {command}" in out


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("2 w", 1_209_600)])
def test_durations(text, seconds) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "1.5d", "7days"])
def test_what_is_no_duration(text) -> None:
    with pytest.raises(ClientError, match="no duration"):
        seconds_of(text)
