"""RDMA's verbs for Python: a small binding to libibverbs, and typed objects over it that own what they make.

`shim.c` and `shim.h` are all the C there is. `binding` finds the compiled binding, and compiles it where libibverbs' headers
and a compiler are; `objects` are the devices, protection domains, regions, windows, completion queues and queue pairs.

Source: ibv_*(3) of rdma-core; InfiniBand Architecture Specification 1.4, volume 1, chapters 9 to 11.
"""
