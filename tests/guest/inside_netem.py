"""Runs in a guest: two nodes in two network namespaces, with a link of the kernel's between them that delays and loses.

usage: inside_netem.py DELAY_MS LOSS_PERCENT
"""

import json
import subprocess
import sys

from inside_nodes import Node, meet

delay_ms, loss_percent = sys.argv[1:]
SAMPLES_MIN = 8
"""Round trips that the median is taken over: those of the start are long, because both nodes are busy."""
ASKED = {"model": "isochrone-tiny-text", "messages": [{"role": "user", "content": "The link"}], "max_tokens": 8}


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


run("modprobe veth")
run("modprobe sch_netem")
for number, name in enumerate(("near", "far"), 1):
    run(f"ip netns add {name}")
    if number == 1:
        run("ip link add cable netns near type veth peer name cable")
    else:
        run("ip link set cable netns far")
    run(f"ip -n {name} addr add 10.77.0.{number}/24 dev cable")
    run(f"ip -n {name} link set lo up")
    run(f"ip -n {name} link set cable up")
    run(f"tc -n {name} qdisc add dev cable root netem delay {delay_ms}ms loss {loss_percent}%")

patient = "tests/guest/inside_patient_node.py"
near = Node("near", "--engine", "none", listen="10.77.0.1", namespace="near", program=patient)
near.wait_ready()
far = Node("far", "--engine", "onnx:text", "--bootstrap", near.address, listen="10.77.0.2", namespace="far", program=patient)
far.wait_ready()
meet(near, far)
near.wait(lambda: (near.peers()[far.peer_id]["samples"] or 0) >= SAMPLES_MIN, f"take {SAMPLES_MIN} samples")
answer, headers = near.ask("/v1/chat/completions", ASKED)
told = {
    "answer": answer["choices"][0]["message"]["content"],
    "tokens": answer["usage"]["completion_tokens"],
    "is_answered_by_far": headers["x-mesh-node"] == far.peer_id,
    "distance": near.command("distance", far.peer_id),
    "dropped": json.loads(subprocess.check_output(["tc", "-n", "far", "-s", "-j", "qdisc", "show", "dev", "cable"]))[0]["drops"],
}
for node in (near, far):
    node.stop()
for name in ("near", "far"):
    run(f"ip netns del {name}")
print(json.dumps(told))
