"""Which GPUs jobs see: the one place where FT_GPUS outranks CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

from collections.abc import Mapping


def visible_gpus(gpus: str | None, visible: str | None) -> tuple[str, ...] | None:
    """Indices or UUIDs of the GPUs that jobs may use; None for all.

    Args:
        gpus: FT_GPUS: "none", or a list as nvidia-smi counts them.
        visible: CUDA_VISIBLE_DEVICES: a list that ends at its first invalid entry, as CUDA reads it.
    """
    if gpus is not None:
        return () if gpus == "none" else tuple(gpus.split(","))
    if visible is None:
        return None
    chosen: list[str] = []
    for device in (entry.strip() for entry in visible.split(",")):
        if not device or device.startswith("-") or device == "NoDevFiles":
            break
        chosen.append(device)
    return tuple(chosen)


def environment_of_jobs(environ: Mapping[str, str], gpus: str | None) -> dict[str, str]:
    """`environ` as a CUDA program that runs as a job reads it; unchanged where FT_GPUS is unset.

    Args:
        environ: The caller's environment, or a part of it.
        gpus: FT_GPUS.
    """
    if gpus is None:
        return dict(environ)
    chosen = visible_gpus(gpus, environ.get("CUDA_VISIBLE_DEVICES")) or ()
    # FT_GPUS counts as nvidia-smi does, which is not CUDA's own order.
    return {**environ, "CUDA_VISIBLE_DEVICES": ",".join(chosen), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
