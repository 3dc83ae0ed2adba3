"""Choose the device and the number format of computations."""

import torch

_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return `device` after a check; None is CUDA if available, else the CPU.

    Raises
    ------
    ValueError
        If `device` is not a torch device, or cannot be used on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a torch device: {str(error).splitlines()[0]}"
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} was requested, but no CUDA GPU is available. Use "
            "device='cpu', or None to choose automatically."
        )
    try:
        torch.zeros(1, device=resolved).cpu()
    except Exception as error:
        # The type depends on the device: RuntimeError, AssertionError, ...
        raise ValueError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return resolved


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a network; "auto" is the fastest that is accurate enough.

    float16 rounds every number to 11 bits, which changes the image AUROC by at most
    0.0005 on real classes. bfloat16 rounds to 8 bits. That changes it by up to 0.005 on
    the hardest class (by 0.002 if only the weights are rounded), so "auto" never
    selects bfloat16.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    return torch.float16 if has_float16_units(device) else torch.float32


def has_float16_units(device: torch.device) -> bool:
    """Return whether `device` multiplies float16 matrices faster than float32 ones."""
    if device.type == "cuda":
        # Tensor cores exist from compute capability 7.0 on.
        return torch.cuda.get_device_capability(device) >= (7, 0)
    if device.type != "cpu":
        return False
    # AMX of Granite Rapids. Other processors have no fast float16 arithmetic.
    supported = getattr(torch.cpu, "_is_amx_fp16_supported", None)
    return supported is not None and bool(supported())
