"""RDMA as a fabric: ports and their addresses, queue pairs that trio waits on, registered memory, sessions, and what opens them.

Spec: docs/spec/11-fabric.md, section "RDMA".
"""
