"""Stands in for torchaudio, which LLaMA-Factory imports on start but uses for audio only.

The published wheels are CUDA builds that do not load on a CPU-only machine; fine-tuning text needs none of them.
"""


def __getattr__(name: str) -> object:
    raise AttributeError(f"torchaudio.{name} is not available: this environment trains on text only")
