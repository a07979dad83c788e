"""Where the weights go: a device by its name, "auto" for the best that there is."""
import torch

from minillava.on_cpu import product_dtype

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def find_device(name):
    """"auto", "cuda", "cuda:1", "mps", "cpu" -> torch.device; ValueError if it is not here."""
    here = devices_here()
    if str(name) == "auto":
        return torch.device(here[0])

    device = parse_device(name)
    if device is None or device.type not in here or not has_index(device):
        raise ValueError(f"there is no device {str(name)!r:.40} here, only {' and '.join(here)}")
    return device


def devices_here():
    """The kinds of device that this torch can use on this machine, the fastest first."""
    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.insert(0, "mps")
    if torch.cuda.is_available():
        devices.insert(0, "cuda")
    return devices


def parse_device(name):
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):  # no kind of device that any torch knows
        return None


def has_index(device):
    """cuda:7 wants eight of them."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return (device.index or 0) < count


def choose_dtype(name, stored, device):
    """"auto": as stored; "fast": what the device is good at; else find_dtype(name)."""
    if stored not in DTYPES:  # float64
        stored = torch.float32
    if name == "auto":
        return stored
    if name == "fast":
        return fast_dtype(stored, device)
    return find_dtype(name)


def find_dtype(name):
    """"bfloat16" or torch.bfloat16 -> torch.bfloat16; ValueError if it is none of DTYPES."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if dtype not in DTYPES:
        raise ValueError(f"dtype {name!r:.40} is none of bfloat16, float16 and float32")
    return dtype


def training_dtype(name, device):
    """What a training computes in: as asked; "auto": bf16, or fp32 on a CPU that is slow in it."""
    return product_dtype(torch.bfloat16, device) if name == "auto" else find_dtype(name)


def fast_dtype(stored, device):
    """As stored, or the other one of 16 bits where the device is slow in it or cannot do it.

    Measured on a CPU with avx512_bf16, 600 tokens through 4096 x 4096: 235 ms in bfloat16, 2144 ms
    in float16. GPUs older than Ampere have float16 alone.
    """
    if device.type == "cpu" and stored == torch.float16:
        return torch.bfloat16
    if device.type == "cuda" and stored == torch.bfloat16:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return stored
