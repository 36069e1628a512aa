"""The conformance suite: each sentence of the specification, tried on a node at any address.

`registry` holds the cases, `index` the sentences that they name, `wire` a QUIC peer that can misbehave, `peer` what a case is
given, `runner` the order in which cases run, `report` and `command` what a person sees of it. The cases stand in `cases`, a
module for a chapter or a part of one.

Spec: docs/spec/README.md, section "The conformance suite".
"""
