"""Memory of NVIDIA's GPUs: the driver, tensors that stay on a device, and the fabric by which two processes of one GPU pass them.

Spec: docs/spec/11-fabric.md.
"""

from mesh.fabric.gpu.arrays import DeviceArray, all_ready, array_of, device_array, device_tensor, is_on_device, to_device
from mesh.fabric.gpu.dlpack import DeviceArrayError
from mesh.fabric.gpu.driver import Cuda, CudaError, Device, GpuAbsentError, driver
from mesh.fabric.gpu.pool import Pool

__all__ = [
    "Cuda",
    "CudaError",
    "Device",
    "DeviceArray",
    "DeviceArrayError",
    "GpuAbsentError",
    "Pool",
    "all_ready",
    "array_of",
    "device_array",
    "device_tensor",
    "driver",
    "is_on_device",
    "to_device",
]
