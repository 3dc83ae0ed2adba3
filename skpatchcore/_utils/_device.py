"""Where to compute, and in which arithmetic."""

import torch

_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device) -> torch.device:
    """Return `device`, or CUDA when there is one and `device` is None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is no torch device: {str(error).splitlines()[0]}"
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} was asked for, but torch sees no CUDA GPU."
        )
    try:
        torch.zeros(1, device=resolved).cpu()
    except Exception as error:
        # The type depends on the kind of device: RuntimeError, AssertionError, ...
        raise ValueError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return resolved


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of a network; "auto" is the fastest that is good enough.

    On real classes float16, where every number is rounded to 11 bits, moves the image
    AUROC by no more than 0.0005. The 8 bits of bfloat16 move it by up to 0.005 on the
    hardest class, those of the weights alone by 0.002, so it is for users to choose.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    return torch.float16 if has_float16_units(device) else torch.float32


def has_float16_units(device: torch.device) -> bool:
    """Tell whether `device` multiplies matrices of float16 faster than of float32."""
    if device.type == "cuda":
        # Tensor cores came with compute capability 7.0.
        return torch.cuda.get_device_capability(device) >= (7, 0)
    if device.type != "cpu":
        return False
    # AMX of Granite Rapids. Other processors know float16 as a format at most.
    supported = getattr(torch.cpu, "_is_amx_fp16_supported", None)
    return supported is not None and supported()
