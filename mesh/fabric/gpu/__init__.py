"""Memory of NVIDIA's GPUs: the driver, tensors that stay on a device, and the fabric by which two processes of one GPU pass them.

Spec: docs/spec/11-fabric.md.
"""

from mesh.fabric.gpu.driver import Cuda, CudaError, Device, GpuAbsentError, driver

__all__ = ["Cuda", "CudaError", "Device", "GpuAbsentError", "driver"]
